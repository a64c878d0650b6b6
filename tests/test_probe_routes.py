"""The routes probe: what cannot matter does not; shares that are known; the rule's sides."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

from resexp import models
from resexp.data import Images
from resexp.probes import Verdict, routes
from resexp.probes.lesion import Patient, examined
from resexp.probes.networks import some_images
from resexp.probes.routes import between, importance, split
from resexp.settings import Arch, Merge, Settings

LABELS = np.arange(40) % 4


@pytest.fixture
def patient(few_digits: Images) -> Patient:
    """Residual-20, untrained, that tells images apart; blocks 4 and 7 change shapes."""
    settings = Settings(depth=20, width=4, arch=Arch(merge=Merge.residual), seed=90)
    network = models.build(settings, 1, 10, (8, 8)).eval()
    images, labels = some_images(settings, few_digits, 24)
    return examined(network, images, labels, images)


@pytest.mark.parametrize("recalibrate", [False, True])
def test_a_block_that_is_the_identity_matters_for_no_image(
    patient: Patient, recalibrate: bool
) -> None:
    for parameter in patient.network.get_submodule("blocks.2.branch.norm2").parameters():
        parameter.data.zero_()
    nats = importance(patient, recalibrate)
    assert nats.shape == (24, 7)
    assert patient.movable[2] == 2
    assert (nats[:, 2] == 0).all()
    assert (np.abs(np.delete(nats, 2, axis=1)) > 1e-4).mean() > 0.9


def test_importance_is_each_images_own_loss(patient: Patient) -> None:
    """Oracle: the network's blocks called by hand."""
    nats = importance(patient, recalibrate=False)
    part = patient.network.get_submodule

    def loss(left_out: int | None) -> torch.Tensor:
        x = part("stem")(patient.images)
        for at, block in enumerate(part("blocks").children()):
            x = x if at == left_out else block(x)
        logits = part("classifier")(x.mean(dim=(2, 3))).double()
        return torch.stack(
            [cross_entropy(a, b) for a, b in zip(logits, patient.labels, strict=True)]
        )

    with torch.no_grad():
        expected = loss(7) - loss(None)
    assert nats[:, patient.movable.index(7)] == pytest.approx(expected.numpy(), abs=1e-6)
    assert np.abs(importance(patient, recalibrate=True) - nats).max() > 1e-2


def test_shares_of_effects_that_are_known() -> None:
    """An effect of the block, one of class and block, one of the image: none in another's way."""
    block = np.tile([3.0, -1.0, -2.0], (40, 1))
    by_class = np.array([1.0, -1.0, 1.0, -1.0])[LABELS, None] * [1.0, 0.0, -1.0]
    own = np.where(np.arange(40) < 20, 1.0, -1.0)[:, None] * [1.0, -2.0, 1.0]
    easy = np.arange(40.0)[:, None]  # an image that loses more whatever is left out
    found = split(2 * block + by_class + own + easy, LABELS)
    total = 4 * 14 + 2 + 6
    assert found["block"]["value"] == pytest.approx(56 / total)
    assert found["class"]["value"] == pytest.approx(2 / total)
    assert found["image"]["value"] == pytest.approx(6 / total)


def test_the_share_of_ranks_is_kendalls_and_tells_the_mean_rank_correlation() -> None:
    """Oracle: all pairs of images, one by one."""
    random = np.random.default_rng(90)
    ranks = pd.DataFrame(random.normal(size=(40, 6)) + np.arange(6)).rank(axis=1).to_numpy()
    share = split(ranks, LABELS)["block"]["value"]
    correlations = np.corrcoef(ranks)[np.triu_indices(40, 1)]
    assert (40 * share - 1) / 39 == pytest.approx(correlations.mean())
    alone = split(random.permuted(ranks, axis=1), LABELS)["block"]["value"]
    assert alone < 3 / 40  # by chance one over the number of images


def test_random_labels_tell_an_effect_of_class_from_none() -> None:
    noise = np.random.default_rng(90).normal(size=(40, 6))
    none = split(noise, LABELS)["class"]
    assert none["p"] > 0.05
    assert 0 < none["value"] < none["chance"]
    some = split(noise + 2 * np.eye(4, 6)[LABELS], LABELS)["class"]
    assert some["p"] == 1 / (1 + routes.LABELLINGS)
    assert some["value"] > some["chance"]


def test_nothing_that_varies_has_no_shares() -> None:
    assert all(math.isnan(part["value"]) for part in split(np.ones((40, 3)), LABELS).values())
    assert between(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([0, 1])) == 1 + 4 + 9 + 16


def test_the_rows_of_a_network_have_every_share_and_every_mean(patient: Patient) -> None:
    place = {"depth": 20, "images": 24}
    rows = [place | {"seed": seed} | row for seed in (90, 91) for row in routes.tidy(patient)]
    table = pd.DataFrame(rows)
    classes = len(set(patient.labels.tolist()))
    assert len(table) == 2 * 2 * 2 * (3 + 7 * classes)
    finding = routes.conclude(table)
    assert finding.verdict is Verdict.inconclusive
    assert not any(math.isnan(value) for value in finding.numbers.values())
    for statistics, of in product(routes.STATISTICS, ("ranks", "nats")):
        shares = [finding.numbers[f"share of {of}, {part}, {statistics}"] for part in routes.PARTS]
        assert sum(shares) == pytest.approx(1)


def table(
    block: float, p: float = 0.005, seeds: int = 5, nats: float | None = None
) -> pd.DataFrame:
    """Shares of blocks by 0.01 more in each seed; as trained they are all there is."""
    alone = {"ranks": block, "nats": block if nats is None else nats}
    rows = []
    for statistics, of, seed in product(routes.STATISTICS, alone, range(seeds)):
        share = 1.0 if statistics == "as trained" else alone[of] + 0.01 * seed
        parts = {"block": share, "class": 0.25 * (1 - share), "image": 0.75 * (1 - share)}
        rows += [
            {"depth": 56, "seed": seed, "images": 101, "statistics": statistics, "of": of}
            | {"what": part, "value": value, "chance": 0.1, "p": p}
            for part, value in parts.items()
        ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        (table(0.30), "supported"),
        (table(0.60), "not supported"),
        (table(0.60, p=0.5), "not supported"),
        (table(0.48), "inconclusive"),
        (table(0.30, p=0.06), "inconclusive"),  # may be noise
        (table(0.30, nats=0.60), "inconclusive"),
        (table(0.60, nats=0.30), "inconclusive"),
        (table(0.30, seeds=4), "inconclusive"),
        (table(math.nan), "inconclusive"),
    ],
)
def test_the_verdict_follows_its_rule(rows: pd.DataFrame, verdict: str) -> None:
    assert routes.conclude(rows).verdict == verdict
