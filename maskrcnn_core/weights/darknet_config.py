"""Darknet's network descriptions (.cfg): sections of options, and the sizes of what each layer makes of its input.

The first section, `[net]`, gives the input; each further one is a layer on the output of the one before it, or, with
`[route]`, on outputs of earlier ones. Defaults and roundings are those of Darknet's parser.c and layer files.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.printable import printable

_MAX_BYTES = 1 << 20
_MAX_SECTIONS = 1000
_MAX_SIDE = 1 << 20
_SYNONYMS = {
    "network": "net",
    "conv": "convolutional",
    "conn": "connected",
    "max": "maxpool",
    "avg": "avgpool",
    "soft": "softmax",
}

Size = tuple[int, int, int]
"""Channels, height, width."""


@dataclass(frozen=True)
class DarknetSection:
    """A section of a description.

    Attributes:
        kind: Darknet's long word for it, such as `convolutional`.
        options: texts by key; of a key that comes twice the first, as in Darknet.
        line: where it begins, counted from 1.
    """

    kind: str
    options: Mapping[str, str]
    line: int

    def number(self, key: str, default: int) -> int:
        """An option that is a whole number.

        Raises:
            CheckpointError: it is none, or out of all proportion.
        """
        text = self.options.get(key, str(default))
        try:
            value = int(text)
        except ValueError:
            value = _MAX_SIDE + 1
        if abs(value) > _MAX_SIDE:
            raise CheckpointError(f"{self}: {key} = {printable(text)[:40]}, expected a whole number")
        return value

    def fraction(self, key: str, default: float) -> float:
        """An option that is a number.

        Raises:
            CheckpointError: it is none.
        """
        return self.fractions(key, (default,))[0]

    def fractions(self, key: str, default: Sequence[float] = ()) -> tuple[float, ...]:
        """An option that is numbers with commas between.

        Raises:
            CheckpointError: one is none.
        """
        text = self.options.get(key)
        if text is None:
            return tuple(default)
        try:
            values = tuple(float(part) for part in text.split(","))
        except ValueError:
            values = (math.nan,)
        if not all(math.isfinite(value) for value in values):
            raise CheckpointError(f"{self}: {key} = {printable(text)[:40]}, expected numbers")
        return values

    def __str__(self) -> str:
        return f"[{printable(self.kind)[:40]}] of line {self.line}"


@dataclass(frozen=True)
class DarknetLayer:
    """A layer.

    Attributes:
        section: what describes it.
        inputs: indices of the layers whose outputs it takes, -1 = the image.
        input_size: of what it takes; with several inputs, of them stacked.
        output_size: of what it makes.
    """

    section: DarknetSection
    inputs: tuple[int, ...]
    input_size: Size
    output_size: Size

    @property
    def kind(self) -> str:
        """The section's."""
        return self.section.kind


def read_darknet_config(path: Path | str) -> tuple[DarknetSection, ...]:
    """The sections of a .cfg file: `net`, then the layers.

    Raises:
        CheckpointError: the file is missing or no description of a network.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"{path}: no such file, expected Darknet's description of a network (.cfg)")
    if file.stat().st_size > _MAX_BYTES:
        raise CheckpointError(f"{path}: it has more than {_MAX_BYTES:,} bytes, as no description of a network has")
    try:
        return parse_darknet_config(file.read_text(encoding="utf-8", errors="replace"))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def parse_darknet_config(text: str) -> tuple[DarknetSection, ...]:
    """The sections of a description's text.

    Raises:
        CheckpointError: it is none.
    """
    sections: list[DarknetSection] = []
    options: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        plain = "".join(line.split())  # Darknet takes spaces out, also inside of a line
        if not plain or plain[0] in "#;":
            continue
        if plain[0] == "[":
            kind = plain.strip("[]").lower()
            options = {}
            sections.append(DarknetSection(_SYNONYMS.get(kind, kind), options, number))
            continue
        key, equals, value = plain.partition("=")
        if not equals or not sections:
            raise CheckpointError(f"line {number}: {printable(line)[:60]!r}, expected [section] or key=value")
        options.setdefault(key, value)
    if not sections or sections[0].kind != "net" or len(sections) == 1:
        raise CheckpointError("it is no description of a network: expected [net] and layers behind it")
    if len(sections) > _MAX_SECTIONS:
        raise CheckpointError(f"it has {len(sections)} sections, expected at most {_MAX_SECTIONS}")
    return tuple(sections)


def darknet_layers(sections: Sequence[DarknetSection]) -> tuple[DarknetLayer, ...]:
    """The layers with their sizes.

    Raises:
        CheckpointError: a layer is of a kind that is not known here, or does not fit its input.
    """
    net = sections[0]
    image = (net.number("channels", 3), net.number("height", 0), net.number("width", 0))
    if min(image) < 1:
        raise CheckpointError(f"{net}: expected width, height and channels of at least 1")
    layers: list[DarknetLayer] = []
    for section in sections[1:]:
        inputs = _inputs(section, len(layers))
        sizes = [layers[index].output_size if index >= 0 else image for index in inputs]
        if any(size[1:] != sizes[0][1:] for size in sizes):
            raise CheckpointError(f"{section}: its inputs have different sizes: {sizes}")
        taken = (sum(size[0] for size in sizes), *sizes[0][1:])
        made = _output_size(section, taken)
        if not all(1 <= side <= _MAX_SIDE for side in made):
            raise CheckpointError(f"{section}: it makes {_shown(made)} of {_shown(taken)}")
        layers.append(DarknetLayer(section, inputs, taken, made))
    return tuple(layers)


def _inputs(section: DarknetSection, index: int) -> tuple[int, ...]:
    """Layers that one at this index works on: the last one, or those of a route, counted back where negative."""
    if section.kind != "route":
        return (index - 1,)
    named = section.fractions("layers")
    inputs = tuple(int(number) + (index if number < 0 else 0) for number in named)
    if not inputs or len(inputs) > _MAX_SECTIONS or not all(0 <= other < index for other in inputs):
        raise CheckpointError(
            f"{section}: layers = {printable(section.options.get('layers', ''))[:40]}, expected earlier ones"
        )
    return inputs


def _output_size(section: DarknetSection, size: Size) -> Size:
    channels, height, width = size
    if section.kind in ("convolutional", "local"):
        filters, side, stride, padding = window(section)
        return filters, (height + 2 * padding - side) // stride + 1, (width + 2 * padding - side) // stride + 1
    if section.kind == "maxpool":
        side, stride, padding = pool_window(section)
        return channels, (height + padding - side) // stride + 1, (width + padding - side) // stride + 1
    if section.kind == "reorg":
        stride = _positive(section, "stride", 1)
        if height % stride or width % stride:
            raise CheckpointError(f"{section}: stride {stride} does not divide {_shown(size)}")
        return channels * stride**2, height // stride, width // stride
    if section.kind == "connected":
        return _positive(section, "output", 1), 1, 1
    if section.kind == "avgpool":
        return channels, 1, 1
    if section.kind in ("route", "dropout", "region", "detection", "softmax", "cost"):
        return size
    raise CheckpointError(
        f"{section}: layers of this kind are not read; expected those of YOLOv1 and YOLOv2: convolutional, maxpool, "
        "avgpool, connected, local, reorg, route, dropout, softmax, cost, detection, region"
    )


def window(section: DarknetSection) -> tuple[int, int, int, int]:
    """Filters, side, stride and padding of a convolution or a locally connected layer.

    A convolution with `pad` is padded by half its side, whatever the number says; a local layer by one.

    Raises:
        CheckpointError: they are no positive numbers.
    """
    side = _positive(section, "size", 1)
    padding = section.number("padding", 0) if section.kind == "convolutional" else 0
    if section.number("pad", 0):
        padding = side // 2 if section.kind == "convolutional" else 1
    if padding < 0:
        raise CheckpointError(f"{section}: padding = {padding}, expected at least 0")
    return _positive(section, "filters", 1), side, _positive(section, "stride", 1), padding


def pool_window(section: DarknetSection) -> tuple[int, int, int]:
    """Side, stride and padding of a maximum: the padding is of both sides together, the larger half behind.

    Raises:
        CheckpointError: they are no positive numbers.
    """
    stride = _positive(section, "stride", 1)
    side = _positive(section, "size", stride)
    return side, stride, section.number("padding", side - 1)


def _positive(section: DarknetSection, key: str, default: int) -> int:
    value = section.number(key, default)
    if value < 1:
        raise CheckpointError(f"{section}: {key} = {value}, expected at least 1")
    return value


def _shown(size: Size) -> str:
    return " x ".join(map(str, size))
