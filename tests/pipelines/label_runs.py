"""A label run made from the annotations of generated pictures: what a fair detector would have found, with errors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from pycocotools import mask as coco_mask

from maskrcnn_core.config.model import Category
from maskrcnn_core.data.generated.pictures import generate_dataset
from maskrcnn_core.data.segmentation import rasterise
from maskrcnn_core.records.detections import DetectionRecord
from maskrcnn_core.records.labels import ImageRecord, record_schema, records_to_table


def write_label_run(folder: Path, num_images: int = 6) -> tuple[Path, Path, Path]:
    """Pictures, their annotations and labels in two files; one more row failed.

    Every third object is missed, boxes are a little off, and each image has one detection on the background.

    Returns:
        The run's folder, the annotation file, the folder of the images.
    """
    annotations = generate_dataset(folder / "set", num_images=num_images, seed=3, image_size=(96, 128))
    document = json.loads(annotations.read_text())
    categories = [Category(entry["id"], entry["name"]) for entry in document["categories"]]
    random = np.random.default_rng(0)
    uris = [str(folder / "set" / "images" / image["file_name"]) for image in document["images"]]
    records = [_record(image, document, random) for image in document["images"]]
    ids = [image["id"] for image in document["images"]] + [10_000]
    uris.append(str(folder / "gone.jpg"))
    records.append(ImageRecord("missing", "no such file", None, None))
    table = records_to_table(ids, uris, records, "fingerprint", record_schema(categories))
    labels = folder / "run" / "labels"
    labels.mkdir(parents=True)
    pq.write_table(table.slice(0, 2), labels / "part-0.parquet")
    pq.write_table(table.slice(2), labels / "part-1.parquet", row_group_size=2)
    return folder / "run", annotations, folder / "set" / "images"


def _record(image: dict[str, Any], document: dict[str, Any], random: np.random.Generator) -> ImageRecord:
    names = {entry["id"]: entry["name"] for entry in document["categories"]}
    height, width = image["height"], image["width"]
    found = []
    for entry in document["annotations"]:
        if entry["image_id"] != image["id"] or entry["id"] % 3 == 0 or entry.get("iscrowd"):
            continue
        x, y, w, h = (float(value) for value in entry["bbox"] + random.normal(0, 0.5, 4))
        mask = rasterise(entry["segmentation"], height, width)
        counts = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        score = round(float(random.uniform(0.3, 1.0)), 3)
        found.append(DetectionRecord(entry["category_id"], names[entry["category_id"]], score, (x, y, w, h), counts))
    corner = np.zeros((height, width), np.uint8, order="F")
    corner[:6, :6] = 1
    counts = coco_mask.encode(corner)["counts"].decode()
    first = next(iter(names))
    found.append(DetectionRecord(first, names[first], 0.55, (0.0, 0.0, 6.0, 6.0), counts))
    return ImageRecord("ok", None, width, height, tuple(sorted(found, key=lambda one: -one.score)))
