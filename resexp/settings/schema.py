"""The settings of one run: plain dataclasses with every default, its unit and its source.

A default lives here and nowhere else; the YAML files under ``configs/`` hold what differs from it.
The defaults are those of ``experiment=digits``, so every command works on any machine.
Nothing here knows Hydra, Typer or torch.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from enum import StrEnum
from operator import attrgetter
from typing import Annotated, Any

from resexp.settings.fields import Above, Mark, Range, UsageError, check_range, leaves

HERE, LATER = Mark.here, Mark.later


class Merge(StrEnum):
    """The merge rules that code beside resexp.models.merges speaks of. There are more of them.

    A rule's name is text (``Arch.merge``), so compare with ``==``, not with ``is``.
    """

    plain = "plain"  # F(x)
    residual = "residual"  # S(x) + F(x)
    scaled = "scaled"  # S(x) + a F(x), a learned
    concatenate = "concatenate"  # [S(x), F(x)]


class Twin(StrEnum):
    """Train an arch's twin in its place."""

    none = "none"
    plain = "plain"  # the same branches without the skip
    matched = "matched"  # without the skip, as wide as makes the parameters agree within 1 %


class Shortcut(StrEnum):
    """He et al. 2015, section 4.1: what the skip connection does where shapes change."""

    A = "A"  # every second pixel, new channels zero: no parameters
    B = "B"  # 1x1 projection where shapes change, identity elsewhere
    C = "C"  # 1x1 projection in every block


class Order(StrEnum):
    """Order of the layers in a block: He et al. 2016, figure 4 (a) to (e), and Fixup's."""

    original = "original"
    bn_after_addition = "bn_after_addition"
    relu_before_addition = "relu_before_addition"
    relu_only_preactivation = "relu_only_preactivation"
    full_preactivation = "full_preactivation"
    fixup = "fixup"  # scalar biases in place of normalisation: Zhang et al. 2019


class Unit(StrEnum):
    """The branch: 3x3 convolutions (two unless skip_span says otherwise), or 1x1, 3x3, 1x1."""

    basic = "basic"
    bottleneck = "bottleneck"


class Normalisation(StrEnum):
    """What stands after (or before) each convolution."""

    batch = "batch"
    group = "group"  # eight groups of channels, or fewer where they do not divide: Wu and He 2018
    layer = "layer"  # one group: all channels and pixels of an image
    none = "none"  # a bias for each channel


class Activation(StrEnum):
    """What stands for each ReLU."""

    relu = "relu"
    leaky_relu = "leaky_relu"  # arch.slope times negative values
    tat = "tat"  # leaky, the slope by the depth, for networks without skips: Zhang et al. 2022
    selu = "selu"  # Klambauer et al. 2017
    tanh = "tanh"
    crelu = "crelu"  # [relu(x), relu(-x)], twice the channels: Shang et al. 2016


class BottleneckStride(StrEnum):
    """The convolution of a bottleneck that strides."""

    first = "first"  # 1x1: the paper and the authors' release
    middle = "middle"  # 3x3: torchvision


#: Which images train: all of them, or 45,000 of 50,000 as in He et al. 2015, section 4.2.
Split = StrEnum("Split", {"full": "full", "45k": "45k"})


class Stream(StrEnum):
    """When an image folder is streamed from its files in place of being decoded into memory."""

    auto = "auto"  # when it would take more than half of the free memory
    always = "always"
    never = "never"


class Normalise(StrEnum):
    """What is subtracted from an image scaled to 0..1, from training statistics."""

    pixel_mean = "pixel_mean"  # a mean image: He et al. 2015, section 4.2
    channel_std = "channel_std"  # a mean per channel, divided by its standard deviation
    none = "none"


class Init(StrEnum):
    """Initial weights of convolutions: normal with mean 0 and this variance, which is for ReLU.

    Those below xavier are for the convolutions of branches; others start as by he_fan_out.
    """

    he_fan_out = "he_fan_out"  # 2 / (k k C_out): the authors' release
    he_fan_in = "he_fan_in"  # 2 / (k k C_in)
    xavier = "xavier"  # 2 / (k k (C_in + C_out))
    delta_orthogonal = "delta_orthogonal"  # 0 but for an orthogonal centre: Xiao et al. 2018
    dirac = "dirac"  # the identity, whatever the seed: channel c hands on channel c mod C_in
    looks_linear = "looks_linear"  # [W, -W] behind CReLU, delta-orthogonal: Balduzzi et al. 2017
    zero_gamma = "zero_gamma"  # he_fan_out, and branches silent by their last norm: Goyal 2017


class WeightDecayOn(StrEnum):
    """What weight decay pulls to zero."""

    all = "all"  # every parameter: the authors' release
    weights = "weights"  # convolution and classifier weights only


class Precision(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"  # activations in bfloat16; weights, statistics and loss stay fp32
    tf32 = "tf32"  # fp32, multiplied on a GPU's tensor cores with 10 bits behind the point
    fp64 = "fp64"  # everything in float64: a reference, slow


class Engine(StrEnum):
    """How the step of training is carried out: which kernels, and launched by whom."""

    eager = "eager"  # PyTorch's operations, one after another: the reference
    graph = "graph"  # the same, captured in a CUDA graph once and replayed
    triton = "triton"  # a graph, with own kernels for all but convolutions and matrix products
    auto = "auto"  # on a GPU triton, if its kernels pass a check, or else graph; else eager


class BnEval(StrEnum):
    """Batch-normalisation statistics at evaluation."""

    ema = "ema"  # the moving average kept while training
    recalibrated = "recalibrated"  # averaged over clean training batches first, as He et al. did


@dataclass(kw_only=True, slots=True)
class Arch:
    """How a network's branches are built, merged with their input and stacked."""

    family: Annotated[str, "module of resexp.models that stacks the branches"] = "cifar"
    depths: Annotated[str, "depths there are: 3n+4, or 18 34 50; empty: as blocks go"] = ""
    merge: Annotated[str, "rule that joins a branch F(x) and the shortcut S(x)"] = Merge.plain
    shortcut: Annotated[Shortcut, "S(x) where shapes change"] = Shortcut.A
    order: Annotated[Order, "order of a block's layers"] = Order.original
    unit: Annotated[Unit, "convolutions of a branch"] = Unit.basic
    norm: Annotated[Normalisation, "normalisation layers"] = Normalisation.batch
    activation: Annotated[Activation, "what stands for each ReLU", LATER] = Activation.relu
    slope: Annotated[float, Range(0, 1), "of leaky_relu where x < 0", LATER] = 0.01
    bottleneck_stride: Annotated[BottleneckStride, "which strides"] = BottleneckStride.first
    skip_span: Annotated[int, Range(1, 3), "convolutions that a skip of a basic unit spans"] = 2
    skip_stages: Annotated[list[int] | None, "stages with skips, from 1; null: all"] = None
    survival: Annotated[float, Above(0, 1), "of the last branch, falling from 1"] = 1.0
    se_ratio: Annotated[int, Range(0, 4096), "squeeze-and-excitation: channels a unit; 0: none"] = 0
    scalar_lr: Annotated[float, Range(0, 1000), "share of lr for single learned numbers"] = 1.0
    # what the family or the merge rule alone reads
    options: Annotated[dict[str, Any], "of a family or a rule"] = field(default_factory=dict)


MOST_SEED = 2**63 - 1


@dataclass(kw_only=True, slots=True)
class Seeds:
    """Seeds of their own for what ``seed`` decides, to ask which of it matters. null: ``seed``."""

    weights: Annotated[int | None, Range(0, MOST_SEED), "of the initial weights", LATER] = None
    batches: Annotated[int | None, Range(0, MOST_SEED), "of the order of images", LATER] = None
    augmentation: Annotated[int | None, Range(0, MOST_SEED), "of crops and mirrors", LATER] = None


@dataclass(kw_only=True, slots=True)
class Data:
    """Which images, and where they lie."""

    name: Annotated[str, "what the set is called"] = "digits"
    loader: Annotated[str, "module of resexp.data.sets that reads it"] = "digits"
    root: Annotated[str, "folder of the files; of an imagefolder: a folder, tar or zip", HERE] = (
        "data"
    )
    download: Annotated[bool, "fetch with torchvision what is not in root", HERE] = True
    split: Annotated[Split, "which images train"] = Split.full
    size: Annotated[int | None, Range(8, 1024), "pixels a side of an imagefolder's squares"] = None
    cache: Annotated[str, "for decoded image folders and dry runs", HERE] = "~/.cache/resexp"
    stream: Annotated[Stream, "decode an imagefolder batch by batch", HERE] = Stream.auto
    workers: Annotated[int, Range(0, 256), "processes that decode; 0: a core each, to 16", HERE] = 0


@dataclass(frozen=True, slots=True)
class Launcher:
    """Who carries out the runs of a command on this machine."""

    run_all: str  # module:function that makes Messages of jobs; a name, for it imports torch
    several: bool = False  # whether networks are trained at the same time
    warm: str = ""  # module:function that begins, without waiting, what takes it time at its start


#: By launch.name; the launchers that are not here are packages of Hydra's.
LAUNCHERS = {
    "local": Launcher("resexp.launch.local:run_all"),
    "lockstep": Launcher("resexp.launch.local:lockstep", several=True),
    "processes": Launcher(
        "resexp.launch.processes:launch", several=True, warm="resexp.launch.processes:warm"
    ),
}


@dataclass(kw_only=True, slots=True)
class Launch:
    """How the runs of a sweep are carried out."""

    name: Annotated[str, "launcher"] = "local"
    # 0: processes and joblib one a core, at most 8, or 2 a GPU; lockstep all to 64
    jobs: Annotated[int, Range(0, 256), "runs at a time; 0: as many as the machine takes"] = 0
    ranks: Annotated[int, Range(1, 64), "processes of one network, each a share of a batch"] = 1
    gpus: Annotated[float, Range(0, 64), "of a run: 0.5 under ray (two share one), 1 slurm"] = 0.0
    cores: Annotated[int, Range(1, 1024), "of a run under ray and slurm, and its threads"] = 1
    address: Annotated[str | None, "of a Ray cluster that is up: auto, or host:port"] = None
    partition: Annotated[str | None, "of Slurm"] = None
    minutes: Annotated[int, Range(1, 10**6), "of a run under slurm; then it is queued again"] = 240


@dataclass(kw_only=True, slots=True)
class Settings:
    """Everything that decides one run."""

    # what is compared
    arch: Arch = field(default_factory=Arch)
    twin: Annotated[Twin, "train the arch's twin in its place"] = Twin.none
    depth: Annotated[int, Range(1, 20_000), "weighted layers"] = 20
    width: Annotated[int, Range(1, 4096), "channels of the first stage, doubled at each next"] = 16
    seed: Annotated[int, Range(0, MOST_SEED), "of initial weights, batches, augmentation"] = 0
    seeds: Seeds = field(default_factory=Seeds)
    data: Data = field(default_factory=Data)

    # budget
    steps: Annotated[int, Range(1, 10**9), "optimizer steps"] = 220
    batch_size: Annotated[int, Range(2, 10**6), "images a step"] = 64

    # recipe
    recipe: Annotated[str, "name of the settings below as a whole"] = "digits"
    optimizer: Annotated[str, "rule of a step; chosen, it brings its lr and decay", LATER] = "sgd"
    lr: Annotated[float, Above(0, 10**6), "learning rate at the start"] = 0.02
    momentum: Annotated[float, Range(0, 0.9999999), "of the steps before; beta 1 of AdamW"] = 0.9
    nesterov: Annotated[bool, "Nesterov's momentum"] = False
    weight_decay: Annotated[float, Range(0, 1), "a step, times the learning rate"] = 1e-4
    weight_decay_on: Annotated[WeightDecayOn, "what it pulls to zero"] = WeightDecayOn.all
    milestones: Annotated[list[float], "fractions of steps at which the rate drops"] = field(
        default_factory=lambda: [0.5, 0.75]
    )
    lr_drop: Annotated[float, Above(0, 1), "factor on the rate at a milestone"] = 0.1
    warmup_steps: Annotated[int, Range(0, 10**9), "first steps, at warmup_lr"] = 0
    warmup_lr: Annotated[float, Above(0, 10**6), "learning rate of warm-up"] = 0.01
    warmup_depth: Annotated[int, Range(0, 10**9), "layers from which on networks warm up"] = 0
    crop_padding: Annotated[int, Range(0, 64), "pixels of zeros before a crop; 0: no crop"] = 0
    flip: Annotated[bool, "mirror half of the images"] = False
    normalise: Annotated[Normalise, "what is subtracted from images"] = Normalise.pixel_mean
    init: Annotated[Init, "initial weights of convolutions"] = Init.he_fan_out
    bn_momentum: Annotated[float, Above(0, 1), "share of a batch in moving statistics"] = 0.1
    bn_eps: Annotated[float, Above(0, 1), "added to a batch's variance"] = 1e-5
    bn_eval: Annotated[BnEval, "batch-normalisation statistics at evaluation"] = BnEval.ema
    bn_sync: Annotated[bool, "batch statistics over all ranks, not each rank's share"] = False

    # numerics
    precision: Annotated[Precision, "of activations"] = Precision.fp32
    deterministic: Annotated[bool, "deterministic CUDA kernels only (a CPU's all are)"] = False

    # records
    eval_every: Annotated[int, Range(1, 10**9), "steps between rows of metrics.csv"] = 22
    clean_every: Annotated[int, Range(1, 10**9), "rows between clean passes; the last has one"] = 5
    collapse_after: Annotated[float, Range(0, 1), "at chance from this fraction of steps on"] = 0.5

    # of the verdict's first rule: still part of what a run is known by, and decides nothing
    threshold: Annotated[float, Above(0, 100), "least rise of log10 loss; decides nothing"] = 0.3

    # where and how, not what: changing these changes no number of a run
    remark: Annotated[str, "said with the figures", HERE] = ""
    name: Annotated[str, "folder under results", HERE] = "digits"
    results: Annotated[str, "folder of all runs", HERE] = "results"
    device: Annotated[str, "auto, cpu, cuda or cuda:1", HERE] = "auto"
    engine: Annotated[Engine, "how a training step is carried out", HERE] = Engine.auto
    threads: Annotated[int, Range(0, 512), "CPU threads; 0: one a core, or fewer", HERE] = 0
    checkpoint_every: Annotated[float, Range(0, 10**9), "seconds", HERE] = 60.0
    keep_checkpoint: Annotated[bool, "keep it when the run is done", HERE] = False
    overwrite: Annotated[bool, "replace the run that is there", HERE] = False
    fail_fast: Annotated[bool, "the first failure of a sweep ends it", HERE] = False
    loggers: Annotated[list[str], "tensorboard, mlflow, wandb", HERE] = field(default_factory=list)
    launch: Launch = field(default_factory=Launch)

    def __post_init__(self) -> None:
        check(self)

    def seed_of(self, what: str) -> int:
        """The seed of ``weights``, ``batches`` or ``augmentation``."""
        own: int | None = getattr(self.seeds, what)
        return self.seed if own is None else own


#: Layers times squared width that a network may have: some three billion weights, or 50 GB with
#: gradients and momentum.
MOST_WEIGHTS = 5 * 10**7


def check(settings: Settings) -> None:
    """Raise UsageError, naming the setting and a value that would do, if no run can have these."""
    for key, hint in leaves(Settings):
        check_range(key, hint, attrgetter(key)(settings))
    if settings.depth * settings.width**2 > MOST_WEIGHTS:
        width = math.isqrt(MOST_WEIGHTS // settings.depth)
        raise UsageError(
            f"width={settings.width} is more than fits into memory at depth={settings.depth}. "
            f"Choose up to width={width}."
        )
    if settings.data.stream is Stream.always and settings.data.loader != "imagefolder":
        raise UsageError("data.stream=always is for image folders. Choose data=imagefolder.")
    if any(not 0 < share < 1 for share in settings.milestones) or settings.milestones != sorted(
        settings.milestones
    ):
        raise UsageError(
            f"milestones={settings.milestones} must be rising shares of steps between 0 and 1, "
            "such as milestones=[0.5,0.75]."
        )
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", settings.device):
        raise UsageError(f"device={settings.device} is none of auto, cpu, cuda, cuda:1.")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", settings.name):  # one folder, not hidden
        raise UsageError(
            f"name={settings.name!r} cannot name a folder. Use letters, digits and _ . + -, such "
            "as name=first-try."
        )
    check_launch(settings)
    check_arch(settings.arch)
    check_depth(settings.depth, settings.arch)


def check_launch(settings: Settings) -> None:
    """Raise UsageError for shares of GPUs that the launcher cannot hand out, and for a network on
    several ranks that cannot be trained so.
    """
    launch, ranks = settings.launch, settings.launch.ranks
    if launch.gpus % 1 and (launch.gpus > 1 or launch.name == "slurm"):
        kind = "Slurm hands out" if launch.name == "slurm" else "above one, Ray hands out"
        whole = round(launch.gpus) or 1
        raise UsageError(f"launch.gpus={launch.gpus}: {kind} whole GPUs. Use launch.gpus={whole}.")
    if ranks > settings.batch_size:
        raise UsageError(
            f"launch.ranks={ranks}, but each rank needs an image of a batch, and batch_size="
            f"{settings.batch_size}. Choose 1 to {settings.batch_size}."
        )
    if ranks == 1:
        return
    if launch.name in LAUNCHERS and LAUNCHERS[launch.name].several:
        raise UsageError(
            f"launch.ranks={ranks} trains one network on several processes, and "
            f"launch={launch.name} several networks at a time. Leave one of them out."
        )
    if ":" in settings.device:
        raise UsageError(
            f"device={settings.device} is one GPU, and launch.ranks={ranks} needs {ranks}. "
            "Use device=cuda."
        )


def check_arch(arch: Arch) -> None:
    """Raise UsageError for settings that contradict each other or that no layer would read."""
    if arch.unit is Unit.bottleneck and arch.skip_span != Arch().skip_span:
        raise UsageError("arch.skip_span is for arch.unit=basic: a bottleneck has three.")
    if arch.slope != Arch().slope and arch.activation is not Activation.leaky_relu:
        raise UsageError(f"arch.slope={arch.slope} is for arch.activation=leaky_relu.")
    if arch.activation is Activation.crelu and arch.order is Order.relu_before_addition:
        raise UsageError(
            f"arch.activation=crelu doubles what branches add up in arch.order={arch.order}. "
            "Choose another order."
        )
    if arch.survival < 1 and arch.merge == Merge.plain:
        raise UsageError(
            "arch.survival is for networks with skips: without one, skipping a branch leaves "
            "nothing. Choose arch=stochastic_depth."
        )
    stages = arch.skip_stages
    if stages is not None and (min(stages, default=1) < 1 or sorted(set(stages)) != stages):
        raise UsageError(
            f"arch.skip_stages={stages} must name stages once, rising, from 1, such as "
            "'arch.skip_stages=[1,2]'."
        )


def check_depth(depth: int, arch: Arch) -> None:
    """Raise UsageError, naming the nearest, for a depth that the family does not have."""
    rule = arch.depths or f"{3 * convolutions_per_block(arch)}n+2"
    below, above = nearest_depths(rule, depth)
    if depth not in (below, above):
        nearest = ", ".join(f"{one}" for one in (below, above) if one is not None)
        is_not = f"is not {rule}" if "n" in rule else f"is none of {', '.join(rule.split())}"
        raise UsageError(f"depth={depth} {is_not}. Nearest: {nearest}.")


def convolutions_per_block(arch: Arch) -> int:
    """Weighted layers of one branch."""
    return 3 if arch.unit is Unit.bottleneck else arch.skip_span


def nearest_depths(rule: str, depth: int) -> tuple[int | None, int | None]:
    """The greatest depth up to ``depth`` and the least above it; the rule is 6n+2 or 18 34 50."""
    if formula := re.fullmatch(r"(\d*)n(?:\+(\d+))?", rule):
        factor, offset = int(formula[1] or 1), int(formula[2] or 0)
        blocks = max(0, (depth - offset) // factor)
        return (blocks * factor + offset if blocks else None), (blocks + 1) * factor + offset
    known = [int(word) for word in rule.split()]
    return (
        max((one for one in known if one <= depth), default=None),
        min((one for one in known if one > depth), default=None),
    )
