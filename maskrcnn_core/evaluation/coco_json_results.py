"""Results of any other system: COCO's results format, read as pycocotools' `loadRes` reads it.

pycocotools looks at the first result to know what all of them are. Where that has a box, the object is filed under
small, medium or large by the area of its box, for masks and keypoints too; without one, by the area of the mask or of
the rectangle around the keypoints, and the box is that of the mask. So the same detections with and without boxes have
other numbers by size, in pycocotools and here.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pycocotools import mask as coco_mask

from maskrcnn_core.errors import AnnotationError
from maskrcnn_core.evaluation.annotations import CocoDict
from maskrcnn_core.evaluation.facts import FoundFacts
from maskrcnn_core.evaluation.scoring_states import IouType


@dataclass(frozen=True)
class ResultsLayout:
    """What the first result has, and therefore all have."""

    boxes: bool
    masks: bool
    keypoints: bool


def results_layout(first: CocoDict) -> ResultsLayout:
    """Layout of the results of which this is the first.

    Raises:
        AnnotationError: it has neither box nor mask nor keypoints.
    """
    check_result(first)
    layout = ResultsLayout(*(bool(first.get(key)) for key in ("bbox", "segmentation", "keypoints")))
    if not (layout.boxes or layout.masks or layout.keypoints):
        raise AnnotationError("the first result has no bbox, segmentation or keypoints; expected COCO's results format")
    return layout


def check_result(entry: Any) -> None:
    """A result has what every kind of result has.

    Raises:
        AnnotationError: it has not.
    """
    if not isinstance(entry, dict):
        raise AnnotationError(f"a result is {entry!r:.60}; expected COCO's results format")
    for key, kinds in (("image_id", (int,)), ("category_id", (int,)), ("score", (int, float))):
        if not isinstance(entry.get(key), kinds):
            raise AnnotationError(
                f"a result of image {entry.get('image_id')!r:.30} has {key} {entry.get(key)!r:.30}, expected a "
                f"{'whole number' if kinds == (int,) else 'number'}"
            )


@dataclass(frozen=True)
class FoundInResults:
    """Results on the images of a shard; see `shards.Found`.

    Attributes:
        entries: checked, in the order of the file.
        layout: of the whole file.
        sizes: (height, width) of the images by id, where known; needed for masks that are no compressed run lengths.
    """

    entries: Sequence[CocoDict]
    layout: ResultsLayout
    sizes: dict[int, tuple[int, int]]

    def facts(self, category_ids: Collection[int], with_keypoints: Collection[int]) -> FoundFacts:
        """See `shards.Found`."""
        known = frozenset(category_ids)
        strange = [entry for entry in self.entries if entry["category_id"] not in known]
        pointed = frozenset(with_keypoints)
        numbers = Counter(
            len(entry.get("keypoints") or ()) // 3 for entry in self.entries if entry["category_id"] in pointed
        )
        return FoundFacts(
            detections=len(self.entries),
            unknown=Counter(str(entry["category_id"]) for entry in strange),
            first=min(((e["image_id"], e["category_id"], str(e["category_id"])) for e in strange), default=None),
            without_box=self._lacking("bbox" if self.layout.boxes else "segmentation"),
            without_mask=self._lacking("segmentation"),
            keypoint_numbers=numbers,
            any_keypoints=any(entry.get("keypoints") for entry in self.entries),
        )

    def results(self, iou_type: IouType) -> list[CocoDict]:
        """See `shards.Found`."""
        keys = ["bbox"] if self.layout.boxes else []
        if iou_type == "keypoints":
            keys.append("keypoints")
        elif iou_type == "segm" or not self.layout.boxes:
            keys.append("segmentation")
        return [
            {name: entry[name] for name in ("image_id", "category_id", "score")}
            | {key: self._mask(entry) if key == "segmentation" else entry[key] for key in keys}
            for entry in self.entries
            if iou_type != "keypoints" or entry.get("keypoints")
        ]

    def _lacking(self, key: str) -> int:
        return sum(not entry.get(key) for entry in self.entries)

    def _mask(self, entry: CocoDict) -> CocoDict:
        """Compressed run lengths; pycocotools takes polygons and uncompressed ones only beside a box."""
        found = entry["segmentation"]
        if isinstance(found, dict) and not isinstance(found.get("counts"), list):
            return found
        if entry["image_id"] not in self.sizes:
            raise AnnotationError(f"image {entry['image_id']}: a result's mask is a polygon, and the size is not known")
        runs = coco_mask.frPyObjects(found, *self.sizes[entry["image_id"]])
        merged: CocoDict = coco_mask.merge(runs) if isinstance(runs, list) else runs
        return merged
