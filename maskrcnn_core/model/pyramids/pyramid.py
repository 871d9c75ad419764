"""The tutorial's pyramids: what regions and RPN see of a trunk's maps. FPN, in-network, C4, dilated C5, and
a tail."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.pyramids.fpn import FPN, Extra, Norm
from maskrcnn_core.model.pyramids.image_pyramid import ImagePyramid
from maskrcnn_core.model.pyramids.passthrough import Passthrough
from maskrcnn_core.model.pyramids.tail import TailPyramid, TailRule
from maskrcnn_core.model.trunks.trunk import Trunk

PyramidKind = Literal["fpn", "in_network", "c4", "dc5", "tail", "last", "passthrough", "pixels"]


class SingleMap(nn.Module):
    """A pyramid of one level: the trunk's last map as it is.

    Attributes:
        channels, level_channels, strides: of the level.
        num_roi_levels: 1.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels, self.level_channels = channels, (channels,)
        self.strides: tuple[int, ...] = (stride,)
        self.num_roi_levels = 1

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The trunk's maps -> the last one."""
        return [maps[-1]]


Pyramid = FPN | SingleMap | TailPyramid | Passthrough | ImagePyramid


def build_pyramid(
    kind: PyramidKind,
    trunk: Trunk,
    *,
    channels: int = 256,
    norm: Norm = "none",
    levels: Sequence[int] = (2, 3, 4, 5),
    extra: Extra = "max_pool",
    tail: TailRule | None = None,
    narrow: int = 64,
    image_scales: Sequence[float] = (),
) -> Pyramid:
    """The pyramid on a trunk.

    Args:
        kind: fpn = Feature Pyramid Network; in_network = the same without top-down pathway; c4 = C4 alone, of a trunk
            whose last stage `take_region_trunk` has taken; dc5 = C5 alone, of a trunk made with `dilated=True`; tail =
            the trunk's maps and what `tail` adds; last = the last map, whatever its stride; passthrough = `Passthrough`
            on the last two maps; pixels = the only map of a `PixelTrunk`.
        trunk: its stages above the last level are removed, since nothing would use them.
        channels, norm, extra: as `FPN`; single maps have the trunk's width.
        levels: which of the trunk's maps fpn, in_network and tail stand on, finest first.
        tail: of that kind.
        narrow: of `Passthrough`.
        image_scales: of c4, dc5 and last: an `ImagePyramid` of these scales instead of the one map; none = one map.

    Raises:
        ConfigError: the trunk does not have such maps.
    """
    if kind == "c4" or kind == "dc5":
        if trunk.strides[-1] != 16:
            raise ConfigError(
                f"model.pyramid.kind: {kind} needs a last map of stride 16, the backbone's has {trunk.strides[-1]}; "
                "use fpn or another backbone"
            )
        return _of_last_map(trunk, image_scales)
    if kind == "last" or kind == "pixels":
        return _of_last_map(trunk, image_scales)
    if kind == "passthrough":
        if len(trunk.strides) < 2 or trunk.strides[-1] != 2 * trunk.strides[-2]:
            raise ConfigError(
                f"model.pyramid.kind: passthrough needs two last maps of which one has twice the other's stride, the "
                f"backbone's have {trunk.strides[-2:]}; use last, or another backbone"
            )
        fine, coarse = trunk.channels[-2:]
        return Passthrough((fine, coarse), trunk.strides[-1], channels=channels, narrow=narrow, norm=norm)
    _check_levels(levels, trunk)
    while trunk.levels[-1] != levels[-1]:
        trunk.take_last_stage()
    used = [trunk.levels.index(level) for level in levels]
    widths, strides = [trunk.channels[index] for index in used], [trunk.strides[index] for index in used]
    if kind == "tail":
        assert tail is not None
        return TailPyramid(widths, tail, strides=strides, maps_used=used, norm=norm)
    return FPN(
        widths,
        channels,
        strides=strides,
        maps_used=used,
        norm=norm,
        extra=extra,
        top_down=kind == "fpn",
    )


def _of_last_map(trunk: Trunk, image_scales: Sequence[float]) -> SingleMap | ImagePyramid:
    if image_scales:
        return ImagePyramid(trunk.channels[-1], trunk.strides[-1], image_scales)
    return SingleMap(trunk.channels[-1], trunk.strides[-1])


def _check_levels(levels: Sequence[int], trunk: Trunk) -> None:
    if not levels or not set(levels) <= set(trunk.levels):
        raise ConfigError(
            f"model.pyramid.levels: got {tuple(levels)}, expected some of {trunk.levels}, the backbone's maps"
        )
    if any(after != before + 1 for before, after in pairwise(levels)):
        raise ConfigError(f"model.pyramid.levels: got {tuple(levels)}, expected neighbouring levels, finest first")
