"""The queries that docs/labels.md shows, run on generated labels and compared with plain Python."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.generated_labels import failed_record, random_record, write_run

PAGE = Path(__file__).resolve().parents[1] / "docs" / "labels.md"
HEADING = "## Questions to the labels"

Row = dict[str, Any]


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of the code blocks below the heading, up to the next heading of its rank or higher."""
    section = re.split(r"^#{1,2} ", text.split(HEADING, 1)[1], flags=re.MULTILINE)[0]
    return re.findall(r"^```(\w+)\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def cookbook() -> list[tuple[str, str]]:
    return blocks(PAGE.read_text(encoding="utf-8"))


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """Labels at runs/labelled of the working folder."""
    monkeypatch.chdir(tmp_path)
    records = [random_record(seed, most_objects=12) for seed in range(40)]
    failed = [failed_record(), failed_record("missing"), failed_record()]
    return write_run(tmp_path / "runs" / "labelled", [*records, *failed], rows_per_file=10)


def by_category(rows: list[Row]) -> list[tuple[str, int, int]]:
    found = [(d["category"], row["image_id"]) for row in rows for d in row["detections"] if d["score"] >= 0.5]
    objects, images = Counter(name for name, _ in found), Counter(name for name, _ in set(found))
    return sorted(((name, objects[name], images[name]) for name in objects), key=lambda entry: (-entry[1], entry[0]))


def crowded(rows: list[Row]) -> list[tuple[int, int]]:
    people = Counter(
        row["image_id"] for row in rows for d in row["detections"] if d["category"] == "person" and d["score"] >= 0.5
    )
    return sorted(((i, n) for i, n in people.items() if n > 2), key=lambda entry: (-entry[1], entry[0]))


def least_certain(rows: list[Row]) -> list[int]:
    scores = {row["image_id"]: [d["score"] for d in row["detections"] if d["score"] >= 0.3] for row in rows}
    return sorted((i for i, found in scores.items() if found), key=lambda i: (min(scores[i]), i))[:20]


def at_the_edge(rows: list[Row]) -> set[tuple[int, str]]:
    found = set()
    for row in rows:
        for d in row["detections"]:
            x, y, w, h = d["bbox"]
            touches = x <= 1 or y <= 1 or x + w >= row["width"] - 1 or y + h >= row["height"] - 1
            if touches and w * h > 0.1 * row["width"] * row["height"]:
                found.add((row["image_id"], d["category"]))
    return found


def test_sql(cookbook: list[tuple[str, str]], rows: list[Row]) -> None:
    duckdb = pytest.importorskip("duckdb")
    queries = [content for language, content in cookbook if language == "sql"]
    assert len(queries) >= 5
    with duckdb.connect() as connection:
        found = {query.split("\n")[0]: connection.execute(query).fetchall() for query in queries}
    assert all(found[title] for title in found if not title.startswith("-- labels"))
    assert found["-- objects and images by category"] == by_category(rows)
    assert [(i, n) for i, _, n in found["-- images with more than 2 people"]] == crowded(rows)
    assert [entry[0] for entry in found["-- images to look at first: the least certain of their objects"]] == (
        least_certain(rows)
    )
    assert [entry[:2] for entry in found["-- failed images by status"]] == [("unreadable", 2), ("missing", 1)]
    edge = {(i, name) for i, name, *_ in found["-- large objects that touch the image's edge"]}
    assert edge == at_the_edge(rows)


def test_polars(cookbook: list[tuple[str, str]], rows: list[Row]) -> None:
    pytest.importorskip("polars")
    names: dict[str, Any] = {}
    for language, content in cookbook:
        if language == "python":
            exec(content, names)
    assert names["by_category"].rows() == by_category(rows)
    assert names["crowded"].rows() == crowded(rows)
    assert names["failed"].rows() == [("missing", 1), ("unreadable", 2)]
