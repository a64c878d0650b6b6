"""The reuse probe: read-outs of features that are known, pairs of twins, the rule's sides."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from resexp.config import compose
from resexp.probes import Account, Case, Finding, Verdict, reuse
from resexp.probes.networks import at_start, load
from resexp.settings import Arch, Merge, Settings, UsageError

RESIDUAL = Settings(depth=20, seed=90, arch=Arch(merge=Merge.residual))


def case(*words: str) -> Case:
    job = compose([*words, "seed=90"])
    return Case(job.arch, job.settings)


class Hand(nn.Module):
    """A stem that passes the image on, split in four by place, and blocks made by hand."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem = nn.PixelUnshuffle(2)
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x)).mean(dim=(2, 3)) @ torch.ones(4, 10)


class Times(nn.Module):
    """Channels mixed by a matrix."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ij,njhw->nihw", self.matrix, x)


def test_what_is_passed_on_or_mixed_is_read_and_what_is_lost_is_not() -> None:
    mixed = torch.randn(4, 4, generator=torch.Generator().manual_seed(90))
    network = Hand(nn.Identity(), Times(mixed), Times(torch.diag(torch.tensor([1.0, 1, 0, 0]))))
    network.blocks.append(Times(torch.zeros(4, 4)))
    rows = list(reuse.read_outs(network, RESIDUAL))
    stem, same, mixed_row, half, nothing = (row["r2_stem"] for row in rows)
    assert [row["block"] for row in rows] == [0, 1, 2, 3, 4]
    assert stem == same == pytest.approx(1, abs=1e-4)
    assert mixed_row == pytest.approx(1, abs=1e-2)
    assert 0.5 < half < 0.98  # two of four channels, and what is correlated with them
    assert nothing == pytest.approx(0, abs=0.02)  # the mean of the training images
    assert rows[0]["error_percent"] < 40  # a linear classifier of 4x4 places; chance: 90
    assert rows[4]["error_percent"] > 80


def test_blocks_that_are_the_identity_keep_all_but_what_a_stride_drops() -> None:
    network = at_start(RESIDUAL, load(RESIDUAL))
    for number in range(9):
        for parameter in network.get_submodule(f"blocks.{number}.branch.norm2").parameters():
            parameter.data.zero_()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    r2 = [row["r2_stem"] for row in reuse.read_outs(network, RESIDUAL)]
    assert r2[:4] == pytest.approx([1.0] * 4, abs=1e-3)
    assert r2[4:7] == pytest.approx([r2[4]] * 3)
    assert r2[7:] == pytest.approx([r2[7]] * 3)
    assert 1 > r2[3] > r2[4] > r2[7]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_moving_statistics_which_a_fresh_network_lacks_play_no_part() -> None:
    shallow = replace(RESIDUAL, depth=8, width=4)
    network = at_start(shallow, load(shallow))
    rows = list(reuse.read_outs(network, shallow))
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(100)
    assert list(reuse.read_outs(network, shallow)) == rows


def test_the_regression_is_that_of_an_augmented_least_squares() -> None:
    """Oracle: rows of the root of the penalty below standardised features, solved by numpy."""
    random = np.random.default_rng(90)
    x, y, test = random.normal(3, 2, (50, 5)), random.normal(1, 1, (50, 2)), np.ones((4, 5))
    x[:, 4] = 7.0  # says nothing, and divides by no zero
    (centre, spread), penalty = (x.mean(0), x.std(0, ddof=1)), math.sqrt(50 * reuse.RIDGE)
    scaled, scaled_test = ((one - centre)[:, :4] / spread[:4] for one in (x, test))
    augmented = np.vstack([scaled, penalty * np.eye(4)])
    target = np.vstack([y - y.mean(0), np.zeros((4, 2))])
    expected = y.mean(0) + scaled_test @ np.linalg.lstsq(augmented, target)[0]
    found = reuse.ridge(*(torch.tensor(one) for one in (x, y, test)))
    assert found.numpy() == pytest.approx(expected)


def test_explained_is_of_all_columns_together() -> None:
    truth = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    assert reuse.explained(truth, truth) == 1
    assert reuse.explained(truth.mean(0).expand(2, 2), truth) == 0
    halved = truth * torch.tensor([0.0, 1.0]) + torch.tensor([2.0, 0.0])
    assert reuse.explained(halved, truth) == pytest.approx(1 - 2 / 202)


def test_networks_are_paired_with_the_twin_that_shares_all_else() -> None:
    residual, plain = case("arch=residual", "depth=20"), case("arch=plain", "depth=20")
    dense, twin = (case("arch=dense", "depth=22", f"twin={one}") for one in ("none", "plain"))
    other = case("arch=plain", "depth=20", "lr=0.5")
    cases = [other, twin, plain, residual, dense, case("arch=residual", "depth=8")]
    assert reuse.pairs(cases) == [(residual, plain), (dense, twin)]
    assert reuse.pairs([residual, case("arch=residual", "depth=20", "twin=plain")])
    with pytest.raises(UsageError, match="arch=plain,residual"):
        reuse.pairs([residual, other, dense])


#: R2 of the last block by (when, twin), at both depths; plain-56 does not fit.
R2 = {("start", "none"): 0.8, ("start", "plain"): 0.1}
R2 |= {("end", "none"): 0.7, ("end", "plain"): 0.4}


def told(seeds: int = 5, error: float = 0.1, **others: float) -> Finding:
    """What ``conclude`` makes of R2 and ``others``, which are named ``end_none`` and the like."""
    numbers = R2 | {tuple(name.split("_")): value for name, value in others.items()}
    rows = [
        {"arch": "residual", "twin": twin, "when": when, "depth": depth, "seed": seed}
        | {"block": block, "r2_image": 0.5, "error_percent": 1.0}
        | {"r2_stem": value - 0.01 * seed - (0.1 if depth == 56 else 0) if block else 1.0}
        | {"train_error_percent": 60.0 if (depth, twin) == (56, "plain") else error}
        for ((when, twin), value), depth, seed, block in product(
            numbers.items(), (20, 56), range(seeds), (3, 0)
        )
    ]
    return reuse.conclude(pd.DataFrame(rows))


@pytest.mark.parametrize(
    ("finding", "verdict", "account"),
    [
        (told(), Verdict.supported, Account.right),
        (told(start_none=0.4, end_none=0.45), Verdict.not_supported, Account.contradicted),
        (told(start_plain=0.75, end_plain=0.65), Verdict.not_supported, Account.contradicted),
        (told(end_plain=0.65), Verdict.inconclusive, Account.overgeneralised),
        (told(end_none=0.52), Verdict.inconclusive, None),  # 0.50 on average
        (told(end_none=math.nan), Verdict.inconclusive, None),
        (told(seeds=4), Verdict.inconclusive, None),
        (told(error=11.0), Verdict.inconclusive, None),  # none fits
    ],
)
def test_the_verdict_follows_its_rule(
    finding: Finding, verdict: Verdict, account: Account | None
) -> None:
    assert finding.verdict is verdict
    assert (finding.account[0] if finding.account else None) is account
