"""A picture of what a model found beside what is there: the most interesting images of a labelled set."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from maskrcnn_core.config.limits import MAX_PIXELS
from maskrcnn_core.data.coco.category_names import shown_names
from maskrcnn_core.data.decode import decode_image
from maskrcnn_core.data.files import located
from maskrcnn_core.drawing.objects import (
    draw_objects,
    fit_scale,
    objects_from_annotations,
    objects_from_record,
)
from maskrcnn_core.drawing.sheets import contact_sheet
from maskrcnn_core.records.labels import ImageRecord, record_from_row
from pipelines import storage
from pipelines.evaluation.run import load_annotations
from pipelines.images.split_names import file_names
from pipelines.labels.files import read_labels

_CELL = 420


def write_contact_sheet(
    labels: str, annotations: str, images: str, output: str, *, rows: int = 8, columns: int = 2, min_score: float = 0.5
) -> str:
    """Draw ground truth and detections side by side.

    Args:
        labels: folder that `labelling.label` wrote.
        annotations: COCO json of the same images; images: the folder of its file names.
        output: PNG file to write (local).
        rows, columns: pairs of pictures; the images with most categories, then most objects, are shown.
        min_score: weaker detections are left out.

    Returns:
        `output`.
    """
    document = load_annotations(annotations)
    categories = shown_names(document.categories)
    objects = document.by_image()
    named = [image for image in document.images.values() if "file_name" in image]
    files = dict(zip((image["id"] for image in named), file_names(images, named), strict=True))
    records = {row["image_id"]: record_from_row(row) for row in _rows(read_labels(labels), files)}
    chosen = _most_interesting(records, objects, rows * columns)
    pairs = []
    for image_id in chosen:
        pixels = _pixels(located(images, files[image_id]))
        scale = fit_scale(pixels, _CELL)
        truth = objects_from_annotations(objects[image_id], categories, pixels.shape[0], pixels.shape[1])
        detections = objects_from_record(records[image_id], min_score=min_score)
        caption = f"{files[image_id]}: {len(truth)} objects, {len(detections)} found"
        pairs.append((draw_objects(pixels, truth, scale=scale), draw_objects(pixels, detections, scale=scale), caption))
    sheet = contact_sheet(pairs, columns=columns, cell=_CELL)
    Image.fromarray(sheet).save(output)
    return output


def _rows(labels: pa.Table, wanted: dict[int, str]) -> list[dict[str, Any]]:
    return [row for row in labels.to_pylist() if row["image_id"] in wanted and row["status"] == "ok"]


def _most_interesting(
    records: dict[int, ImageRecord], objects: dict[int, list[dict[str, Any]]], count: int
) -> list[int]:
    """Image ids with most different categories, then most objects; ties by id."""

    def interest(image_id: int) -> tuple[int, int, int]:
        counts = Counter(entry["category_id"] for entry in objects[image_id])
        return -len(counts), -sum(counts.values()), image_id

    return sorted(records, key=interest)[:count]


def _pixels(uri: str) -> NDArray[np.uint8]:
    image = decode_image(storage.read_bytes(uri), max_pixels=MAX_PIXELS, apply_exif=False)
    pixels: NDArray[np.uint8] = image.permute(1, 2, 0).contiguous().numpy()
    return pixels
