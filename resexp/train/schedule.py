"""The learning rate and the rows: functions of the integer step, so no resume can shift them."""

from __future__ import annotations

from resexp.settings import Settings


def learning_rate(settings: Settings, step: int) -> float:
    """The rate of optimizer step ``step``, counted from 0.

    He et al. 2015, section 4.2: constant, multiplied by ``lr_drop`` at each milestone (0.5 and
    0.75 of 64,000 steps are the paper's 32k and 48k). Networks at least ``warmup_depth`` deep take
    ``warmup_steps`` at ``warmup_lr`` first: the paper's 110-layer network needs 0.01 for about 400.
    """
    if step < warmup_steps(settings):
        return settings.warmup_lr
    drops = sum(step >= milestone for milestone in milestone_steps(settings))
    return settings.lr * settings.lr_drop**drops


def warmup_steps(settings: Settings) -> int:
    """Warm-up steps of this network: none below ``warmup_depth`` layers."""
    return settings.warmup_steps if settings.depth >= settings.warmup_depth else 0


def milestone_steps(settings: Settings) -> list[int]:
    """The steps from which the rate is lower."""
    return [round(share * settings.steps) for share in settings.milestones]


def next_row(settings: Settings, step: int) -> int:
    """The number of steps after which the row that step ``step`` counts towards is written."""
    return min(settings.steps, (step // settings.eval_every + 1) * settings.eval_every)
