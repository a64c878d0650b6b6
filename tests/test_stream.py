"""resexp.data.stream: what is streamed is what would be in memory, and no number depends on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_images import KINDS, SEALED, Files, encoded, noise, pack
from test_data import refused

from resexp import data
from resexp.data import batches, stream
from resexp.data.batches import statistics
from resexp.data.sets import imagefolder
from resexp.data.stream import Damaged, Feed, Held, Streamed, look_ahead
from resexp.launch import local
from resexp.runs import records
from resexp.runs import run as running
from resexp.settings import BnEval, Data, Job, Normalise, Settings, Stream
from resexp.train.row import TIME_COLUMNS, Row

TRAIN, TEST = 12, 4  # images of each of two classes


def pictures() -> Files:
    """JPEG and PNG files of several sizes; a grey one among them."""
    files = {}
    for label in ("ant", "cat"):
        for split, count in (("train", TRAIN), ("test", TEST)):
            for row in range(count):
                seed = len(files)
                kind = ("PNG", "JPEG")[seed % 2]
                name = f"{split}/{label}/{row:02}.{kind.lower()}"
                files[name] = noise(seed, (20, 12 + seed % 5), kind=kind)
    return files | {"train/ant/00.png": encoded(Image.new("L", (14, 17), 90))}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return pack("folder", tmp_path, pictures())


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode here: starting processes takes seconds."""
    monkeypatch.setattr(stream, "workers", lambda asked: 0)


def settings(root: Path, choice: Stream, **changes: Any) -> Data:
    cache = str(root.parent / "cache")
    usual = Data(name="few", loader="imagefolder", root=str(root), cache=cache, size=8)
    return replace(usual, stream=choice, **changes)


def both(root: Path, **changes: Any) -> tuple[data.Images, data.Images]:
    """The set streamed, and decoded into memory."""
    streamed = data.load(settings(root, Stream.always, **changes))
    decoded = data.load(settings(root, Stream.never, **changes))
    assert (streamed.streamed_from, decoded.streamed_from) == ("files", None)
    return streamed, decoded


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [8, 13])
def test_streamed_images_are_the_decoded_ones(
    tmp_path: Path, in_this_process: None, kind: str, size: int
) -> None:
    path = pack(kind, tmp_path, pictures())
    streamed, decoded = both(path, size=size)
    assert streamed.train_images.shape == decoded.train_images.shape == (2 * TRAIN, size, size, 3)
    assert torch.equal(streamed.train_images[:], decoded.train_images)
    assert torch.equal(streamed.test_images[:], decoded.test_images)
    assert torch.equal(streamed.train_labels, decoded.train_labels)
    assert torch.equal(streamed.test_labels, decoded.test_labels)
    assert streamed.classes == decoded.classes == ["ant", "cat"]
    assert streamed.chance_error == decoded.chance_error == 50.0


def test_grey_images_of_one_size_need_no_data_size(tmp_path: Path, in_this_process: None) -> None:
    names = ["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png"]
    files = {name: noise(seed, (20, 12), "L") for seed, name in enumerate(names)}
    streamed, decoded = both(pack("folder", tmp_path, files), size=None)
    assert streamed.train_images.shape == (2, 12, 20, 1)
    assert torch.equal(streamed.train_images[:], decoded.train_images)


def test_any_request_in_any_order_is_answered_as_a_tensor_answers_it(
    root: Path, in_this_process: None
) -> None:
    streamed, decoded = both(root)
    before = torch.random.get_rng_state()
    generator = np.random.default_rng(0)
    for _ in range(60):
        split = ("train_images", "test_images")[generator.integers(2)]
        here, there = getattr(streamed, split), getattr(decoded, split)
        some = [torch.from_numpy(generator.integers(0, len(there), count)) for count in (3, 1, 5)]
        first, step = generator.integers(0, 9), generator.integers(1, 4)
        turns = [slice(first + turn * step, first + turn * step + step) for turn in range(3)]
        if generator.integers(2):
            look_ahead(here, some)
        for wanted in (some, turns, some + turns, turns[:1] + some)[generator.integers(4)]:
            assert torch.equal(here[wanted], there[wanted])
    assert torch.equal(torch.random.get_rng_state(), before)


class Recorded:
    """A source whose images are their row's number; remembers what it was asked for."""

    name = "files"

    def __init__(self) -> None:
        self.fetched: list[list[list[int]]] = []

    def fetch(self, wanted: list[list[int]], pin: bool) -> Iterator[list[torch.Tensor]]:
        self.fetched.append(wanted)
        return iter([[self.peek(rows)] for rows in wanted])

    def peek(self, rows: list[int]) -> torch.Tensor:
        pixels = torch.tensor(rows, dtype=torch.int64).remainder(256).to(torch.uint8)
        return pixels[:, None, None, None].expand(-1, 8, 8, 1)


def test_the_feed_follows_the_plan() -> None:
    source = Recorded()
    images = Streamed(Feed(source), list(range(100, 110)), (8, 8, 1))
    plan = torch.tensor([[3, 1], [0, 2], [5, 4]])
    images.look_ahead(plan.unbind())
    assert source.fetched == [[[103, 101], [100, 102], [105, 104]]]
    asked = [plan[0], plan[1].clone()]  # by its rows, wherever they lie in memory
    assert [images[one][:, 0, 0, 0].tolist() for one in asked] == [[103, 101], [100, 102]]
    for first in range(0, 10, 4):
        assert images[first : first + 4][:, 0, 0, 0].tolist() == list(range(100, 110))[first:][:4]
    assert source.fetched[1:] == [[[100, 101, 102, 103], [104, 105, 106, 107], [108, 109]]]
    assert images[10:14].shape == images[torch.tensor([], dtype=torch.int64)].shape == (0, 8, 8, 1)


def test_other_sets_of_a_source_and_changed_rows_are_off_the_plan() -> None:
    feed = Feed(Recorded())
    train, test = (Streamed(feed, list(range(*rows)), (8, 8, 1)) for rows in ((0, 8), (8, 16)))
    batch = torch.tensor([3, 1])
    train.look_ahead([batch])
    assert test[batch][:, 0, 0, 0].tolist() == [11, 9]
    train.look_ahead([batch, batch])
    batch += 1  # in the same memory
    assert train[batch][:, 0, 0, 0].tolist() == [4, 2]


def test_45k_of_50000_are_kept_without_reading_one() -> None:
    source = Recorded()
    train = Streamed(Feed(source), list(range(50_000)), (8, 8, 1))
    labels = torch.arange(50_000) % 10
    whole = data.Images("many", train, labels, train, labels, list("abcdefghij"))
    kept = data.keep_45k(whole)
    assert source.fetched == []
    assert kept.train_images.shape == (45_000, 8, 8, 1)
    assert kept.train_images[44_998:][:, 0, 0, 0].tolist() == [44_998 % 256, 44_999 % 256]


def test_images_in_memory_are_streamed_from_there() -> None:
    pixels = torch.arange(20 * 64, dtype=torch.int64).remainder(251).to(torch.uint8)
    pixels = pixels.view(20, 8, 8, 1)
    images = Streamed(Feed(Held(pixels)), list(range(20)), (8, 8, 1))
    rows = torch.tensor([7, 0, 7, 19])
    assert torch.equal(images[rows], pixels[rows])
    assert torch.equal(images[3:9], pixels[3:9])


# When


@pytest.mark.parametrize(("free", "expected"), [(12287, "files"), (12288, None), (None, None)])
def test_a_set_that_would_take_more_than_half_of_the_memory_is_streamed(
    root: Path,
    in_this_process: None,
    monkeypatch: pytest.MonkeyPatch,
    free: int | None,
    expected: str | None,
) -> None:
    assert 2 * (TRAIN + TEST) * 8 * 8 * 3 == 6144  # bytes
    monkeypatch.setattr(stream, "free_memory", lambda: free)
    assert data.load(settings(root, Stream.auto)).streamed_from == expected


def test_a_decoded_set_too_large_by_now_is_streamed(
    root: Path, in_this_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = data.load(settings(root, Stream.auto))
    assert decoded.streamed_from is None
    monkeypatch.setattr(stream, "free_memory", lambda: 6000)
    streamed = data.load(settings(root, Stream.auto))
    assert streamed.streamed_from == "files"
    assert torch.equal(streamed.test_images[:], decoded.test_images)


def test_the_heads_of_the_files_are_read_once(
    root: Path, in_this_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data.load(settings(root, Stream.always))

    def never(*_: Any) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(imagefolder, "read_heads", never)
    data.load(settings(root, Stream.always))
    (root / "test/cat/00.png").write_bytes(noise(99, (30, 30)))
    with pytest.raises(AssertionError, match="read again"):
        data.load(settings(root, Stream.always))


# What cannot be streamed


@pytest.mark.parametrize("kind", SEALED)
def test_a_compressed_tar_is_to_be_unpacked(tmp_path: Path, kind: str) -> None:
    path = pack(kind, tmp_path, pictures())
    with refused("Unpack it", f"tar -xf images.{kind}", "data.root"):
        data.load(settings(path, Stream.always))


def test_only_image_folders_are_streamed() -> None:
    with refused("data.stream=always is for image folders"):
        Settings(data=Data(stream=Stream.always))


# Runs


def make_job(root: Path, results: str, choice: Stream, **changes: Any) -> Job:
    usual: dict[str, Any] = {
        "depth": 8,
        "width": 4,
        "steps": 6,
        "batch_size": 8,
        "eval_every": 2,
        "clean_every": 2,
        "crop_padding": 1,
        "flip": True,
        "threads": 1,
        "bn_eval": BnEval.recalibrated,
        "normalise": Normalise.channel_std,
        "results": str(root.parent / results),
    }
    one = Settings(**usual | {"data": settings(root, choice, workers=2)} | changes)
    return Job(settings=one, arch="plain", extras={}, overrides=[])


def rows(job: Job) -> list[list[str]]:
    """metrics.csv but for its two columns of time."""
    lines = (job.directory / records.METRICS).read_text().splitlines()
    return [line.split(",")[: -len(TIME_COLUMNS)] for line in lines]


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """No data set of an earlier run is used again."""
    monkeypatch.setattr(running, "_loaded", {})


@pytest.mark.process
def test_two_processes_train_the_run_that_images_in_memory_train(
    root: Path, forgetful: None
) -> None:
    runs = [make_job(root, choice, choice) for choice in (Stream.always, Stream.never)]
    streamed, decoded = (local.perform(job).record for job in runs)
    assert rows(runs[0]) == rows(runs[1]) and len(rows(runs[0])) == 4
    assert (streamed["data"]["streamed"], decoded["data"]["streamed"]) == ("files", None)
    assert streamed["digest"] == decoded["digest"]


@pytest.mark.process
def test_a_streamed_run_that_was_stopped_goes_on_as_if_it_was_not(
    root: Path, in_this_process: None, forgetful: None
) -> None:
    class Killed(BaseException):
        pass

    def kill(record: dict[str, Any], step: int, row: Row | None) -> None:
        if step == 3:
            raise Killed

    job = make_job(root, "stopped", Stream.always, checkpoint_every=0.0)
    with pytest.raises(Killed):
        local.perform(job, kill)
    local.perform(job)
    whole = make_job(root, "whole", Stream.never)
    local.perform(whole)
    assert rows(job) == rows(whole)


def test_a_damaged_image_fails_the_run_by_its_name(
    root: Path, in_this_process: None, forgetful: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "SAMPLE", 2)  # the first of each class
    path = root / "train/cat/03.jpeg"
    path.write_bytes(path.read_bytes()[:-60])  # its head is whole
    job = make_job(root, "damaged", Stream.always)
    with pytest.raises(Damaged, match=r"^train/cat/03.jpeg cannot be decoded: .*truncated"):
        local.perform(job)
    record = records.read_record(job.directory)
    assert record["status"] == "failed"
    assert record["error"].startswith("train/cat/03.jpeg cannot be decoded")


@pytest.mark.parametrize("normalise", [Normalise.pixel_mean, Normalise.channel_std])
def test_statistics_of_a_large_set_are_those_of_some_of_it(
    root: Path, in_this_process: None, monkeypatch: pytest.MonkeyPatch, normalise: Normalise
) -> None:
    streamed, decoded = both(root)
    whole = statistics(decoded.train_images, normalise)
    monkeypatch.setattr(batches, "SUMMED", 10 * 8 * 8 * 3 + 5)
    some = batches.sample(streamed.train_images)
    assert len(some) == 10 and torch.equal(some, some.unique())
    assert torch.equal(some, batches.sample(decoded.train_images))
    one, other = (statistics(images.train_images, normalise) for images in (streamed, decoded))
    assert torch.equal(one.mean, other.mean) and torch.equal(one.std, other.std)
    pixels = decoded.train_images[some].double() / 255
    dims = (0,) if normalise is Normalise.pixel_mean else (0, 1, 2)
    assert torch.allclose(one.mean.double(), pixels.mean(dims), atol=1e-7)
    assert not torch.equal(one.mean, whole.mean)


def test_all_images_of_a_set_as_large_as_cifar10_are_summed() -> None:
    cifar = Streamed(Feed(Recorded()), list(range(50_000)), (32, 32, 3))
    assert len(batches.sample(cifar)) == 50_000
    large = Streamed(Feed(Recorded()), list(range(50_000)), (224, 224, 3))
    assert len(batches.sample(large)) == 7133


@pytest.mark.gpu
def test_a_gpu_gets_the_same_images_pinned_and_in_order(root: Path) -> None:
    streamed, decoded = both(root, workers=1)
    here = streamed.to("cuda")
    plan = torch.randperm(24, generator=torch.Generator().manual_seed(0)).view(4, 6).cuda()
    look_ahead(here.train_images, plan.unbind())
    for turn in range(4):
        assert torch.equal(
            here.train_images[plan[turn]].cpu(), decoded.train_images[plan[turn].cpu()]
        )
    held = Streamed(
        Feed(Held(decoded.test_images)), list(range(8)), (8, 8, 3), torch.device("cuda")
    )
    assert torch.equal(held[2:6].cpu(), decoded.test_images[2:6])
