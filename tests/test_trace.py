"""models.trace: what one pass of an image says of every layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from resexp.models.trace import one_pass


class Two(nn.Module):
    """Two convolutions and a classifier, to be counted by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)  # 108 weights
        self.second = nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False)  # 288
        self.classifier = nn.Linear(8, 10)  # 90

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(relu(self.second(self.first(x))).mean((2, 3)))
        return logits


def test_every_layer_has_its_shapes_parameters_and_products() -> None:
    found = [
        (call.name, call.into, call.out, call.parameters, call.multiply_adds)
        for call in one_pass(Two().double(), 3, (8, 6)).walk()
    ]
    assert found == [
        ("first", (3, 8, 6), (4, 8, 6), 108, 48 * 108),
        ("second", (4, 8, 6), (8, 4, 3), 288, 12 * 288),
        ("classifier", (8,), (10,), 90, 80),
        ("", (3, 8, 6), (10,), 0, 0),
    ]


def test_a_module_that_is_called_twice_multiplies_twice_and_has_its_parameters_once() -> None:
    layer = nn.Conv2d(2, 2, 1)
    whole = one_pass(nn.Sequential(layer, nn.Sequential(layer, nn.ReLU())), 2, (3, 3))
    assert [len(call.calls) for call in (whole, *whole.calls)] == [2, 0, 2]
    convolutions = [call for call in whole.walk() if call.module is layer]
    assert [(one.parameters, one.multiply_adds) for one in convolutions] == [(6, 36), (0, 36)]
    assert convolutions[0].values == 36


@pytest.mark.parametrize("size", [(8, 8), (0, 8)])
def test_a_network_stays_as_it_was_even_where_the_pass_fails(size: tuple[int, int]) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    if size[0]:
        one_pass(network, 3, size)
    else:
        with pytest.raises(RuntimeError):
            one_pass(network, 3, size)
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    for module in network.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
