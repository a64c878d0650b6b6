"""commands.explain: the worked example, diagrams of real blocks, and a table that adds up."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from families import settings
from test_cli import call

from resexp import console, models
from resexp.cli.networks import explain as command
from resexp.commands import explain as explaining
from resexp.commands.explain import Explanation, explain, text
from resexp.config import compose
from resexp.settings import Data, UsageError, choices


def explained(*words: str) -> Explanation:
    return explain(compose(list(words)))


def drawing(found: Explanation, block: str) -> list[str]:
    return next(one.lines for one in found.blocks if one.block == block)


#: Families whose images are not the digits.
IMAGES = {"unet": "blobs", "vgg": "cifar10", "imagenet": "cifar10", "dense_imagenet": "cifar10"}


def shallow(arch: str) -> Explanation:
    """The arch at a depth of 20, or the next that it has."""
    words = [f"arch={arch}", f"data={IMAGES.get(settings(arch).arch.family, 'digits')}"]
    try:
        return explained(*words, "depth=20")
    except UsageError as refusal:
        depth = re.search(r"Nearest: .*?(\d+)\.", str(refusal))
        assert depth, refusal
        return explained(*words, f"depth={depth[1]}")


def test_a_network_that_takes_long_to_build_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "DEEP", 13)
    assert call("explain", "depth=8", code=0).err == ""
    assert call("explain", "depth=14", code=0).err.startswith("14 layers are built")


# The worked example


def test_the_example_is_computed_by_a_real_block() -> None:
    x, wanted, branch = [2.0, 1.5, 0.8], [2.3, 1.4, 1.0], [0.3, -0.1, 0.2]
    found = {"x": x, "wanted": wanted, "branch": branch, "residual": wanted, "plain": branch}
    found |= {"residual_at_zero": x, "plain_at_zero": [0.0, 0.0, 0.0]}
    assert explaining.example() == found


def test_explain_alone_reads_the_example_out(capsys: pytest.CaptureFixture[str]) -> None:
    command(None)
    lines = capsys.readouterr().out.splitlines()
    assert "  F(x) = H(x) - x = [ 0.3, -0.1,  0.2]" in lines
    assert "  y    = x + F(x) = [ 2.3,  1.4,  1.0]   what a residual block gave just now" in lines
    assert lines[-1] == "next: resexp explain arch=residual depth=20"
    assert max(map(len, lines)) <= 100


# Diagrams


def test_a_residual_block_is_drawn_with_its_way_around() -> None:
    found = explained("arch=residual", "depth=20")
    assert drawing(found, "blocks.0") == [
        "in   16x8x8",
        "x ---------------------------.",
        "| F  conv1  3x3 convolution  |  shortcut: identity",
        "|    norm1  batch norm       |",
        "|    relu1  ReLU             |",
        "|    conv2  3x3 convolution  |",
        "|    norm2  batch norm       |",
        "y = x + F(x) <---------------'",
        "relu1  ReLU",
        "out  16x8x8",
    ]
    assert [(one.block, one.alike) for one in found.blocks] == [
        ("blocks.0", [f"blocks.{i}" for i in (1, 2, 4, 5, 7, 8)]),
        ("blocks.3", ["blocks.6"]),
    ]


def test_a_plain_block_is_drawn_without() -> None:
    drawn = drawing(explained("arch=plain", "depth=8"), "blocks.0")[1:-1]
    layers = ["3x3 convolution", "batch norm", "ReLU", "3x3 convolution", "batch norm"]
    names = ["F  conv1", "   norm1", "   relu1", "   conv2", "   norm2"]
    branch = [f"| {name}  {layer}" for name, layer in zip(names, layers, strict=True)]
    assert drawn == ["x", *branch, "y = F(x)", "relu1  ReLU"]


@pytest.mark.parametrize(
    ("arch", "formula"),
    [
        ("scaled_shortcut", "0.5 x + 0.5 F(x)"),
        ("dropout_shortcut", "dropout(x) + F(x)"),
        ("highway", "(1 - T) x + T F(x)"),
        ("shortcut_gate", "(1 - T) x + F(x)"),
        ("rezero", "x + a F(x)"),
        ("stochastic_depth", "x + b F(x)"),
        ("transformer", "x + F(x)"),
        ("dense", "[x, F(x)]"),
    ],
)
def test_the_rule_of_each_merge_stands_where_the_ways_meet(arch: str, formula: str) -> None:
    found = shallow(arch)
    assert formula in [one.formula for one in found.blocks]
    assert f"y = {formula} <" in text(found)


def test_what_stands_beside_the_branch_is_drawn_beside_it() -> None:
    gates = drawing(explained("arch=highway", "depth=14"), "blocks.2")
    beside = [line.rpartition("|  ")[2] for line in gates if "|  " in line[4:]]
    assert beside[:2] == [
        "shortcut: 16 channels of zeros appended, stride 2",
        "gate: 1x1 convolution, bias",
    ]
    short = explained("arch=highway", "depth=8", "arch.skip_span=1", "arch.order=fixup")
    assert any("gate: " in line for line in drawing(short, short.blocks[0].block))


def test_both_sublayers_of_a_transformer_are_drawn() -> None:
    found = explained("arch=transformer_post", "depth=3")
    assert [one.block for one in found.blocks] == ["blocks.0.attention", "blocks.0.feedforward"]
    assert drawing(found, "blocks.0.feedforward")[-3:] == [
        "y = x + F(x) <-------'",
        "norm  layer norm",
        "out  16x64",
    ]


def test_the_levels_of_a_u_net_are_drawn_around_what_lies_below() -> None:
    found = explained("arch=unet", "depth=13", "data=blobs")
    assert [one.block for one in found.blocks] == ["top.branch.inner", "top"]
    top = drawing(found, "top")
    assert top[7:12] == [
        "x ------------------------------------------------.",
        "| F  pool   max pooling                           |  shortcut: identity",
        "|    inner  level                                 |",
        "|    rise   2x2 transposed convolution, stride 2  |",
        "y = [x, F(x)] <-----------------------------------'",
    ]
    assert (top[0], top[-1]) == ("in   1x32x32", "out  16x32x32")


@pytest.mark.parametrize("words", ["arch=unet depth=8 data=digits", "arch=residual depth=21"])
def test_another_task_or_a_depth_that_is_none_is_refused(words: str) -> None:
    with pytest.raises(UsageError, match=r"learns masks|21 is not 6n\+2"):
        explained(*words.split())


# The table


@pytest.mark.process
@pytest.mark.parametrize("arch", choices.options("arch"))
def test_the_rows_add_up_to_what_is_measured(arch: str) -> None:
    found = shallow(arch)
    assert sum(one.parameters for one in found.layers) == found.parameters
    assert sum(one.flops for one in found.layers) == found.flops
    # The folded table too, for its line of a run bears the run's sums.
    folded = explaining.folded(found.whole)
    assert sum(one.parameters for one in folded) == found.parameters
    assert sum(one.flops for one in folded) == found.flops


def test_the_rows_are_those_of_the_network_that_trains() -> None:
    job = compose(["arch=preact", "depth=20"])
    network = models.build(job.settings, 1, 10, (8, 8))
    rows = {one.layer: one for one in explain(job).layers}
    weights = [name.removesuffix(".weight") for name in network.state_dict() if "weight" in name]
    assert set(weights) <= set(rows)
    one = rows["blocks.3.branch.conv1"]
    assert (one.shape, one.parameters, one.flops) == ("32x4x4", 32 * 16 * 9, 2 * 32 * 16 * 9 * 16)
    assert rows["classifier"].shape == "10"


def test_repeated_blocks_are_one_line_unless_all_are_asked_for() -> None:
    found = explained("arch=preact", "depth=110")
    lines = text(found).splitlines()
    repeated = [line.split() for line in lines if " as blocks." in line]
    assert repeated == [
        ["blocks.2", "to", "17", "as", "blocks.1", "16x8x8", "74,752", "9,437,184"],
        ["blocks.20", "to", "35", "as", "blocks.19", "32x4x4", "296,960", "9,437,184"],
        ["blocks.38", "to", "53", "as", "blocks.37", "64x2x2", "1,183,744", "9,437,184"],
    ]
    every = text(found, full=True).splitlines()
    assert " as blocks." not in "".join(every)
    assert sum(line.startswith("blocks.17.") for line in every) == 5
    header = next(line for line in every if line.startswith("layer"))
    assert len(every) - every.index(header) == 1 + 3 + 54 * 5 + 1  # stem, end, classifier; total


# The images


@pytest.mark.parametrize(
    ("loader", "size", "shape"),
    [
        ("fashion_mnist", None, (1, (28, 28), 10)),
        ("imagefolder", None, (3, (224, 224), 1000)),
        ("digits", None, (1, (8, 8), 10)),  # as they are
        ("cifar10", 64, (3, (64, 64), 10)),  # data.size goes first
    ],
)
def test_sets_say_their_shape(loader: str, size: int | None, shape: tuple[int, Any, int]) -> None:
    assert explaining.shape(Data(loader=loader, size=size, root="/nowhere")) == shape


# The command


def test_the_text_opens_with_what_the_archs_file_says() -> None:
    lines = text(explained("arch=preact", "depth=20")).splitlines()
    facts = choices.facts("arch", "preact")
    step = choices.facts("optimizer", "sgd")["what it is"]
    assert lines[0] == f"preact: {facts['what it is']}"
    assert lines[1].split(maxsplit=1) == ["source", facts["source"]]
    assert lines[4].split(maxsplit=2) == ["step", "sgd:", step]
    assert "preact-20 on digits: images of 8x8x1, 10 classes, 269,434 parameters" in lines[6]


def test_json_holds_every_layer(capsys: pytest.CaptureFixture[str]) -> None:
    command(["arch=plain", "depth=8"], as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["facts"]["what it is"] == "y = F(x)"
    assert [one["block"] for one in found["blocks"]] == ["blocks.1", "blocks.0"]  # most first
    assert sum(one["parameters"] for one in found["layers"]) == found["parameters"]
    assert set(found) == {*Explanation.__slots__} - {"whole"}
