"""What a scoring counts besides matches, so that it can say what was scored, what was not, and why; parts add up."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field

import numpy as np
import numpy.typing as npt

from maskrcnn_core.errors import AnnotationError
from maskrcnn_core.evaluation.annotations import CocoDict

_MUCH = 0.1


@dataclass(frozen=True)
class ObjectFacts:
    """Annotated objects of some images.

    Attributes:
        per_category: objects by category id, crowd regions not counted.
        bare: annotations without a mask, which are regions to ignore as long as others have one.
        first_bare: the id of one of them.
        masked: annotations with a mask.
        sizeless: images without width and height.
        first_sizeless: the id of one of them.
    """

    per_category: Mapping[int, int] = field(default_factory=dict)
    bare: int = 0
    first_bare: int | None = None
    sizeless: int = 0
    first_sizeless: int | None = None
    masked: int = 0

    def __add__(self, other: "ObjectFacts") -> "ObjectFacts":
        return ObjectFacts(
            Counter(self.per_category) + Counter(other.per_category),
            self.bare + other.bare,
            _first(self.first_bare, other.first_bare),
            self.sizeless + other.sizeless,
            _first(self.first_sizeless, other.first_sizeless),
            self.masked + other.masked,
        )


@dataclass(frozen=True)
class BoxFacts:
    """How boxes x, y, width, height lie in their images.

    Attributes:
        boxes: of images whose size is known.
        beyond: of these, those that reach out by more than a pixel.
        corners: of these, those that lie inside if they are x1, y1, x2, y2.
        shares: of these, those that lie within the first pixel.
        negative: of all, those with a negative width or height.
    """

    boxes: int = 0
    beyond: int = 0
    corners: int = 0
    shares: int = 0
    negative: int = 0

    def __add__(self, other: "BoxFacts") -> "BoxFacts":
        return BoxFacts(*(own + others for own, others in zip(astuple(self), astuple(other), strict=True)))


def box_facts(
    boxes: npt.NDArray[np.float64], heights: npt.NDArray[np.float64], widths: npt.NDArray[np.float64]
) -> BoxFacts:
    """Count boxes.

    Args:
        boxes: [D, 4].
        heights, widths: [D] of their images, pixels; 0 where unknown.
    """
    x, y, w, h = boxes.T
    known = (heights > 0) & (widths > 0)
    beyond = (x < -1) | (y < -1) | (x + w > widths + 1) | (y + h > heights + 1)
    corners = (w > x) & (h > y) & (w <= widths + 1) & (h <= heights + 1) & (x >= -1) & (y >= -1)
    shares = (np.abs(boxes) <= 1).all(axis=1) & (heights > 2) & (widths > 2)
    counts = (known, known & beyond, known & corners, known & shares, (w < 0) | (h < 0))
    return BoxFacts(*(int(flags.sum()) for flags in counts))


def box_notes(facts: BoxFacts) -> list[str]:
    """What looks wrong about boxes, in words."""
    notes = []
    if facts.negative:
        notes.append(f"boxes of a negative width or height: {facts.negative}; they find nothing")
    turned = facts.corners == facts.boxes
    if facts.beyond and (turned or facts.beyond >= _MUCH * facts.boxes):  # some detectors do not cut at the edge
        notes.append(
            f"{facts.beyond} of {facts.boxes} boxes reach out of their image by more than a pixel"
            + ("; all would lie inside as x1, y1, x2, y2, and COCO's are x, y, width, height" if turned else "")
        )
    if facts.boxes and facts.shares == facts.boxes:
        notes.append("all boxes lie within one pixel; COCO's are in pixels, not in shares of the image")
    return notes


@dataclass(frozen=True)
class FoundFacts:
    """Detections on some images.

    Attributes:
        detections: all of them.
        unknown: by category name, those whose category the annotation file does not have.
        first: image id, category id and category name of one of these.
        without_box, without_mask: detections that lack one.
        keypoint_numbers: number of keypoints -> detections, of the categories with keypoints; 0 where they have none.
        any_keypoints: a detection of whatever category has some.
        categories: ids of all detections.
        boxes_as_masks: detections without a mask of their own, whose box is taken for it.
        boxes: how their boxes lie.
    """

    detections: int = 0
    unknown: Mapping[str, int] = field(default_factory=dict)
    first: tuple[int, int, str] | None = None
    without_box: int = 0
    without_mask: int = 0
    keypoint_numbers: Mapping[int, int] = field(default_factory=dict)
    any_keypoints: bool = False
    categories: frozenset[int] = frozenset()
    boxes_as_masks: int = 0
    boxes: BoxFacts = BoxFacts()

    def __add__(self, other: "FoundFacts") -> "FoundFacts":
        return FoundFacts(
            self.detections + other.detections,
            Counter(self.unknown) + Counter(other.unknown),
            min(filter(None, (self.first, other.first)), default=None),
            self.without_box + other.without_box,
            self.without_mask + other.without_mask,
            Counter(self.keypoint_numbers) + Counter(other.keypoint_numbers),
            self.any_keypoints or other.any_keypoints,
            self.categories | other.categories,
            self.boxes_as_masks + other.boxes_as_masks,
            self.boxes + other.boxes,
        )


def object_facts(images: Sequence[CocoDict], annotations: Iterable[CocoDict]) -> ObjectFacts:
    """Count the objects of some images."""
    counts: Counter[int] = Counter()
    bare: list[int] = []
    masked = 0
    for annotation in annotations:
        counts[annotation["category_id"]] += not annotation.get("iscrowd", 0)
        if annotation.get("segmentation"):
            masked += 1
        else:
            bare.append(annotation["id"])
    sizeless = [image["id"] for image in images if not (image.get("width") and image.get("height"))]
    return ObjectFacts(+counts, len(bare), min(bare, default=None), len(sizeless), min(sizeless, default=None), masked)


def notes_of(facts: FoundFacts, category_ids: Collection[int]) -> tuple[str, ...]:
    """What looks wrong about detections that can be scored, or was made of them, in words."""
    notes = [] if facts.detections else ["there are no detections"]
    notes += box_notes(facts.boxes)
    if facts.boxes_as_masks:
        notes.append(f"detections without a mask: {facts.boxes_as_masks}; as in pycocotools their box counts as one")
    if 0 in facts.categories and 0 not in category_ids and {one + 1 for one in facts.categories} <= {*category_ids}:
        notes.append(
            "the detections' category ids are one lower than the annotations'; if they count from 0, add 1 to each"
        )
    return tuple(notes)


def reason_without_masks(objects: ObjectFacts, detected: FoundFacts) -> str | None:
    """Why masks cannot be scored; None if they can."""
    if objects.sizeless:
        return f"{objects.sizeless} images have no width and height (the first is image {objects.first_sizeless})"
    if objects.bare and not objects.masked:
        return f"{objects.bare} annotations have no segmentation (the first is annotation {objects.first_bare})"
    return f"{detected.without_mask} detections have no mask" if detected.without_mask else None


def require_known_categories(facts: FoundFacts, category_ids: Collection[int]) -> None:
    """A model may know more classes than the annotations; if it shares none with them, the two do not belong together.

    Raises:
        AnnotationError: there are detections, and not one is of a known category.
    """
    if facts.first and sum(facts.unknown.values()) == facts.detections:
        image_id, category_id, name = facts.first
        some = ", ".join(map(str, sorted(category_ids)[:10])) + (", ..." if len(category_ids) > 10 else "")
        raise AnnotationError(
            f"image {image_id}: a detection has category_id {category_id} ({name!r}), and no detection has one of "
            f"the annotation file's ({some}). Score labels against annotations with the model's categories"
        )


def _first(one: int | None, other: int | None) -> int | None:
    return min((value for value in (one, other) if value is not None), default=None)
