"""The settings of one run: plain dataclasses with every default, its unit and its source.

A default lives here and nowhere else; the YAML files under ``configs/`` hold what differs from it.
The defaults are those of ``experiment=digits``, so every command works on any machine.
Nothing here knows Hydra, Typer or torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from operator import attrgetter
from typing import Any


class UsageError(Exception):
    """Wrong usage or configuration: one sentence that says what to type next. Exit code 2."""


class Merge(StrEnum):
    """What becomes of the input x beside a branch F: y, with S(x) the shortcut."""

    plain = "plain"  # F(x)
    residual = "residual"  # S(x) + F(x)
    weighted = "weighted"  # shortcut_scale S(x) + branch_scale F(x)
    dropout = "dropout"  # dropout(S(x)) + F(x)
    highway = "highway"  # (1 - T(x)) S(x) + T(x) F(x), T a learned gate
    shortcut_gate = "shortcut_gate"  # (1 - T(x)) S(x) + F(x)
    scaled = "scaled"  # S(x) + a F(x), a learned
    concatenate = "concatenate"  # [x, F(x)]


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
    """Initial weights of convolutions, normal with mean 0 and this variance."""

    he_fan_out = "he_fan_out"  # 2 / (k k C_out): the authors' release
    he_fan_in = "he_fan_in"  # 2 / (k k C_in)
    xavier = "xavier"  # 2 / (k k (C_in + C_out))


class WeightDecayOn(StrEnum):
    """What weight decay pulls to zero."""

    all = "all"  # every parameter: the authors' release
    weights = "weights"  # convolution and classifier weights only


class Precision(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"  # activations in bfloat16; weights, statistics and loss stay fp32
    fp64 = "fp64"  # everything in float64: a reference, slow


class Engine(StrEnum):
    """How the step of training is carried out: which kernels, and launched by whom."""

    eager = "eager"  # PyTorch's operations, one after another: the reference
    graph = "graph"  # the same, captured in a CUDA graph once and replayed
    triton = "triton"  # a graph, with own kernels for normalisation, activation and addition
    auto = "auto"  # on a GPU the fastest that passes a trial at the start of the run; else eager


class BnEval(StrEnum):
    """Batch-normalisation statistics at evaluation."""

    ema = "ema"  # the moving average kept while training
    recalibrated = "recalibrated"  # averaged over clean training batches first, as He et al. did


@dataclass(kw_only=True, slots=True)
class Arch:
    """How a network's branches are built, merged with their input and stacked."""

    family: str = "cifar"  # the module of resexp.models that stacks the branches
    depths: str = ""  # depths there are: 3n+4, or 18 34 50; empty: what the blocks make
    merge: Merge = Merge.plain
    shortcut: Shortcut = Shortcut.A
    order: Order = Order.original
    unit: Unit = Unit.basic
    norm: Normalisation = Normalisation.batch
    bottleneck_stride: BottleneckStride = BottleneckStride.first
    skip_span: int = 2  # convolutions of a basic unit, over which a skip jumps
    skip_stages: list[int] | None = None  # stages whose blocks have skips, the first is 1; all
    survival: float = 1.0  # of the last block's branch in a step, falling linearly from 1
    se_ratio: int = 0  # squeeze-and-excitation of every branch, channels divided by this; 0: none
    scalar_lr: float = 1.0  # share of lr for single learned numbers (biases, multipliers)

    # of one merge each
    shortcut_scale: float = 1.0  # weighted
    branch_scale: float = 1.0  # weighted
    shortcut_dropout: float = 0.5  # dropout: share of the shortcut's values dropped
    gate_bias: float = -2.0  # highway, shortcut_gate: T starts near sigmoid of this
    branch_start: float = 0.0  # scaled: a at the start

    options: dict[str, Any] = field(default_factory=dict)  # what one family alone knows


@dataclass(kw_only=True, slots=True)
class Data:
    """Which images, and where they lie."""

    name: str = "digits"
    loader: str = "digits"  # a module of resexp.data.sets
    root: str = "data"  # folder of the files; for imagefolder a folder, tar or zip archive
    download: bool = True  # fetch with torchvision what is not in root
    split: Split = Split.full
    size: int | None = None  # imagefolder: the middle square of each image, resized to this
    cache: str = "~/.cache/resexp"  # where decoded image folders are kept
    stream: Stream = Stream.auto  # imagefolder: decode batch by batch while training
    workers: int = 0  # processes that decode a streamed set; 0: one a core, at most 16


@dataclass(kw_only=True, slots=True)
class Launch:
    """How the runs of a sweep are carried out."""

    name: str = "local"
    # runs at a time; 0: processes and joblib one a core, at most 8, or 2 a GPU; lockstep all to 64
    jobs: int = 0
    ranks: int = 1  # processes that train one network together, each on its share of the batches
    gpus: float = 0.0  # of a run: under ray 0.5 (two runs share one), under slurm 1
    cores: int = 1  # of a run under ray and slurm, and its threads
    address: str | None = None  # of a Ray cluster that is up: auto, or host:port
    partition: str | None = None  # of Slurm
    minutes: int = 240  # Slurm's limit for a run; one that reaches it is queued again and goes on


@dataclass(kw_only=True, slots=True)
class Settings:
    """Everything that decides one run."""

    # what is compared
    arch: Arch = field(default_factory=Arch)
    twin: Twin = Twin.none  # train the arch's twin in its place
    depth: int = 20  # weighted layers
    width: int = 16  # channels of the first stage; doubled at the second and third
    seed: int = 0  # decides initial weights, batch order and augmentation, each by itself
    data: Data = field(default_factory=Data)

    # budget
    steps: int = 220  # optimizer steps
    batch_size: int = 64  # images a step

    # recipe
    recipe: str = "digits"
    lr: float = 0.02
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    weight_decay_on: WeightDecayOn = WeightDecayOn.all
    milestones: list[float] = field(default_factory=lambda: [0.5, 0.75])  # shares of steps
    lr_drop: float = 0.1  # the rate is multiplied by this at each milestone
    warmup_steps: int = 0  # first steps at warmup_lr ...
    warmup_lr: float = 0.01
    warmup_depth: int = 0  # ... for networks at least this deep
    crop_padding: int = 0  # pixels of zero padding before a random crop; 0 is no crop
    flip: bool = False  # mirror half of the images
    normalise: Normalise = Normalise.pixel_mean
    init: Init = Init.he_fan_out
    bn_momentum: float = 0.1
    bn_eps: float = 1e-5
    bn_eval: BnEval = BnEval.ema
    bn_sync: bool = False  # batch statistics over all ranks, not over each rank's share alone

    # numerics
    precision: Precision = Precision.fp32
    deterministic: bool = False  # CUDA: deterministic kernels only (a CPU always is)

    # records
    eval_every: int = 22  # steps between rows of metrics.csv
    clean_every: int = 5  # rows between clean passes over the training set; the last row has one
    collapse_after: float = 0.5  # at chance from this share of the steps on: collapsed

    # the decision, fixed before training: science of resexp verdict
    threshold: float = 0.3  # least rise of log10 clean training loss that counts as degradation

    # where and how, not what: changing these changes no number of a run
    name: str = "digits"  # folder under results
    results: str = "results"
    device: str = "auto"  # auto, cpu, cuda or cuda:1
    engine: Engine = Engine.auto
    threads: int = 0  # CPU threads; 0: one a core, fewer where layers have too little work
    checkpoint_every: float = 60.0  # seconds
    keep_checkpoint: bool = False
    overwrite: bool = False
    fail_fast: bool = False  # the first failure of a sweep ends it
    loggers: list[str] = field(default_factory=list)  # tensorboard, mlflow, wandb, beside the CSV
    launch: Launch = field(default_factory=Launch)

    def __post_init__(self) -> None:
        check(self)


#: Settings of an arch that one kind of merge alone reads.
MERGE_SETTINGS = {
    "shortcut_scale": (Merge.weighted,),
    "branch_scale": (Merge.weighted,),
    "shortcut_dropout": (Merge.dropout,),
    "gate_bias": (Merge.highway, Merge.shortcut_gate),
    "branch_start": (Merge.scaled,),
}

#: Settings and the range they must lie in: (least, whether the least itself is allowed, most).
RANGES: dict[str, tuple[float, bool, float]] = {
    "width": (1, True, 4096),
    "seed": (0, True, 2**63 - 1),
    "steps": (1, True, 10**9),
    "batch_size": (2, True, 10**6),
    "lr": (0, False, 1e6),
    "momentum": (0, True, 0.9999999),
    "weight_decay": (0, True, 1),
    "lr_drop": (0, False, 1),
    "warmup_steps": (0, True, 10**9),
    "warmup_lr": (0, False, 1e6),
    "warmup_depth": (0, True, 10**9),
    "crop_padding": (0, True, 64),
    "bn_momentum": (0, False, 1),
    "bn_eps": (0, False, 1),
    "eval_every": (1, True, 10**9),
    "clean_every": (1, True, 10**9),
    "collapse_after": (0, True, 1),
    "threshold": (0, False, 100),
    "threads": (0, True, 4096),
    "checkpoint_every": (0, True, 10**9),
    "data.workers": (0, True, 1024),
    "launch.jobs": (0, True, 1024),
    "launch.gpus": (0, True, 64),
    "launch.cores": (1, True, 1024),
    "launch.minutes": (1, True, 10**6),
    "arch.skip_span": (1, True, 3),
    "arch.survival": (0, False, 1),
    "arch.se_ratio": (0, True, 4096),
    "arch.scalar_lr": (0, True, 1000),
    "arch.shortcut_scale": (0, True, 1000),
    "arch.branch_scale": (0, False, 1000),
    "arch.shortcut_dropout": (0, False, 0.99),
    "arch.gate_bias": (-100, True, 100),
    "arch.branch_start": (-1000, True, 1000),
}


def check(settings: Settings) -> None:
    """Raise UsageError, naming the setting and a value that would do, if no run can have these."""
    for key, (least, including, most) in RANGES.items():
        value = attrgetter(key)(settings)
        if not (least <= value <= most) or (value == least and not including):
            bound = f"from {least:,} to" if including else f"above {least:,}, at most"
            raise UsageError(f"{key}={value} is out of range. Choose a value {bound} {most:,}.")
    if settings.data.size is not None and not 8 <= settings.data.size <= 1024:
        raise UsageError(f"data.size={settings.data.size} is out of range. Choose 8 to 1,024.")
    if settings.data.stream is Stream.always and settings.data.loader != "imagefolder":
        raise UsageError("data.stream=always is for image folders. Choose data=imagefolder.")
    if any(not 0 < share < 1 for share in settings.milestones) or settings.milestones != sorted(
        settings.milestones
    ):
        raise UsageError(
            f"milestones={settings.milestones} must be rising shares of steps between 0 and 1, "
            "such as milestones=[0.5,0.75]."
        )
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", settings.device):
        raise UsageError(f"device={settings.device} is none of auto, cpu, cuda, cuda:1.")
    check_ranks(settings)
    check_launch(settings.launch)
    check_name(settings.name)
    check_arch(settings.arch)
    check_depth(settings.depth, settings.arch)


def check_ranks(settings: Settings) -> None:
    """Raise UsageError for a network on several ranks that cannot be trained so."""
    ranks = settings.launch.ranks
    if not 1 <= ranks <= settings.batch_size:
        raise UsageError(
            f"launch.ranks={ranks}, but each rank needs an image of a batch, and batch_size="
            f"{settings.batch_size}. Choose 1 to {settings.batch_size}."
        )
    if ranks == 1:
        return
    if settings.launch.name in ("lockstep", "processes"):
        raise UsageError(
            f"launch.ranks={ranks} trains one network on several processes, and "
            f"launch={settings.launch.name} several networks at a time. Leave one of them out."
        )
    if ":" in settings.device:
        raise UsageError(
            f"device={settings.device} is one GPU, and launch.ranks={ranks} needs {ranks}. "
            "Use device=cuda."
        )
    if settings.arch.merge is Merge.dropout or settings.arch.family == "vgg":
        raise UsageError(
            "this network has dropout, whose noise is drawn for whole batches. Leave "
            f"launch.ranks={ranks} out."
        )


def check_launch(launch: Launch) -> None:
    """Raise UsageError for shares of GPUs that the launcher cannot hand out."""
    if launch.gpus % 1 and (launch.gpus > 1 or launch.name == "slurm"):
        kind = "Slurm hands out" if launch.name == "slurm" else "above one, Ray hands out"
        whole = round(launch.gpus) or 1
        raise UsageError(f"launch.gpus={launch.gpus}: {kind} whole GPUs. Use launch.gpus={whole}.")


def check_arch(arch: Arch) -> None:
    """Raise UsageError for settings that contradict each other or that no layer would read."""
    default = Arch()
    for key, merges in MERGE_SETTINGS.items():
        if getattr(arch, key) != getattr(default, key) and arch.merge not in merges:
            choice = " or ".join(f"arch.merge={merge}" for merge in merges)
            raise UsageError(f"arch.{key} is for {choice}, not arch.merge={arch.merge}.")
    if arch.unit is Unit.bottleneck and arch.skip_span != default.skip_span:
        raise UsageError("arch.skip_span is for arch.unit=basic: a bottleneck has three.")
    if arch.survival < 1 and arch.merge is Merge.plain:
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


def check_name(name: str) -> None:
    """A name is one folder under results: no way out of it, nothing hidden."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", name):
        raise UsageError(
            f"name={name!r} cannot name a folder. Use letters, digits and _ . + -, such as "
            "name=first-try."
        )
