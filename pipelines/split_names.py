"""File names that begin with the folder of their split (`train2017/1.jpg`), as those of a `coco_url` do."""

from collections.abc import Sequence

from pipelines import storage


def names_below(folder: str, names: Sequence[str]) -> list[str]:
    """The names as they are below a folder: without the split's folder where the folder is the split itself.

    Only names of two parts, whose first is no folder there, lose it: `train2017/1.jpg` in `.../train2017` is `1.jpg`.
    """
    splits = {name.split("/")[0] for name in names if _has_split(name)}
    absent = {split for split in splits if not storage.is_folder(storage.join(folder, split))}
    return [name.partition("/")[2] if _has_split(name) and name.split("/")[0] in absent else name for name in names]


def _has_split(name: str) -> bool:
    first, _, rest = name.partition("/")
    return bool(first) and bool(rest) and "/" not in rest
