"""Colours, textures and backgrounds of generated pictures: plain functions from a random generator to pixels."""

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Pixels = NDArray[np.float32]


def hsv(hue: float, saturation: float, value: float) -> Pixels:
    """[3] float32 RGB in 0..1."""
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), dtype=np.float32)


def vivid_color(rng: np.random.Generator, away_from: Sequence[Pixels] = ()) -> Pixels:
    """A strong colour [3], the one of eight tries that is farthest from its nearest among `away_from`."""
    tries = [hsv(rng.uniform(), rng.uniform(0.35, 0.9), rng.uniform(0.45, 0.98)) for _ in range(8)]
    if not away_from:
        return tries[0]
    distances = np.linalg.norm(np.stack(tries)[:, None] - np.stack(list(away_from))[None], axis=2)
    return tries[int(distances.min(axis=1).argmax())]


def clouds(height: int, width: int, rng: np.random.Generator, cell: float) -> Pixels:
    """[height, width] float32 in 0..1: random values `cell` pixels apart, smoothly interpolated."""
    grid = rng.random((max(2, round(height / cell)) + 1, max(2, round(width / cell)) + 1), dtype=np.float32)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)).clip(0, 1)


def _ramp(height: int, width: int, angle: float) -> Pixels:
    """[height, width] distance along `angle`, pixels."""
    rows, columns = np.ogrid[:height, :width]
    return np.asarray(columns * np.cos(angle) + rows * np.sin(angle), dtype=np.float32)


def _unit(values: Pixels) -> Pixels:
    low, high = values.min(), values.max()
    return np.asarray((values - low) / max(float(high - low), 1e-6), dtype=np.float32)


def _waves(height: int, width: int, rng: np.random.Generator, period: float) -> Pixels:
    """Stripes with slightly soft edges."""
    phase = _ramp(height, width, rng.uniform(0, np.pi)) * (2 * np.pi / period) + rng.uniform(0, 2 * np.pi)
    return np.asarray((0.5 + 2.0 * np.sin(phase)).clip(0, 1), dtype=np.float32)


def _checks(height: int, width: int, rng: np.random.Generator, period: float) -> Pixels:
    angle = rng.uniform(0, np.pi / 2)
    across = np.sin(_ramp(height, width, angle) * (2 * np.pi / period))
    along = np.sin(_ramp(height, width, angle + np.pi / 2) * (2 * np.pi / period))
    return np.asarray((0.5 + 3.0 * across * along).clip(0, 1), dtype=np.float32)


def _dots(height: int, width: int, rng: np.random.Generator, period: float) -> Pixels:
    angle = rng.uniform(0, np.pi / 2)
    across = np.cos(_ramp(height, width, angle) * (2 * np.pi / period))
    along = np.cos(_ramp(height, width, angle + np.pi / 2) * (2 * np.pi / period))
    return np.asarray((2.0 * (across + along) - 0.8).clip(0, 1), dtype=np.float32)


def _pattern(height: int, width: int, rng: np.random.Generator, period: float) -> Pixels:
    """[height, width] in 0..1, of a random kind."""
    kind = rng.integers(6)
    if kind == 0:
        return _waves(height, width, rng, period)
    if kind == 1:
        return _checks(height, width, rng, 1.4 * period)
    if kind == 2:
        return _dots(height, width, rng, 1.2 * period)
    if kind == 3:
        return _unit(clouds(height, width, rng, period / 2))
    if kind == 4:
        return _unit(_ramp(height, width, rng.uniform(0, 2 * np.pi)))
    return np.zeros((height, width), dtype=np.float32)


def _mix(weight: Pixels, first: Pixels, second: Pixels) -> Pixels:
    return first + weight[..., None] * (second - first)


def grain(height: int, width: int, rng: np.random.Generator, strength: float) -> Pixels:
    """[height, width, 1] noise around 0, `strength` = standard deviation."""
    return strength * rng.standard_normal((height, width, 1), dtype=np.float32)


def surface(height: int, width: int, rng: np.random.Generator, base: Pixels, contrast: float) -> Pixels:
    """Texture of an object.

    Args:
        base: [3] the object's main colour.
        contrast: how far each channel of the pattern's second colour may lie from it; moderate, so that the object
            holds together.

    Returns:
        [height, width, 3] float32, about 0..1.
    """
    other = (base + rng.uniform(-contrast, contrast, 3).astype(np.float32)).clip(0.05, 1)
    period = float(np.exp(rng.uniform(np.log(5), np.log(18))))
    light = 1.08 - 0.28 * _unit(_ramp(height, width, rng.uniform(0.2, 1.3)))
    return _mix(_pattern(height, width, rng, period), base, other) * light[..., None]


def backdrop(height: int, width: int, rng: np.random.Generator) -> Pixels:
    """A muted background [height, width, 3], about 0..1: gradient, clouds, stripes, checks or dots."""
    hue, value = rng.uniform(), rng.uniform(0.25, 0.9)
    first = hsv(hue, rng.uniform(0.0, 0.4), value)
    second = hsv(hue + rng.uniform(-0.15, 0.15), rng.uniform(0.0, 0.4), value + rng.uniform(-0.2, 0.2))
    size = float(np.sqrt(height * width))
    picture = _mix(_unit(_ramp(height, width, rng.uniform(0, 2 * np.pi))), first, second)
    pattern = _pattern(height, width, rng, size * rng.uniform(0.05, 0.25)) - 0.5
    picture = picture + rng.uniform(0.04, 0.16) * pattern[..., None]
    picture = picture + 0.12 * (clouds(height, width, rng, size / 4)[..., None] - 0.5)
    return picture.clip(0.02, 0.98)


def _draw_clutter(canvas: Image.Image, rng: np.random.Generator, color: tuple[int, ...]) -> None:
    """One thing that is no object: a disc, bar, triangle or curve; none resembles a star, ring or cross."""
    draw = ImageDraw.Draw(canvas)
    size = float(np.sqrt(canvas.width * canvas.height))
    x, y = rng.uniform(0, canvas.width), rng.uniform(0, canvas.height)
    radius = size * rng.uniform(0.02, 0.12)
    shape = rng.integers(4)
    if shape == 0:
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=color)
    else:
        angle = rng.uniform(0, 2 * np.pi)
        corners = {1: [0.35, np.pi - 0.35, np.pi + 0.35, -0.35], 2: [0.0, 2.1, 4.2], 3: []}[int(shape)]
        if corners:
            points = [(x + radius * np.cos(angle + c), y + radius * np.sin(angle + c)) for c in corners]
            draw.polygon(points, fill=color)
        else:
            steps = np.linspace(0, 1, 12)
            bend = angle + rng.uniform(-1.5, 1.5) * steps
            path = np.cumsum(np.stack([np.cos(bend), np.sin(bend)], axis=1), axis=0) * radius / 2 + (x, y)
            draw.line(path.ravel().tolist(), fill=color, width=max(1, round(size * rng.uniform(0.004, 0.015))))


def add_clutter(picture: Pixels, rng: np.random.Generator, items: int) -> Pixels:
    """The picture with some muted things on it that are no objects."""
    height, width = picture.shape[:2]
    canvas = Image.fromarray((picture.clip(0, 1) * 255).astype(np.uint8)).resize((2 * width, 2 * height))
    for _ in range(items):
        tint = hsv(rng.uniform(), rng.uniform(0.0, 0.45), rng.uniform(0.2, 0.95))
        color = tuple(int(channel) for channel in 255 * (0.55 * tint + 0.45 * picture.mean(axis=(0, 1)).clip(0, 1)))
        _draw_clutter(canvas, rng, color)
    return np.asarray(np.asarray(canvas.reduce(2)) / np.float32(255), dtype=np.float32)
