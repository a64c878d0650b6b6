"""resexp.train.evaluate: loss and error on a whole set, and a network left as it was found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resexp import models
from resexp.data import Images, batches
from resexp.settings import Arch, BnEval, Merge, Normalise, Order, Precision, Settings
from resexp.train import evaluate as module
from resexp.train.evaluate import evaluate, evaluation_mode

#: Two whole batches of the 40 images, and eight left over.
SMALL = Settings(arch=Arch(merge=Merge.residual), depth=8, width=4, batch_size=16, bn_momentum=0.3)
RECALIBRATED = replace(SMALL, bn_eval=BnEval.recalibrated)


@pytest.fixture
def network(few_digits: Images) -> nn.Module:
    """A network with running statistics of some training, in training mode."""
    network = models.build(SMALL, few_digits.channels, len(few_digits.classes))
    with torch.no_grad():
        for some in torch.split(few_digits.train_images, 10):
            network(batches.prepare(some, stats(few_digits)))
    return network


def stats(images: Images) -> batches.Statistics:
    return batches.statistics(images.train_images, SMALL.normalise)


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def everything(network: nn.Module) -> dict[str, Any]:
    """All of a network that evaluation might change."""
    return {
        "tensors": {key: value.tolist() for key, value in network.state_dict().items()},
        "modes": [module.training for module in network.modules()],
        "momenta": [norm.momentum for norm in norms(network)],
        "gradients": [parameter.grad for parameter in network.parameters()],
        "trained": [parameter.requires_grad for parameter in network.parameters()],
        "hooks": [len(module._forward_hooks) for module in network.modules()],
        "random": torch.random.get_rng_state().tolist(),
    }


def on_test(network: nn.Module, images: Images) -> tuple[float, float]:
    sets = images.test_images, images.test_labels
    score = evaluate(network, *sets, stats(images), Precision.fp32)
    return score.loss, score.error


def evaluating(
    network: nn.Module, settings: Settings, images: Images
) -> AbstractContextManager[None]:
    return evaluation_mode(network, settings, images, stats(images))


# Loss and error


def test_batches_placed_by_the_device_are_the_same_batches_again_and_again(
    network: nn.Module, few_digits: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a GPU replays one: whole batches by a repeated step, then what is left over."""
    monkeypatch.setattr(module, "EVALUATION_BATCH", 7)
    network.eval()
    sets = few_digits.train_images, few_digits.train_labels
    expected = evaluate(network, *sets, stats(few_digits), Precision.fp32)
    turns: list[None] = []

    def ready(step: Callable[[], None]) -> Callable[[], None]:
        return lambda: (turns.append(None), step())[1]

    whole = module.Evaluation(network, *sets, stats(few_digits), Precision.fp32, ready)
    for times in (1, 2):
        whole.start()
        assert whole.score() == expected
        assert len(turns) == times * (len(sets[1]) // 7)


def test_loss_and_error_are_those_of_one_image_at_a_time_in_double_precision(
    network: nn.Module, few_digits: Images
) -> None:
    network.eval()
    loss, error = on_test(network, few_digits)
    careful = copy.deepcopy(network).double()
    mean = few_digits.train_images.double().mean(0)
    losses, wrong = [], 0
    for image, label in zip(few_digits.test_images, few_digits.test_labels, strict=True):
        x = ((image.double() - mean) / 255).permute(2, 0, 1)[None]
        logits = careful(x)[0].tolist()
        losses.append(torch.tensor(logits).double().logsumexp(0).item() - logits[int(label)])
        wrong += logits.index(max(logits)) != int(label)
    assert loss == pytest.approx(sum(losses) / 24, rel=1e-6)
    assert error == 100 * wrong / 24
    assert 0 < wrong < 24


@pytest.mark.parametrize(
    ("limit", "most", "size"),
    [
        *(("EVALUATION_BATCH", size, size) for size in (1, 7, 24)),
        ("EVALUATION_PIXELS", 3 * 8 * 8 + 5, 3),
        ("EVALUATION_LABELS", 9, 9),
    ],
)
def test_the_size_of_evaluation_batches_does_not_matter(
    network: nn.Module,
    few_digits: Images,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    most: int,
    size: int,
) -> None:
    loss, error = on_test(network.eval(), few_digits)
    monkeypatch.setattr(module, limit, most)
    sizes: list[int] = []
    network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    assert on_test(network, few_digits) == (pytest.approx(loss, abs=1e-6), error)
    assert sizes == 24 // size * [size] + [24 % size] * (24 % size > 0)


# The network is left as it was found


@pytest.mark.parametrize("settings", [SMALL, RECALIBRATED], ids=lambda s: s.bn_eval)
@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_the_network_as_it_was(
    network: nn.Module, few_digits: Images, settings: Settings, training: bool
) -> None:
    network.train(training)
    recording: list[bool] = []
    network.register_forward_hook(lambda _m, _i, logits: recording.append(logits.requires_grad))
    before = everything(network)
    with evaluating(network, settings, few_digits):
        assert not any(module.training for module in network.modules())
        on_test(network, few_digits)
    assert everything(network) == before
    assert recording and not any(recording)


@pytest.mark.parametrize("settings", [SMALL, RECALIBRATED], ids=lambda s: s.bn_eval)
def test_an_error_inside_leaves_the_network_as_it_was_too(
    network: nn.Module, few_digits: Images, settings: Settings
) -> None:
    before = everything(network)
    with pytest.raises(ZeroDivisionError), evaluating(network, settings, few_digits):
        raise ZeroDivisionError
    assert everything(network) == before


# Statistics of normalisation


def batch_statistics(network: nn.Module, some: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Mean over the batches of each normalisation's mean and unbiased variance, in float64."""
    careful = copy.deepcopy(network).double().train()
    found: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def note(number: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].detach().transpose(0, 1).flatten(1)
            found.setdefault(number, []).append((values.mean(1), values.var(1, correction=1)))

        return hook

    for number, norm in enumerate(norms(careful)):
        norm.register_forward_pre_hook(note(number))
    for x in some:
        careful(x.double())
    return [
        (
            torch.stack([mean for mean, _ in of]).mean(0),
            torch.stack([variance for _, variance in of]).mean(0),
        )
        for of in found.values()
    ]


@pytest.mark.process
@pytest.mark.parametrize(
    ("images", "sizes"), [(40, [16, 16]), (32, [16, 16]), (16, [16]), (11, [11])]
)
def test_recalibrated_statistics_are_the_average_over_whole_clean_batches(
    network: nn.Module, few_digits: Images, images: int, sizes: list[int]
) -> None:
    fewer = replace(
        few_digits,
        train_images=few_digits.train_images[:images],
        train_labels=few_digits.train_labels[:images],
    )
    some = [
        batches.prepare(batch, stats(fewer))
        for batch in torch.split(fewer.train_images[: sum(sizes)], SMALL.batch_size)
    ]
    assert [len(batch) for batch in some] == sizes
    expected = batch_statistics(network, some)
    with evaluating(network, RECALIBRATED, fewer):
        assert len(norms(network)) == len(expected) == 7
        for norm, (mean, variance) in zip(norms(network), expected, strict=True):
            running_mean, running_var = (
                norm.get_buffer("running_mean"),
                norm.get_buffer("running_var"),
            )
            torch.testing.assert_close(running_mean.double(), mean, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(running_var.double(), variance, rtol=1e-4, atol=1e-5)
            assert norm.momentum == 0.3


def test_recalibration_does_not_depend_on_the_moving_average(
    network: nn.Module, few_digits: Images
) -> None:
    with evaluating(network, RECALIBRATED, few_digits):
        expected = on_test(network, few_digits)
    for norm in norms(network):
        norm.get_buffer("running_mean").fill_(100)
        norm.get_buffer("running_var").fill_(1e6)
    network.eval()  # nor on the mode before
    with evaluating(network, RECALIBRATED, few_digits):
        assert on_test(network, few_digits) == expected


def test_the_moving_average_is_used_as_it_is_unless_asked_otherwise(
    network: nn.Module, few_digits: Images
) -> None:
    moving = on_test(copy.deepcopy(network).eval(), few_digits)
    with evaluating(network, SMALL, few_digits):
        assert on_test(network, few_digits) == moving
    with evaluating(network, RECALIBRATED, few_digits):
        assert on_test(network, few_digits) != moving


def test_test_images_are_normalised_with_training_statistics(few_digits: Images) -> None:
    # A network whose loss shows its input: the mean over the pixels is the logit of class 0.
    class Brightness(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.pad(x.mean((1, 2, 3))[:, None], (0, 1))

    labels = torch.zeros(24, dtype=torch.int64)
    for normalise in Normalise:
        statistics = batches.statistics(few_digits.train_images, normalise)
        score = evaluate(Brightness(), few_digits.test_images, labels, statistics, Precision.fp32)
        train = few_digits.train_images.double() / 255
        subtracted = 0.0 if normalise is Normalise.none else train.mean().item()
        divided = train.std(correction=0).item() if normalise is Normalise.channel_std else 1.0
        brightness = (few_digits.test_images.double() / 255 - subtracted) / divided
        expected = torch.log1p(torch.exp(-brightness.mean((1, 2, 3)))).mean()
        assert score.loss == pytest.approx(expected.item(), rel=1e-5)


def test_preactivation_networks_are_recalibrated_to_their_last_norm(few_digits: Images) -> None:
    arch = replace(SMALL.arch, order=Order.full_preactivation)
    settings = replace(RECALIBRATED, arch=arch)
    network = models.build(settings, 1, 10)
    with evaluating(network, settings, few_digits):
        assert all(norm.get_buffer("running_mean").any() for norm in norms(network))
    assert not any(norm.get_buffer("running_mean").any() for norm in norms(network))
