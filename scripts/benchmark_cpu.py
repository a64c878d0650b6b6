"""Training throughput on a CPU against an ordinary PyTorch loop, and memory. Prints Markdown.

    python scripts/benchmark_cpu.py [--steps 20] [--cifar10-jpeg ARCHIVE_OR_FOLDER]

ResNet-20 at batch 128 on 32x32x3 images, both sides in this process, in turn, on the same threads:

- resexp: the step of resexp/train/fit.py, its batches included, in fp32 and (where the CPU has
  AVX512_BF16 or AMX) in bf16;
- ordinary: the same network in fp32, a DataLoader with 2 workers (and with none), PIL images,
  torchvision's RandomCrop, RandomHorizontalFlip, ToTensor and Normalize, torch.optim.SGD and the
  usual loss.item() a step.

Images are noise for the throughput: their content does not change it. Then two whole runs in
processes of their own, for their peak resident memory: digits at depth 56, and, if given, some
steps on the CIFAR-10 JPEG set. Takes about 3 minutes on two cores. It measures; it asserts nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from resexp import models
from resexp.data import Images
from resexp.settings import Arch, Merge, Precision, Settings
from resexp.train.device import bf16_on_cpu, cores, device_name, prepare
from resexp.train.fit import begin, fit

IMAGES, BATCH, WINDOWS, WARM = 5_000, 128, 5, 2
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


def recipe(precision: Precision) -> Settings:
    """He et al. 2015 at depth 20, far from any evaluation."""
    return Settings(
        arch=Arch(merge=Merge.residual),
        depth=20,
        batch_size=BATCH,
        lr=0.1,
        crop_padding=4,
        flip=True,
        steps=10**6,
        eval_every=10**6,
        precision=precision,
    )


def noise() -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 32, 32, 3] and labels of CIFAR-10's form."""
    random = np.random.default_rng(0)
    return random.integers(0, 256, (IMAGES, 32, 32, 3), np.uint8), random.integers(0, 10, IMAGES)


def resexp_steps(precision: Precision) -> Iterator[None]:
    """resexp's own loop, a step a turn."""
    pixels, labels = noise()
    images, answers = torch.from_numpy(pixels), torch.from_numpy(labels)
    data = Images("noise", images, answers, images[:10], answers[:10], list("0123456789"))
    settings = recipe(precision)
    for _ in fit(begin(models.build(settings, 3, 10), settings), settings, data):
        yield


class Pictures(Dataset):
    """What torchvision.datasets.CIFAR10 does with its arrays."""

    def __init__(self) -> None:
        self.images, self.labels = noise()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, 4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(CIFAR_MEAN, CIFAR_STD),
            ]
        )

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def ordinary_steps(workers: int) -> Iterator[None]:
    """The loop of a tutorial."""
    settings = recipe(Precision.fp32)
    network = models.build(settings, 3, 10).to(memory_format=torch.contiguous_format)
    loader = DataLoader(Pictures(), BATCH, shuffle=True, num_workers=workers, drop_last=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    while True:
        for images, labels in loader:
            optimizer.zero_grad()
            loss = cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
            loss.item()
            yield


def throughput(sides: dict[str, Callable[[], Iterator[None]]], steps: int) -> dict[str, float]:
    """Median images/s over windows, the sides in turn, so that a drift of the machine hits all."""
    running = {name: make() for name, make in sides.items()}
    for steps_of in running.values():
        for _ in itertools.islice(steps_of, WARM):
            pass
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(WINDOWS):
        for name, steps_of in running.items():
            started = time.perf_counter()
            for _ in itertools.islice(steps_of, steps):
                pass
            rates[name].append(steps * BATCH / (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in rates.items()}


def peak_memory(*overrides: str) -> float:
    """MB resident at most, from the record of a run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "resexp", "run", *overrides, f"results={folder}"]
        subprocess.run(command, check=True, capture_output=True)
        (record,) = Path(folder).glob("*/*/run.json")
        return float(json.loads(record.read_text())["peak_memory_mb"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6, help="steps a window")
    parser.add_argument("--cifar10-jpeg", help="archive or folder of CIFAR-10 as JPEG")
    options = parser.parse_args()
    prepare(0, False, torch.device("cpu"))
    sides: dict[str, Callable[[], Iterator[None]]] = {
        "ordinary, fp32, 2 workers": lambda: ordinary_steps(2),
        "ordinary, fp32, no workers": lambda: ordinary_steps(0),
        "resexp, fp32": lambda: resexp_steps(Precision.fp32),
    }
    if bf16_on_cpu():
        sides["resexp, bf16"] = lambda: resexp_steps(Precision.bf16)
    cpu = device_name(torch.device("cpu"))
    print(f"{cpu}, {cores()} cores, torch {torch.__version__}; ResNet-20, batch {BATCH}, 32x32x3\n")
    rates = throughput(sides, options.steps)
    best = max(rate for name, rate in rates.items() if name.startswith("ordinary"))
    print("| loop | images/s | against the better ordinary |\n|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} | {rate / best:.2f} |")
    if not bf16_on_cpu():
        print("| resexp, bf16 | not measured: this CPU lacks it | |")
    print("\n| run | peak resident MB |\n|---|---|")
    print(f"| digits, residual-56 | {peak_memory('depth=56', 'arch=residual', 'steps=22'):,.0f} |")
    if options.cifar10_jpeg:
        data = ["experiment=cifar10_jpeg", f"data.root={options.cifar10_jpeg}"]
        short = ["depth=20", "arch=residual", "steps=10", "eval_every=10"]
        print(f"| cifar10-jpeg, residual-20 | {peak_memory(*data, *short):,.0f} |")


if __name__ == "__main__":
    main()
