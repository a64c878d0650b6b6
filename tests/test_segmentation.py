"""Masks in place of labels: sets, crops, losses, overlaps, records, and the runs that make them."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_results import write_run
from numpy.typing import NDArray
from PIL import Image
from small_images import pack_masks, save
from test_data import refused
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from resexp import data, models
from resexp.analysis import table
from resexp.analysis.results import Run, find_runs, load_results
from resexp.config import compose
from resexp.data import UNLABELLED, Images, batches
from resexp.data.sets import blobs, masks
from resexp.launch import local
from resexp.launch.progress import errors, headline
from resexp.runs import records
from resexp.runs import run as running
from resexp.runs.stop import Interrupted
from resexp.settings import Data, Normalise, Precision, Settings, UsageError
from resexp.train.evaluate import Score, evaluate, misses, per_label
from resexp.train.fit import begin, fit
from resexp.train.row import COLUMNS, HEADERS, IOU_COLUMNS, TIME_COLUMNS, Row

BLOBS = Data(name="blobs", loader="blobs", size=16)


@pytest.fixture(scope="module")
def few_blobs() -> Images:
    """24 training and 12 test images of 16x16 pixels, some without a class for some pixels."""
    drawn = [blobs.draw(number, 16) for number in range(36)]
    pixels, shapes = (np.stack(arrays) for arrays in zip(*drawn, strict=True))
    labels = shapes.astype(np.int16)
    labels[::3, :4, 2:6] = UNLABELLED
    sets = (pixels[:24], labels[:24]), (pixels[24:], labels[24:])
    return data.from_arrays("blobs", *sets, ["background", "blob"])


def job(results: Path, *words: str) -> records.Job:
    """A tiny run on blobs, six steps with three rows."""
    small = ["depth=8", "width=2", "steps=6", "batch_size=4", "eval_every=2", "clean_every=2"]
    where = ["threads=1", "checkpoint_every=0", f"results={results}"]
    return compose(["experiment=blobs", *small, *where, *words])


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, few_blobs: Images) -> None:
    """Train on the few images, and let the disk flush when it likes."""
    monkeypatch.setattr(running, "load", lambda settings, device: few_blobs)
    monkeypatch.setattr(os, "fsync", lambda file: None)


# Blobs


def test_blobs_are_these_ones_for_ever() -> None:
    pixels, mask = blobs.draw(0, 16)
    assert pixels[7, :8].tolist() == [68, 64, 51, 30, 57, 85, 90, 107]
    assert "".join("#" if one else "." for one in mask[4]) == "....####.###.###"
    assert (int(pixels.sum()), int(mask.sum())) == (27508, 55)


@pytest.mark.process
def test_blobs_are_fit_to_train_on_and_come_with_masks() -> None:
    images = data.load(BLOBS)
    assert images.task == "segmentation"
    assert images.train_images.shape == (400, 16, 16, 1)
    assert images.train_labels.shape == (400, 16, 16)
    assert images.test_labels.dtype == torch.int16
    assert images.train_labels.unique().tolist() == [0, 1]
    # No threshold finds them: the best is far worse than a mask is wrong at its border.
    grey, blob = images.train_images[..., 0], images.train_labels == 1
    best = min(float(((grey >= level) != blob).float().mean()) for level in range(256))
    assert 0.12 < best < images.chance_error / 100
    both = torch.cat([images.train_images, images.test_images]).flatten(1)
    assert len(both.unique(dim=0)) == 600


def test_blobs_that_meet_are_kept_apart_by_a_gap() -> None:
    # Two circles of radius 0.2 around (0.5, 0.35) and (0.5, 0.65) share a lens 0.1 wide.
    outside = blobs.distances(np.array([[[0.5, 0.35, 0.2]] * 3, [[0.5, 0.65, 0.2]] * 3]), 320)
    assert (outside[:, 160, 160] < 0).all()
    background = blobs.boundary(outside)[160] >= 0
    gap = np.flatnonzero(background[100:220]) + 100
    assert gap.tolist() == list(range(152, 168))  # 0.05 of 320 pixels


def test_more_pixels_show_the_same_scene() -> None:
    coarse, fine = blobs.draw(3, 16)[1], blobs.draw(3, 64)[1]
    shrunk = fine.reshape(16, 4, 16, 4).mean((1, 3)) > 0.5
    assert (shrunk == coarse).mean() > 0.9


# Sets with masks


def a_set(masks_: NDArray[Any], classes: int = 2) -> Images:
    pixels = np.random.default_rng(0).integers(0, 256, masks_.shape, np.uint8)
    return data.from_arrays(
        "mine", (pixels, masks_), (pixels, masks_), [str(one) for one in range(classes)]
    )


def test_chance_is_the_commonest_class_of_the_labelled_pixels() -> None:
    labels = np.zeros((2, 8, 8), np.int16)
    labels[0, :4] = 1
    labels[1, :6] = UNLABELLED
    assert a_set(labels).chance_error == pytest.approx(100 * (1 - 48 / 80))


def ramp(value: int, where: Any) -> NDArray[np.int16]:
    """Two masks of two halves, with another value somewhere."""
    labels = np.zeros((2, 8, 8), np.int16)
    labels[:, :4] = 1
    labels[where] = value
    return labels


@pytest.mark.parametrize(
    ("value", "where", "fault"),
    [
        (2, (0, 0, 0), "training labels run from 0 to 2, but it has 2 classes"),
        (-2, (0, 0, 0), "training labels run from -2 to 1, but it has 2 classes"),
        (0, ..., "no training pixel is of class 1"),
        (UNLABELLED, 1, "mask 1 of its training images labels no pixel"),
    ],
)
def test_masks_that_teach_nothing_are_refused(value: int, where: Any, fault: str) -> None:
    with refused("data.name=mine", fault):
        data.check_images(a_set(ramp(value, where)))
    images = a_set(ramp(1, 0))
    with refused("test masks are no int16 array"):
        data.check_images(replace(images, test_labels=images.test_labels[:, :4]))


def test_the_45k_split_is_refused() -> None:
    with refused("data.split=45k is for CIFAR-10; mine has masks"):
        data.keep_45k(a_set(ramp(1, 0)))


# Crops and mirrors


@pytest.mark.parametrize("padding", [0, 3])
def test_masks_are_cropped_and_mirrored_with_their_images(padding: int) -> None:
    # Pixels that say their class: whatever becomes of the image must become of its mask.
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, 5, (20, 9, 8)).astype(np.int16))
    images = labels.to(torch.uint8).unsqueeze(3) * 40 + 20
    plan = batches.plan(
        seed=0, start=0, stop=1, images=20, batch_size=16, crop_padding=padding, flip=True
    )
    row = plan.index[0], plan.dy[0], plan.dx[0], plan.mirror[0], padding
    stats = batches.statistics(images, Normalise.none)
    pixels = batches.batch(images, stats, *row)[:, 0]
    answers = batches.answers(labels, *row)
    assert answers.dtype == torch.int64
    # Beyond the border an image is 0, its mask without a class.
    expected = torch.where(pixels == 0, UNLABELLED, ((255 * pixels - 20) / 40).round().long())
    assert torch.equal(answers, expected)
    assert (answers == UNLABELLED).any() == (padding > 0)


def test_a_class_an_image_is_taken_as_it_is() -> None:
    labels = torch.arange(7)
    nothing = torch.zeros(3, dtype=torch.int64)
    index = torch.tensor([4, 0, 6])
    assert batches.answers(labels, index, nothing, nothing, nothing == 0, 2).tolist() == [4, 0, 6]


# Scores


class Guess(nn.Module):
    """Logits of three classes from an image's brightness, a few of them far off."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([3 * x, 1 - 2 * x, 5 * x * x - 0.4], 1)


def slow_score(logits: NDArray[Any], labels: NDArray[Any]) -> Score:
    """Pixel by pixel, in double precision."""
    losses, wrong = [], 0
    both, either = np.zeros(3), np.zeros(3)
    for image, mask in zip(logits, labels, strict=True):
        for y, x in np.ndindex(mask.shape):
            label = mask[y, x]
            if label == UNLABELLED:
                continue
            values = image[:, y, x]
            losses.append(
                np.log(np.exp(values - values.max()).sum()) + values.max() - values[label]
            )
            answer = values.argmax()
            wrong += answer != label
            for one in range(3):
                both[one] += answer == one and label == one
                either[one] += answer == one or label == one
    overlaps = [both[one] / either[one] for one in range(3) if either[one]]
    return Score(float(np.mean(losses)), 100 * wrong / len(losses), 100 * float(np.mean(overlaps)))


@pytest.mark.parametrize("absent", [False, True])
def test_a_score_is_that_of_one_pixel_at_a_time(absent: bool) -> None:
    generator = np.random.default_rng(2)
    images = torch.from_numpy(generator.integers(0, 256, (7, 9, 8, 1), np.uint8))
    labels = torch.from_numpy(generator.integers(-1, 3, (7, 9, 8)).astype(np.int16))
    network: nn.Module = Guess()
    if absent:  # class 2 is neither labelled nor answered
        labels[labels == 2] = 0
        network = nn.Sequential(Guess(), Lowered())
    statistics = batches.statistics(images, Normalise.none)
    score = evaluate(network, images, labels, statistics, Precision.fp32)
    logits = network(batches.prepare(images, statistics)).double().numpy()
    expected = slow_score(logits, labels.numpy())
    assert score.loss == pytest.approx(expected.loss, rel=1e-5)
    assert score.error == pytest.approx(expected.error)
    assert score.iou == pytest.approx(expected.iou)


class Lowered(nn.Module):
    """Class 2 is never answered."""

    def forward(self, x: Tensor) -> Tensor:
        return x - torch.tensor([0.0, 0.0, 100.0]).view(3, 1, 1)


def test_pixels_without_a_class_move_no_weight() -> None:
    network = models.build(compose(["experiment=blobs", "depth=8", "width=2"]).settings, 1, 2)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(3, 8, 8, dtype=torch.int64)
    labels[:, :5] = UNLABELLED

    def loss(logits: Tensor) -> Tensor:
        return cross_entropy(*per_label(logits, labels), ignore_index=UNLABELLED)

    logits = network(x)
    logits.retain_grad()
    loss(logits).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert not logits.grad[:, :, :5].any()
    assert logits.grad[:, :, 5:].all()
    # Divided by the labels that count: their mean, whatever the others are.
    assert loss(logits).item() == pytest.approx(
        cross_entropy(logits[:, :, 5:], labels[:, 5:]).item(), rel=1e-6
    )
    wrong = (logits[:, :, 5:].argmax(1) != 0).sum()
    assert misses(*per_label(logits, labels)) == wrong


# Training


@pytest.mark.process
def test_the_training_error_is_of_the_labelled_pixels(few_blobs: Images) -> None:
    settings = compose(
        ["experiment=blobs", "depth=8", "width=2", "steps=2", "eval_every=2", "batch_size=24"]
    ).settings
    settings = replace(settings, lr=1e-30)  # it stays as it is
    network = models.build(settings, 1, 2, few_blobs.size)
    statistics = batches.statistics(few_blobs.train_images, settings.normalise)
    [row] = [row for row in fit(begin(network, settings), settings, few_blobs) if row]
    with torch.no_grad():
        answers = network.train()(batches.prepare(few_blobs.train_images, statistics)).argmax(1)
    labels = few_blobs.train_labels
    counted = labels != UNLABELLED
    wrong = ((answers != labels) & counted).sum() / counted.sum()
    assert row.train_error == pytest.approx(100 * wrong.item())


@pytest.mark.process
def test_a_run_learns_blobs_and_records_overlaps(tmp_path: Path, loaded: None) -> None:
    # In so few steps a moving average of the statistics lags behind.
    words = ["steps=40", "width=8", "batch_size=12", "eval_every=20", "bn_eval=recalibrated"]
    one = job(tmp_path, *words)
    outcome = local.perform(one)
    lines = (one.directory / records.METRICS).read_text().splitlines()
    assert lines[0] == ",".join([*COLUMNS, "clean_train_iou", "test_iou"])
    first, last = Run.read(one.directory).rows()
    assert first.test_iou is not None
    assert first.clean_train_iou is None
    assert last.test_iou is not None
    assert last.clean_train_iou is not None
    assert last.clean_train_iou > 50
    assert last.train_error < first.train_error < outcome.record["data"]["chance_error"] + 10
    assert outcome.record["data"]["task"] == "segmentation"
    assert outcome.record["last"]["test_iou"] == pytest.approx(last.test_iou)
    assert ", errors of pixels" in headline(outcome.record)
    assert errors(outcome.record["last"])[-1].split() == ["IoU", f"{last.test_iou:.1f}", "%"]


@pytest.mark.process
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path: Path, loaded: None) -> None:
    words = ["crop_padding=2", "flip=true"]
    whole = job(tmp_path / "whole", *words)
    local.perform(whole)

    def stop(record: dict[str, Any], step: int, row: Row | None) -> None:
        if step == 3:
            os.kill(os.getpid(), 15)

    parts = job(tmp_path / "parts", *words)
    with pytest.raises(Interrupted):
        local.perform(parts, stop)
    assert records.read_record(parts.directory)["status"] == "interrupted"
    local.perform(parts)

    def cells(one: records.Job) -> list[dict[str, Any]]:
        rows = [asdict(row) for row in Run.read(one.directory).rows()]
        return [{k: v for k, v in row.items() if k not in TIME_COLUMNS} for row in rows]

    assert len(cells(whole)) == 3
    assert cells(parts) == cells(whole)


def test_a_network_that_answers_the_commonest_class_has_collapsed() -> None:
    def row(error: float) -> Row:
        names = [key for key in COLUMNS if key != "train_error"]
        return Row(train_error=error, **dict.fromkeys(names, 1))  # type: ignore[arg-type]

    settings = Settings(collapse_after=0.0)
    # 5 % of the pixels are of rarer classes: an error of 4 % is a network that finds some.
    assert running.status([row(5.0)], settings, 5.0) == "collapsed"
    assert running.status([row(4.0)], settings, 5.0) == "ok"
    assert running.status([row(88.5)], settings, 90.0) == "collapsed"
    assert running.status([row(87.5)], settings, 90.0) == "ok"


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("arch=unet depth=8", ["digits has none", "experiment=blobs", "data=masks"]),
        ("experiment=blobs arch=plain depth=8", ["blobs has masks", "Choose arch=unet"]),
    ],
)
def test_a_network_that_cannot_learn_the_set_is_refused(
    tmp_path: Path, words: str, advice: list[str]
) -> None:
    with refused(*advice):
        running.check_settings(compose([*words.split(), f"results={tmp_path}"]))
    assert not list(tmp_path.iterdir())


# Records


def overlapping(root: Path, seed: int, iou: float | None, status: str = "ok") -> None:
    """A run on blobs without training: that of ``write_run`` with two more columns."""
    written = {"name": "blobs", "task": "segmentation", "train": 400, "test": 200}
    facts = {"shape": [32, 32, 1], "classes": 2, "chance_error": 30.0}
    directory = write_run(
        root, "unet", 8, seed, name="blobs", status=status, record={"data": written | facts}
    )
    path = directory / records.METRICS
    header, *lines = path.read_text().splitlines()
    more = [f"{line},,{60 + number}" for number, line in enumerate(lines[:-1])]
    more.append(f"{lines[-1]},{70},{iou}")
    path.write_text("\n".join([f"{header},{','.join(IOU_COLUMNS)}", *more]) + "\n")
    record = records.read_record(directory)
    record["last"] |= {"clean_train_iou": 70.0, "test_iou": iou}
    records.write_record(directory, record)


def test_tables_show_the_overlap_where_there_is_one(tmp_path: Path) -> None:
    write_run(tmp_path, "plain", 8, 0)
    alone = table.render(table.rows(find_runs(tmp_path)))
    assert "IoU" not in alone
    overlapping(tmp_path, 0, 80.0)
    overlapping(tmp_path, 1, 82.0)
    shown = table.render(table.rows(find_runs(tmp_path)))
    assert "81.00 (1.41)" in shown
    assert "IoU: mean intersection over union of the classes" in shown
    lines = {row["name"]: row for row in table.rows(find_runs(tmp_path))}
    assert lines["digits"]["test_iou"] is None
    assert lines["blobs"]["test_iou"] == 81.0


def test_a_diverged_run_counts_as_the_overlap_of_the_commonest_class(tmp_path: Path) -> None:
    overlapping(tmp_path, 0, 80.0, status="diverged")
    [run] = find_runs(tmp_path)
    # All pixels answered with the class of 70 %: its overlap is 70 %, the other's nothing.
    assert run.endpoint("test_iou") == 35.0
    write_run(tmp_path, "plain", 8, 0, status="diverged")
    assert [run.endpoint("test_iou") for run in find_runs(tmp_path, ["arch=plain"])] == [None]


@pytest.mark.process
def test_a_frame_has_the_columns_of_the_overlap_only_if_a_run_has(tmp_path: Path) -> None:
    write_run(tmp_path, "plain", 8, 0)
    assert "test_iou" not in load_results(tmp_path)
    overlapping(tmp_path, 0, 80.0)
    frame = load_results(tmp_path)
    assert frame.loc[frame.name == "digits", "test_iou"].isna().all()
    assert frame.loc[frame.name == "blobs", "test_iou"].iloc[-1] == 80.0


def test_rows_go_by_the_header(tmp_path: Path) -> None:
    overlapping(tmp_path, 0, 80.0)
    [run] = find_runs(tmp_path)
    assert run.rows()[-1].test_iou == 80.0
    assert records.keep_rows(run.path, 44)[-1].test_iou == 61.0
    path = run.path / records.METRICS
    assert tuple(path.read_text().splitlines()[0].split(",")) == HEADERS[1]
    path.write_text(path.read_text().replace("test_iou", "test_overlap"))
    [damaged] = find_runs(tmp_path)
    with pytest.raises(UsageError, match=r"line 1 is not step,epoch"):
        damaged.rows()
    assert records.keep_rows(run.path, 44) == []


# Folders of images and masks


def folder(root: Path, values: tuple[int, ...] = (0, 1, 2)) -> Data:
    return Data(name="mine", loader="masks", root=str(pack_masks(root, values)))


@pytest.mark.parametrize(
    ("values", "classes", "row"),
    [
        ((0, 1, 2), "012", [0, 1, 2] * 4),
        ((0, 255), ["0", "255"], [0, 1] * 6),  # black and white are two classes
        ((0, 1, 255), "01", [0, 1, UNLABELLED] * 4),  # beside others 255 is none
    ],
)
def test_images_and_masks_are_read_from_folders(
    tmp_path: Path, values: tuple[int, ...], classes: list[str], row: list[int]
) -> None:
    images = data.load(folder(tmp_path, values))
    assert (images.task, images.classes) == ("segmentation", list(classes))
    assert images.train_images.shape == (3, 12, 12, 3)
    assert images.test_labels.shape == (2, 12, 12)
    assert images.train_labels[0, 0].tolist() == row


@pytest.mark.process
def test_a_palette_and_bilevel_masks_are_read_by_their_numbers(tmp_path: Path) -> None:
    settings = folder(tmp_path, (0, 1))
    with Image.open(tmp_path / "train/masks/2.png") as saved:
        mask = np.asarray(saved)
    image = Image.fromarray(mask).convert("P")
    image.putpalette([200, 0, 0, 0, 200, 0])
    image.save(tmp_path / "train/masks/0.png")
    save(tmp_path, "train/masks/1.png", mask.astype(bool))
    images = data.load(settings)
    assert torch.equal(images.train_labels[0], images.train_labels[1])
    assert torch.equal(images.train_labels[0], images.train_labels[2])


def test_masks_are_resized_to_whole_classes(tmp_path: Path) -> None:
    images = data.load(replace(folder(tmp_path, (0, 7, 1, 2, 3, 4, 5, 6)), size=8))
    assert images.train_images.shape == (3, 8, 8, 3)
    assert set(images.train_labels.unique().tolist()) <= set(range(8))


def test_a_grey_image_among_coloured_ones_gets_three_channels(tmp_path: Path) -> None:
    settings = folder(tmp_path)
    grey = save(tmp_path, "train/images/1.jpg", np.full((12, 12), 90, np.uint8))
    assert grey.is_file()
    assert data.load(settings).train_images[1].unique().tolist() == [90]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train/masks/1.png", None, ["train/images/1.jpg has no counterpart"]),
        ("test/images/0.jpg", None, ["test/masks/0.png has no counterpart"]),
        ("train/masks/1.png", np.zeros((12, 10), np.uint8), ["1.png is 10x12 pixels, but"]),
        ("train/masks/1.png", np.zeros((12, 12, 3), np.uint8), ["PNG of mode RGB"]),
        ("train/images/1.png", np.zeros((12, 12), np.uint8), ["share a name"]),
        ("train/masks/1.png", b"no image", ["1.png is not an image that Pillow can read"]),
        ("train/images/1.jpg", b"no image", ["1.jpg is not an image that Pillow can read"]),
        # All that is wrong, in one message
        ("train/masks/9.png", b"no image", ["masks/9.png has no counterpart"]),
        ("train/images/1.jpg test/masks/1.png", b"", ["2 faults", "1.jpg is", "masks/1.png is"]),
    ],
)
def test_a_folder_is_refused_by_the_files_at_fault(
    tmp_path: Path, name: str, content: Any, words: list[str]
) -> None:
    settings = folder(tmp_path)
    for one in name.split():
        if content is None:
            (tmp_path / one).unlink()
        elif isinstance(content, bytes):
            (tmp_path / one).write_bytes(content)
        else:
            save(tmp_path, one, content)
    with refused(*words):
        data.load(settings)


def test_images_of_several_sizes_need_one(tmp_path: Path) -> None:
    settings = folder(tmp_path)
    save(tmp_path, "test/images/1.jpg", np.zeros((20, 16), np.uint8))
    save(tmp_path, "test/masks/1.png", np.zeros((20, 16), np.uint8))
    with refused("1.jpg is 16x20 pixels, but", "Set data.size"):
        data.load(settings)
    assert data.load(replace(settings, size=8)).test_images.shape == (2, 8, 8, 3)


@pytest.mark.parametrize(("values", "missing"), [((0, 1, 3), 2), ((1, 2), 0), ((0, 128), 1)])
def test_masks_that_skip_a_class_are_refused(
    tmp_path: Path, values: tuple[int, ...], missing: int
) -> None:
    with refused(f"{missing} is missing. Number the classes"):
        data.load(folder(tmp_path, values))


@pytest.mark.parametrize("absent", masks.FOLDERS)
def test_a_folder_without_one_of_the_four_is_refused_before_anything(
    tmp_path: Path, absent: str
) -> None:
    settings = folder(tmp_path)
    (tmp_path / absent).rename(tmp_path / "away")
    with refused(f"has no {absent}/", "Point it at a folder"):
        data.check_present(settings)


@pytest.mark.process
def test_a_folder_trains_from_the_command_line(tmp_path: Path) -> None:
    pack_masks(tmp_path / "cells", (0, 255), size=16)
    one = job(tmp_path / "results", "data=masks", f"data.root={tmp_path / 'cells'}", "data.size=8")
    assert one.settings.data.name == "cells"
    record = local.perform(one).record
    assert record["status"] in ("ok", "collapsed")
    assert record["data"]["shape"] == [8, 8, 3]
