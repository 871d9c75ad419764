"""What an exporter is given: labelled images one after another, and facts about all of them.

An exporter is a function from a `LabelSource` to the text of its files, piece by piece, so that it never holds more
than an image. It may go through the images more than once. Images that failed are no part of a source: in every format
an image without objects means that there is nothing in it.

The source may be a part of the images of a large run. The texts of all parts are put together, piece behind piece; so a
piece says what it is: what a file has `Once`, what is `Listed` in it, or plain text that is there for an image.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from pycocotools import mask as coco_mask

from maskrcnn_core.config.model import Category
from maskrcnn_core.config.person import COCO_KEYPOINTS
from maskrcnn_core.data.coco.category_names import distinct_names
from maskrcnn_core.data.segmentation import ObjectMask, object_mask, run_lengths
from maskrcnn_core.errors import StorageError
from maskrcnn_core.export.safe_names import safe_path, xml_text
from maskrcnn_core.records.detections import DetectionRecord

# Three bytes a pixel of its tight rectangle while a mask is drawn, and some ten tests of all runs.
_MOST_PIXELS = 1 << 27
_MOST_RUNS = 1 << 16


@dataclass(frozen=True)
class ExportImage:
    """One image.

    Attributes:
        image_id: as in the labels.
        uri: where it lies.
        name: `uri` relative to the folder that all images of the source are in, with slashes; any text.
        width, height: pixels.
    """

    image_id: int
    uri: str
    name: str
    width: int
    height: int

    @property
    def path(self) -> str:
        """`name` as a path that stays below the folder it is put in; another one only where `name` does not."""
        return safe_path(self.name, self.uri)


@dataclass(frozen=True)
class LabelledImage:
    """One image and the objects to export, best first."""

    image: ExportImage
    objects: tuple[DetectionRecord, ...]


@dataclass(frozen=True)
class Survey:
    """Facts about all images of a source.

    Attributes:
        images: number of images, failed ones left out.
        failed: number of images that failed.
        root: uri of the folder that all images are in; empty where they share none.
        categories: those that are exported, in the order of their ids.
        num_keypoints: by category id, of the categories that have some.
        model: fingerprint of weights and settings; empty where the rows have none or several.
    """

    images: int
    failed: int
    root: str
    categories: tuple[Category, ...]
    num_keypoints: Mapping[int, int]
    model: str = ""

    @property
    def shown_names(self) -> dict[int, str]:
        """Of the categories by id, for formats that know them by name: no two alike, and text that XML can hold."""
        return distinct_names((category.id, xml_text(category.name)) for category in self.categories)


class LabelSource(Protocol):
    """Labelled images, read as often as asked for."""

    @property
    def survey(self) -> Survey:
        """Facts about all images, also where the source is a part of them."""
        ...

    @property
    def first_image(self) -> int:
        """Images that come before those of this part."""
        ...

    def images(self) -> Iterator[ExportImage]:
        """The images alone; cheaper than `labelled`, in the same order."""
        ...

    def labelled(self) -> Iterator[LabelledImage]:
        """The images and their objects."""
        ...


@dataclass(frozen=True)
class ExportStyle:
    """How objects are written where a format leaves the choice.

    Attributes:
        polygons: outlines of masks instead of their pixels.
        tolerance: how far a polygon may be off the mask's outline, pixels.
        min_keypoint_score: a keypoint of lower probability is written as not labelled.
        image_prefix: takes the place of the images' folder in their addresses; None leaves the addresses alone.
    """

    polygons: bool = False
    tolerance: float = 0.5
    min_keypoint_score: float = 0.05
    image_prefix: str | None = None


@dataclass(frozen=True)
class Once:
    """Text that a file has once: the same in every part of a source."""

    text: str


@dataclass(frozen=True)
class Listed:
    """An entry of a JSON list or object, in one line; a `Once` is before and behind the list.

    Attributes:
        text: of the entry.
        numbered: the entry is an object that gets an `id`, counted from 1.
    """

    text: str
    numbered: bool = False


@dataclass(frozen=True)
class ExportFile:
    """One file of an export.

    Attributes:
        name: within the export's folder; of a single file, what is added to its name (often nothing).
        pieces: its text.
        of_image: the file belongs to one image: no other part of the source has text for it.
    """

    name: str
    pieces: "Iterator[str | Once | Listed]"
    of_image: bool = False


class JoinedList:
    """Puts the separators between the entries of a list, and numbers them."""

    def __init__(self) -> None:
        self._entries = 0

    def separated(self) -> str:
        """What stands before the next entry."""
        self._entries += 1
        return "\n" if self._entries == 1 else ",\n"

    def numbered(self, entry: str) -> str:
        """The next entry, with its number, behind its separator."""
        return f'{self.separated()}{{"id":{self._entries},{entry[1:]}'


def file_text(pieces: "Iterator[str | Once | Listed]") -> Iterator[str]:
    """The text of a file whose pieces are of all images."""
    entries = JoinedList()
    for piece in pieces:
        if isinstance(piece, Once):
            entries = JoinedList()
            yield piece.text
        elif isinstance(piece, Listed):
            yield entries.numbered(piece.text) if piece.numbered else entries.separated() + piece.text
        else:
            yield piece


def mask_of(detection: DetectionRecord, image: ExportImage) -> ObjectMask | None:
    """The object's pixels inside their tight rectangle; None where it has no mask or the mask no pixel.

    Raises:
        StorageError: malformed run lengths.
    """
    if detection.rle_counts is None:
        return None
    with _naming(detection, image):
        mask = object_mask(_segmentation(detection, image), image.height, image.width)
    return mask if mask.pixels.any() else None


def is_empty(detection: DetectionRecord, image: ExportImage) -> bool:
    """Whether there is nothing to draw: a mask without a pixel, or a box without extent."""
    if detection.bbox[2] <= 0 or detection.bbox[3] <= 0:
        return True
    return detection.rle_counts is not None and mask_area(detection, image) == 0


def is_too_large(detection: DetectionRecord, image: ExportImage) -> bool:
    """Whether drawing the object's mask would take more memory or time than one object may."""
    if detection.rle_counts is None:
        return False
    if image.height * image.width > _MOST_PIXELS:
        _, _, width, height = coco_mask.toBbox(_segmentation(detection, image)).tolist()
        if width * height > _MOST_PIXELS:
            return True
    if len(detection.rle_counts) <= _MOST_RUNS:  # a run has a character or more
        return False
    with _naming(detection, image):
        return len(run_lengths(_segmentation(detection, image), image.height, image.width)) > _MOST_RUNS


def mask_area(detection: DetectionRecord, image: ExportImage) -> int:
    """Pixels of the object's mask, counted without drawing it. Errors as `mask_of`."""
    with _naming(detection, image):
        return int(run_lengths(_segmentation(detection, image), image.height, image.width)[1::2].sum())


@contextmanager
def _naming(detection: DetectionRecord, image: ExportImage) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise StorageError(
            f"labels: image {image.image_id}, a {detection.category}: {error}; python -m jobs.verify lists such rows"
        ) from None


def _segmentation(detection: DetectionRecord, image: ExportImage) -> dict[str, Any]:
    return {"size": [image.height, image.width], "counts": detection.rle_counts}


def keypoint_names(count: int) -> tuple[str, ...]:
    """COCO's for 17; the labels name none, so that others are numbered."""
    return (
        COCO_KEYPOINTS
        if count == len(COCO_KEYPOINTS)
        else tuple(f"keypoint_{number}" for number in range(1, count + 1))
    )


def labelled_keypoints(keypoints: tuple[float, ...], min_score: float) -> list[float]:
    """Keypoints as annotations have them: v = 2 for one that counts as labelled, and x = y = v = 0 for others.

    Args:
        keypoints: x, y, probability of each, flat.
        min_score: probability from which on one counts as labelled.
    """
    triples = np.array(keypoints, dtype=np.float64).reshape(-1, 3)
    is_labelled = triples[:, 2:] >= min_score
    flat: list[float] = (
        np.where(is_labelled, np.hstack([triples[:, :2], np.full_like(is_labelled, 2.0, np.float64)]), 0)
        .ravel()
        .tolist()
    )
    return flat
