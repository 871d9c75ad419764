"""How other frameworks name the parts of a region-based detector: the form of their tables of parameter names."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Numbered:
    """Names of several like parts: the part i is called `before` + (start + step * i) + `after`."""

    before: str
    after: str = ""
    start: int = 0
    step: int = 1

    def __call__(self, i: int) -> str:
        """The name of part i."""
        return f"{self.before}{self.start + self.step * i}{self.after}"

    def count(self, keys: Iterable[str], ending: str = "") -> int:
        """How many there are, by the highest number: a gap between them is a missing part, not the end.

        Args:
            keys: names with `weight` or `bias` at their end.
            ending: what stands between the part's name and that.
        """
        pattern = re.compile(rf"{re.escape(self.before)}(\d+){re.escape(self.after + ending)}\.(weight|bias)")
        numbers = [int(match[1]) for key in keys if (match := pattern.fullmatch(key))]
        return max(((number - self.start) // self.step + 1 for number in numbers), default=0)


@dataclass(frozen=True)
class KeyNames:
    """One framework's names, without their last part (`weight`, `bias`, `running_mean`, ...).

    Attributes:
        framework: for messages.
        stem, stem_norm: the first convolution and its batch norm.
        stages: C2 to C5; their blocks are numbered.
        block_conv, block_norm: inside a block.
        shortcut, shortcut_norm: the projection in the first block of a stage.
        conv, norm: what follows the name of a part made of a convolution and, perhaps, a norm.
        laterals, outputs: of the feature pyramid, finest first.
        rpn_conv: the RPN's convolution where it has one; None where also a single one is numbered.
        rpn_convs: its convolutions where it has several.
        objectness, anchor_deltas: its predictors.
        box_convs, box_layers, classes, box_deltas: of the box head.
        mask_convs, mask_deconv, mask_predictor: of the mask head.
        keypoint_convs, keypoint_deconv: of the keypoint head; None where the framework has none.
        ignored: a regular expression of keys that hold no weights.
    """

    framework: str
    stem: str
    stem_norm: str
    stages: tuple[str, str, str, str]
    block_conv: Numbered
    block_norm: Numbered
    shortcut: str
    shortcut_norm: str
    conv: str
    norm: str
    laterals: Numbered
    outputs: Numbered
    rpn_conv: str | None
    rpn_convs: Numbered
    objectness: str
    anchor_deltas: str
    box_convs: Numbered
    box_layers: Numbered
    classes: str
    box_deltas: str
    mask_convs: Numbered
    mask_deconv: str
    mask_predictor: str
    keypoint_convs: Numbered | None
    keypoint_deconv: str
    ignored: str

    def has_norm(self, parts: Numbered, state: Mapping[str, Tensor]) -> bool:
        """Whether norms follow these convolutions."""
        return f"{parts(0)}{self.norm}.weight" in state

    def rpn_conv_names(self, number: int) -> list[str]:
        """The RPN's convolutions, first to last."""
        if number == 1 and self.rpn_conv is not None:
            return [self.rpn_conv]
        return [self.rpn_convs(i) for i in range(number)]
