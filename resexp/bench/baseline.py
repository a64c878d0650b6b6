"""The training loop of a tutorial, for ``resexp bench`` to compare with.

A DataLoader with worker processes, PIL images, torchvision's transforms, float32, torch.optim.SGD
and the usual loss.item() in every step. Whatever helps without changing its shape it has: workers
that persist, pinned memory, and on a GPU the TF32 convolutions that PyTorch has unless told not to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from resexp import models
from resexp.data import Images
from resexp.settings import Settings


class Pictures(Dataset[tuple[Tensor, int]]):
    """What torchvision's own sets do with images in memory, uint8 [N, H, W, C]."""

    def __init__(self, images: Tensor, labels: Tensor, settings: Settings) -> None:
        from torchvision import transforms

        height, width, channels = images.shape[1:]
        self.images = (images.squeeze(3) if channels == 1 else images).cpu().numpy()
        self.labels = labels.tolist()
        crop = transforms.RandomCrop((height, width), settings.crop_padding)
        steps = [
            *([crop] if settings.crop_padding else []),
            *([transforms.RandomHorizontalFlip()] if settings.flip else []),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * channels, [0.25] * channels),
        ]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def steps(settings: Settings, data: Images, workers: int) -> Iterator[None]:
    """Train the network of ``settings`` on the device where ``data`` lies, a step a turn, for ever.

    An epoch's last batch is dropped if it is not whole: the set must have a batch of images.
    """
    device = data.train_images.device
    network = models.build(settings, data.channels, len(data.classes), data.size)
    network.to(device, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
    )
    assert isinstance(data.train_images, Tensor)
    loader = DataLoader(
        Pictures(data.train_images, data.train_labels, settings),
        settings.batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
        drop_last=True,
    )
    while True:
        for images, labels in loader:
            inputs = images.to(device, non_blocking=True)
            optimizer.zero_grad()
            loss = cross_entropy(network(inputs), labels.to(device, non_blocking=True))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss.item()
            yield


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Inside, PyTorch's own choices for convolutions on a GPU, which a run does not take."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.benchmark = before
