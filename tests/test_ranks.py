"""One network on several processes: the numbers of one process, and a stop or a death of a rank."""

from __future__ import annotations

import copy
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from small_jobs import at, cells, job_in
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from resexp import data, models
from resexp.config import compose
from resexp.data import batches
from resexp.launch.local import perform
from resexp.launch.ranks import RankFailed
from resexp.models.layers import Norm
from resexp.runs.records import Claim, look, read_record
from resexp.runs.stop import Interrupted
from resexp.settings import Arch, Job, Launch, Merge, Precision, Settings, UsageError, identity
from resexp.settings import as_dict as plain
from resexp.train.device import check_gpus
from resexp.train.fit import begin, fit
from resexp.train.optimizers import OPTIMIZERS
from resexp.train.ranks import ALONE, Ranks, SynchronisedNorm, synchronise
from resexp.train.row import Row
from resexp.train.schedule import learning_rate

pytestmark = pytest.mark.process

# --- what every rank does, in two processes without a job

SHARES = (3, 2)  # images of each rank: not the same


class Small(nn.Module):
    """A network with a normalisation that matters, in double precision."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.first = nn.Conv2d(2, 3, 3, bias=False)
        self.norm = Norm(1e-5, 0.1)(3)
        self.last = nn.Conv2d(3, 1, 2, bias=False)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.norm(self.first(x)).relu()).mean((1, 2, 3))
        return y


def inputs() -> Tensor:
    """Five images whose mean is far from 0."""
    return 3 + torch.randn(5, 2, 6, 6, dtype=torch.float64, generator=torch.manual_seed(3))


def trained(network: nn.Module, images: Tensor, share: float, ranks: Ranks) -> dict[str, Any]:
    """Two steps on the same images: what everything is afterwards."""
    network.train()
    sums = []
    for _ in range(2):
        images = images.detach().requires_grad_()
        outputs = network(images)
        loss = outputs.square().mean() * share
        loss.backward()
        wrong = (outputs > 1).sum()
        gradient = parameters_to_vector(one.grad for one in network.parameters())
        sums.append(ranks.add_up(gradient, loss.detach(), wrong))
        with torch.no_grad():
            vector_to_parameters(
                parameters_to_vector(network.parameters()) - 0.1 * gradient, network.parameters()
            )
        network.zero_grad()
    network.eval()
    return {
        "state": copy.deepcopy(network.state_dict()),
        "loss": [loss for loss, _ in sums],
        "wrong": [wrong for _, wrong in sums],
        "images": images.grad,
        "evaluated": network(inputs()),
    }


def fitted(optimizer: str, ranks: Ranks) -> Tensor:
    """The weights after two steps on the digits in float64, statistics over all ranks."""
    settings = Settings(
        optimizer=optimizer, depth=8, width=4, steps=2, batch_size=5, precision=Precision.fp64
    )
    network = models.build(settings, 1, 10, (8, 8))
    if ranks.size > 1:
        synchronise(network)
    state = begin(network, settings)
    for _ in fit(state, settings, data.load(settings.data), ranks):
        pass
    return state.optimizer.weights


def one_of_two(rank: int, folder: str) -> None:
    """Rank's share of the two steps, and what the ranks say to each other."""
    torch.set_num_threads(1)
    ranks = Ranks(rank, 2)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    network = Small()
    synchronise(network)
    assert isinstance(network.norm, SynchronisedNorm)
    said = trained(network, inputs().split(SHARES)[rank], SHARES[rank] / 5, ranks)
    network.train()
    with torch.no_grad():  # one rank alone: nobody answers
        said["alone"] = network(inputs()) if rank == 0 else None
    said["highest"] = [ranks.highest(number) for number in ((0, 15, 0), (15, 2, 0))[rank]]
    settings = Settings(depth=8, width=4, seed=rank)
    state = begin(models.build(settings, 1, 10, (8, 8)), settings)
    state.step = rank + 5
    said["over"] = ranks.spread(state, rank == 0)
    said["spread"] = state.state_dict()
    said["optimizers"] = [fitted(name, ranks) for name in OPTIMIZERS]
    torch.save(said, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks found."""
    folder = tmp_path_factory.mktemp("two")
    start_processes(one_of_two, (str(folder),), nprocs=2, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def close(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_synchronised_norms_train_as_one_process_does(said: list[dict[str, Any]]) -> None:
    whole = trained(Small(), inputs(), 1.0, ALONE)
    for one in said:
        for key in ("state", "loss", "evaluated"):
            close(one[key], whole[key])
        assert one["wrong"] == whole["wrong"]
    close(torch.cat([one["images"] for one in said]), whole["images"])


def test_ranks_stay_equal_to_the_last_bit(said: list[dict[str, Any]]) -> None:
    first, second = (one["state"] for one in said)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_optimizer_steps_alike_at_every_rank(said: list[dict[str, Any]]) -> None:
    for name, *found in zip(OPTIMIZERS, *(one["optimizers"] for one in said), strict=True):
        assert torch.equal(*found), name
        close(found[0], fitted(name, ALONE))


def test_without_gradients_a_synchronised_norm_waits_for_nobody(said: list[dict[str, Any]]) -> None:
    network = Small()
    network.load_state_dict(said[0]["state"])
    with torch.no_grad():
        close(said[0]["alone"], network.train()(inputs()))


def test_a_signal_at_any_rank_is_heard_by_all(said: list[dict[str, Any]]) -> None:
    assert [one["highest"] for one in said] == [[15, 15, 0]] * 2
    assert ALONE.highest(15) == 15


def test_every_rank_goes_on_from_the_state_of_the_first(said: list[dict[str, Any]]) -> None:
    settings = Settings(depth=8, width=4, seed=0)
    expected = begin(models.build(settings, 1, 10, (8, 8)), settings).state_dict()
    for one in said:
        assert one["over"] is True
        assert one["spread"]["step"] == 5
        torch.testing.assert_close(one["spread"]["network"], expected["network"], rtol=0, atol=0)


def test_shares_of_a_batch_are_neighbours_and_make_the_whole() -> None:
    plan = batches.plan(seed=1, start=0, stop=3, images=40, batch_size=8, crop_padding=2, flip=True)
    for size in (1, 2, 3, 8):
        shares = [Ranks(rank, size).share(plan) for rank in range(size)]
        for field in ("index", "dy", "dx", "mirror"):
            parts = [getattr(share, field) for share in shares]
            assert torch.equal(torch.cat(parts, 1), getattr(plan, field))
            assert {part.shape[1] for part in parts} <= {8 // size, -(-8 // size)}


def test_synchronised_networks_keep_their_names_and_values() -> None:
    settings = Settings(depth=8, width=4, arch=Arch(merge=Merge.residual))
    network, other = (models.build(settings, 1, 10, (8, 8)) for _ in range(2))
    synchronise(network)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 7
    assert all(isinstance(norm, SynchronisedNorm) for norm in norms)
    assert list(network.state_dict()) == list(other.state_dict())
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(network.eval()(images), other.eval()(images))


# --- whole runs

COMMON: dict[str, Any] = {"steps": 8, "batch_size": 9, "eval_every": 4, "lr": 0.05}
COMMON |= {"crop_padding": 1, "flip": True, "device": "cpu", "checkpoint_every": 60.0}


def make_job(results: Path, ranks: int, **settings: Any) -> Job:
    return job_in(results, launch=Launch(ranks=ranks), **COMMON | settings)


def numbers(job: Job) -> list[list[float]]:
    """metrics.csv without its columns of time and the empty clean ones of its first row."""
    return [[float(cell) for cell in row if cell] for row in cells(job)[1:]]


def same(job: Job, alone: Job) -> None:
    """Equal to float tolerance: losses to 1e-4, errors to one of the images they count."""
    for row, expected in zip(numbers(job), numbers(alone), strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=100 / 36 + 1e-6)
        losses = [3, *([5] if len(row) > 7 else []), -2]
        assert [row[k] for k in losses] == pytest.approx([expected[k] for k in losses], rel=1e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The run of one process."""
    torch.set_num_threads(1)
    job = make_job(tmp_path_factory.mktemp("alone"), 1, bn_sync=True)
    perform(job)
    return job


@pytest.mark.parametrize(("before", "after"), [(2, 1), pytest.param(1, 3, marks=pytest.mark.slow)])
def test_a_stopped_run_goes_on_with_another_number_of_ranks(
    tmp_path: Path, alone: Job, before: int, after: int
) -> None:
    job = make_job(tmp_path, before, bn_sync=True)
    with pytest.raises(Interrupted) as stop:
        perform(job, at(4, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert stop.value.exit_code == 75
    record = read_record(job.directory)
    assert (record["status"], record["last"]["step"]) == ("interrupted", 4)
    job = make_job(tmp_path, after, bn_sync=True)
    done = perform(job)
    assert done.claim is Claim.resume
    assert done.record["settings"]["launch"]["ranks"] == after
    same(job, alone)


def slow_losses(settings: Settings, ranks: int) -> list[float]:
    """Each step's loss where every rank normalises by itself: one process, share by share."""
    digits = data.load(settings.data)
    statistics = batches.statistics(digits.train_images, settings.normalise)
    state = begin(models.build(settings, 1, 10, digits.size), settings)
    losses = []
    for step in range(settings.steps):
        whole = batches.plan(
            seed=settings.seed,
            start=step,
            stop=step + 1,
            images=len(digits.train_labels),
            batch_size=settings.batch_size,
            crop_padding=settings.crop_padding,
            flip=settings.flip,
        )
        losses.append(0.0)
        for rank in range(ranks):
            plan = Ranks(rank, ranks).share(whole)
            crop = plan.dy[0], plan.dx[0], plan.mirror[0], settings.crop_padding
            images = batches.batch(digits.train_images, statistics, plan.index[0], *crop)
            labels = digits.train_labels[plan.index[0]]
            loss = nn.functional.cross_entropy(state.network(images), labels, reduction="sum")
            (loss / settings.batch_size).backward()
            losses[-1] += loss.item() / settings.batch_size
        rule = state.optimizer
        rule.collect([parameter.grad for parameter in rule.parameters])
        rule.step(torch.tensor(rule.rates(learning_rate(settings, step), step)))
        state.network.zero_grad()
    return losses


def test_without_bn_sync_each_rank_normalises_its_share(tmp_path: Path, alone: Job) -> None:
    job = make_job(tmp_path, 2)
    record = perform(job).record
    losses = slow_losses(job.settings, 2)
    first, last = numbers(job)
    assert first[3] == pytest.approx(sum(losses[:4]) / 4, rel=1e-5)
    assert last[3] == pytest.approx(sum(losses[4:]) / 4, rel=1e-5)
    assert abs(last[3] - numbers(alone)[1][3]) > 1e-3
    assert record["environment"]["process"] != os.getpid()
    with pytest.raises(UsageError, match=r"launch\.ranks=2, not launch\.ranks=1"):
        look(make_job(tmp_path, 1))


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_in_words_and_it_can_go_on(tmp_path: Path) -> None:
    job = make_job(tmp_path, 2, steps=4000, checkpoint_every=0)

    def watch(record: dict[str, Any], step: int, row: Row | None) -> None:
        if row is not None and step == 4:
            os.kill(int(record["environment"]["process"]), signal.SIGKILL)

    with pytest.raises(RankFailed, match=r"of this run (was killed by signal 9|ended)"):
        perform(job, watch)
    assert read_record(job.directory)["status"] == "failed"
    assert look(job) is Claim.resume


# --- settings


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["launch.ranks=9", "batch_size=8"], "Choose 1 to 8"),
        (["launch.ranks=2", "launch=lockstep"], "several networks at a time"),
        (["launch.ranks=2", "launch=processes"], "several networks at a time"),
        (["launch.ranks=2", "device=cuda:0"], "Use device=cuda"),
        (["launch.ranks=2", "arch.merge=dropout"], "drawn for whole batches"),
        (["launch.ranks=2", "arch=vgg", "depth=11"], "drawn for whole batches"),
    ],
)
def test_ranks_that_cannot_train_are_refused_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as error:
        models.check(compose(["arch=residual", *words]).settings)
    assert "\n" not in str(error.value)


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resexp.train.device.gpus", lambda: 1)
    check_gpus(1, torch.device("cuda"))
    check_gpus(2, torch.device("cpu"))
    with pytest.raises(UsageError, match=r"launch.ranks=2, but there is 1 GPU"):
        check_gpus(2, torch.device("cuda"))


def test_ranks_are_part_of_a_run_only_where_they_change_it() -> None:
    def named(*words: str) -> tuple[str, dict[str, Any]]:
        job = compose(["depth=20", *words])
        return job.run, identity(plain(job.settings))

    one, two = named("launch.ranks=1"), named("launch.ranks=2")
    assert two[0] == "plain-20-s0,launch.ranks=2"
    assert one[1] != two[1]
    assert named("bn_sync=true", "launch.ranks=2") == named("bn_sync=true")
    assert named("bn_sync=true")[1] != named()[1]
