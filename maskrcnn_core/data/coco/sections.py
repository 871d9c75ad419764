"""Images, categories and the ids of a COCO file, checked entry by entry, whether all are at hand or come as a stream.

What is wrong with them is of two kinds. A fault of the file ends the reading with one line: it names the first entries
and how to mend them. A fault of one image leaves this image out, where the reader needs what is missing.

| in the file | outcome |
|---|---|
| id of an image, category or annotation missing, there twice, no whole number of 64 bits (category: 32) | refused |
| id with a point (1.0) | that whole number |
| annotation of an unknown image | left out, counted; refused where no annotation has a known one |
| annotation of an unknown category | refused |
| annotations with segments_info (panoptic) | refused |
| name of a category missing, or a number | its id, or that number, as text; null, lists, half characters: refused |
| two categories of one name | told apart by their ids wherever names are shown (`category_names`) |
| no file_name, but a coco_url (LVIS v1) | the last two parts of the url: train2017/000000391895.jpg |
| no name or no size of an image, or none that can be (0, -1, 10^9) | the size of the picture itself for training; else
  the image is left out where it is needed; refused where that leaves none. No name in labelling: refused, since every
  image has its row |
"""

from array import array
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeAlias
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from maskrcnn_core.data.coco.entry_faults import FaultList
from maskrcnn_core.data.coco.values import number, shown, whole
from maskrcnn_core.errors import AnnotationError

CocoDict = dict[str, Any]
SizeOf: TypeAlias = Callable[[str, bool], tuple[int, int] | None]
"""File name of an image, and whether a `coco_url` gave it -> (width, height); None where it cannot be found out."""

_FAULTS_SHOWN = 5
LONGEST_SIDE = 1 << 20
MOST_PIXELS = 1 << 30  # a mask over the whole image would take more than a gibibyte
_MOST_CATEGORY_ID = 2**31 - 1  # label records hold 32 bits
_FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")  # LVIS


class CocoSections:
    """Collects the entries of a file; `finish` says what was wrong with the file.

    Args:
        names: images need a file name; kept = those that have one keep it; bytes = they need one, which may be that of
            a file whose name is no text, as Python spells it.
        sizes: images need a width and a height; where they do not, an image may lack them. A function is asked for what
            the file does not say.
        keypoints: the categories' lists of keypoints are asked for, and have to be one.

    Attributes:
        images: clean entries by id, in file order: `id`, `file_name` unless names do not matter (`named_by_url` where
            it comes from a `coco_url`), `width` and `height` where there are any, and LVIS' lists.
        categories: clean entries in file order: `id`; `name`, `keypoints` and LVIS' `frequency` where there are any.
        faults: of single images.
        left_out: ids of images that cannot be used.
        keypoint_fault: why a category's keypoints cannot be used, where they are not asked for.
        sound_images: ids of further images, which are known to be sound and not among `images`.
    """

    def __init__(self, *, names: "bool | Literal['kept', 'bytes']", sizes: "bool | SizeOf", keypoints: bool) -> None:
        self.images: dict[int, CocoDict] = {}
        self.categories: list[CocoDict] = []
        self.faults = FaultList()
        self.left_out: set[int] = set()
        self.keypoint_fault = ""
        self.sound_images = np.zeros(0, np.int64)
        self._names, self._sizes, self._keypoints = names, sizes, keypoints
        self._wrong: dict[str, list[str]] = {"entries": [], "annotations": []}  # the first of them
        self._number_wrong = {"entries": 0, "annotations": 0}
        self._positions = {"image": 0, "category": 0, "annotation": 0}
        self._category_ids: set[int] = set()
        self._ids, self._image_ids = array("q"), array("q")
        self._strange: dict[int, int] = {}  # category id -> the first annotation that has it

    @property
    def has_id_zero(self) -> bool:
        """An annotation has the id 0, of which pycocotools takes a match for none."""
        return 0 in self._ids

    def add_image(self, entry: Any) -> None:
        """One of section `images`."""
        image_id = self._identity("image", entry)
        if image_id is None:
            return
        if image_id in self.images or image_id in self.left_out:
            self._refuse(f"image {image_id}: listed twice")
            return
        name, size = _file_name(entry, any_bytes=self._names == "bytes"), _size(entry)
        where = f"image {image_id}"
        if size is None and name is not None and callable(self._sizes):
            size = self._sizes(name, not entry.get("file_name"))
            if size is not None:
                self.faults.add("field", where, f"{_sides(entry)}; {size[0]} x {size[1]} from the picture")
        if self._names in (True, "bytes") and name is None:
            self._leave_out(image_id, f"file_name {shown(entry.get('file_name'))}, expected text")
        elif self._sizes and size is None:
            self._leave_out(image_id, f"{_sides(entry)}, expected whole numbers above 0")
        else:
            image: CocoDict = {"id": image_id}
            if self._names and name:
                image |= {"file_name": name} | ({} if entry.get("file_name") else {"named_by_url": True})
            image |= {} if size is None else {"width": size[0], "height": size[1]}
            image |= {key: _ids_in(entry[key]) for key in _FEDERATED if isinstance(entry.get(key), list)}
            self.images[image_id] = image
            if size is None and entry.get("width") is not None:
                self.faults.add("field", where, f"width {shown(entry.get('width'), 30)}, as if there were none")

    def add_category(self, entry: Any) -> None:
        """One of section `categories`."""
        category_id = self._identity("category", entry, _MOST_CATEGORY_ID)
        if category_id is None:
            return
        if category_id in self._category_ids:
            self._refuse(f"category {category_id}: duplicate id")
            return
        self._category_ids.add(category_id)
        category: CocoDict = {"id": category_id}
        if "name" in entry:
            name = entry["name"]
            name = f"{name:g}" if type(name) in (int, float) and number(name) is not None else name
            if not isinstance(name, str) or not _is_text(name):
                self._refuse(f"category {category_id}: name {shown(name)}, expected text")
                return
            category["name"] = name
        if entry.get("keypoints"):
            self._add_keypoints(category, entry["keypoints"])
        if isinstance(entry.get("frequency"), str):
            category["frequency"] = entry["frequency"]
        self.categories.append(category)

    def add_annotation(self, entry: Any) -> tuple[int, int] | None:
        """The id and the image id of an entry of section `annotations`; None where it cannot be held."""
        if type(entry) is not dict:
            self._identity("annotation", entry)
            return None
        annotation_id, image_id, category_id = entry.get("id"), entry.get("image_id"), entry.get("category_id")
        if type(annotation_id) is not int or type(image_id) is not int or type(category_id) is not int:
            return self._add_odd_annotation(entry)
        return self._add_ids(annotation_id, image_id, category_id)

    @property
    def is_refused(self) -> bool:
        """Something is wrong with the file already; `finish` says what."""
        return any(self._number_wrong.values())

    def require_sound(self) -> None:
        """Nothing is wrong with the entries so far.

        Raises:
            AnnotationError: something is.
        """
        self._require_sound("entries", "correct these images and categories, or remove them")
        self._require_sound("annotations", "give unique ids to the annotations, and correct what they refer to")

    def add_ids(self, ids: NDArray[np.int64], image_ids: NDArray[np.int64], category_ids: NDArray[np.int32]) -> None:
        """Annotations in whose ids nothing is odd, many at once: [annotations] each."""
        self._ids.frombytes(ids.astype(np.int64).tobytes())
        self._image_ids.frombytes(image_ids.astype(np.int64).tobytes())
        self._positions["annotation"] += len(ids)
        categories, first = np.unique(category_ids, return_index=True)
        for category_id, place in zip(categories.tolist(), first.tolist(), strict=True):
            if category_id not in self._category_ids:
                self._strange.setdefault(category_id, int(ids[place]))

    def absorb(self, later: "CocoSections") -> None:
        """Take the ids of annotations that come later in the file and were looked at elsewhere, all of them sound."""
        self._ids.extend(later._ids)
        self._image_ids.extend(later._image_ids)
        self._positions["annotation"] += later._positions["annotation"]
        for category_id, annotation_id in later._strange.items():
            if category_id not in self._category_ids:
                self._strange.setdefault(category_id, annotation_id)

    def finish(self) -> None:
        """All entries have come: compare them.

        Raises:
            AnnotationError: the file is wrong; without its name.
        """
        self._require_sound("entries", "correct these images and categories, or remove them")
        if not self.categories:
            raise AnnotationError("section 'categories' is empty, expected at least one category")
        for one in self._doubled_ids():
            self._refuse(f"annotation {one}: duplicate id", "annotation")
        for category_id, annotation_id in self._strange.items():
            if category_id not in self._category_ids:
                what = f"category_id {category_id} is not in section 'categories'"
                self._refuse(f"annotation {annotation_id}: {what}", "annotation")
        self._require_sound(
            "annotations", "give unique ids to the annotations, and add what they refer to or remove them"
        )
        if self.left_out and not self.images and not len(self.sound_images):
            first = "; ".join(self.faults.faults().all_first()[:_FAULTS_SHOWN])
            raise AnnotationError(f"no image can be used: {first}. To mend: correct these images")
        self._require_known_images()

    def require_all_images(self) -> None:
        """No image is wrong in any way.

        Raises:
            AnnotationError: one is.
        """
        faults = self.faults.faults()
        for fault in faults.first.get("image", ()):
            self._refuse(fault)
        self._number_wrong["entries"] += faults.counts.get("image", 0) - len(faults.first.get("image", ()))
        self._require_sound("entries", "correct these images, or remove them")

    def _identity(self, noun: str, entry: Any, most: int = 2**63 - 1) -> int | None:
        position = self._positions[noun]
        self._positions[noun] += 1
        if not isinstance(entry, Mapping):
            self._refuse(f"{noun} at position {position}: got {shown(entry)}, expected an object", noun)
            return None
        identity = whole(entry.get("id"))
        if identity is None or abs(identity) > most:
            what = (
                f"id {shown(entry.get('id'))}, expected a whole number of {64 if most > _MOST_CATEGORY_ID else 32} bits"
            )
            self._refuse(f"{noun} at position {position}: {what}", noun)
            return None
        return identity

    def _leave_out(self, image_id: int, why: str) -> None:
        self.left_out.add(image_id)
        self.faults.add("image", f"image {image_id}", why)

    def _add_keypoints(self, category: CocoDict, names: Any) -> None:
        if isinstance(names, list) and len(set(map(str, names))) == len(names):
            category["keypoints"] = [str(name) for name in names]
            return
        what = f"category {category['id']}: keypoints {shown(names)}, expected a list of different names"
        if self._keypoints:
            self._refuse(what)
        else:
            self.keypoint_fault = self.keypoint_fault or what

    def _add_odd_annotation(self, entry: CocoDict) -> tuple[int, int] | None:
        if "segments_info" in entry:
            raise AnnotationError("annotations have segments_info: this is a panoptic file, expected an instances file")
        annotation_id = self._identity("annotation", entry)
        if annotation_id is None:
            return None
        ids = []
        for name, section in (("image_id", "images"), ("category_id", "categories")):
            ids.append(whole(entry.get(name)))
            if ids[-1] is None:
                what = f"{name} {shown(entry.get(name))}, expected the whole number of an entry in section '{section}'"
                self._refuse(f"annotation {annotation_id}: {what}", "annotation")
        image_id, category_id = ids
        if image_id is None or category_id is None:
            return None
        return self._add_ids(annotation_id, image_id, category_id)

    def _add_ids(self, annotation_id: int, image_id: int, category_id: int) -> tuple[int, int] | None:
        self._positions["annotation"] += 1
        try:
            self._ids.append(annotation_id)
            self._image_ids.append(image_id)
        except OverflowError:
            self._refuse(f"annotation {shown(annotation_id)}: an id of more than 64 bits", "annotation")
            return None
        if category_id not in self._category_ids:
            self._strange.setdefault(category_id, annotation_id)
            if abs(category_id) > _MOST_CATEGORY_ID:
                return None  # no column holds it
        return annotation_id, image_id

    def _doubled_ids(self) -> list[int]:
        ids = np.sort(np.frombuffer(self._ids, np.int64)) if self._ids else np.zeros(0, np.int64)
        return [int(one) for one in np.unique(ids[1:][ids[1:] == ids[:-1]])]

    def _require_known_images(self) -> None:
        if not self._image_ids or len(self._image_ids) != len(self._ids):
            return
        ids = np.frombuffer(self._image_ids, np.int64)
        known = np.concatenate([np.fromiter((*self.images, *self.left_out), np.int64), self.sound_images])
        if not np.isin(ids, known).any():
            raise AnnotationError(
                f"annotation {self._ids[0]}: image_id {ids[0]} is not in section 'images', and neither is any other's; "
                "give the annotations the ids of the images"
            )

    def _refuse(self, what: str, noun: str = "") -> None:
        group = "annotations" if noun == "annotation" else "entries"
        self._number_wrong[group] += 1
        if len(self._wrong[group]) < _FAULTS_SHOWN:
            self._wrong[group].append(what)

    def _require_sound(self, group: str, mend: str) -> None:
        if first := self._wrong[group]:
            rest = self._number_wrong[group] - len(first)
            more = f"; ... and {rest} more" if rest else ""
            raise AnnotationError(f"{'; '.join(first)}{more}. To mend: {mend}.")


def read_images(document: Any) -> list[CocoDict]:
    """The clean image entries of a COCO document, for a reader that looks at nothing else; all with a file name.

    Raises:
        AnnotationError: there are none, or one of them cannot be used.
    """
    images = document.get("images") if isinstance(document, Mapping) else None
    if not isinstance(images, list) or not images:
        raise AnnotationError('no entries in "images"; expected a COCO json')
    sections = CocoSections(names="bytes", sizes=False, keypoints=False)
    for entry in images:
        sections.add_image(entry)
    sections.require_all_images()
    return list(sections.images.values())


def _sides(entry: CocoDict) -> str:
    return f"width {shown(entry.get('width'), 30)}, height {shown(entry.get('height'), 30)}"


def _size(entry: CocoDict) -> tuple[int, int] | None:
    """(width, height); None where they cannot be those of an image."""
    sides = [number(entry.get(name)) for name in ("width", "height")]
    wholes = [int(side) for side in sides if side is not None and side.is_integer() and 0 < side <= LONGEST_SIDE]
    if len(wholes) < 2 or wholes[0] * wholes[1] > MOST_PIXELS:
        return None
    return wholes[0], wholes[1]


def _file_name(entry: CocoDict, *, any_bytes: bool) -> str | None:
    name = entry.get("file_name")
    if name is None and isinstance(entry.get("coco_url"), str):
        return name_of_url(entry["coco_url"]) or None
    return name if isinstance(name, str) and name and (any_bytes or _is_text(name)) else None


def name_of_url(url: str) -> str:
    """The file that a `coco_url` names, in the folder of its split; empty where it names none."""
    try:
        parts = [part for part in unquote(urlsplit(url).path).split("/") if part]
    except ValueError:
        return ""
    return "/".join(parts[-2:]) if _is_text("".join(parts)) else ""


def _is_text(name: str) -> bool:
    """Without halves of characters, which no record holds."""
    return name.isascii() or not any("\ud800" <= one <= "\udfff" for one in name)


def _ids_in(values: Iterable[Any]) -> list[int]:
    return [identity for value in values if (identity := whole(value)) is not None]
