"""Categories meet by name, whatever their ids; two of one name are told apart by id."""

import pytest

from maskrcnn_core.data.coco.category_names import distinct_names, match_categories, names_of
from maskrcnn_core.errors import AnnotationError


@pytest.mark.parametrize(
    ("found", "annotated", "ids"),
    [
        ({1: "red", 2: "blue"}, {1: "red", 2: "blue"}, {}),
        ({1: "red", 2: "blue"}, {1: "blue", 2: "red"}, {1: 2, 2: 1}),
        ({0: "red", 1: "blue"}, {1: "red", 2: "blue"}, {0: 1, 1: 2}),
        ({1: "red", 2: "blue"}, {1: "blue"}, {1: 3, 2: 1}),  # red is nothing that the annotations know
        ({2: "blue"}, {1: "red", 2: "blue", 3: "green"}, {}),
        ({7: "blue"}, {1: "red", 2: "blue"}, {7: 2}),
        ({7: "green"}, {1: "red"}, {}),  # unknown by id and by name
        ({1: "Red "}, {1: "red"}, {}),
        ({1: "Red", 2: "red"}, {1: "red", 2: "green"}, {1: 3, 2: 1}),  # exactly so goes first
        ({1: "cell", 2: "cell"}, {1: "cell (1)", 2: "cell (2)"}, {}),
        ({1: "cell"}, {1: "cell (1)", 2: "cell (2)"}, {}),
        ({1: "cell (1)", 2: "cell (2)"}, {1: "cell"}, {}),
        ({1: "1", 2: "2"}, {1: "red", 2: "blue"}, {}),  # labels without names
        ({1: "red", 2: "blue"}, {1: None, 2: None}, {}),  # annotations without
        ({}, {1: "red"}, {}),
        ({1: "red"}, {}, {}),
    ],
)
def test_ids_to_take(found: dict[int, str], annotated: dict[int, str | None], ids: dict[int, int]) -> None:
    match = match_categories(found, annotated)
    assert match.ids == ids
    wanted = [name for number, name in found.items() if ids.get(number) in annotated]
    assert bool(match.note) == bool(wanted)
    assert all(repr(name) in match.note for name in wanted)


def test_one_id_for_two_things_is_refused_with_both_names() -> None:
    with pytest.raises(AnnotationError, match="category 1 is 'person' in the labels, 'cell' in the annotations"):
        match_categories({1: "person", 2: "cat"}, {1: "cell", 2: "cat"})


def test_many_names_are_counted() -> None:
    found = {number: f"kind {number}" for number in range(1, 10)}
    match = match_categories(found, {number + 100: name for number, name in found.items()})
    assert match.note.endswith("'kind 5' is 5 in the labels and 105 in the annotations, and 4 more")


def test_names_that_stand_twice() -> None:
    assert distinct_names([(1, "cell"), (2, "cell"), (3, "cell (1)")]) == {
        1: "cell (1) (1)",
        2: "cell (2)",
        3: "cell (1)",
    }
    assert names_of([{"id": 1, "name": "red"}, {"id": 2, "name": "2"}]) == {1: "red", 2: None}
