"""The objects of generated pictures as outlines, and their rasterisation with smooth edges.

A figure is drawn in its own unit frame (x right, y down, about 2 wide, centred on 0, 0), placed in the picture by an
affine map, and rasterised to coverage and colour. The three shapes fill between a third and a half of their box, so
that a mask head that answers "the whole box" stands out at once in mask AP.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Floats = NDArray[np.floating]
Color = tuple[int, int, int]

WHITE: Color = (255, 255, 255)
_OVERSAMPLING = 4


@dataclass(frozen=True)
class Part:
    """One filled outline of a figure.

    Attributes:
        outline: [V, 2] float, x, y of the vertices.
        color: RGB 0..255, which the figure's texture multiplies; None cuts a hole into the parts drawn before.
    """

    outline: Floats
    color: Color | None = WHITE


@dataclass(frozen=True)
class Figure:
    """An object's outlines, in drawing order, with its keypoints where the category has them.

    Attributes:
        category: name of the category.
        parts: at least one.
        keypoints: [P, 2] float, x, y in the frame of the parts, or None.
    """

    category: str
    parts: tuple[Part, ...]
    keypoints: Floats | None = None


@dataclass(frozen=True)
class Raster:
    """A figure on the pixel grid, cropped to the picture.

    Attributes:
        left, top: where the crop lies in the picture, pixels.
        coverage: [h, w] float32 in 0..1, the share of each pixel that the figure covers.
        color: [h, w, 3] float32 in 0..1, already multiplied with the coverage.
        full_area: pixels that the figure covers in an unbounded picture.
    """

    left: int
    top: int
    coverage: NDArray[np.float32]
    color: NDArray[np.float32]
    full_area: float

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the crop in the picture."""
        height, width = self.coverage.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def disc(center: tuple[float, float] | Floats, radius: float, vertices: int = 32) -> Floats:
    """[vertices, 2] outline of a disc."""
    angles = np.arange(vertices) * (2 * np.pi / vertices)
    return np.asarray(center) + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def capsule(start: Floats, end: Floats, start_radius: float, end_radius: float) -> Floats:
    """[18, 2] outline of a limb: a thick line with round ends."""
    along = end - start
    heading = np.arctan2(along[1], along[0])
    half_turn = np.linspace(np.pi / 2, 3 * np.pi / 2, 9)
    back = heading + half_turn
    front = back + np.pi
    return np.concatenate(
        [
            start + start_radius * np.stack([np.cos(back), np.sin(back)], axis=1),
            end + end_radius * np.stack([np.cos(front), np.sin(front)], axis=1),
        ]
    )


def star(rng: np.random.Generator) -> Figure:
    """A five-pointed star of random sharpness."""
    inner = rng.uniform(0.40, 0.52)
    radii = np.where(np.arange(10) % 2 == 0, 1.0, inner)
    angles = np.arange(10) * (np.pi / 5) - np.pi / 2
    return Figure("star", (Part(radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)),))


def ring(rng: np.random.Generator) -> Figure:
    """A ring: its mask has a hole, so that it cannot be one polygon."""
    hole = rng.uniform(0.58, 0.70)
    return Figure("ring", (Part(disc((0.0, 0.0), 1.0, 64)), Part(disc((0.0, 0.0), hole, 64), None)))


def cross(rng: np.random.Generator) -> Figure:
    """A plus with four equal arms of random thickness."""
    arm = rng.uniform(0.22, 0.30)
    corner = np.array([[arm, -1.0], [arm, -arm], [1.0, -arm]])
    turns = [np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in np.arange(4) * np.pi / 2]
    return Figure("cross", (Part(np.concatenate([corner @ turn.T for turn in turns])),))


SHAPES: dict[str, Callable[[np.random.Generator], Figure]] = {"star": star, "ring": ring, "cross": cross}


def place(figure: Figure, center: tuple[float, float], size: float, angle: float = 0.0, aspect: float = 1.0) -> Figure:
    """The figure in the picture's frame: squeezed, turned, scaled and moved.

    Args:
        center: x, y of the unit frame's origin, pixels.
        size: length of 2 units, pixels.
        angle: clockwise turn, radians.
        aspect: width / height before turning.
    """
    squeeze = np.diag([aspect, 1.0])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = (size / 2) * turn @ squeeze

    def move(points: Floats) -> Floats:
        return np.asarray(points @ matrix.T + np.asarray(center))

    parts = tuple(replace(part, outline=move(part.outline)) for part in figure.parts)
    keypoints = None if figure.keypoints is None else move(figure.keypoints)
    return replace(figure, parts=parts, keypoints=keypoints)


def rasterize(figure: Figure, height: int, width: int) -> Raster | None:
    """The figure's coverage and colour, by drawing on a finer grid and averaging.

    Args:
        figure: in the picture's frame.
        height, width: of the picture, pixels.

    Returns:
        None where the figure lies wholly outside the picture.
    """
    points = np.concatenate([part.outline for part in figure.parts if part.color is not None])
    left, top = np.floor(points.min(axis=0)).astype(int) - 1
    right, bottom = np.ceil(points.max(axis=0)).astype(int) + 2
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if x1 >= x2 or y1 >= y2:
        return None
    fine = ((right - left) * _OVERSAMPLING, (bottom - top) * _OVERSAMPLING)
    coverage, color = Image.new("L", fine), Image.new("RGB", fine)
    draw_coverage, draw_color = ImageDraw.Draw(coverage), ImageDraw.Draw(color)
    for part in figure.parts:
        # Pillow's integer coordinates are pixel centres, ours are pixel corners: hence the half.
        outline = ((part.outline - (left, top)) * _OVERSAMPLING - 0.5).ravel().tolist()
        draw_coverage.polygon(outline, fill=0 if part.color is None else 255)
        draw_color.polygon(outline, fill=part.color or (0, 0, 0))
    covered, colored = _averaged(coverage), _averaged(color)
    inside = slice(y1 - top, y2 - top), slice(x1 - left, x2 - left)
    return Raster(int(x1), int(y1), covered[inside], colored[inside], float((covered >= 0.5).sum()))


def _averaged(fine: Image.Image) -> NDArray[np.float32]:
    """The fine grid's blocks averaged, in 0..1."""
    values = np.asarray(fine.reduce(_OVERSAMPLING))
    return np.asarray(values / np.float32(255), dtype=np.float32)
