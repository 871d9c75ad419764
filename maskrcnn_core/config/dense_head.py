"""The dense stage's head: which network looks at each position, and in which code its four numbers are a box."""

from dataclasses import dataclass
from typing import Literal

from maskrcnn_core.config.checks import require, require_typed
from maskrcnn_core.config.limits import MAX_PIXEL


@dataclass(frozen=True)
class DenseHeadConfig:
    """The network of the dense stage. How many 3x3 convolutions it has is `model.dense.convs`."""

    kind: Literal["shared", "towers"] = "shared"
    """shared = convolutions for classes and boxes in common, then 1x1 predictors (RPN); towers = a tower of
    convolutions for classes and one for boxes, then 3x3 predictors (RetinaNet, FCOS)."""
    norm: Literal["none", "group"] = "none"
    """Normalisation after each convolution (towers)."""
    norm_bias: bool = False
    """The convolutions have a bias although a norm follows (FCOS)."""
    objectness: bool = False
    """One more number an anchor, from the box tower: FCOS's centreness (towers)."""
    prior: float = 0.01
    """What every class score is at the beginning of training (towers; RetinaNet, section 4.1, "Initialization")."""

    def __post_init__(self) -> None:
        require_typed("model.dense.head", self)
        require(1e-6 <= self.prior < 1, "model.dense.head.prior", self.prior, "a number between 0 and 1")
        for name, default in (("norm", "none"), ("objectness", False)):
            require(
                self.kind == "towers" or getattr(self, name) == default,
                f"model.dense.head.{name}",
                getattr(self, name),
                f"{str(default).lower()} where model.dense.head.kind is {self.kind}",
            )


@dataclass(frozen=True)
class BoxCodingConfig:
    """How the four numbers of an anchor say where its box is."""

    kind: Literal["deltas", "edges"] = "deltas"
    """deltas = shift of the centre and logarithm of the sides, relative to the anchor (R-CNN); edges = distances of the
    four edges from the anchor's centre in units of its sides, never negative (FCOS)."""
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
