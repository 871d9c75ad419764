"""The feature maps that everything else is computed from."""

from dataclasses import dataclass
from typing import Literal

from maskrcnn_core.config.checks import require, require_between, require_typed
from maskrcnn_core.config.limits import MAX_CHANNELS, MAX_LISTED, MAX_PIXEL


@dataclass(frozen=True)
class PyramidConfig:
    """What the regions are cut from: the trunk's feature maps, made alike."""

    kind: Literal["fpn", "in_network", "c4", "dc5", "tail", "last", "passthrough", "pixels"] = "fpn"
    """fpn = top-down pathway with lateral connections (Lin et al., CVPR 2017); in_network = the trunk's own maps, each
    projected, without the top-down pathway; c4 = one map of stride 16, the last stage runs on each region; dc5 = one
    map of stride 16, the last stage dilated; tail = the trunk's own maps as they are, and smaller ones made from the
    last of them, each of its own width (SSD); last = the trunk's last map as it is; passthrough = two convolutions on
    the last map, and beside them the map before it, reorganised to the same size (YOLOv2); pixels = no map:
    regions are cut from the image (model.regions.transform crop)."""
    channels: int = 256
    """Width of every level (fpn, in_network); of the two convolutions (passthrough; YOLOv2: 1024)."""
    narrow: int = 64
    """Channels that the finer map is brought to before it is reorganised, which makes four times as many
    (passthrough)."""
    norm: Literal["none", "frozen_batch", "sync_batch", "group"] = "none"
    """Normalisation after each convolution (fpn, tail, passthrough); frozen_batch = constant affine, from imported
    weights."""
    levels: tuple[int, ...] = (2, 3, 4, 5)
    """Trunk stages that enter (fpn, in_network, tail): 2 = stride 4 .. 5 = stride 32."""
    extra: Literal["max_pool", "none", "p6p7_on_p5", "p6p7_on_c5"] = "max_pool"
    """More levels for the dense stage (fpn, in_network): max_pool = the coarsest one subsampled by two (FPN);
    p6p7_on_p5, p6p7_on_c5 = two by 3x3 convolutions with stride 2, from the coarsest level (FCOS) or from the trunk's
    own map (RetinaNet)."""
    tail_channels: tuple[int, ...] = (512, 256, 256, 256)
    """Widths of the levels that the tail makes (tail); none = the trunk's maps alone."""
    tail_steps: tuple[Literal["stride", "valid", "even", "keep"], ...] = ("stride", "stride", "valid", "valid")
    """How each of them comes to be smaller than the one before: stride = a 3x3 convolution with stride 2; valid = a 3x3
    one without padding, two cells fewer (SSD300's last two); even = a 4x4 one with a padding of 1, one cell fewer
    (SSD512's last); keep = a 3x3 one that keeps the size (the last two of OpenCV's face detector)."""
    tail_layers: Literal["plain", "depthwise"] = "plain"
    """plain = a 1x1 convolution to half the width, then that one (SSD); depthwise = the same, but it is a depthwise one
    with a 1x1 convolution behind it (SSDLite)."""
    tail_activation: Literal["relu", "relu6"] = "relu"
    """After each convolution (tail)."""
    l2_scale: float = 0.0
    """The finest level's values are divided by their length over the channels and multiplied by learned factors, which
    begin as this (tail; SSD: 20); 0 = they are left as they are."""

    image_scales: tuple[float, ...] = ()
    """The trunk sees the input at each of these scales, and a region is cut from that in which it is nearest to
    model.regions.canonical_size (c4, dc5, last, where regions come from a file; SPP-net); empty = the input alone."""

    def __post_init__(self) -> None:
        require_typed("model.pyramid", self)
        require(
            len(self.image_scales) <= MAX_LISTED and all(0.01 <= scale <= 1 for scale in self.image_scales),
            "model.pyramid.image_scales",
            self.image_scales,
            "numbers from 0.01 to 1: the input is the largest image",
        )
        require(
            not self.image_scales or self.kind in ("c4", "dc5", "last"),
            "model.pyramid.image_scales",
            self.image_scales,
            f"none where model.pyramid.kind is {self.kind}",
        )
        require_between("model.pyramid.channels", self.channels, 1, MAX_CHANNELS)
        require_between("model.pyramid.narrow", self.narrow, 4, MAX_CHANNELS)
        require(self.narrow % 4 == 0, "model.pyramid.narrow", self.narrow, "a multiple of 4")
        require(
            len(self.levels) > 0
            and tuple(sorted(set(self.levels))) == tuple(self.levels)
            and all(2 <= level <= 5 for level in self.levels),
            "model.pyramid.levels",
            self.levels,
            "increasing numbers from 2 to 5",
        )
        require(
            self.norm == "none" or self.kind in ("fpn", "tail", "passthrough"),
            "model.pyramid.norm",
            self.norm,
            f"none where model.pyramid.kind is {self.kind}",
        )
        require(
            len(self.tail_channels) == len(self.tail_steps) <= MAX_LISTED
            and all(2 <= width <= MAX_CHANNELS for width in self.tail_channels),
            "model.pyramid.tail_channels",
            self.tail_channels,
            f"a width of 2 to {MAX_CHANNELS:,} for each of model.pyramid.tail_steps ({len(self.tail_steps)})",
        )
        require_between("model.pyramid.l2_scale", self.l2_scale, 0, MAX_PIXEL)

    @property
    def num_levels(self) -> int:
        """How many maps the RPN slides over."""
        if self.kind in ("c4", "dc5", "last", "passthrough", "pixels"):
            return max(1, len(self.image_scales))
        if self.kind == "tail":
            return len(self.levels) + len(self.tail_channels)
        return len(self.levels) + {"none": 0, "max_pool": 1, "p6p7_on_p5": 2, "p6p7_on_c5": 2}[self.extra]
