"""Objects in a record batch, as arrays over its memory and as clean entries."""

from array import array
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from maskrcnn_core.data.coco.sections import CocoDict


class ObjectBatch(NamedTuple):
    """Neighbouring objects in file order, as numbers.

    Attributes:
        image_ids, category_ids: [objects].
        areas: [objects], original pixels.
        crowds: [objects] bool.
        have_mask: [objects] bool.
        boxes: [objects, 4] x, y, width, height in original pixels, as annotated.
    """

    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int32]
    areas: NDArray[np.float64]
    crowds: NDArray[np.bool_]
    have_mask: NDArray[np.bool_]
    boxes: NDArray[np.float64]


class MappedBatch:
    """Arrays over the memory of a record batch."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._batch = batch

    def __len__(self) -> int:
        return int(self._batch.num_rows)

    def __getattr__(self, name: str) -> Any:
        """The arrays, made when the first object is looked at."""
        if name.startswith("__"):
            raise AttributeError(name)
        self._look()
        return self.__dict__[name]

    def _look(self) -> None:
        batch = self._batch
        for name in ("id", "image_id", "category_id", "area", "iscrowd", "num_keypoints"):
            self.__dict__[name] = batch.column(name).to_numpy()
        self.__dict__["bbox"] = batch.column("bbox").flatten().to_numpy().reshape(-1, 4)
        outer = batch.column("polygons")
        inner = outer.values
        self.__dict__["parts"] = outer.offsets.to_numpy()
        self.__dict__["ends"] = inner.offsets.to_numpy()
        self.__dict__["coordinates"] = inner.values.to_numpy()
        points = batch.column("keypoints")
        self.__dict__["point_ends"] = points.offsets.to_numpy()
        self.__dict__["points"] = points.values.to_numpy()
        self.__dict__["counts"], self.__dict__["unread"] = batch.column("counts"), batch.column("unread")

    def rows(self, rows: NDArray[np.int64]) -> pa.RecordBatch:
        """These of the batch, in this order."""
        return self._batch.take(pa.array(rows))

    def entry(self, row: int, size: list[int]) -> CocoDict:
        """A clean annotation, of an image of this height and width."""
        entry: CocoDict = {
            "id": int(self.id[row]),
            "image_id": int(self.image_id[row]),
            "category_id": int(self.category_id[row]),
            "bbox": self.bbox[row].tolist(),
            "area": float(self.area[row]),
            "iscrowd": int(self.iscrowd[row]),
        }
        first, last = int(self.parts[row]), int(self.parts[row + 1])
        if last > first:
            ends = self.ends[first : last + 1].tolist()
            entry["segmentation"] = [array("d", self.coordinates[begin:end].tobytes()) for begin, end in pairwise(ends)]
        elif counts := self.counts[row].as_py():
            entry["segmentation"] = {"size": size, "counts": counts}
        begin, end = int(self.point_ends[row]), int(self.point_ends[row + 1])
        if end > begin:
            entry |= {"keypoints": self.points[begin:end].tolist(), "num_keypoints": int(self.num_keypoints[row])}
        if unread := self.unread[row].as_py():
            entry["unread"] = unread
        return entry

    def as_numbers(self) -> ObjectBatch:
        """What can be counted."""
        texts = np.frombuffer(self.counts.buffers()[1] or b"\0" * 4, np.int32)[: len(self) + 1]
        offset = self.counts.offset
        assert offset == 0, "a batch of its own begins with its memory"
        return ObjectBatch(
            self.image_id,
            self.category_id,
            self.area,
            self.iscrowd != 0,
            (np.diff(self.parts) > 0) | (np.diff(texts) > 0),
            self.bbox,
        )
