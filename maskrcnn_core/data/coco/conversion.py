"""Some entries of section `annotations` -> columns, wherever they come from and wherever it is done."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from maskrcnn_core.data.coco.annotations import Asked, read_annotations
from maskrcnn_core.data.coco.column_rows import object_batch
from maskrcnn_core.data.coco.entry_faults import FaultList, Faults
from maskrcnn_core.data.coco.sections import CocoDict, CocoSections, SizeOf
from maskrcnn_core.data.coco.values import whole


@dataclass(frozen=True)
class Reader:
    """What a reader needs of the images of a file.

    Attributes:
        names: images need a file name; kept = those that have one keep it.
        sizes: images need a size; a function is asked for what the file does not say.
    """

    names: Literal[True, "kept"] = True
    sizes: bool | SizeOf = True


SCORING = Reader(names="kept", sizes=False)
"""Scoring knows images by their ids, and takes sizes that are missing from the labels."""


class AskedSizes:
    """A reader's `sizes`, which remembers whether a picture was looked at.

    Attributes:
        given: what `CocoSections` takes for it.
        looked: a picture was asked for its size.
    """

    def __init__(self, sizes: bool | SizeOf) -> None:
        self.looked = False
        self.given: bool | SizeOf = sizes
        if callable(sizes):
            self.given, self._size_of = self._look, sizes

    def _look(self, name: str, named_by_url: bool) -> tuple[int, int] | None:
        self.looked = True
        return self._size_of(name, named_by_url)


@dataclass(frozen=True)
class ImageSizes:
    """Ids and sizes of all images of a file, small enough to be sent to tasks.

    Attributes:
        ids: [images], ascending.
        sizes: [images, 2]: height and width, 0 where they are not known.
        left_out: ids of images that are not used.
    """

    ids: NDArray[np.int64]
    sizes: NDArray[np.int32]
    left_out: frozenset[int]

    @classmethod
    def of(cls, sections: CocoSections) -> ImageSizes:
        """Of all images that have come."""
        images = sections.images
        ids = np.fromiter(images, np.int64, len(images))
        sides = ((image.get("height", 0), image.get("width", 0)) for image in images.values())
        sizes = np.fromiter((side for pair in sides for side in pair), np.int32, 2 * len(images)).reshape(-1, 2)
        order = np.argsort(ids, kind="stable")
        return cls(ids[order], sizes[order], frozenset(sections.left_out))

    def among(self, image_ids: Iterable[int]) -> dict[int, CocoDict]:
        """Clean entries, as far as annotations need them."""
        wanted = np.unique(np.fromiter(image_ids, np.int64))
        places = np.searchsorted(self.ids, wanted)
        places[places == len(self.ids)] = 0
        places = places[self.ids[places] == wanted] if len(self.ids) else places[:0]
        entries: dict[int, CocoDict] = {}
        for image_id, (height, width) in zip(self.ids[places].tolist(), self.sizes[places].tolist(), strict=True):
            entries[image_id] = {"id": image_id} | ({"width": width, "height": height} if width else {})
        return entries


@dataclass(frozen=True)
class Converted:
    """What became of a piece of section `annotations`.

    Attributes:
        objects: the clean ones.
        ids: of all entries, to be compared with those of other pieces.
        faults: of single entries.
    """

    objects: pa.RecordBatch
    ids: CocoSections
    faults: Faults


def convert_entries(entries: Iterable[Any], images: ImageSizes, keypoints: Mapping[int, int]) -> Converted:
    """Columns of some entries of section `annotations`.

    Args:
        images: of the file.
        keypoints: their number by category id.
    """
    ids, faults = CocoSections(names="kept", sizes=False, keypoints=False), FaultList()
    usable, image_ids = [], array("q")
    for entry in entries:
        known = ids.add_annotation(entry)
        if known is not None:
            usable.append(entry)
            image_ids.append(known[1])
    entry_of = images.among(image_ids)
    unsized = {image_id for image_id, image in entry_of.items() if "width" not in image}
    if not unsized:
        clean = list(read_annotations(usable, entry_of, Asked(True, keypoints), faults, images.left_out))
    else:
        clean = []
        for entry, image_id in zip(usable, image_ids, strict=True):
            if image_id in unsized:
                clean.append(_unread(entry))
            else:
                clean += read_annotations([entry], entry_of, Asked(True, keypoints), faults, images.left_out)
    return Converted(object_batch(clean), ids, faults.faults())


def _unread(entry: CocoDict) -> CocoDict:
    """An entry that waits for the size of its image."""
    identity = {name: whole(entry[name]) for name in ("id", "image_id", "category_id")}
    return {**identity, "bbox": [0.0] * 4, "area": 0.0, "iscrowd": 0, "unread": json.dumps(entry)}
