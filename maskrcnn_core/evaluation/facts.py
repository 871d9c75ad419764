"""What a scoring counts besides matches, so that it can say what was scored, what was not, and why; parts add up."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from maskrcnn_core.errors import AnnotationError
from maskrcnn_core.evaluation.annotations import CocoDict


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
class FoundFacts:
    """Detections on some images.

    Attributes:
        detections: all of them.
        unknown: by category name, those whose category the annotation file does not have.
        first: image id, category id and category name of one of these.
        without_box, without_mask: detections that lack one.
        keypoint_numbers: number of keypoints -> detections, of the categories with keypoints; 0 where they have none.
        any_keypoints: a detection of whatever category has some.
    """

    detections: int = 0
    unknown: Mapping[str, int] = field(default_factory=dict)
    first: tuple[int, int, str] | None = None
    without_box: int = 0
    without_mask: int = 0
    keypoint_numbers: Mapping[int, int] = field(default_factory=dict)
    any_keypoints: bool = False

    def __add__(self, other: "FoundFacts") -> "FoundFacts":
        return FoundFacts(
            self.detections + other.detections,
            Counter(self.unknown) + Counter(other.unknown),
            min(filter(None, (self.first, other.first)), default=None),
            self.without_box + other.without_box,
            self.without_mask + other.without_mask,
            Counter(self.keypoint_numbers) + Counter(other.keypoint_numbers),
            self.any_keypoints or other.any_keypoints,
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


def reason_without_masks(objects: ObjectFacts, found: FoundFacts) -> str | None:
    """Why masks cannot be scored; None if they can."""
    if objects.sizeless:
        return f"{objects.sizeless} images have no width and height (the first is image {objects.first_sizeless})"
    if objects.bare and not objects.masked:
        return f"{objects.bare} annotations have no segmentation (the first is annotation {objects.first_bare})"
    return f"{found.without_mask} detections have no mask" if found.without_mask else None


def require_known_categories(found: FoundFacts, category_ids: Collection[int]) -> None:
    """A model may know more classes than the annotations; if it shares none with them, the two do not belong together.

    Raises:
        AnnotationError: there are detections, and not one is of a known category.
    """
    if found.first and sum(found.unknown.values()) == found.detections:
        image_id, category_id, name = found.first
        some = ", ".join(map(str, sorted(category_ids)[:10])) + (", ..." if len(category_ids) > 10 else "")
        raise AnnotationError(
            f"image {image_id}: a detection has category_id {category_id} ({name!r}), and no detection has one of "
            f"the annotation file's ({some}). Score labels against annotations with the model's categories"
        )


def _first(one: int | None, other: int | None) -> int | None:
    return min((value for value in (one, other) if value is not None), default=None)
