"""Generated annotations of any size: a COCO file or Parquet shards, of objects like COCO's, without pictures."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_SIZES = ((480, 640), (427, 640), (640, 480), (375, 500), (640, 427))
_CATEGORIES = 80
_SHAPES = 5000  # different outlines
_CORNERS = 22.0  # of an outline, on average
_LEAST_SIDE = 375
_SHARD_IMAGES = 100_000
_AT_ONCE = 10_000
_SEED = 0


def write_coco_file(path: Path, images: int, objects: int) -> None:
    """A COCO instances file; with 118,287 images and 860,001 objects about as large as that of train2017."""
    random = np.random.default_rng(_SEED)
    sizes = random.integers(0, len(_SIZES), images)
    shapes = [_shape(random) for _ in range(_SHAPES)]
    with path.open("w") as file:
        file.write('{"info": {}, "licenses": [], "images": [')
        _write_list(file, (json.dumps(_image(number, *_SIZES[size])) for number, size in enumerate(sizes.tolist(), 1)))
        file.write('], "annotations": [')
        _write_list(file, _annotations(random, shapes, images, objects))
        file.write(f'], "categories": {json.dumps(_categories())}}}')


def _write_list(file: Any, texts: Iterator[str]) -> None:
    is_first = True
    for text in texts:
        file.write(text if is_first else f", {text}")
        is_first = False


def _image(number: int, height: int, width: int) -> dict[str, Any]:
    name = f"{number:012d}.jpg"
    url = f"http://images.example.org/train2017/{name}"
    return {"license": 3, "file_name": name, "coco_url": url, "height": height, "width": width, "id": number}


def _categories() -> list[dict[str, Any]]:
    return [{"id": number, "name": f"category {number}"} for number in range(1, _CATEGORIES + 1)]


def _shape(random: np.random.Generator) -> str:
    """Text of an outline with its box and area, which fits into every image."""
    radius = min(8.0 + random.gamma(1.0, 40.0), _LEAST_SIDE / 2 - 2)
    centre = radius + random.random(2) * (_LEAST_SIDE - 2 * radius)
    corners = max(3, int(random.gamma(1.2, _CORNERS)))
    angles = np.linspace(0.0, 2 * np.pi, corners, endpoint=False)
    radii = radius * (0.7 + 0.3 * random.random(corners))
    points = np.round(centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1), 2)
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    box = [round(float(value), 2) for value in (left, top, right - left, bottom - top)]
    area = round(float(2.0 * radius * radius), 4)
    return f'"segmentation": [{json.dumps(points.ravel().tolist())}], "area": {area}, "iscrowd": 0, "bbox": {box}'


def _annotations(random: np.random.Generator, shapes: list[str], images: int, objects: int) -> Iterator[str]:
    """In no order of the images, as in COCO's files."""
    for begin in range(0, objects, _AT_ONCE):
        number = min(_AT_ONCE, objects - begin)
        of_image = random.integers(1, images + 1, number).tolist()
        categories = random.integers(1, _CATEGORIES + 1, number).tolist()
        chosen = random.integers(0, len(shapes), number).tolist()
        for offset, (image, category, shape) in enumerate(zip(of_image, categories, chosen, strict=True), begin + 1):
            yield f'{{{shapes[shape]}, "image_id": {image}, "category_id": {category}, "id": {offset}}}'


def write_shards(folder: Path, images: int, objects: int) -> None:
    """Parquet shards of boxes (`maskrcnn_core.data.coco.shard_columns`)."""
    for name in ("images", "objects"):
        (folder / name).mkdir(parents=True)
    (folder / "categories.json").write_text(json.dumps(_categories()))
    random = np.random.default_rng(_SEED)
    for shard, begin in enumerate(range(0, images, _SHARD_IMAGES)):
        number = min(_SHARD_IMAGES, images - begin)
        ids = np.arange(begin + 1, begin + number + 1)
        pq.write_table(_image_rows(random, ids), folder / "images" / f"{shard:05d}.parquet")
        of_shard = objects * (begin + number) // images - objects * begin // images
        pq.write_table(_object_rows(random, ids, of_shard), folder / "objects" / f"{shard:05d}.parquet")


def _image_rows(random: np.random.Generator, ids: Any) -> pa.Table:
    sizes = np.array(_SIZES, np.int32)[random.integers(0, len(_SIZES), len(ids))]
    names = [f"images/{number:09d}.jpg" for number in ids.tolist()]
    return pa.table({"id": ids, "file_name": names, "width": sizes[:, 1], "height": sizes[:, 0]})


def _object_rows(random: np.random.Generator, ids: Any, number: int) -> pa.Table:
    corners = random.random((number, 2)) * (_LEAST_SIDE - 202)
    boxes = np.concatenate([corners, 2 + random.random((number, 2)) * 200], axis=1)
    return pa.table(
        {
            "image_id": np.sort(random.choice(ids, number)),
            "category_id": random.integers(1, _CATEGORIES + 1, number).astype(np.int32),
            "bbox": pa.FixedSizeListArray.from_arrays(pa.array(boxes.ravel()), 4),
            "iscrowd": (random.random(number) < 0.01).astype(np.uint8),
        }
    )
