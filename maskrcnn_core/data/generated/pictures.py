"""A generated data set in COCO format: any number of pictures of overlapping stars, rings, crosses and people.

It needs no download, is exactly reproducible, and holds what makes COCO hard to read: objects hidden by others,
polygons beside run lengths, crowd regions, keypoints of every visibility, pictures with nothing in them and category
ids with gaps. Every ground-truth mask is the set of pixels on which the object is the frontmost one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from maskrcnn_core.config.model import Category
from maskrcnn_core.config.person import PERSON_SKELETON
from maskrcnn_core.data.generated.person import PERSON_KEYPOINTS, person
from maskrcnn_core.data.generated.shapes import SHAPES, Figure, Raster, place, rasterize
from maskrcnn_core.data.generated.textures import Pixels, add_clutter, backdrop, grain, surface, vivid_color
from maskrcnn_core.data.outlines import polygon_or_rle, uncompressed_rle
from maskrcnn_core.errors import ConfigError, StorageError

Mask = NDArray[np.bool_]

PERSON = Category(1, "person")
CATEGORIES = (PERSON, Category(3, "star"), Category(7, "ring"), Category(18, "cross"))
"""Ids with gaps, as in COCO, so that a wrong id mapping shows."""

_IDS = {category.name: category.id for category in CATEGORIES}
_EMPTY_SHARE = 0.06  # of pictures without objects
_CROWD_SHARE = 0.06  # of pictures with a crowd region
_MIN_VISIBLE = 0.5  # of an object's own area; with less it is taken out of the picture altogether
_MIN_AREA = 40  # visible pixels
_NEAR_WHITE = np.full(3, 0.94, dtype=np.float32)
_SMALLEST_SIDE = 64  # below it the objects would be a few pixels large


@dataclass(frozen=True)
class Picture:
    """One generated picture.

    Attributes:
        image_id: COCO image id.
        pixels: [H, W, 3] uint8 RGB.
        annotations: COCO annotation objects, ready for JSON.
    """

    image_id: int
    pixels: NDArray[np.uint8]
    annotations: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class _Layer:
    """One object, or one crowd of them, at its depth in the picture."""

    category: str
    rasters: tuple[Raster, ...]
    visible: Mask
    hidden: Mask
    keypoints: NDArray[np.floating] | None
    crowd: bool
    color: Pixels


def generate_dataset(
    output: Path,
    *,
    num_images: int,
    seed: int = 0,
    image_size: tuple[int, int] = (224, 352),
    start_id: int = 1,
    with_people: bool = True,
) -> Path:
    """Write OUTPUT/images/*.jpg and OUTPUT/annotations.json in COCO format.

    A picture depends on the seed and its image id only: the first pictures of a larger set are those of a smaller one,
    and two sets with other ids share no picture.

    Args:
        output: folder to create; must not hold a data set yet.
        num_images: 0 or more.
        seed: 0 or more; the same seed gives the same bytes (with the same Pillow and NumPy).
        image_size: shortest and longest side of the pictures, pixels; each side is drawn from this range.
        start_id: image id of the first picture, 0 or more.
        with_people: also draw people, with keypoints; without them the category is absent.

    Returns:
        The annotation file.

    Raises:
        ConfigError: a number is out of range.
        StorageError: the folder already holds pictures or annotations.
    """
    if num_images < 0:
        raise ConfigError(f"generated data, num_images: got {num_images}, expected 0 or more")
    _check_settings(seed, start_id, image_size)
    images, annotation_file = output / "images", output / "annotations.json"
    if annotation_file.exists() or (images.exists() and any(images.iterdir())):
        raise StorageError(
            f"generated data, folder {output}: already holds a data set, expected a new or empty folder; "
            "choose another or delete this one"
        )
    images.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(start_id, start_id + num_images):
        picture = generate_picture(image_id, seed=seed, image_size=image_size, with_people=with_people)
        name = f"{image_id:012d}.jpg"
        Image.fromarray(picture.pixels).save(images / name, quality=92)
        height, width = picture.pixels.shape[:2]
        entries.append({"id": image_id, "file_name": name, "width": width, "height": height, "license": 1})
        annotations.extend(picture.annotations)
    document = _document(entries, annotations, with_people)
    annotation_file.write_text(json.dumps(document, separators=(",", ":")))
    return annotation_file


def generate_picture(
    image_id: int, *, seed: int = 0, image_size: tuple[int, int] = (224, 352), with_people: bool = True
) -> Picture:
    """One picture with its annotations; arguments as in `generate_dataset`.

    Raises:
        ConfigError: a number is out of range.
    """
    _check_settings(seed, image_id, image_size)
    rng = np.random.default_rng([seed, image_id])
    height, width = (int(side) for side in rng.integers(image_size[0], image_size[1] + 1, size=2))
    ground = add_clutter(backdrop(height, width, rng), rng, int(rng.integers(0, 9)))
    layers = _compose(ground, rng, with_people) if rng.random() >= _EMPTY_SHARE else []
    pixels = _paint(ground, layers, rng)
    annotations = (_annotation(layer, 100 * image_id + number, image_id) for number, layer in enumerate(layers, 1))
    return Picture(image_id, pixels, tuple(annotations))


def _check_settings(seed: int, start_id: int, image_size: tuple[int, int]) -> None:
    for name, value in (("seed", seed), ("image id", start_id)):
        if value < 0:
            raise ConfigError(f"generated data, {name}: got {value}, expected 0 or more")
    if not _SMALLEST_SIDE <= image_size[0] <= image_size[1]:
        raise ConfigError(
            f"generated data, image_size: got {image_size}, expected the shortest and the longest side in pixels, "
            f"the shortest at least {_SMALLEST_SIDE}"
        )


def _document(
    images: Sequence[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]], with_people: bool
) -> dict[str, Any]:
    categories: list[dict[str, Any]] = []
    for category in CATEGORIES:
        if category != PERSON:
            categories.append({"supercategory": "shape", "id": category.id, "name": category.name})
        elif with_people:
            skeleton = [list(limb) for limb in PERSON_SKELETON]
            points = {"keypoints": list(PERSON_KEYPOINTS), "skeleton": skeleton}
            categories.append({"supercategory": "person", "id": category.id, "name": category.name, **points})
    return {
        "info": {"description": "Generated shapes and people", "version": "1.0", "year": 2026},
        "licenses": [{"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
        "images": list(images),
        "annotations": list(annotations),
        "categories": categories,
    }


def _compose(ground: Pixels, rng: np.random.Generator, with_people: bool) -> list[_Layer]:
    """The picture's objects, frontmost first."""
    height, width = ground.shape[:2]
    taken: Mask = np.zeros((height, width), dtype=bool)
    layers: list[_Layer] = []
    wanted = int(rng.integers(1, 7))
    crowd_at = int(rng.integers(wanted)) if rng.random() < _CROWD_SHARE else -1
    for index in range(wanted):
        for _ in range(3):
            draw_figures = _crowd_figures if index == crowd_at else _single_figure
            figures = draw_figures(height, width, rng, with_people)
            layer = _try_layer(figures, taken, rng, [ground.mean(axis=(0, 1)), *(other.color for other in layers)])
            if layer is not None:
                layers.append(layer)
                taken = taken | layer.visible
                break
    return layers


def _single_figure(height: int, width: int, rng: np.random.Generator, with_people: bool) -> list[Figure]:
    scale = float(np.sqrt(height * width))
    center = (float(rng.uniform(0.08, 0.92)) * width, float(rng.uniform(0.08, 0.92)) * height)
    if with_people and rng.random() < 0.3:
        size = min(scale * float(np.exp(rng.uniform(np.log(0.22), np.log(0.62)))), 0.9 * height)
        return [place(person(rng), center, size, angle=float(rng.uniform(-0.2, 0.2)))]
    shape = SHAPES[list(SHAPES)[int(rng.integers(len(SHAPES)))]](rng)
    size = scale * float(np.exp(rng.uniform(np.log(0.10), np.log(0.46))))
    angle, aspect = float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0.65, 1.0))
    return [place(shape, center, size, angle, aspect)]


def _crowd_figures(height: int, width: int, rng: np.random.Generator, with_people: bool) -> list[Figure]:
    """Many tiny figures of one category, some behind others."""
    scale = float(np.sqrt(height * width))
    makers = [*SHAPES.values(), *([person] if with_people else [])]
    maker = makers[int(rng.integers(len(makers)))]
    middle = rng.uniform(0.25, 0.75, 2) * (width, height)
    figures = []
    for _ in range(int(rng.integers(14, 30))):
        x, y = middle + rng.normal(0, 0.10, 2) * scale
        size = scale * rng.uniform(0.035, 0.06) * (1.6 if maker is person else 1.0)
        figures.append(place(maker(rng), (float(x), float(y)), float(size), float(rng.uniform(-0.4, 0.4))))
    return sorted(figures, key=lambda figure: float(figure.parts[0].outline[:, 1].max()))


def _try_layer(
    figures: Sequence[Figure], taken: Mask, rng: np.random.Generator, other_colors: Sequence[Pixels]
) -> _Layer | None:
    """The figures behind everything taken so far, or None where too little of them would be seen."""
    rasters = tuple(raster for figure in figures if (raster := rasterize(figure, *taken.shape)) is not None)
    covered: Mask = np.zeros_like(taken)
    for raster in rasters:
        covered[raster.window] |= raster.coverage >= 0.5
    visible = covered & ~taken
    crowd = len(figures) > 1
    # A crowd's members hide each other, so that its own area is what it covers in the picture.
    full_area = float(covered.sum()) if crowd else sum(raster.full_area for raster in rasters)
    if visible.sum() < max(_MIN_AREA, _MIN_VISIBLE * full_area):
        return None
    color = vivid_color(rng, other_colors)
    return _Layer(figures[0].category, rasters, visible, taken, figures[0].keypoints, crowd, color)


def _paint(ground: Pixels, layers: Sequence[_Layer], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The picture [H, W, 3], farthest layer first, each with a soft shadow on what lies behind it."""
    picture = ground.copy()
    for layer in reversed(layers):
        # People bring their own colours; a surface near white only shades them.
        base, contrast = (_NEAR_WHITE, 0.08) if layer.category == PERSON.name else (layer.color, 0.35)
        picture *= 1 - 0.35 * _shadow(layer, rng)[..., None]
        for raster in layer.rasters:
            height, width = raster.coverage.shape
            texture = surface(height, width, rng, base, contrast)
            under = picture[raster.window] * (1 - raster.coverage[..., None])
            picture[raster.window] = under + raster.color * texture
    noise = grain(picture.shape[0], picture.shape[1], rng, float(rng.uniform(0.0, 0.03)))
    return np.asarray(((picture + noise).clip(0, 1) * 255).round(), dtype=np.uint8)


def _shadow(layer: _Layer, rng: np.random.Generator) -> Pixels:
    """[H, W] float32 in 0..1: the layer's coverage, moved a little and blurred."""
    shadow = np.zeros(layer.visible.shape, dtype=np.uint8)
    for raster in layer.rasters:
        shadow[raster.window] = np.maximum(shadow[raster.window], raster.coverage * 255)
    blur = 0.01 * float(np.sqrt(shadow.size)) * float(rng.uniform(0.5, 1.2))
    soft = np.asarray(Image.fromarray(shadow).filter(ImageFilter.BoxBlur(blur)), dtype=np.float32) / 255
    return np.roll(soft, (round(blur), round(blur)), axis=(0, 1))


def _annotation(layer: _Layer, annotation_id: int, image_id: int) -> dict[str, Any]:
    rows, columns = np.flatnonzero(layer.visible.any(axis=1)), np.flatnonzero(layer.visible.any(axis=0))
    top, left, bottom, right = int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
    entry: dict[str, Any] = {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": _IDS[layer.category],
        "segmentation": uncompressed_rle(layer.visible) if layer.crowd else polygon_or_rle(layer.visible),
        "area": int(layer.visible.sum()),
        "bbox": [left, top, right - left, bottom - top],
        "iscrowd": int(layer.crowd),
    }
    if layer.keypoints is not None:
        points = _keypoints(layer)
        entry |= {"keypoints": points.ravel().tolist(), "num_keypoints": int((points[:, 2] > 0).sum())}
    return entry


def _keypoints(layer: _Layer) -> NDArray[np.int64]:
    """[P, 3] x, y, v as in COCO: pixel indices; v = 0 outside the picture, 1 behind another object, 2 seen."""
    assert layer.keypoints is not None
    result = np.zeros((len(layer.keypoints), 3), dtype=np.int64)
    if layer.crowd:
        return result
    height, width = layer.visible.shape
    for row, (x, y) in zip(result, np.floor(layer.keypoints).astype(int).tolist(), strict=True):
        if 0 <= x < width and 0 <= y < height:
            row[:] = x, y, 1 if layer.hidden[y, x] else 2
    return result
