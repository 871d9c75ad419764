"""COCO instances and keypoints annotations as training sees them: columns, of which an image and its objects become
plain frozen structures when they are asked for (cocodataset.org/#format-data).

Entries are read by `sections` and `annotations`, which say what becomes of which fault; scoring reads the
same entries by the same rules (`evaluation.annotations`). A fault that breaks the file (no JSON, a missing section, a
duplicate or unknown id) always raises. A fault of a single annotation (a box without extent, a polygon with two points)
raises too, or costs the smallest thing that is wrong and is counted in `CocoDataset.faults`, as the caller chooses.
Real COCO train2017 holds a few such annotations.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from maskrcnn_core.config.model import Category
from maskrcnn_core.data.coco.columns import AnnotationColumns
from maskrcnn_core.data.coco.conversion import Reader
from maskrcnn_core.data.coco.entry_faults import Faults
from maskrcnn_core.data.coco.json_columns import categories_of_json, columns_of_json
from maskrcnn_core.data.coco.object_batches import ObjectBatch
from maskrcnn_core.data.coco.sections import CocoDict, SizeOf
from maskrcnn_core.data.files import read_bytes
from maskrcnn_core.data.segmentation import Segmentation, rasterise
from maskrcnn_core.errors import AnnotationError

__all__ = ["CocoDataset", "CocoImage", "CocoObject", "load_categories", "load_coco", "rasterise"]


@dataclass(frozen=True)
class CocoObject:
    """One annotation.

    Attributes:
        annotation_id: COCO annotation id.
        category_id: COCO category id.
        box: x1, y1, x2, y2 in original pixels, clipped to the image.
        area: area of the object in original pixels, as annotated.
        crowd: a region of uncounted objects, to be ignored; where masks are learnt, also an object without a mask.
        segmentation: polygons in original pixels (flat x, y, ...), or a run-length encoding as in the file, or None;
            the mask itself where the image was changed.
        keypoints: x, y, visibility of each keypoint, flat, in original pixels, or None where none are annotated.
        bbox: x, y, width, height as annotated, for scoring; None = those of `box`.
        num_keypoints: as annotated, for scoring.
    """

    annotation_id: int
    category_id: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool
    segmentation: "Segmentation | None"
    keypoints: tuple[float, ...] | None
    bbox: tuple[float, float, float, float] | None = None
    num_keypoints: int = 0


@dataclass(frozen=True)
class CocoImage:
    """One image and its annotations in file order; width and height in pixels, as stored (no EXIF turn)."""

    image_id: int
    file_name: str
    width: int
    height: int
    objects: tuple[CocoObject, ...]


@dataclass(frozen=True)
class CocoDataset:
    """Annotated images, over the columns that hold them.

    Attributes:
        columns: what was read; shared by all processes of a machine where they lie in a folder.
        categories: in the order of their ids; the position is the label of a model trained on them.
        keypoint_names: of the categories that have keypoints, in their order; empty where none has, or nobody asked.
        keypoint_categories: names of these categories.
        faults: what was left out or mended.
        require_masks: an object without a mask is a region to ignore.
        new_ids: id of a category by its id in the columns, where it has another one.
        split_folders: folders that are taken off the beginning of file names (`named_by_url`).
    """

    columns: AnnotationColumns
    categories: tuple[Category, ...]
    keypoint_names: tuple[str, ...] = ()
    keypoint_categories: tuple[str, ...] = ()
    faults: Faults = field(default_factory=Faults)
    require_masks: bool = False
    new_ids: Mapping[int, int] = field(default_factory=dict)
    split_folders: frozenset[str] = frozenset()

    @property
    def images(self) -> "CocoImages":
        """In file order; each is made when it is asked for."""
        return CocoImages(self, range(len(self.columns)))

    @property
    def sizes(self) -> NDArray[np.int32]:
        """[images, 2]: height and width as stored, pixels."""
        return self.columns.sizes

    @property
    def named_by_url(self) -> bool:
        """Some file names are the last two parts of a `coco_url`, a split's folder and a file."""
        return self.columns.info.named_by_url

    @property
    def label_of(self) -> dict[int, int]:
        """COCO category id -> label 0 .. K-1."""
        return {category.id: label for label, category in enumerate(self.categories)}

    def objects(self) -> Iterator[tuple[NDArray[np.int64], ObjectBatch]]:
        """The numbers of all objects in file order, with the position of each one's image, for counting."""
        for images, batch in self.columns.objects_by_image():
            if self.require_masks:
                batch = batch._replace(crowds=batch.crowds | ~batch.have_mask)
            if self.new_ids:
                ids, places = np.unique(batch.category_ids, return_inverse=True)
                batch = batch._replace(category_ids=np.array([self.new_ids.get(i, i) for i in ids.tolist()])[places])
            yield images, batch

    def image(self, index: int) -> CocoImage:
        """The image at this position, with its objects."""
        columns = self.columns
        height, width = (int(side) for side in columns.sizes[index])
        name = columns.file_name(index)
        split, _, rest = name.partition("/")
        if split in self.split_folders and rest and "/" not in rest:
            name = rest
        objects = tuple(self._object(entry, height, width) for entry in columns.entries(index))
        return CocoImage(int(columns.image_ids[index]), name, width, height, objects)

    def _object(self, entry: CocoDict, height: int, width: int) -> CocoObject:
        x, y, across, down = entry["bbox"]
        box = (max(x, 0.0), max(y, 0.0), min(x + across, float(width)), min(y + down, float(height)))
        mask, points = entry.get("segmentation"), entry.get("keypoints") if self.keypoint_names else None
        category_id = entry["category_id"]
        return CocoObject(
            annotation_id=entry["id"],
            category_id=self.new_ids.get(category_id, category_id),
            box=box,
            area=entry["area"],
            crowd=bool(entry["iscrowd"]) or (self.require_masks and mask is None),
            segmentation=mask,
            keypoints=None if points is None else tuple(points),
            bbox=(x, y, across, down),
            num_keypoints=0 if points is None else entry["num_keypoints"],
        )

    def document(self) -> CocoDict:
        """The data set as scoring reads it: a COCO document of clean entries."""
        names = list(self.keypoint_names)
        images, annotations = [], []
        for image in self.images:
            images.append(
                {"id": image.image_id, "file_name": image.file_name, "width": image.width, "height": image.height}
            )
            annotations += image_entries(image)
        categories = [
            {"id": one.id, "name": one.name} | ({"keypoints": names} if one.name in self.keypoint_categories else {})
            for one in self.categories
        ]
        return {"images": images, "annotations": annotations, "categories": categories}


class CocoImages(Sequence[CocoImage]):
    """Some images of a data set, made one by one as they are asked for; none is kept.

    Args:
        dataset: that they are of.
        positions: theirs.
    """

    def __init__(self, dataset: CocoDataset, positions: range) -> None:
        self._dataset, self._positions = dataset, positions

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, index: int) -> CocoImage: ...
    @overload
    def __getitem__(self, index: slice) -> "CocoImages": ...
    def __getitem__(self, index: int | slice) -> "CocoImage | CocoImages":
        if isinstance(index, slice):
            return CocoImages(self._dataset, self._positions[index])
        return self._dataset.image(self._positions[index])


def image_entries(image: CocoImage) -> list[CocoDict]:
    """The annotations of an image as clean COCO entries."""
    return [_entry(image.image_id, item) for item in image.objects]


def _entry(image_id: int, item: CocoObject) -> CocoDict:
    x1, y1, x2, y2 = item.box
    entry: CocoDict = {
        "id": item.annotation_id,
        "image_id": image_id,
        "category_id": item.category_id,
        "bbox": list(item.bbox or (x1, y1, x2 - x1, y2 - y1)),
        "area": item.area,
        "iscrowd": int(item.crowd),
    }
    if item.segmentation is not None:
        entry["segmentation"] = item.segmentation
    if item.keypoints is not None:
        entry |= {"keypoints": list(item.keypoints), "num_keypoints": item.num_keypoints}
    return entry


def load_coco(
    path: str,
    *,
    require_masks: bool,
    masks: bool = True,
    keypoints: bool = True,
    on_fault: Literal["raise", "drop"] = "raise",
    size_of: SizeOf | None = None,
) -> CocoDataset:
    """Read and check an annotation file, into memory.

    Args:
        path: local path or URI (s3://...).
        require_masks: masks are learnt: an object without a usable one becomes a region to ignore.
        masks: faults of masks matter; where they do not, a mask that cannot be used is none, without a word.
        keypoints: keypoints matter; where they do not, they are not looked at.
        on_fault: what to do with an entry that is wrong in itself: raise, or leave out the smallest thing that is wrong
            and count it in `faults`.
        size_of: asked for the size of an image that the file does not say; without it such an image is left out.

    Raises:
        AnnotationError: with the file, the ids, the first faults and how to mend them.
        StorageError: the file is missing or unreadable.
    """
    try:
        columns = columns_of_json(read_bytes(path), Reader(sizes=size_of or True), source=path)
        dataset = dataset_of(columns, require_masks=require_masks, masks=masks, keypoints=keypoints)
    except AnnotationError as error:
        raise AnnotationError(f"{path}: {error}") from None
    if on_fault == "raise" and dataset.faults:
        raise AnnotationError(f"{path}: {'; '.join(dataset.faults.lines())}. To mend: correct or remove these entries.")
    return dataset


def load_categories(path: str) -> tuple[Category, ...]:
    """The categories of an annotation file, by id, whatever else it holds.

    Raises:
        AnnotationError: they are wrong.
        StorageError: the file is missing or unreadable.
    """
    try:
        return _categories(categories_of_json(read_bytes(path)))
    except AnnotationError as error:
        raise AnnotationError(f"{path}: {error}") from None


def _categories(entries: Sequence[CocoDict]) -> tuple[Category, ...]:
    ordered = sorted(entries, key=lambda category: int(category["id"]))
    return tuple(Category(one["id"], one.get("name", str(one["id"]))) for one in ordered)


def dataset_of(
    columns: AnnotationColumns, *, require_masks: bool, masks: bool = True, keypoints: bool = True
) -> CocoDataset:
    """A data set over columns, for a model that needs masks and keypoints, or does not. Arguments as `load_coco`.

    Raises:
        AnnotationError: keypoints matter, and the categories' lists of them cannot be used; without the file's name.
    """
    info = columns.info
    if keypoints and info.keypoint_fault:
        raise AnnotationError(info.keypoint_fault)
    categories = _categories(info.categories)
    faults = info.faults if masks or require_masks else info.faults.without("no mask", "mask")
    lists = [tuple(one["keypoints"]) for one in info.categories if "keypoints" in one]
    with_keypoints = {one["id"] for one in info.categories if "keypoints" in one}
    return CocoDataset(
        columns=columns,
        categories=categories,
        keypoint_names=lists[0] if keypoints and lists else (),
        keypoint_categories=tuple(one.name for one in categories if keypoints and one.id in with_keypoints),
        faults=faults if keypoints else faults.without("keypoints"),
        require_masks=require_masks,
    )
