"""VGG of Simonyan and Zisserman 2015, table 1: the plain network that residual ones came after.

Five stages of 3x3 convolutions with biases and max pooling, then three linear layers with dropout.
Widths w, 2w, 4w, 8w, 8w and 64w in the linear layers; the paper's w is 64, so ``width=64`` is its
size. Depth counts convolutions and linear layers. Without normalisation, as in the paper, or with
one behind each convolution (``norm=batch``, torchvision's vgg19_bn), whose bias then is idle.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from resexp.models.layers import Dropout, Norm, norm_of
from resexp.settings import Merge, Normalisation, Settings, UsageError

MERGES = (Merge.plain,)
READS = ("norm",)
WHOLE_BATCH = True  # its dropout

#: Convolutions of each stage, by depth: configurations A, B, D and E.
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (1, 2, 4, 8, 8)  # of the stages, in widths of the first
HIDDEN = 64  # of the linear layers
SIDE = 7  # pixels a side that the linear layers read
LEAST = 32  # pixels a side that are halved five times
DROPPED = 0.5


def check(settings: Settings, size: tuple[int, int] | None) -> None:
    """Raise UsageError for images that cannot be halved five times."""
    if size is not None and min(size) < LEAST:
        height, width = size
        raise UsageError(
            f"arch=vgg halves images five times: {height}x{width} pixels are too few, "
            f"{LEAST}x{LEAST} the least. Choose data=cifar10, or arch=plain for these images."
        )


class Vgg(nn.Module):
    """[N, C, H, W] images (H and W at least 32) -> [N, classes] logits; its own plain twin.

    Images of other sizes than 224 are brought to 7x7 by averaging, as in torchvision.
    """

    def __init__(
        self, settings: Settings, channels: int, classes: int, size: tuple[int, int]
    ) -> None:
        super().__init__()
        width, norm, parts = settings.width, norm_of(settings), list[nn.Module]()
        for count, factor in zip(STAGES[settings.depth], WIDTHS, strict=True):
            parts.append(stage(count, channels, factor * width, norm))
            channels = factor * width
        self.stages = nn.Sequential(*parts)
        self.pool = nn.AdaptiveAvgPool2d(SIDE)
        hidden = HIDDEN * width
        self.head = nn.Sequential(
            OrderedDict(
                linear1=nn.Linear(channels * SIDE**2, hidden),
                relu1=nn.ReLU(inplace=True),
                dropout1=Dropout(DROPPED),
                linear2=nn.Linear(hidden, hidden),
                relu2=nn.ReLU(inplace=True),
                dropout2=Dropout(DROPPED),
            )
        )
        self.classifier = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(x)
        if x.shape[2:] != (SIDE, SIDE):  # its gradient on a GPU is not deterministic
            x = self.pool(x)
        return self.classifier(self.head(x.flatten(1)))


network = Vgg


def stage(count: int, channels: int, width: int, norm: Norm) -> nn.Sequential:
    """``count`` convolutions and max pooling: [N, channels, H, W] -> [N, width, H / 2, W / 2]."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number in range(1, count + 1):
        layers[f"conv{number}"] = nn.Conv2d(channels, width, 3, padding=1)
        if norm.kind is not Normalisation.none:
            layers[f"norm{number}"] = norm(width)
        layers[f"relu{number}"] = nn.ReLU(inplace=True)
        channels = width
    layers["pool"] = nn.MaxPool2d(2)
    return nn.Sequential(layers)
