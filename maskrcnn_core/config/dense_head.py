"""The dense stage's head: which network looks at each position, and in which code its four numbers are a box."""

from dataclasses import dataclass
from typing import Literal

from maskrcnn_core.config.checks import require, require_between, require_fraction, require_typed
from maskrcnn_core.config.limits import MAX_CHANNELS, MAX_LAYERS, MAX_PIXEL, MAX_RESOLUTION


@dataclass(frozen=True)
class DenseHeadConfig:
    """The network of the dense stage. How many 3x3 convolutions it has is `model.dense.convs`."""

    kind: Literal["shared", "towers", "levels", "cells", "whole_map", "global", "windows", "box_masks"] = "shared"
    """shared = convolutions for classes and boxes in common, then 1x1 predictors (RPN); towers = a tower of
    convolutions for classes and one for boxes, then 3x3 predictors (RetinaNet, FCOS); levels = predictors of 3x3
    alone, each level's own (SSD); cells = convolutions with leaky ReLU, then 1x1 predictors of classes, boxes and
    objectness (YOLOv2); whole_map = fully connected layers that see the whole map, which must have one size
    (YOLOv1); global = the same with ReLU, for anchors that the image has once (MultiBox); windows =
    fully connected layers that see a window around each cell of the map, pooled at every offset (OverFeat);
    box_masks = fully connected layers that see the whole map and draw a mask of the boxes of each class and of each of
    their halves, by which the anchors are scored (DetectorNet)."""
    norm: Literal["none", "group", "frozen_batch", "sync_batch"] = "none"
    """Normalisation after each convolution (towers, cells), or after the depthwise ones (levels)."""
    kernel: int = 3
    """Side of the predictors, 1 or 3 (levels)."""
    depthwise: bool = False
    """The 3x3 convolutions are depthwise, with norm and ReLU6, and 1x1 predictors follow (levels; SSDLite)."""
    width: int = 1024
    """Channels of the convolutions (cells)."""
    local: int = 0
    """Channels of a locally connected 3x3 layer before the fully connected ones; 0 = none (whole_map)."""
    layers: tuple[int, ...] = ()
    """Widths of the fully connected layers before the predictors (whole_map, global, box_masks); of the
    classifier's (windows)."""
    box_layers: tuple[int, ...] = ()
    """Widths of the regressor's fully connected layers (windows; OverFeat: 4096, 1024)."""
    grid: int = 24
    """Cells along a side of the masks, in whose middles anchors stand (box_masks)."""
    pool: int = 3
    """Side of a pooled cell, cells of the map (windows)."""
    window: int = 5
    """Side of the window, pooled cells (windows)."""
    dropout: float = 0.5
    """Share of what goes into the predictors that training drops (whole_map, global, windows, box_masks)."""
    norm_bias: bool = False
    """The convolutions have a bias although a norm follows (FCOS)."""
    objectness: bool = False
    """One more number an anchor, from the box tower: FCOS's centreness (towers)."""
    prior: float = 0.01
    """What every class score is at the beginning of training (towers, global; RetinaNet, section 4.1,
    "Initialization")."""

    def __post_init__(self) -> None:
        require_typed("model.dense.head", self)
        require(1e-6 <= self.prior < 1, "model.dense.head.prior", self.prior, "a number between 0 and 1")
        require(self.kernel in (1, 3), "model.dense.head.kernel", self.kernel, "1 or 3")
        require_fraction("model.dense.head.dropout", self.dropout)
        require_between("model.dense.head.width", self.width, 1, MAX_CHANNELS)
        require_between("model.dense.head.local", self.local, 0, MAX_CHANNELS)
        require_between("model.dense.head.grid", self.grid, 1, MAX_RESOLUTION)
        require_between("model.dense.head.pool", self.pool, 1, MAX_RESOLUTION)
        require_between("model.dense.head.window", self.window, 1, MAX_RESOLUTION)
        for name in ("layers", "box_layers"):
            widths = getattr(self, name)
            require(
                len(widths) <= MAX_LAYERS and all(1 <= width <= MAX_CHANNELS for width in widths),
                f"model.dense.head.{name}",
                widths,
                f"up to {MAX_LAYERS} widths from 1 to {MAX_CHANNELS}",
            )
            require(
                self.kind != "windows" or len(widths) > 0,
                f"model.dense.head.{name}",
                widths,
                "at least one width where model.dense.head.kind is windows: the first layer sees the window",
            )
        for name, default, kinds in (
            ("norm", "none", ("towers", "levels", "cells")),
            ("objectness", False, ("towers",)),
            ("depthwise", False, ("levels",)),
            ("kernel", 3, ("levels",)),
        ):
            require(
                self.kind in kinds or getattr(self, name) == default,
                f"model.dense.head.{name}",
                getattr(self, name),
                f"{str(default).lower()} where model.dense.head.kind is {self.kind}",
            )
        require(
            self.kind != "levels" or self.depthwise or self.norm == "none",
            "model.dense.head.norm",
            self.norm,
            "none where model.dense.head.depthwise is false: predictors have no norm",
        )


@dataclass(frozen=True)
class BoxCodingConfig:
    """How the four numbers of an anchor say where its box is."""

    kind: Literal["deltas", "edges", "cells", "roots", "corners", "window"] = "deltas"
    """deltas = shift of the centre and logarithm of the sides, relative to the anchor (R-CNN); edges = distances of the
    four edges from the anchor's centre in units of its sides, never negative (FCOS); cells = centre by a sigmoid within
    its cell, sides by an exponential (YOLOv2); roots = centre as a part of its cell, square roots of the sides as parts
    of the anchor's (YOLOv1); corners = shifts of the four edges as parts of the input's side (MultiBox); window =
    shifts of the four edges as parts of the anchor's sides (OverFeat)."""
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    """Scale of the regression targets dx, dy, dw, dh (deltas)."""

    def __post_init__(self) -> None:
        require_typed("model.dense.coding", self)
        require(
            all(1e-6 <= w <= MAX_PIXEL for w in self.weights),
            "model.dense.coding.weights",
            self.weights,
            "numbers above 0",
        )
