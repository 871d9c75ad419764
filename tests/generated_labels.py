"""Labelling runs made up for tests: the folder that jobs.label leaves, with rows as a test wants them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pycocotools import mask as coco_mask

from maskrcnn_core.config.model import Category
from maskrcnn_core.records.detections import DetectionRecord
from maskrcnn_core.records.labels import ImageRecord, record_schema, records_to_table

CATEGORIES = (Category(1, "person"), Category(3, "Käfer"), Category(7, "ring & <star>"))
MODEL = "0123456789abcdef0123456789abcdef"


def blob(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """[H, W] bool: an ellipse, sometimes with a hole, sometimes with a second piece."""
    y, x = np.mgrid[:height, :width] + 0.5
    center_y, center_x = rng.uniform(0.3, 0.7, 2) * (height, width)
    radius_y, radius_x = rng.uniform(0.12, 0.3, 2) * (height, width)
    distance = ((y - center_y) / radius_y) ** 2 + ((x - center_x) / radius_x) ** 2
    mask = distance < 1
    kind = rng.integers(3)
    if kind == 1:
        mask &= distance > 0.2
    if kind == 2:
        mask[: height // 6, : width // 5] = True
    return mask


def detection(
    mask: np.ndarray, score: float, category: Category = CATEGORIES[0], keypoints: tuple[float, ...] | None = None
) -> DetectionRecord:
    """The object of a mask, with its tight box."""
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    box = tuple(map(float, coco_mask.toBbox(encoded)))
    counts = encoded["counts"].decode("ascii")
    return DetectionRecord(category.id, category.name, score, box, counts, keypoints)  # type: ignore[arg-type]


def random_record(seed: int, most_objects: int = 4) -> ImageRecord:
    """An image with some objects; persons have 17 keypoints."""
    rng = np.random.default_rng(seed)
    height, width = map(int, rng.integers(40, 90, 2))
    found = []
    for score in np.sort(rng.uniform(0.05, 1, rng.integers(most_objects + 1)))[::-1]:
        category = CATEGORIES[rng.integers(len(CATEGORIES))]
        places = rng.uniform(0, 1, (17, 3)) * (width - 1, height - 1, 1)
        keypoints = tuple(places.astype(np.float32).ravel().tolist()) if category.id == 1 else None
        found.append(detection(blob(rng, height, width), float(score), category, keypoints))
    return ImageRecord("ok", None, width, height, tuple(found))


def failed_record(status: str = "unreadable") -> ImageRecord:
    return ImageRecord(status, "the file is damaged", None, None)


def write_run(
    folder: Path,
    records: Sequence[ImageRecord],
    *,
    rows_per_file: int = 5,
    names: Sequence[str] | None = None,
    manifest_parts: int = 0,
    row_group_size: int | None = None,
) -> list[dict[str, Any]]:
    """Writes a finished run with image ids 100, 101, ...; returns its rows.

    Args:
        folder: gets labels/ and _run/.
        records: one for each image.
        rows_per_file: of the label files.
        names: of the image files; None = pictures/sub 0/ímage 100.jpg and so on.
        manifest_parts: 0 = _run/manifest.parquet, else so many files in _run/manifest/.
        row_group_size: rows of a row group.
    """
    ids = list(range(100, 100 + len(records)))
    names = names or [f"/data/pictures/sub {index % 3}/ímage {image_id}.jpg" for index, image_id in enumerate(ids)]
    table = records_to_table(ids, names, records, MODEL, record_schema(CATEGORIES))
    (folder / "labels").mkdir(parents=True)
    (folder / "_run").mkdir()
    for number, start in enumerate(range(0, len(ids), rows_per_file)):
        part = table.slice(start, rows_per_file)
        pq.write_table(part, folder / "labels" / f"labels-{number:03d}.parquet", row_group_size=row_group_size)
    _write_manifest(folder / "_run", ids, names, manifest_parts)
    (folder / "_run" / "run.json").write_text(json.dumps({"model": MODEL}))
    statuses: dict[str, int] = {}
    for record in records:
        statuses[record.status] = statuses.get(record.status, 0) + 1
    (folder / "_run" / "_SUCCESS").write_text(json.dumps({"statuses": statuses}))
    return table.to_pylist()


def _write_manifest(folder: Path, ids: list[int], names: Sequence[str], parts: int) -> None:
    manifest = pa.table({"image_id": pa.array(ids, pa.int64()), "uri": pa.array(list(names), pa.string())})
    if parts == 0:
        pq.write_table(manifest, folder / "manifest.parquet")
        return
    (folder / "manifest").mkdir()
    size = -(-len(ids) // parts)
    for part in range(parts):
        pq.write_table(manifest.slice(part * size, size), folder / "manifest" / f"part-{part:05d}.parquet")
