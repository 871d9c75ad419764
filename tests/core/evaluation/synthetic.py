"""Random COCO annotations and label records with everything that scoring treats in its own way."""

from typing import Any

import numpy as np
import pyarrow as pa
from pycocotools import mask as coco_mask

from maskrcnn_core.config.model import Category
from maskrcnn_core.records.detections import DetectionRecord
from maskrcnn_core.records.labels import ImageRecord, record_schema, records_to_table

HEIGHT, WIDTH = 120, 150
CATEGORIES = (Category(2, "cat"), Category(7, "dog"), Category(9, "never annotated"), Category(4, "bird"))


def rectangle_rle(x: int, y: int, width: int, height: int) -> dict[str, Any]:
    """COCO compressed RLE of a filled rectangle, clipped to the image."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[max(y, 0) : y + height, max(x, 0) : x + width] = 1
    rle = coco_mask.encode(mask)
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}


def annotation(number: int, image_id: int, category_id: int, box: list[int], crowd: int = 0) -> dict[str, Any]:
    """A rectangle as polygon, or as uncompressed RLE where it is a crowd region."""
    x, y, w, h = box
    polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    runs = np.diff(np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=0, append=1)), prepend=0)
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [float(value) for value in box],
        "area": float(w * h),
        "iscrowd": crowd,
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": runs.tolist()} if crowd else polygon,
    }


def detection(category_id: int, score: float, box: list[float], masked: bool = True) -> DetectionRecord:
    """A detection whose mask is half as wide as its box, so that box and mask areas differ."""
    x, y, w, h = (round(value) for value in box)
    name = next(category.name for category in CATEGORIES if category.id == category_id)
    counts = rectangle_rle(x, y, max(1, w // 2), h)["counts"] if masked else None
    return DetectionRecord(category_id, name, score, (box[0], box[1], box[2], box[3]), counts)


def annotation_file(annotations: list[dict[str, Any]], image_ids: list[int]) -> dict[str, Any]:
    return {
        "images": [{"id": image_id, "width": WIDTH, "height": HEIGHT} for image_id in image_ids],
        "categories": [{"id": category.id, "name": category.name} for category in CATEGORIES],
        "annotations": annotations,
    }


def label_table(records: dict[int, ImageRecord]) -> pa.Table:
    uris = [f"{image_id}.jpg" for image_id in records]
    return records_to_table(list(records), uris, list(records.values()), "model", record_schema(CATEGORIES))


def found(*detections: DetectionRecord) -> ImageRecord:
    return ImageRecord("ok", None, WIDTH, HEIGHT, detections)


def random_problem(seed: int, images: int = 8) -> tuple[dict[str, Any], pa.Table]:
    """Annotations and labels: crowd regions, score ties, images without objects or detections, areas exactly 32**2 and
    96**2, more than 10 detections of a category in an image, missing and failed rows."""
    random = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    records: dict[int, ImageRecord] = {}
    for image_id in range(1, images + 1):
        detections: list[DetectionRecord] = []
        for _ in range(random.integers(0, 7) if image_id != 2 else 0):
            w, h = [(32, 32), (96, 96), tuple(random.integers(3, 70, 2).tolist())][random.integers(0, 3)]
            box = [int(random.integers(0, WIDTH - w)), int(random.integers(0, HEIGHT - h)), w, h]
            category_id = int(random.choice([2, 7, 4]))
            crowd = int(random.random() < 0.15)
            annotations.append(annotation(len(annotations) + 1, image_id, category_id, box, crowd))
            for _ in range(random.integers(0, 9)):
                moved = [float(value) for value in np.maximum(np.array(box) + random.normal(0, 3, 4), 1)]
                guess = category_id if random.random() < 0.8 else 9
                detections.append(detection(guess, round(float(random.random()), 1), moved))
        if image_id % 5:
            detections.sort(key=lambda one: -one.score)
        records[image_id] = found(*detections)
    del records[3]
    records[4] = ImageRecord("unreadable", "damaged", None, None)
    records[images + 100] = found(detection(2, 0.5, [1.0, 1.0, 9.0, 9.0]))
    return annotation_file(annotations, list(range(1, images + 1))), label_table(records)
