"""Darknet's descriptions and weights: written by hand, and damaged."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.weights.darknet_config import DarknetLayer, darknet_layers, parse_darknet_config, read_darknet_config
from maskrcnn_core.weights.darknet_weights import read_darknet_weights
from tests.core.weights.test_mutations import assert_one_line

CONFIG = """
[net]
# a comment
width = 8
height=6
channels=2

[conv]
batch_normalize=1
filters=4
size=3
stride=2
pad=1
activation=leaky

[maxpool]
size=2
stride=1

; another
[reorg]
stride=1

[route]
layers=-1,-3

[local]
size=3
stride=1
pad=1
filters=5

[dropout]
probability=.5

[conn]
output=7
output=9
"""
HEADER = np.array([0, 1, 0, 0], "<i4").tobytes()
NEWER = np.array([0, 2, 0, 0, 0], "<i4").tobytes()
# conv: 4 x 4 + 72; local: 5 x 12 + 12 x 5 x 8 x 9; connected: 7 + 7 x 60.
NUMBERS = 16 + 72 + 60 + 4320 + 7 + 420


def layers(text: str = CONFIG) -> tuple[DarknetLayer, ...]:
    return darknet_layers(parse_darknet_config(text))


def test_sizes_by_eye() -> None:
    found = layers()
    assert [layer.kind for layer in found] == [
        *("convolutional", "maxpool", "reorg", "route", "local", "dropout", "connected"),
    ]
    assert [layer.output_size for layer in found] == [
        *((4, 3, 4), (4, 3, 4), (4, 3, 4), (8, 3, 4), (5, 3, 4), (5, 3, 4), (7, 1, 1)),
    ]
    assert found[0].inputs == (-1,)
    assert found[3].inputs == (2, 0)
    assert found[6].section.options["output"] == "7"  # the first of two, as in Darknet
    assert found[0].section.line == 8


@pytest.mark.parametrize("header", [HEADER, NEWER])
def test_numbers_go_where_they_belong(header: bytes, tmp_path: Path) -> None:
    numbers = np.arange(NUMBERS, dtype="<f4")
    (tmp_path / "a.weights").write_bytes(header + numbers.tobytes())
    found = read_darknet_weights(tmp_path / "a.weights", layers())
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    assert shapes == {
        "0.bias": (4,),
        "0.scale": (4,),
        "0.mean": (4,),
        "0.variance": (4,),
        "0.weight": (4, 2, 3, 3),
        "4.bias": (5, 12),
        "4.weight": (12, 5, 8, 3, 3),
        "6.bias": (7,),
        "6.weight": (7, 60),
    }
    assert found["0.bias"].tolist() == [0, 1, 2, 3]
    assert found["0.scale"].tolist() == [4, 5, 6, 7]
    assert found["0.weight"][0, 0, 0].tolist() == [16, 17, 18]
    assert found["6.weight"][6, 59] == NUMBERS - 1


def test_an_older_program_turned_connected_layers(tmp_path: Path) -> None:
    text = "[net]\nwidth=1\nheight=1\nchannels=3\n[connected]\noutput=2\nbatch_normalize=1\n"
    turned = np.array([1001, 0, 0, 0], "<i4").tobytes() + np.arange(14, dtype="<f4").tobytes()
    (tmp_path / "a.weights").write_bytes(turned)
    found = read_darknet_weights(tmp_path / "a.weights", layers(text))
    assert found["0.weight"].tolist() == [[2, 4, 6], [3, 5, 7]]
    assert found["0.scale"].tolist() == [8, 9]


@pytest.mark.parametrize("count", [NUMBERS - 1, NUMBERS + 1, 0])
def test_another_network_is_told_by_the_length(count: int, tmp_path: Path) -> None:
    (tmp_path / "a.weights").write_bytes(NEWER + b"\0" * 4 * count)
    with pytest.raises(CheckpointError, match=f"has {count:,} numbers, where .* take {NUMBERS:,}"):
        read_darknet_weights(tmp_path / "a.weights", layers())


@pytest.mark.parametrize(("content", "said"), [(b"", "0 bytes"), (b"PK\x03\x04" * 5, "no file of Darknet")])
def test_other_files_are_refused(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.weights").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        read_darknet_weights(tmp_path / "a.weights", layers())
    with pytest.raises(CheckpointError, match="no such file"):
        read_darknet_weights(tmp_path / "b.weights", layers())
    with pytest.raises(CheckpointError, match="no such file"):
        read_darknet_config(tmp_path / "b.cfg")


NET = "[net]\nwidth=8\nheight=8\n"
FAULTS = {
    "nothing": ("", "no description"),
    "no layers": (NET, "no description"),
    "no input": ("[net]\n[convolutional]\n", "width, height"),
    "an option before all": ("size=3\n" + NET, "line 1"),
    "no option": (NET + "[conv]\nsize\n", "line 5: 'size'"),
    "no number": (NET + "[conv]\nsize=three\n", "line 4: size = three"),
    "a huge number": (NET + "[conv]\nfilters=" + "9" * 5000, "filters = 9999"),
    "no filters": (NET + "[conv]\nfilters=0\n", "at least 1"),
    "a stride of none": (NET + "[max]\nstride=0\n", "at least 1"),
    "a window larger than the map": (NET + "[conv]\nsize=9\n", "it makes 1 x 0 x 0"),
    "negative padding": (NET + "[conv]\npadding=-3\n", "padding"),
    "sizes that grow without end": (NET + "[reorg]\nstride=3\n", "does not divide"),
    "a route to itself": (NET + "[conv]\n[route]\nlayers=1\n", "expected earlier ones"),
    "a route to nothing": (NET + "[conv]\n[route]\n", "expected earlier ones"),
    "a route of other sizes": (NET + "[conv]\n[max]\nstride=2\n[route]\nlayers=-1,-2\n", "different sizes"),
    "a later YOLO": (NET + "[conv]\n[yolo]\n", "are not read"),
    "very many sections": ("[net]\n" * 1002, "sections"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_description_is_refused(fault: str, tmp_path: Path) -> None:
    text, said = FAULTS[fault]
    (tmp_path / "a.cfg").write_text(text)
    with pytest.raises(CheckpointError, match=said):
        darknet_layers(read_darknet_config(tmp_path / "a.cfg"))


def test_groups_have_to_divide() -> None:
    with pytest.raises(CheckpointError, match="groups = 2 do not divide"):
        read_darknet_weights(__file__, layers(NET + "[conv]\nfilters=4\ngroups=2\n"))


def test_huge_layers_cost_nothing(tmp_path: Path) -> None:
    """Four layers that would take 10^18 numbers."""
    text = "[net]\nwidth=99999\nheight=99999\n" + "[connected]\noutput=999999\n" * 4
    (tmp_path / "a.weights").write_bytes(NEWER)
    with pytest.raises(CheckpointError, match="has 0 numbers"):
        read_darknet_weights(tmp_path / "a.weights", layers(text))


def test_damaged_descriptions_and_weights(tmp_path: Path) -> None:
    rng = random.Random(0)
    (tmp_path / "a.weights").write_bytes(NEWER + b"\0" * 4 * NUMBERS)
    for _ in range(300):
        text = list(CONFIG)
        for _ in range(rng.choice((1, 2, 8))):
            text[rng.randrange(len(text))] = chr(rng.choice((0, 10, 45, 48, 57, 61, 91, 0x2028, 0xD7FF)))
        (tmp_path / "a.cfg").write_text("".join(text))
        try:
            found = read_darknet_weights(
                tmp_path / "a.weights", darknet_layers(read_darknet_config(tmp_path / "a.cfg"))
            )
        except CheckpointError as error:
            assert_one_line(error)
        else:
            assert all(torch.count_nonzero(tensor) == 0 for tensor in found.values())
