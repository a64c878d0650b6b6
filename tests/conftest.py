"""What all tests share: a clean Hydra, one CPU thread, a few images, GPUs only if asked for."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hydra.core.singleton import Singleton

import resexp.config  # noqa: F401  registers the schema before Hydra's state is first saved
from resexp import data
from resexp.launch import dry_run
from resexp.runs import run as running
from resexp.settings import Data

#: A job in the background has these ignored, and so would what the tests start and signal.
for signum, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(signum) is signal.SIG_IGN:
        signal.signal(signum, usual)

#: Hydra before anything was composed. (Its own fixture takes the state that it finds, which may be
#: what the fixture of a whole module left behind.)
HYDRA = copy.deepcopy(Singleton.get_state())


@pytest.fixture(autouse=True)
def clean_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a composed configuration or a trained job leaves behind in this process."""
    if len(Singleton._instances) > len(HYDRA["instances"]) + 1:  # a copy takes 14 ms
        Singleton.set_state(copy.deepcopy(HYDRA))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(dry_run, "remember", lambda *_: None)  # it writes into the home folder
    torch.set_num_threads(1)  # a run may have set more; sums then differ in the last bits
    with contextlib.chdir("."):  # a job of another launcher changes its process's folder
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--first", action="store_true", help="of a test's values take the first alone")


@pytest.hookimpl(trylast=True)  # once -m has chosen
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--first"):
        firsts = {item.nodeid.partition("[")[0]: item for item in reversed(items)}
        kept = set(firsts.values())
        config.hook.pytest_deselected(items=[one for one in items if one not in kept])
        items[:] = reversed(firsts.values())


def pytest_collection_finish() -> None:
    """What was imported is looked through for garbage no more: that took a second each time."""
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked gpu need one."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA device")


@pytest.fixture(scope="session")
def few_digits() -> data.Images:
    """40 training and 24 test images of the digits, 8x8 pixels. Not to be changed."""
    digits = data.load(Data())
    return replace(
        digits,
        train_images=digits.train_images[:40],
        train_labels=digits.train_labels[:40],
        test_images=digits.test_images[:24],
        test_labels=digits.test_labels[:24],
    )


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch, few_digits: data.Images) -> None:
    """Train on ``few_digits``, and let the disk flush when it likes."""
    monkeypatch.setattr(running, "load", lambda settings, device: few_digits)
    monkeypatch.setattr(os, "fsync", lambda file: None)
