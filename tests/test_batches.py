"""resexp.data.batches: which images a step sees, and what is done to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resexp.data.batches import Plan, Statistics, batch, epoch_order, plan, prepare, statistics
from resexp.settings import Normalise, UsageError


def some_images(count: int = 40, channels: int = 3) -> torch.Tensor:
    generator = np.random.default_rng(0)
    return torch.from_numpy(generator.integers(0, 256, (count, 10, 8, channels), np.uint8))


def a_plan(start: int, stop: int, **changes: Any) -> Plan:
    usual = {"images": 40, "batch_size": 16, "seed": 0, "crop_padding": 2, "flip": True}
    return plan(**usual | {"start": start, "stop": stop} | changes)  # type: ignore[arg-type]


def fields(one: Plan) -> list[torch.Tensor]:
    return [one.index, one.dy, one.dx, one.mirror]


def row(one: Plan, step: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return one.index[step], one.dy[step], one.dx[step], one.mirror[step]


def same(one: Plan, other: Plan) -> bool:
    return all(torch.equal(a, b) for a, b in zip(fields(one), fields(other), strict=True))


# The stream of numbers


def test_the_stream_of_seed_0_is_this_one_for_ever() -> None:
    first = a_plan(0, 1, images=1437, batch_size=8, crop_padding=4)
    assert first.index.tolist() == [[355, 1097, 297, 313, 695, 1410, 249, 419]]
    assert first.dy.tolist() == [[2, 8, 4, 8, 5, 7, 3, 4]]
    assert first.dx.tolist() == [[5, 3, 1, 1, 4, 1, 1, 0]]
    assert first.mirror.int().tolist() == [[1, 1, 1, 0, 0, 0, 0, 1]]


def test_a_later_step_of_another_seed_is_this_one_for_ever() -> None:
    # Step 179 of 8 images crosses from the first epoch of 1,437 images into the second.
    later = a_plan(179, 180, seed=1, images=1437, batch_size=8, crop_padding=4)
    assert later.index.tolist() == [[258, 1213, 854, 415, 324, 1300, 282, 213]]
    assert later.dy.tolist() == [[8, 8, 7, 8, 2, 6, 8, 2]]
    assert later.dx.tolist() == [[4, 6, 7, 1, 1, 1, 8, 8]]
    assert later.mirror.int().tolist() == [[1, 0, 1, 0, 1, 1, 0, 0]]


@pytest.mark.process
@settings(deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    images=st.integers(1, 60),
    batch_size=st.integers(1, 90),
    epochs=st.integers(1, 4),
)
def test_every_epoch_shows_each_image_once(
    seed: int, images: int, batch_size: int, epochs: int
) -> None:
    steps = -(-epochs * images // batch_size)
    index = a_plan(0, steps, images=images, batch_size=batch_size, seed=seed).index
    stream = index.flatten()[: epochs * images].view(epochs, images)
    assert torch.equal(stream.sort(1).values, torch.arange(images).expand(epochs, images))


@pytest.mark.process
@settings(deadline=None)
@given(
    start=st.integers(0, 50),
    lengths=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    images=st.integers(1, 60),
    batch_size=st.integers(1, 90),
)
def test_a_plan_made_in_two_parts_is_the_plan_made_at_once(
    start: int, lengths: tuple[int, int], images: int, batch_size: int
) -> None:
    middle, stop = start + lengths[0], start + sum(lengths)
    whole, before, after = (
        a_plan(*part, images=images, batch_size=batch_size)
        for part in ((start, stop), (start, middle), (middle, stop))
    )
    joined = [torch.cat(pair) for pair in zip(fields(before), fields(after), strict=True)]
    assert same(whole, Plan(*joined))
    assert whole.index.shape == (stop - start, batch_size)


def test_a_plan_far_into_training_computes_only_its_own_epochs() -> None:
    assert a_plan(10**12, 10**12 + 1).index.shape == (1, 16)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [tuple(epoch_order(seed, epoch, 50)) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25


def test_crop_and_mirror_are_drawn_apart() -> None:
    def drawn(crop_padding: int, flip: bool) -> Plan:
        return a_plan(0, 20, seed=3, crop_padding=crop_padding, flip=flip)

    both, crop_only, flip_only = drawn(2, True), drawn(2, False), drawn(0, True)
    assert torch.equal(crop_only.dy, both.dy) and torch.equal(crop_only.dx, both.dx)
    assert torch.equal(flip_only.mirror, both.mirror)
    assert not crop_only.mirror.any()
    assert not flip_only.dy.any() and not flip_only.dx.any()


def test_every_crop_and_both_sides_come_up_about_equally_often() -> None:
    drawn = a_plan(0, 100, images=50, batch_size=128, crop_padding=4)
    for offsets in (drawn.dy, drawn.dx):
        counts = offsets.flatten().bincount(minlength=9)
        assert len(counts) == 9
        assert counts.min() * 9 / 12800 > 0.9 and counts.max() * 9 / 12800 < 1.1
    assert 0.48 < drawn.mirror.float().mean() < 0.52
    pairs = (drawn.dy * 9 + drawn.dx).flatten().bincount(minlength=81)
    assert pairs.min() > 0


def test_a_plan_has_the_types_that_indexing_wants() -> None:
    kinds = [tensor.dtype for tensor in fields(a_plan(0, 3))]
    assert kinds == [torch.int64] * 3 + [torch.bool]


# The pixels


def slow_batch(
    images: torch.Tensor, stats: Statistics, one: Plan, step: int, padding: int
) -> torch.Tensor:
    """Image by image, pixel by pixel."""
    _, height, width, channels = images.shape
    index, dy, dx, mirror = (field[step] for field in fields(one))
    mean = stats.mean.expand(height, width, channels)
    out = torch.zeros(len(index), channels, height, width)
    for b in range(len(index)):
        image = (images[index[b]].float() * (1 / 255) - mean) / stats.std
        for y in range(height):
            for x in range(width):
                left = width - 1 - x if mirror[b] else x
                row, column = y + int(dy[b]) - padding, left + int(dx[b]) - padding
                if 0 <= row < height and 0 <= column < width:
                    out[b, :, y, x] = image[row, column]
    return out


@pytest.mark.parametrize("normalise", Normalise)
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_batch_is_what_a_slow_loop_makes(normalise: Normalise, padding: int, channels: int) -> None:
    images = some_images(channels=channels)
    stats = statistics(images, normalise)
    drawn = a_plan(0, 2, crop_padding=padding)
    for step in range(2):
        fast = batch(images, stats, *row(drawn, step), padding)
        assert torch.equal(fast, slow_batch(images, stats, drawn, step, padding))


def test_batches_are_float32_in_channels_last() -> None:
    images = some_images()
    stats = statistics(images, Normalise.pixel_mean)
    for padding in (0, 2):
        batched = batch(images, stats, *row(a_plan(0, 1)), 2)
        pixels = batched if padding else prepare(images, stats)
        assert pixels.shape[1:] == (3, 10, 8)
        assert pixels.dtype == torch.float32
        assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_a_batch_without_augmentation_is_the_prepared_images() -> None:
    images = some_images()
    stats = statistics(images, Normalise.channel_std)
    index = torch.tensor([5, 3, 39])
    none, no = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.bool)
    prepared = prepare(images, stats)[index]
    assert torch.equal(batch(images, stats, index, none, none, no, 0), prepared)
    assert torch.equal(batch(images, stats, index, none + 2, none + 2, no, 2), prepared)


@pytest.mark.process
def test_the_border_is_zero_after_the_mean_is_subtracted() -> None:
    images = torch.full((2, 8, 8, 1), 200, dtype=torch.uint8)
    stats = Statistics(torch.full((1,), 0.5), torch.ones(1))
    zero = torch.tensor([0])
    pixels = batch(images, stats, zero, zero, zero, torch.tensor([False]), 3)
    assert pixels[0, 0, :3].eq(0).all() and pixels[0, 0, :, :3].eq(0).all()
    assert pixels[0, 0, 3:, 3:].eq(torch.tensor(200.0) * (1 / 255) - 0.5).all()


def test_images_are_left_as_they_are() -> None:
    images = some_images()
    before = images.clone()
    prepare(images, statistics(images, Normalise.pixel_mean))
    batch(images, statistics(images, Normalise.none), *row(a_plan(0, 1)), 2)
    assert torch.equal(images, before)


def test_black_is_0_and_white_is_1() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 8, 8, 1)
    pixels = prepare(images, statistics(images, Normalise.none))
    assert pixels[0].eq(0).all() and pixels[1].eq(1).all()


# The statistics


def test_statistics_are_those_of_float64() -> None:
    images = some_images(2500)  # more than two chunks
    stats = statistics(images, Normalise.pixel_mean)
    expected = (images.numpy().astype(np.float64) / 255).mean(0)
    assert stats.mean.dtype == torch.float32
    np.testing.assert_allclose(stats.mean.numpy(), expected, rtol=1e-7)
    assert stats.std.tolist() == [1, 1, 1]
    stats = statistics(images, Normalise.channel_std)
    scaled = images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(stats.mean.numpy(), scaled.mean((0, 1, 2)), rtol=1e-7)
    np.testing.assert_allclose(stats.std.numpy(), scaled.std((0, 1, 2)), rtol=1e-7)


def test_statistics_do_not_depend_on_the_number_of_threads() -> None:
    images = some_images(2500)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(statistics(images, Normalise.pixel_mean).mean)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_constant_channel_cannot_be_divided_by_its_deviation() -> None:
    images = some_images()
    images[..., 1] = 7
    with pytest.raises(UsageError, match=r"channel 1 .* is constant\. Use normalise=pixel_mean"):
        statistics(images, Normalise.channel_std)
