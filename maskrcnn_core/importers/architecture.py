"""What kind of detector a foreign state dict is, by its keys and shapes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.importers.key_names import KeyNames

OneStage = Literal["retinanet", "fcos", "ssd", "ssdlite"]
Kind = Literal["rpn", "fast", "faster", "mask", "keypoint", "mask and keypoint"] | OneStage


@dataclass(frozen=True)
class ResNetForm:
    """A ResNet: blocks of C2 to C5, whether they are bottlenecks, and groups and width of the first 3x3 of those."""

    blocks: tuple[int, int, int, int]
    bottleneck: bool
    groups: int = 1
    width: int = 64


RESNETS = {
    "resnet18": ResNetForm((2, 2, 2, 2), False),
    "resnet34": ResNetForm((3, 4, 6, 3), False),
    "resnet50": ResNetForm((3, 4, 6, 3), True),
    "resnet101": ResNetForm((3, 4, 23, 3), True),
    "resnet152": ResNetForm((3, 8, 36, 3), True),
    "resnext50_32x4d": ResNetForm((3, 4, 6, 3), True, 32, 128),
    "resnext101_32x8d": ResNetForm((3, 4, 23, 3), True, 32, 256),
    "resnext101_64x4d": ResNetForm((3, 4, 23, 3), True, 64, 256),
    "wide_resnet50_2": ResNetForm((3, 4, 6, 3), True, 1, 128),
    "wide_resnet101_2": ResNetForm((3, 4, 23, 3), True, 1, 128),
}


@dataclass(frozen=True)
class Architecture:
    """The parts of a detector.

    Attributes:
        network: name of the trunk, as `BackboneConfig.name`.
        pyramid: how feature maps reach the regions, as `PyramidConfig.kind`.
        pyramid_norm, box_norm, mask_norm: norms follow the convolutions of these parts.
        levels: maps of the trunk that enter the pyramid.
        rpn_convs: the RPN's convolutions; 0 = no RPN.
        box: there is a box head, with box_convs convolutions and box_layers fully connected layers.
        mask, keypoint: there are these heads, with mask_convs and keypoint_convs convolutions.
        one_stage: the system, where the dense stage finds the objects itself.
    """

    network: str
    pyramid: Literal["fpn", "c4", "dc5"]
    pyramid_norm: bool
    levels: int
    rpn_convs: int
    box: bool
    box_convs: int
    box_norm: bool
    box_layers: int
    mask: bool
    mask_convs: int
    mask_norm: bool
    keypoint: bool
    keypoint_convs: int
    one_stage: OneStage | None = None

    @property
    def kind(self) -> Kind:
        """What the detector does, by the names that the frameworks give it."""
        if self.one_stage is not None:
            return self.one_stage
        if self.mask:
            return "mask and keypoint" if self.keypoint else "mask"
        if self.keypoint:
            return "keypoint"
        if not self.box:
            return "rpn"
        return "faster" if self.rpn_convs > 0 else "fast"


def read_architecture(state: Mapping[str, Tensor], names: KeyNames, network: str | None = None) -> Architecture:
    """The architecture behind a state dict.

    Args:
        state: a framework's state dict.
        names: the framework's names.
        network: the trunk; None = a ResNet, told by its shapes.

    Raises:
        CheckpointError: the trunk is no ResNet that is known.
    """
    rpn_convs = names.rpn_convs.count(state, names.conv)
    if names.rpn_conv is not None and f"{names.rpn_conv}.weight" in state:
        rpn_convs = 1
    elif rpn_convs == 0 and _any(state, (names.objectness, names.anchor_deltas)):
        rpn_convs = 1  # its convolution is missing, which is found when it is taken
    keypoint_convs = 0 if names.keypoint_convs is None else names.keypoint_convs.count(state)
    levels = names.laterals.count(state, names.conv)
    box = _any(state, (names.classes, names.box_deltas))
    return Architecture(
        network=network or resnet_name(state, names),
        pyramid=_pyramid(state, names, levels),
        pyramid_norm=names.has_norm(names.laterals, state),
        levels=levels,
        rpn_convs=rpn_convs,
        box=box,
        box_convs=names.box_convs.count(state, names.conv) if box else 0,
        box_norm=names.has_norm(names.box_convs, state),
        box_layers=names.box_layers.count(state) if box else 0,
        mask=_any(state, (names.mask_deconv, names.mask_predictor)),
        mask_convs=names.mask_convs.count(state, names.conv),
        mask_norm=names.has_norm(names.mask_convs, state),
        keypoint=keypoint_convs > 0 or _any(state, (names.keypoint_deconv,)),
        keypoint_convs=keypoint_convs,
    )


def _any(state: Mapping[str, Tensor], parts: tuple[str, ...]) -> bool:
    return any(f"{part}.{end}" in state for part in parts for end in ("weight", "bias"))


def _pyramid(state: Mapping[str, Tensor], names: KeyNames, levels: int) -> Literal["fpn", "c4", "dc5"]:
    """FPN has laterals; without it C5 is a stage of the trunk (DC5), the head of the regions, or absent (C4)."""
    if levels > 0:
        return "fpn"
    trunk = names.stem.rsplit(".", 2)[0]
    in_trunk = names.stages[3].startswith(f"{trunk}.") and any(key.startswith(f"{names.stages[3]}.") for key in state)
    return "dc5" if in_trunk else "c4"


def resnet_name(state: Mapping[str, Tensor], names: KeyNames) -> str:
    """Which ResNet it is, by its blocks in C2 to C4 and the shape of its first 3x3 convolution.

    Raises:
        CheckpointError: none is known.
    """
    blocks = tuple(_num_blocks(state, stage) for stage in names.stages[:3])
    first = f"{names.stages[0]}.0."
    bottleneck = any(key.startswith(f"{first}{names.block_conv(2)}.") for key in state)
    groups, width = 1, 64
    conv = state.get(f"{first}{names.block_conv(1)}.weight")
    if bottleneck and conv is not None and conv.dim() == 4 and conv.shape[1] > 0:
        width = conv.shape[0]
        groups = width // conv.shape[1]
    resnets = [
        name
        for name, form in RESNETS.items()
        if (form.blocks[:3], form.bottleneck, form.groups, form.width) == (blocks, bottleneck, groups, width)
    ]
    if not resnets:
        raise CheckpointError(
            f"{names.framework} checkpoint: no ResNet is known with {', '.join(map(str, blocks))} "
            f"{'bottleneck' if bottleneck else 'basic'} blocks in {', '.join(names.stages[:3])}, {groups} groups and "
            f"width {width}; expected one of {', '.join(RESNETS)}"
        )
    return resnets[0]


def _num_blocks(state: Mapping[str, Tensor], stage: str) -> int:
    pattern = re.compile(rf"{re.escape(stage)}\.(\d+)\.")
    return max((int(match[1]) + 1 for key in state if (match := pattern.match(key))), default=0)
