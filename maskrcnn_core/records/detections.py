"""The objects of an image: as columns, which is how a detector gives them and a label file keeps them, or one by one.

Columns are what is kept and passed on: a Python object for each detection costs more than everything else that a row
takes. Whoever wants the objects one by one gets them made.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Self, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

DETECTION_TYPE = pa.struct(
    [
        pa.field("category_id", pa.int32(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("bbox", pa.list_(pa.float32()), nullable=False),
        pa.field("segmentation", pa.struct([pa.field("size", pa.list_(pa.int32())), pa.field("counts", pa.string())])),
        pa.field("keypoints", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True)
class DetectionRecord:
    """One detected object in original-image pixels.

    Attributes:
        category_id: COCO category id.
        category: category name.
        score: 0 to 1.
        bbox: x, y, width, height.
        rle_counts: COCO compressed run lengths over the whole image, or None without a mask head.
        keypoints: x, y, v for each keypoint, flat, or None without a keypoint head and for categories that have none.
            x, y count pixels from the middle of the first, as COCO's do. v is the probability that the head gives to
            the place, above 0 (detectron2 and MMPose write their scores there too; COCO's scoring ignores it).
    """

    category_id: int
    category: str
    score: float
    bbox: tuple[float, float, float, float]
    rle_counts: str | None = None
    keypoints: tuple[float, ...] | None = None


@dataclass(frozen=True, eq=False)
class DetectionColumns(Sequence[DetectionRecord]):
    """D objects as columns; as a sequence, the same objects, made whenever they are asked for. None is kept.

    Attributes:
        category_ids: [D] int64.
        categories: D names.
        scores: [D] float32.
        boxes: [D, 4] float32: x, y, width, height.
        rle_counts: D run lengths or None.
        keypoints: [V] float32: x, y, v of all keypoints, object after object.
        num_values: [D] int64, how many of these an object has; -1 = its keypoints are None.
    """

    category_ids: NDArray[np.int64]
    categories: Sequence[str]
    scores: NDArray[np.float32]
    boxes: NDArray[np.float32]
    rle_counts: Sequence[str | None]
    keypoints: NDArray[np.float32]
    num_values: NDArray[np.int64]

    @classmethod
    def of(cls, detections: Sequence[DetectionRecord]) -> Self:
        """The columns of objects that are given one by one; columns as they are."""
        if isinstance(detections, cls):
            return detections
        points = [one.keypoints for one in detections]
        return cls(
            category_ids=np.array([one.category_id for one in detections], np.int64),
            categories=[one.category for one in detections],
            scores=np.array([one.score for one in detections], np.float32),
            boxes=np.array([one.bbox for one in detections], np.float32).reshape(-1, 4),
            rle_counts=[one.rle_counts for one in detections],
            keypoints=np.array([value for values in points for value in values or ()], np.float32),
            num_values=np.array([-1 if values is None else len(values) for values in points], np.int64),
        )

    def split(self, counts: Iterable[int]) -> Iterator[Self]:
        """One after the other the columns of so many objects each; `counts` sum up to D."""
        ends = [0, *accumulate(counts)]
        value_ends = np.concatenate(([0], np.cumsum(np.maximum(self.num_values, 0))))[ends].tolist()
        for (start, stop), (first, last) in zip(pairwise(ends), pairwise(value_ends), strict=True):
            yield type(self)(
                self.category_ids[start:stop],
                self.categories[start:stop],
                self.scores[start:stop],
                self.boxes[start:stop],
                self.rle_counts[start:stop],
                self.keypoints[first:last],
                self.num_values[start:stop],
            )

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[DetectionRecord]:
        boxes = ((x, y, width, height) for x, y, width, height in self.boxes.tolist())
        columns = (self.category_ids.tolist(), self.categories, self.scores.tolist(), boxes, self.rle_counts)
        return map(DetectionRecord, *columns, self._keypoint_tuples())

    def _keypoint_tuples(self) -> Iterator[tuple[float, ...] | None]:
        values = iter(self.keypoints.tolist())
        for count in self.num_values.tolist():
            yield None if count < 0 else tuple(next(values) for _ in range(count))

    @overload
    def __getitem__(self, index: int) -> DetectionRecord: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[DetectionRecord, ...]: ...
    def __getitem__(self, index: int | slice) -> DetectionRecord | tuple[DetectionRecord, ...]:
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        """Columns and tuples are equal that hold equal objects."""
        if not isinstance(other, DetectionColumns | tuple):
            return NotImplemented
        return tuple(self) == tuple(other)


def detections_array(
    images: Sequence[Sequence[DetectionRecord]], sizes: Sequence[tuple[int | None, int | None]]
) -> pa.ListArray:
    """The objects of N images as the label column, a list of `DETECTION_TYPE` for each image.

    Args:
        images: their objects, best taken as `DetectionColumns`.
        sizes: their (height, width), which every mask repeats.
    """
    columns = [DetectionColumns.of(detections) for detections in images]
    counts = np.array([len(one) for one in columns], np.int64)
    boxes = np.concatenate([np.empty((0, 4), np.float32), *(one.boxes for one in columns)])
    num_values = np.concatenate([np.empty(0, np.int64), *(one.num_values for one in columns)])
    values = np.concatenate([np.empty(0, np.float32), *(one.keypoints for one in columns)])
    fields = {
        "category_id": np.concatenate([np.empty(0, np.int64), *(one.category_ids for one in columns)]),
        "category": list(chain.from_iterable(one.categories for one in columns)),
        "score": np.concatenate([np.empty(0, np.float32), *(one.scores for one in columns)]),
        "bbox": _lists(pa.array(boxes.reshape(-1)), np.full(len(boxes), 4)),
        "segmentation": _segmentations(columns, np.repeat(np.arange(len(columns)), counts), sizes),
        "keypoints": _lists(pa.array(values), num_values),
    }
    arrays = [
        given if isinstance(given, pa.Array) else pa.array(given, DETECTION_TYPE.field(name).type)
        for name, given in fields.items()
    ]
    return _lists(pa.StructArray.from_arrays(arrays, fields=[*DETECTION_TYPE]), counts)


def _segmentations(
    columns: Sequence[DetectionColumns],
    image_of: NDArray[np.int64],
    sizes: Sequence[tuple[int | None, int | None]],
) -> pa.StructArray:
    """Masks of all objects, null for those without one; `image_of` says where each object lies."""
    counts = pa.array(list(chain.from_iterable(one.rle_counts for one in columns)), pa.string())
    absent = counts.is_null().to_numpy(zero_copy_only=False)
    sides = pa.array(list(chain.from_iterable(sizes)), pa.int32())
    places = 2 * image_of[~absent, None] + np.arange(2)  # of height and width among the sides
    size = _lists(sides.take(pa.array(places.reshape(-1))), np.where(absent, -1, 2))
    segmentation = DETECTION_TYPE.field("segmentation").type
    return pa.StructArray.from_arrays([size, counts], fields=[*segmentation], mask=pa.array(absent))


def _lists(values: pa.Array, lengths: NDArray[np.int64]) -> pa.ListArray:
    """The values cut into lists of these lengths; a length of -1 is a null."""
    offsets = np.concatenate(([0], np.cumsum(np.maximum(lengths, 0)))).astype(np.int32)
    absent = lengths < 0
    # Without nulls there is no mask to write, nor to read.
    mask = pa.array(absent) if absent.any() else None
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=mask)
