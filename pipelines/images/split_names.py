"""File names that begin with the folder of their split (`train2017/1.jpg`), as those of a `coco_url` do."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from maskrcnn_core.errors import StorageError
from pipelines import storage
from pipelines.storage.object_stores import is_beside_s3, is_prefix


def file_names(folder: str, images: Sequence[Mapping[str, Any]]) -> list[str]:
    """File names of clean image entries (`CocoSections`), as they are below a folder."""
    names = [image["file_name"] for image in images]
    return names_below(folder, names) if any(image.get("named_by_url") for image in images) else names


def names_below(folder: str, names: Sequence[str]) -> list[str]:
    """The names as they are below a folder: without the split's folder where the folder is the split itself.

    Only names of two parts, whose first is no folder there, lose it: `train2017/1.jpg` in `.../train2017` is `1.jpg`.
    """
    absent = splits_to_drop(folder, names)
    return [name.partition("/")[2] if _has_split(name) and name.split("/")[0] in absent else name for name in names]


def splits_to_drop(folder: str, names: Iterable[str]) -> frozenset[str]:
    """The first parts of names of two parts that are no folders there."""
    splits = {name.split("/")[0] for name in names if _has_split(name)}
    return frozenset(split for split in splits if not _is_folder(storage.join(folder, split)))


def _is_folder(uri: str) -> bool:
    try:
        return is_prefix(uri) if is_beside_s3(uri) else storage.is_folder(uri)
    except StorageError:
        return False  # whatever it is that no folder can be called by


def _has_split(name: str) -> bool:
    first, _, rest = name.partition("/")
    return bool(first) and bool(rest) and "/" not in rest
