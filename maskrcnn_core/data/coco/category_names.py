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


def match_categories(detected: Mapping[int, str], annotated: Mapping[int, str | None]) -> CategoryMatch:
    """Match categories by name; by id where one side has no name, or a name stands for two categories.

    Args:
        detected: names of the detections' categories by id; a name that is only the id's digits is none.
        annotated: the annotation file's; None where it gives none.

    Raises:
        AnnotationError: an id has another name on each side, and neither name is on the other side.
    """
    times = Counter(detected.values()), Counter(annotated.values())
    ids_by_name = {name: number for number, name in annotated.items()}
    used = {*detected, *annotated}
    fresh = (number for number in count(1) if number not in used)
    ids: dict[int, int] = {}
    moved = []
    for number, name in detected.items():
        there = annotated.get(number)
        is_nameless = name in ("", str(number)) or (there is None and number in annotated)
        if is_nameless or _is_same(number, name, there, times[0]):
            continue
        if times[0][name] == times[1][name] == 1:
            ids[number] = ids_by_name[name]
            moved.append(f"{name!r} is {number} in the labels and {ids[number]} in the annotations")
        elif there is not None:
            if not any(_folded(there) == _folded(other) for other in detected.values()):
                raise AnnotationError(
                    f"category {number} is {name!r} in the labels, {there!r} in the annotations, and neither name is "
                    "on the other side. Score labels against annotations with the model's categories, or give one "
                    "thing one name"
                )
            ids[number] = next(fresh)
    return CategoryMatch(ids, _note(moved))


def names_of(categories: Iterable[Mapping[str, Any]]) -> dict[int, str | None]:
    """Names of an annotation file's categories by id; None where an entry has none, or only the id's digits."""
    names = {entry["id"]: entry.get("name") for entry in categories}
    return {key: name if isinstance(name, str) and name != str(key) else None for key, name in names.items()}


def _is_same(number: int, name: str, there: str | None, counts: Mapping[str, int]) -> bool:
    """Whether an id has one name on both sides; but for capitals and spaces, where no other category has it exactly,
    and for the id behind a name that stands twice on one side (`distinct_names`)."""
    if there is None or there in (name, f"{name} ({number})") or name == f"{there} ({number})":
        return there is not None
    return _folded(there) == _folded(name) and not counts.get(there)


def _folded(name: str) -> str:
    return " ".join(name.split()).casefold()


def _note(moved: list[str]) -> str:
    if not moved:
        return ""
    more = f", and {len(moved) - _NAMES_SHOWN} more" if len(moved) > _NAMES_SHOWN else ""
    return f"categories meet by name: {', '.join(moved[:_NAMES_SHOWN])}{more}"


def distinct_names(categories: Iterable[tuple[int, str]]) -> dict[int, str]:
    """What to call each category where only names are shown: its name, with its id where others have the same.

    >>> distinct_names([(1, "cell"), (2, "cell"), (3, "ring")])
    {1: 'cell (1)', 2: 'cell (2)', 3: 'ring'}
    """
    pairs = list(categories)
    counts = Counter(name for _, name in pairs)
    taken = {name for name, count in counts.items() if count == 1}
    shown = {}
    for number, name in pairs:
        own = name if counts[name] == 1 else f"{name} ({number})"
        while counts[name] > 1 and own in taken:  # another category has that very name
            own += f" ({number})"
        taken.add(own)
        shown[number] = own
    return shown


def shown_names(categories: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    """What to call each category of an annotation file, by id (`distinct_names`); its id where it has no name."""
    return distinct_names((number, name or str(number)) for number, name in names_of(categories).items())
