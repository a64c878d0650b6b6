"""Initial parameters: each a pure function of (seed, its name).

Two networks that share a parameter's name and shape therefore share its initial value, whatever
else differs between them: plain and residual twins start at the same point.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from resexp.models.activations import RELU, Nonlinearity
from resexp.models.layers import NORMS, Table, handing_on
from resexp.settings import Init

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, *NORMS)

#: Initial weights that are 0 but at a kernel's centre.
CENTRED = (Init.delta_orthogonal, Init.dirac, Init.looks_linear)


def generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator for one purpose; the values drawn are the same on every device."""
    digits = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digits[:8], "little") >> 1)


@torch.no_grad()
def initialise(network: nn.Module, seed: int, init: Init) -> None:
    """Set every parameter in place.

    Convolutions start as ``init`` says; normalisation as the identity; linear weights are uniform
    in +-1/sqrt(fan in) with bias 0, as those of the classifier in the authors' release (He et al.
    2015 leave them open). A layer's attribute ``gain``, if it has one, multiplies its weights, and
    ``follows`` is the activation before it, where ``init`` goes by that. Another module's
    parameters start at its attribute ``start``: raises TypeError for one without, which would keep
    what torch left there.
    """
    for name, module in network.named_modules():
        follows = getattr(module, "follows", None)
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            gain = getattr(module, "gain", 1.0)
            weight = module.weight
            if isinstance(module, nn.ConvTranspose2d):
                weight = weight.transpose(0, 1)  # its inputs come first
            if follows and init in CENTRED:
                tap = gain * centre(weight, init, follows, generator(seed, f"{name}.weight"))
                weight.zero_()[:, :, weight.shape[2] // 2, weight.shape[3] // 2] = tap
            else:
                std = gain * convolution_std(weight, init, follows or RELU)
                fill(module.weight, std, seed, f"{name}.weight")
            for own, start in getattr(module, "starts", {}).items():
                getattr(module, own).fill_(start)
        elif isinstance(module, nn.Linear):
            source, shape = generator(seed, f"{name}.weight"), module.weight.shape
            bound = getattr(module, "gain", 1.0) / math.sqrt(module.in_features)
            draw = 2 * torch.rand(shape, generator=source) - 1
            if follows and init is Init.looks_linear:
                draw = mirrored(draw[:, : module.in_features // 2])
            if getattr(module, "orthogonal", False):  # each map of a square
                maps = [orthogonal(shape[1], shape[1], source) for _ in range(shape[0] // shape[1])]
                draw, bound = torch.cat(maps), module.gain
            module.weight.copy_(draw * bound)
        elif isinstance(module, NORMS):
            silent = init is Init.zero_gamma and hasattr(module, "ends_branch")
            module.weight.fill_(0 if silent else 1)
        elif isinstance(module, Table):
            fill(module.weight, module.std, seed, f"{name}.weight")
        elif hasattr(module, "start"):
            for parameter in module.parameters(recurse=False):
                parameter.fill_(module.start)  # type: ignore[arg-type]
        elif not isinstance(module, LAYERS) and any(True for _ in module.parameters(recurse=False)):
            raise TypeError(f"{name}: a {type(module).__name__} needs an attribute start")
        if isinstance(module, LAYERS) and module.bias is not None:
            module.bias.zero_()


def fill(weight: Tensor, std: float, seed: int, name: str) -> None:
    """Normal values of mean 0 and standard deviation ``std``, by (seed, name)."""
    weight.copy_(std * torch.randn(weight.shape, generator=generator(seed, name)))


def convolution_std(weight: Tensor, init: Init, follows: Nonlinearity) -> float:
    """Standard deviation for a weight [C_out, C_in, k, k] (He et al. 2015b; Glorot 2010).

    He's 2, which makes up for ReLU, is the ``power`` of the activation that it follows. Backwards,
    of which fan out takes care, CReLU loses nothing.
    """
    channels_out, channels_in, height, width = weight.shape
    fan_out, fan_in = channels_out * height * width, channels_in * height * width
    if init is Init.xavier:
        return math.sqrt(2 / (fan_in + fan_out))
    if init is Init.he_fan_in:
        return math.sqrt(follows.power / fan_in)
    return math.sqrt(follows.power / follows.factor / fan_out)


def centre(weight: Tensor, init: Init, follows: Nonlinearity, source: torch.Generator) -> Tensor:
    """The centre, [C_out, C_in], of a weight that is 0 around it.

    An orthogonal one keeps the mean square of a channel through the activation and itself, at a
    widening too; QR in float64, then rounded. Looks-linear weights are W of the first half of
    CReLU's channels and -W of the second: W of what was before CReLU.
    """
    out, into = weight.shape[:2]
    if init is Init.dirac:
        return handing_on(out, into, follows)
    halves = 1 if init is Init.delta_orthogonal else follows.factor
    into //= halves
    gain = math.sqrt(max(1, out / into) * (follows.power if halves == 1 else 1))
    tap = gain * orthogonal(out, into, source)
    return mirrored(tap) if halves == 2 else tap


def orthogonal(out: int, into: int, source: torch.Generator) -> Tensor:
    """[out, into] with orthonormal columns or rows, uniform over all such, float64."""
    draw = torch.randn(max(out, into), min(out, into), generator=source).double()
    q, r = torch.linalg.qr(draw)
    signed: Tensor = q * r.diagonal().sign()  # else not uniform
    return signed if out >= into else signed.T


def mirrored(weight: Tensor) -> Tensor:
    """[W, -W], so that CReLU before it is undone."""
    return torch.cat((weight, -weight), 1)
