"""Each rule of a label row finds the row that breaks it, and no other rule does."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from maskrcnn_core.records.checks import Findings, RowCounts, check_rows, count_rows
from maskrcnn_core.records.labels import record_schema, records_to_table
from maskrcnn_core.records.proposals import ProposalRecord, failed_proposals, proposals_to_table
from tests.generated_labels import CATEGORIES, MODEL, blob, detection, failed_record, random_record

Row = dict[str, Any]


def good_rows() -> list[Row]:
    records = [random_record(seed) for seed in range(8)] + [failed_record()]
    table = records_to_table(list(range(9)), [f"{n}.jpg" for n in range(9)], records, MODEL, record_schema(CATEGORIES))
    return table.to_pylist()


def check(rows: list[Row]) -> Findings:
    table = pa.Table.from_pylist(rows, schema=record_schema(CATEGORIES))
    return check_rows(table.to_batches()[0], CATEGORIES, MODEL)


def test_good_rows_pass_whole_and_in_slices() -> None:
    rows = good_rows()
    assert check(rows) == Findings()
    batch = pa.Table.from_pylist(rows, schema=record_schema(CATEGORIES)).to_batches()[0]
    counts = RowCounts()
    for start in range(9):
        assert check_rows(batch.slice(start, 1), CATEGORIES, MODEL) == Findings()
        counts += count_rows(batch.slice(start, 1))
    assert counts == count_rows(batch)
    objects = sum(len(row["detections"]) for row in rows)
    assert counts == RowCounts({"ok": 8, "unreadable": 1}, objects, objects)


def edit(change: Callable[[Row, Row], object]) -> Findings:
    """Findings after a change to one row that has two objects, and to the first of these."""
    rows = good_rows()
    row = next(row for row in rows if len(row["detections"]) >= 2)
    change(row, row["detections"][0])
    findings = check(rows)
    assert all(offence.image_id == row["image_id"] for offence in findings.first)
    return findings


@pytest.mark.parametrize(
    ("check_name", "got", "change"),
    [
        ("status", "'fine'", lambda row, _: row.update(status="fine", error="why", detections=[])),
        ("error", "ok with error 'why'", lambda row, _: row.update(error="why")),
        ("error", "'missing' without error", lambda row, _: row.update(status="missing", detections=[])),
        ("failed row", "'failed' with", lambda row, _: row.update(status="failed", error="why")),
        ("size", "ok with width None", lambda row, _: row.update(width=None, detections=[])),
        ("model", "other", lambda row, _: row.update(model="other")),
        ("box", "box [1.0, 2.0]", lambda _, found: found.update(bbox=[1, 2], segmentation=None)),
        ("box", "nan", lambda _, found: found.update(bbox=[1, 2, float("nan"), 4], segmentation=None)),
        ("box", "-3", lambda _, found: found.update(bbox=[1, 2, -3, 4], segmentation=None)),
        ("box outside", "in an image of", lambda _, found: found.update(bbox=[1, 2, 300, 4], segmentation=None)),
        ("box outside", "[-0.5", lambda _, found: found.update(bbox=[-0.5, 2, 3, 4], segmentation=None)),
        ("score", "1.5", lambda _, found: found.update(score=1.5)),
        ("score", "nan", lambda _, found: found.update(score=float("nan"))),
        ("order of scores", "after 0", lambda _, found: found.update(score=0.0)),
        ("category", "2 'person'", lambda _, found: found.update(category_id=2, category="person")),
        ("category", "1 'cat'", lambda _, found: found.update(category_id=1, category="cat")),
        ("keypoints", "4 numbers", lambda _, found: found.update(keypoints=[1, 2, 3, 4])),
        ("keypoints", "inf", lambda _, found: found.update(keypoints=[1, 2, float("inf")])),
        ("mask size", "size [3, 4]", lambda _, found: found["segmentation"].update(size=[3, 4])),
        ("mask size", "size None", lambda _, found: found["segmentation"].update(size=None)),
        ("mask", "no counts", lambda _, found: found["segmentation"].update(counts=None)),
        ("mask", "ends within a number", lambda _, found: found["segmentation"].update(counts="0T")),
        ("mask", "(9 of", lambda _, found: found["segmentation"].update(counts="9")),
        ("mask outside its box", "mask in [", lambda _, found: found.update(bbox=[0, 0, 1, 1])),
    ],
)
def test_a_broken_rule_names_row_and_value(check_name: str, got: str, change: Callable[[Row, Row], object]) -> None:
    findings = edit(change)
    assert dict(findings.counts) == {check_name: 1}
    assert got in findings.first[0].got
    assert findings.first[0].expected


def test_turned_sizes_are_found() -> None:
    """Height and width exchanged: the pixels still add up, only the size tells."""
    findings = edit(lambda _, found: found["segmentation"].update(size=found["segmentation"]["size"][::-1]))
    assert dict(findings.counts) == {"mask size": 1}


def test_all_are_counted_and_the_first_are_shown() -> None:
    rows = [row | {"model": "other", "image_id": number} for number, row in enumerate(good_rows() * 10)]
    findings = check(rows)
    assert dict(findings.counts) == {"model": 90}
    assert [offence.image_id for offence in findings.first] == [0, 1, 2, 3, 4]
    assert (findings + findings).counts == {"model": 180}
    assert len((findings + findings).first) == 5


def test_an_image_without_objects_and_a_mask_without_pixels() -> None:
    empty = random_record(0, most_objects=0)
    mask = np.zeros((empty.height or 0, empty.width or 0), bool)
    lost = detection(mask, 0.5)
    table = records_to_table(
        [1, 2],
        ["a", "b"],
        [empty, type(empty)("ok", None, empty.width, empty.height, (lost,))],
        MODEL,
        record_schema(CATEGORIES),
    )
    assert check_rows(table.to_batches()[0], CATEGORIES, MODEL) == Findings()
    assert check_rows(table.slice(0, 1).to_batches()[0], (), None) == Findings()


def test_proposals_are_checked_as_far_as_they_go() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 5, 30, 10]], np.float32)
    records = [
        ProposalRecord("ok", None, 40, 20, boxes, np.array([0.9, 0.3], np.float32)),
        ProposalRecord("ok", None, 30, 20, boxes, np.array([0.3, 0.9], np.float32)),
        failed_proposals("missing", "no such file"),
    ]
    batch = proposals_to_table([1, 2, 3], ["a", "b", "c"], records, MODEL).to_batches()[0]
    findings = check_rows(batch, (), MODEL)
    assert dict(findings.counts) == {"box outside": 1, "order of scores": 1}
    assert {offence.image_id for offence in findings.first} == {2}
    assert count_rows(batch) == RowCounts({"missing": 1, "ok": 2}, 4, 0)


def test_a_blob_has_what_the_tests_rely_on() -> None:
    assert all(blob(np.random.default_rng(seed), 50, 60).any() for seed in range(20))
