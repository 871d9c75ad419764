"""Two data sets with the same categories, whose ids differ: they meet by name."""

from collections.abc import Sequence
from dataclasses import replace

from maskrcnn_core.config.model import Category
from maskrcnn_core.data.coco.category_names import distinct_names
from maskrcnn_core.data.coco.dataset import CocoDataset
from maskrcnn_core.errors import AnnotationError


def with_categories(dataset: CocoDataset, categories: Sequence[Category]) -> tuple[CocoDataset, str]:
    """A data set whose categories meet those of another one by name, with the other's ids.

    Args:
        dataset: its categories may have other ids, and may be fewer.
        categories: of the other one.

    Returns:
        The data set with `categories` and their ids; and what was done, empty where all were the same already.

    Raises:
        AnnotationError: a category has a name that the other one lacks.
    """
    if dataset.categories == tuple(categories):
        return dataset, ""
    # Where a name stands twice, its categories are told apart by their ids.
    shown, theirs = (distinct_names((one.id, one.name) for one in group) for group in (dataset.categories, categories))
    known, named = {name: number for number, name in theirs.items()}, {one.id: one.name for one in categories}
    strange = [one for one in dataset.categories if shown[one.id] not in known]
    if strange:
        told = "; ".join(
            f"{one.name!r} (id {one.id}" + (f", which is {named[one.id]!r} there)" if one.id in named else ")")
            for one in strange[:5]
        )
        ours = ", ".join(repr(one.name) for one in tuple(categories)[:10])
        raise AnnotationError(
            f"categories meet by name, and {len(strange)} have a name of their own: {told}; expected some of {ours}"
            + (", ..." if len(categories) > 10 else "")
        )
    new_ids = {one.id: known[shown[one.id]] for one in dataset.categories}
    moved = [one for one in dataset.categories if new_ids[one.id] != one.id]
    missing = [name for number, name in theirs.items() if number not in new_ids.values()]
    said = [f"{one.name!r} has the id {one.id} here and {new_ids[one.id]} there" for one in moved[:5]]
    said += [f"and {len(moved) - 5} more"] if len(moved) > 5 else []
    said += [f"{len(missing)} are not in this file ({', '.join(map(repr, missing[:5]))})"] if missing else []
    told = f"categories meet by name: {', '.join(said)}"
    return replace(dataset, categories=tuple(categories), new_ids={one.id: new_ids[one.id] for one in moved}), told
