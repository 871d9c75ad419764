"""Categories by their names: how those of labels and of an annotation file go together, and how to tell two apart.

The ids of categories are a matter of the file: exporters number them as they come. What a category is, its name says.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from maskrcnn_core.errors import AnnotationError

_NAMES_SHOWN = 5


@dataclass(frozen=True)
class CategoryMatch:
    """How the categories of detections and those of an annotation file go together.

    Attributes:
        ids: id of the detections -> id to take it for, as far as they differ: the annotation file's for the same name;
            for a name that the annotation file lacks, one that neither side has.
        note: what was matched, where ids differ; empty where they do not.
    """

    ids: Mapping[int, int] = field(default_factory=dict)
    note: str = ""


def match_categories(found: Mapping[int, str], annotated: Mapping[int, str | None]) -> CategoryMatch:
    """Match categories by name; by id where one side has no name, or a name stands for two categories.

    Args:
        found: names of the detections' categories by id; a name that is only the id's digits is none.
        annotated: the annotation file's, no two alike; None where it gives none.

    Raises:
        AnnotationError: an id has another name on each side, and neither name is on the other side.
    """
    found = distinct_names(found)
    times = Counter(found.values()), Counter(annotated.values())
    ids_by_name = {name: number for number, name in annotated.items()}
    used = {*found, *annotated}
    fresh = (number for number in count(1) if number not in used)
    ids: dict[int, int] = {}
    moved = []
    for number, name in found.items():
        there = annotated.get(number)
        is_nameless = name in ("", str(number)) or (there is None and number in annotated)
        if is_nameless or _is_same(number, name, there, times[0]):
            continue
        if times[0][name] == times[1][name] == 1:
            ids[number] = ids_by_name[name]
            moved.append(f"{name!r} is {number} in the labels and {ids[number]} in the annotations")
        elif there is not None:
            if not any(_folded(there) == _folded(other) for other in found.values()):
                raise AnnotationError(
                    f"category {number} is {name!r} in the labels, {there!r} in the annotations, and neither name is "
                    "on the other side. Score labels against annotations with the model's categories, or give one "
                    "thing one name"
                )
            ids[number] = next(fresh)
    return CategoryMatch(ids, _note(moved))


def names_of(categories: Iterable[Mapping[str, Any]]) -> dict[int, str | None]:
    """Names of an annotation file's clean categories by id; None where a name is only the id's digits."""
    return {entry["id"]: None if entry["name"] == str(entry["id"]) else entry["name"] for entry in categories}


def _is_same(number: int, name: str, there: str | None, found: Mapping[str, int]) -> bool:
    """Whether an id has one name on both sides; but for capitals and spaces, where no other category has it exactly,
    and for the id behind one that stands twice on one side."""
    if there is None or there in (name, f"{name} ({number})") or name == f"{there} ({number})":
        return there is not None
    return _folded(there) == _folded(name) and not found.get(there)


def _folded(name: str) -> str:
    return " ".join(name.split()).casefold()


def _note(moved: list[str]) -> str:
    if not moved:
        return ""
    more = f", and {len(moved) - _NAMES_SHOWN} more" if len(moved) > _NAMES_SHOWN else ""
    return f"categories meet by name: {', '.join(moved[:_NAMES_SHOWN])}{more}"


def distinct_names(names: Mapping[int, str]) -> dict[int, str]:
    """The same names by id, in the same order; of those that stand twice, each with its id behind it.

    >>> distinct_names({1: "cell", 2: "cell", 3: "cat"})
    {1: 'cell (1)', 2: 'cell (2)', 3: 'cat'}
    """
    counts = Counter(names.values())
    if all(count == 1 for count in counts.values()):
        return dict(names)
    told_apart = {key: f"{name} ({key})" if counts[name] > 1 else name for key, name in names.items()}
    return distinct_names(told_apart)  # a third one may be called so already
