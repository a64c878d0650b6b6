"""Short paths: is training with the gradient of few branches a step as good as with that of all?

Veit et al. trained 54 blocks with 23 drawn anew in each step and lost nothing. Here in each step
the gradient passes as large a part of the branches, drawn from (seed, step), the forward pass
unchanged; what it does not pass keeps its decay and momentum. Three arms from the same weights on
the same batches, each scored on the whole training and test sets in evaluation mode:

- ``usual``: the gradient passes all branches;
- ``short``: it passes 23/54 of them in each step;
- ``fewer``: all, in 23/54 of the steps (the schedule with them): as many updates of each branch.

The rule, of short less usual paired by seed, at least three, on test error in points and log10 of
the training loss, with 95 % intervals of Student's t. Supported: both intervals end below their
margins, 1 point and 0.3 decades (a factor of two). Not supported: either difference is at least its
margin in the mean, its interval above 0. Else inconclusive. Both decide, as errors alone see
nothing where both arms fit the training set. The word is of the recipe's steps: in more, both may
end alike. Where short is worse than usual but its loss not shown to be worse than that of fewer
(the interval reaches below 0), the price may be of updates, not of paths: the account says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product

import pandas as pd
from torch import Tensor, nn

from resexp.analysis.statistics import Interval, paired_t
from resexp.probes import Account, Case, Figure, Finding, Headline, Needs, Row, Tell, Verdict
from resexp.probes import networks as nets
from resexp.probes.paths import deepest, pick
from resexp.probes.rows import ENOUGH, decades, mean, seeds_of, those
from resexp.settings import Settings

CLAIM = "A residual network trains as well if the gradient takes its short paths alone."
SOURCE = "Veit et al. 2016, section 5"
TEXTBOOK = "With 23 of 54 blocks a step ResNet-110 ends at 5.96 % test error, with all at 6.10."
NEEDS = Needs.settings
USUAL = ["depth=20", "arch=residual", "seed=0,1,2"]

PART = 23 / 54  # of the blocks, whose branches pass the gradient in a step
ARMS = ("usual", "short", "fewer")
SCORES = ["train_loss", "train_error_percent", "test_error_percent"]
MARGINS = {"test_error_percent": 1.0, "train_loss": 0.3}  # points and decades


def measure(cases: Sequence[Case], tell: Tell) -> Iterator[Row]:
    """A row for each arm and seed, at one depth."""
    for case, arm in tell([*product(deepest(cases, "short_paths"), ARMS)]):
        settings = case.settings
        network = nets.at_start(settings, nets.load(settings))
        blocks = len(list(network.get_submodule("blocks").children()))
        passing = round(PART * blocks) if arm == "short" else blocks
        if arm == "fewer":
            settings = replace(settings, steps=max(1, round(PART * settings.steps)))
        network = nets.ended(case) if arm == "usual" else on_short_paths(settings, passing)
        about = {"arm": arm, "blocks": blocks, "passing": passing, "steps": settings.steps}
        yield case.place() | about | nets.scores(settings, network)


def on_short_paths(settings: Settings, k: int) -> nn.Module:
    """The network, trained with the gradient passing ``k`` of the branches in each step."""
    network, step = nets.at_start(settings, nets.load(settings)), 0
    branches = [one.get_submodule("branch") for one in network.get_submodule("blocks").children()]

    def stop(branch: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        nonlocal step
        at = branches.index(branch)
        chosen = pick(settings.seed, b"few", step, len(branches), k)
        step += network.training and at == len(branches) - 1
        return output if at in chosen else output.detach()

    with nets.hooked(branches, stop):
        return nets.fitted(network, settings)


# --- from the rows


def differences(rows: pd.DataFrame, arm: str, other: str = "usual") -> dict[str, pd.Series[float]]:
    """``arm`` less ``other``, by endpoint and seed: points of test error, decades of loss."""
    table = rows.assign(train_loss=decades(rows["train_loss"])).pivot(index="seed", columns="arm")
    return {column: table[column][arm] - table[column][other] for column in MARGINS}


def conclude(rows: pd.DataFrame) -> Finding:
    """By the rule in the module's docstring."""
    means = {arm: those(rows, arm=arm)[SCORES].mean(skipna=False) for arm in ARMS}
    errors, losses = (by_seed := differences(rows, "short")).values()
    apart = {column: paired_t(list(some)) for column, some in by_seed.items()}
    beyond = differences(rows, "short", "fewer")["train_loss"]
    verdict = judge(apart)
    price = (
        Account.overgeneralised,
        "it ends worse, but not shown to be worse than all paths do in as many updates of each "
        "branch: what is missed may be the updates, not the long paths.",
    )
    if paired_t(list(beyond)).low > 0:
        price = Account.contradicted, "it ends worse than all paths do in as many updates."
    points, logs = (
        f"{one.mean:+.2f} ({one.low:+.2f} to {one.high:+.2f})" for one in apart.values()
    )
    short, steps = those(rows, arm="short").iloc[0], those(rows, arm="fewer")["steps"].iloc[0]
    told = {
        arm: f"loss {one.train_loss:.3g}, training error {one.train_error_percent:.3g} %, test "
        f"error {one.test_error_percent:.3g} %"
        for arm, one in means.items()
    }
    name, ratio = f"residual-{short.depth}", ("times", ".3g", 10)
    return Finding(
        verdict,
        f"with the gradient through {short.passing} of {short.blocks} branches a step "
        f"{name} ends at {told['short']}; through all, in as many steps, at "
        f"{told['usual']}: {points} points of test error and {logs} decades of loss (95 % "
        f"intervals); through all in {steps} steps, as many updates of each branch, at "
        f"{told['fewer']}.",
        numbers={f"{score}, {arm}": one[score] for arm, one in means.items() for score in SCORES}
        | {
            f"{arm} less usual, {column}{' (log10)' * (column == 'train_loss')}": mean(some)
            for arm in ("short", "fewer")
            for column, some in differences(rows, arm).items()
        },
        conventions=[f"losses in nats; above 0 is worse than usual; {seeds_of(rows)}"],
        headlines=[
            Headline(f"{name}, training loss, short paths over all", losses, *ratio),
            Headline("test error, less", errors, "points", "+.1f"),
            Headline("loss, over that of as many updates", beyond, *ratio),
        ],
        account=price if verdict is Verdict.not_supported else None,
    )


def judge(apart: Mapping[str, Interval]) -> Verdict:
    """The rule in the module's docstring, on short less usual by endpoint."""
    pairs = [(one, MARGINS[column]) for column, one in apart.items()]
    if min(one.n for one, _ in pairs) < ENOUGH:
        return Verdict.inconclusive
    worse = any(one.mean >= margin and one.low > 0 for one, margin in pairs)
    return Verdict.of(all(one.high < margin for one, margin in pairs), worse)


def draw(rows: pd.DataFrame) -> Figure:
    """Training loss and test error of the three arms: a dot per seed and a line at the mean."""
    from resexp.probes.drawing import COLOURS, GREY, dots, finish, panels

    figure, (losses, errors) = panels(2, 66)
    about = {arm: those(rows, arm=arm).iloc[0] for arm in ARMS}
    labels = [f"{one.passing} of {one.blocks},\n{one.steps} steps" for one in about.values()]
    for axis, column in ((losses, "train_loss"), (errors, "test_error_percent")):
        for at, arm in enumerate(ARMS):
            colour = GREY if arm == "fewer" else COLOURS["residual"]
            dots(axis, at, those(rows, arm=arm)[column], colour)
        axis.set_xticks(range(len(ARMS)), labels)
        axis.set(xlabel="branches that pass the gradient in a step")
    losses.set(yscale="log", ylabel="training loss, nats")
    errors.set(ylabel="test error, percent", ylim=(0, None))
    seeds, depth = rows["seed"].nunique(), rows["depth"].iloc[0]
    return finish(figure, f"residual-{depth} trained through all branches or some, {seeds} seeds")
