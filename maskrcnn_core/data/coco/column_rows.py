"""Clean entries -> rows of columns, many at a time."""

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from maskrcnn_core.data.coco.column_schema import IMAGES, OBJECTS
from maskrcnn_core.data.coco.sections import CocoDict

_MOST = 2**31 - 1


def image_table(images: Iterable[CocoDict]) -> pa.Table:
    """Columns of clean image entries (`sections`)."""
    entries = list(images)
    columns = [
        pa.array([entry["id"] for entry in entries], pa.int64()),
        pa.array([entry.get("file_name", "") for entry in entries], pa.string()),
        pa.array([entry.get("width", 0) for entry in entries], pa.int32()),
        pa.array([entry.get("height", 0) for entry in entries], pa.int32()),
        *(pa.array([entry.get(name) for entry in entries], IMAGES.field(name).type) for name in IMAGES.names[4:]),
    ]
    return pa.Table.from_arrays(columns, schema=IMAGES)


def object_batch(entries: Sequence[CocoDict]) -> pa.RecordBatch:
    """Columns of clean annotations (`annotations.read_annotation`)."""
    numbers, lengths, parts = array("d"), array("i"), array("i")
    counts: list[str] = []
    points, point_lengths = array("d"), array("i")
    for entry in entries:
        mask = entry.get("segmentation")
        polygons = mask if isinstance(mask, list) else ()
        parts.append(len(polygons))
        for polygon in polygons:
            lengths.append(len(polygon))
            numbers.extend(polygon)
        counts.append(_compressed(mask) if isinstance(mask, dict) else "")
        keypoints = entry.get("keypoints", ())
        points.extend(keypoints)
        point_lengths.append(len(keypoints))
    columns = [
        pa.array([entry["id"] for entry in entries], pa.int64()),
        pa.array([entry["image_id"] for entry in entries], pa.int64()),
        pa.array([entry["category_id"] for entry in entries], pa.int32()),
        pa.FixedSizeListArray.from_arrays(
            pa.array(np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1)), 4
        ),
        pa.array(np.array([entry["area"] for entry in entries], np.float64)),
        pa.array(np.array([entry["iscrowd"] for entry in entries], np.uint8)),
        lists(_numbers(parts), lists(_numbers(lengths), pa.array(np.frombuffer(numbers, np.float64)))),
        pa.array(counts, pa.string()),
        lists(_numbers(point_lengths), pa.array(np.frombuffer(points, np.float64))),
        pa.array([max(min(entry.get("num_keypoints", 0), _MOST), -_MOST) for entry in entries], pa.int32()),
        pa.array([entry.get("unread", "") for entry in entries], pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=OBJECTS)


def lists(lengths: NDArray[np.int32], values: pa.Array) -> pa.ListArray:
    """Lists of so many of the values each, one after the other."""
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _numbers(values: "array[int]") -> NDArray[np.int32]:
    return np.frombuffer(values, np.int32) if values else np.zeros(0, np.int32)


def _compressed(mask: CocoDict) -> str:
    """Run lengths as text: the same runs, whoever wrote them as a list."""
    counts = mask["counts"]
    if isinstance(counts, list):
        height, width = mask["size"]
        counts = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]
    return counts.decode() if isinstance(counts, bytes) else str(counts)
