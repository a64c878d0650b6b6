"""resexp.train.fit: the rows of a run, what they hold, and going on after a stop."""

from __future__ import annotations

import copy
import math
import os
from dataclasses import asdict, replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from resexp import models
from resexp.data import Images, batches
from resexp.models.merges import RULES, SUMS
from resexp.runs.records import spell
from resexp.settings import Arch, BnEval, Merge, Precision, Seeds, Settings, UsageError
from resexp.train import device
from resexp.train.fit import State, begin, fit
from resexp.train.precision import autocast
from resexp.train.row import COLUMNS, IOU_COLUMNS, TIME_COLUMNS, Row

#: Seven steps with rows after four and seven; both drops of the rate fall between them.
SMALL = Settings(
    depth=8,
    width=4,
    seed=5,
    steps=7,
    batch_size=8,
    eval_every=4,
    lr=0.05,
    crop_padding=1,
    flip=True,
)


def start(settings: Settings, images: Images) -> State:
    return begin(models.build(settings, images.channels, len(images.classes)), settings)


def rows(state: State, settings: Settings, images: Images) -> list[Row]:
    return [row for row in fit(state, settings, images) if row is not None]


def numbers(some: list[Row]) -> list[dict[str, object]]:
    """The rows without their two columns of time."""
    return [
        {key: value for key, value in asdict(row).items() if key not in TIME_COLUMNS}
        for row in some
    ]


def slow_batch(settings: Settings, images: Images, step: int) -> tuple[Tensor, Tensor]:
    """One step's images and labels in float64, cropped and mirrored one by one."""
    plan = batches.plan(
        seed=settings.seed,
        start=step,
        stop=step + 1,
        images=len(images.train_labels),
        batch_size=settings.batch_size,
        crop_padding=settings.crop_padding,
        flip=settings.flip,
    )
    mean = images.train_images.double().mean(0)
    height, width = images.size
    p = settings.crop_padding
    chosen = []
    for b in range(settings.batch_size):
        padded = torch.zeros(height + 2 * p, width + 2 * p, images.channels, dtype=torch.float64)
        picture = images.train_images[plan.index[0, b]].double()
        padded[p : p + height, p : p + width] = (picture - mean) / 255
        top, left = int(plan.dy[0, b]), int(plan.dx[0, b])
        crop = padded[top : top + height, left : left + width]
        chosen.append((crop.flip(1) if plan.mirror[0, b] else crop).permute(2, 0, 1))
    return torch.stack(chosen), images.train_labels[plan.index[0]]


def slow_fit(
    settings: Settings, images: Images, rates: list[float]
) -> tuple[list[float], list[int], nn.Module]:
    """Each step's loss and wrong answers, and the network, by torch's optimizer in float64."""
    network = models.build(settings, images.channels, len(images.classes)).double()
    optimizer = torch.optim.SGD(
        network.parameters(), momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    losses, wrong = [], []
    for step, rate in enumerate(rates):
        x, labels = slow_batch(settings, images, step)
        logits = network(x)
        loss = -logits.log_softmax(1)[torch.arange(len(x)), labels].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        losses.append(loss.item())
        wrong.append(int((logits.argmax(1) != labels).sum()))
    return losses, wrong, network.eval()


def clean(network: nn.Module, images: Images, pixels: Tensor, labels: Tensor) -> list[float]:
    """Loss and percent error on whole images in float64."""
    mean = images.train_images.double().mean(0)
    with torch.no_grad():
        logits = network(((pixels.double() - mean) / 255).permute(0, 3, 1, 2))
    wrong = (logits.argmax(1) != labels).double().mean().item()
    return [cross_entropy(logits, labels).item(), 100 * wrong]


# What a row holds


@pytest.mark.process
@pytest.mark.parametrize("merge", [one for one in SUMS if one != "dropout"])
def test_rows_agree_with_a_slow_loop_in_double_precision(few_digits: Images, merge: str) -> None:
    settings = replace(SMALL, arch=Arch(merge=merge, **RULES[merge].NEEDS))
    rates = 4 * [0.05] + [0.005] + 2 * [0.0005]
    losses, wrong, network = slow_fit(settings, few_digits, rates)
    first, last = rows(start(settings, few_digits), settings, few_digits)
    assert first.train_loss == pytest.approx(sum(losses[:4]) / 4, rel=1e-5)
    assert last.train_loss == pytest.approx(sum(losses[4:]) / 3, rel=1e-5)
    assert first.train_error == 100 * sum(wrong[:4]) / 32
    assert last.train_error == 100 * sum(wrong[4:]) / 24
    train = clean(network, few_digits, few_digits.train_images, few_digits.train_labels)
    test = clean(network, few_digits, few_digits.test_images, few_digits.test_labels)
    assert [last.clean_train_loss, last.clean_train_error] == pytest.approx(train, rel=1e-5)
    assert [last.test_loss, last.test_error] == pytest.approx(test, rel=1e-5)


def test_a_row_says_where_it_stands(few_digits: Images) -> None:
    first, last = rows(start(SMALL, few_digits), SMALL, few_digits)
    assert tuple(asdict(first)) == (*COLUMNS, *IOU_COLUMNS)
    assert first.test_iou is None
    assert (first.step, last.step) == (4, 7)
    assert (first.epoch, last.epoch) == (4 * 8 / 40, 7 * 8 / 40)
    # The rate of the last step done, not of the next: it drops at steps 4 and 5.
    assert first.lr == 0.05
    assert last.lr == pytest.approx(0.0005)
    assert first.images_per_second > 0
    assert 0 < first.seconds < last.seconds


def test_every_step_is_a_turn_and_rows_come_after_the_steps_that_have_one(
    few_digits: Images,
) -> None:
    state = start(SMALL, few_digits)
    turns = [(state.step, row and row.step) for row in fit(state, SMALL, few_digits)]
    assert turns == [(1, None), (2, None), (3, None), (4, 4), (5, None), (6, None), (7, 7)]


def test_clean_cells_are_blank_but_every_few_rows_and_in_the_last(few_digits: Images) -> None:
    settings = replace(SMALL, steps=11, eval_every=2, clean_every=2)
    some = rows(start(settings, few_digits), settings, few_digits)
    assert [row.step for row in some] == [2, 4, 6, 8, 10, 11]
    assert [row.clean_train_loss is not None for row in some] == [False, True] * 3
    settings = replace(settings, clean_every=5)
    some = rows(start(settings, few_digits), settings, few_digits)
    measured = [row.clean_train_error is not None for row in some]
    assert measured == [False, False, False, False, True, True]
    assert [spell(some[0].clean_train_loss), spell(some[0].clean_train_error)] == ["", ""]


@pytest.mark.process
def test_errors_are_in_percent(few_digits: Images) -> None:
    # A network that answers 3 whatever it sees, at a rate that cannot teach it better.
    settings = replace(SMALL, steps=3, lr=1e-30)
    state = start(settings, few_digits)
    classifier = state.network.get_submodule("classifier")
    nn.init.zeros_(classifier.get_parameter("weight"))
    classifier.get_parameter("bias").data[3] = 9.0
    (row,) = rows(state, settings, few_digits)
    seen = torch.cat([slow_batch(settings, few_digits, step)[1] for step in range(3)])
    for error, labels in (
        (row.train_error, seen),
        (row.clean_train_error, few_digits.train_labels),
        (row.test_error, few_digits.test_labels),
    ):
        others = sum(label != 3 for label in labels.tolist())
        assert 50 < 100 * others / len(labels) < 100
        assert error == pytest.approx(100 * others / len(labels), rel=1e-12)


def test_sums_are_exact_over_any_number_of_steps(few_digits: Images) -> None:
    state = start(SMALL, few_digits)
    assert state.loss_sum.dtype is torch.float64
    assert state.wrong.dtype is torch.int64
    state.loss_sum.fill_(2**24)  # where float32 loses halves
    turns = fit(state, SMALL, few_digits)
    next(turns)
    assert 0 < state.loss_sum.item() - 2**24 < 10
    assert state.loss_sum.item() % 0.5


def test_training_mode_returns_after_every_row(few_digits: Images) -> None:
    settings = replace(SMALL, eval_every=1)
    state = start(settings, few_digits)
    for _ in fit(state, settings, few_digits):
        assert state.network.training
        assert all(p.grad is None for p in state.network.parameters())


# Twins and repeats


def test_plain_and_residual_see_the_same_batches(few_digits: Images) -> None:
    seen: dict[Merge, list[Tensor]] = {}
    for merge in (Merge.plain, Merge.residual):
        settings = replace(SMALL, arch=Arch(merge=merge))
        state = start(settings, few_digits)
        noted = seen.setdefault(merge, [])

        def note(network: nn.Module, inputs: tuple[Tensor], noted: list[Tensor] = noted) -> None:
            if network.training:
                noted.append(inputs[0].clone())

        state.network.register_forward_pre_hook(note)
        rows(state, settings, few_digits)
    assert len(seen[Merge.plain]) == 7
    pairs = list(zip(seen[Merge.plain], seen[Merge.residual], strict=True))
    assert all(torch.equal(one, other) for one, other in pairs)
    assert not any(torch.equal(one, other) for one, other in pairwise(seen[Merge.plain]))


@pytest.mark.parametrize("what", ["weights", "batches", "augmentation"])
def test_a_seed_of_its_own_changes_that_alone(few_digits: Images, what: str) -> None:
    def drawn(settings: Settings) -> dict[str, Tensor]:
        plan = batches.planned(settings, 3, 6, 40)
        weights = start(settings, few_digits).optimizer.weights.clone()
        crops = torch.stack([plan.dy, plan.dx, plan.mirror.long()])
        return {"weights": weights, "batches": plan.index, "augmentation": crops}

    settings = replace(SMALL, crop_padding=2, flip=True)
    whole, other = drawn(settings), drawn(replace(settings, seed=9))
    for part, mine in drawn(replace(settings, seeds=Seeds(**{what: 9}))).items():
        assert torch.equal(mine, (other if part == what else whole)[part])
        assert not torch.equal(other[part], whole[part])


def same(one: State, other: State) -> bool:
    """Whether two states agree to the last bit in all but their time."""
    mine, its = one.state_dict(), other.state_dict()
    networks = zip(mine["network"].items(), its["network"].items(), strict=True)
    velocities = zip(mine["optimizer"]["velocities"], its["optimizer"]["velocities"], strict=True)
    return (
        all(a == b and torch.equal(x, y) for (a, x), (b, y) in networks)
        and all(torch.equal(x, y) for x, y in velocities)
        and torch.equal(mine["loss_sum"], its["loss_sum"])
        and torch.equal(mine["wrong"], its["wrong"])
        and mine["step"] == its["step"]
    )


# Going on after a stop


@pytest.mark.parametrize("stop", range(1, 7))
@pytest.mark.parametrize("bn_eval", BnEval)
def test_a_run_that_was_stopped_goes_on_to_the_same_rows(
    few_digits: Images, stop: int, bn_eval: BnEval
) -> None:
    settings = replace(SMALL, bn_eval=bn_eval, nesterov=True)
    whole = start(settings, few_digits)
    expected = rows(whole, settings, few_digits)

    before = start(settings, few_digits)
    some: list[Row] = []
    for row in fit(before, settings, few_digits):
        some += [row] if row else []
        if before.step == stop:
            break
    saved = copy.deepcopy(before.state_dict())

    after = start(replace(settings, seed=99), few_digits)  # weights that must not survive
    after.load_state_dict(saved)
    some += rows(after, settings, few_digits)
    assert numbers(some) == numbers(expected)
    assert same(after, whole)


def test_a_finished_state_trains_no_further(few_digits: Images) -> None:
    state = start(SMALL, few_digits)
    rows(state, SMALL, few_digits)
    before = copy.deepcopy(state.state_dict())
    assert rows(state, SMALL, few_digits) == []
    assert all(
        torch.equal(value, before["network"][key])
        for key, value in state.network.state_dict().items()
    )


def test_time_goes_on_where_it_stopped(few_digits: Images) -> None:
    state = start(SMALL, few_digits)
    state.seconds = 1000.0
    first, last = rows(state, SMALL, few_digits)
    assert 1000 < first.seconds < last.seconds < 1060
    assert state.seconds == last.seconds


# Losses that are not finite


def test_a_poisoned_network_ends_the_run_with_the_row_that_shows_it(few_digits: Images) -> None:
    settings = replace(SMALL, steps=12, clean_every=3)
    state = start(settings, few_digits)
    some = []
    for row in fit(state, settings, few_digits):
        some += [row] if row else []
        if state.step == 6:
            state.network.get_parameter("classifier.bias").data[0] = math.nan
    assert [row.step for row in some] == [4, 8]
    assert math.isfinite(some[0].train_loss)
    assert some[0].clean_train_loss is None
    assert math.isnan(some[1].train_loss)
    assert some[1].clean_train_loss is not None  # as in every last row
    assert math.isnan(some[1].clean_train_loss)
    assert state.step == 8


def test_a_rate_far_too_high_ends_the_run_early(few_digits: Images) -> None:
    settings = replace(SMALL, steps=40, lr=1e6, momentum=0.99)
    some = rows(start(settings, few_digits), settings, few_digits)
    assert some[-1].step < 40
    assert [math.isfinite(row.train_loss) for row in some] == [True] * (len(some) - 1) + [False]


# Precision and device


def test_bf16_is_refused_on_a_cpu_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(device, "cpu_flags", lambda: {"avx2", "avx512f"})
    with pytest.raises(UsageError, match=r"precision=bf16.*Use precision=fp32\."):
        device.check_precision(Precision.bf16, cpu)
    device.check_precision(Precision.fp32, cpu)
    with pytest.raises(UsageError, match=r"precision=tf32 is of GPUs.*Use precision=fp32\."):
        device.check_precision(Precision.tf32, cpu)


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16"])
def test_bf16_is_accepted_on_a_cpu_that_has_it(monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    monkeypatch.setattr(device, "cpu_flags", lambda: {"avx2", flag})
    device.check_precision(Precision.bf16, torch.device("cpu"))


def test_only_bf16_changes_the_type_of_activations() -> None:
    cpu, x = torch.device("cpu"), torch.ones(2, 2)
    with autocast(Precision.bf16, cpu):
        assert (x @ x).dtype is torch.bfloat16
    with autocast(Precision.fp32, cpu):
        assert (x @ x).dtype is torch.float32


def test_a_gpu_asked_for_by_name_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.choose_device("auto") == torch.device("cpu")
    assert device.choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match=r"device=cuda:1, but PyTorch finds no GPU"):
        device.choose_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device.choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UsageError, match=r"there are 2 GPUs\. Use device=cuda:1\."):
        device.choose_device("cuda:2")


def test_threads_are_those_asked_for_or_as_many_as_the_images_are_worth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert device.prepare(1, Settings(), torch.device("cpu")) == torch.get_num_threads() == 1
    monkeypatch.setattr(device, "cores", lambda: 4)
    digits, cifar = Settings(), Settings(batch_size=128)
    assert device.threads_for(digits, (8, 8)) == 1  # 2**16 values a layer
    assert device.threads_for(cifar, (32, 32)) == 4  # 2**21
    assert device.threads_for(replace(digits, batch_size=256), (8, 8)) == 2  # 2**18
    assert device.threads_for(replace(digits, threads=3), (8, 8)) == 3


def test_more_threads_than_a_machine_can_carry_out_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    device.check_threads(8)
    with pytest.raises(UsageError, match=r"threads=9 .*up to threads=8, or threads=0"):
        device.prepare(9, Settings(), torch.device("cpu"))


def test_processes_that_work_side_by_side_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(device, "_siblings", 1)
    device.share_cores(3)
    assert device.cores() == 2
    device.share_cores(16)
    assert device.cores() == 1
