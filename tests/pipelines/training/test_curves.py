"""The curves of a run as its events arrive."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.training.curves import _MOST_POINTS, CurveKeeper, CurvePoints
from pipelines.training.events import (
    CheckpointSaved,
    DataNote,
    SchedulePlanned,
    StepReport,
    TrainingEvent,
    TrainingStarted,
    ValidationReport,
)

PLAN = SchedulePlanned(100, 4, 40.0)
STEP = StepReport(10, 100, 1.0, {"rpn_box": 0.5, "roi_mask": 1.0}, 0.01, 1.0, 4.0, 60.0)
VALIDATION = ValidationReport(20, 7, 0, {"bbox/AP": 0.5, "segm/AP": 0.25, "segm/AP50": 0.5}, 0.25, True, 3.0)


def started(step: int) -> TrainingStarted:
    return TrainingStarted(step, 100, 40, 7, 1, 1, 0)


def steps_of(points: CurvePoints) -> list[int]:
    return [point.step for point in points.steps]


def keeper(output: Path, notes: list[TrainingEvent] | None = None) -> CurveKeeper:
    return CurveKeeper(str(output), PLAN, (notes if notes is not None else []).append)


def picture(output: Path) -> str:
    return (output / "curves.svg").read_text()


def test_a_picture_at_each_validation_and_checkpoint(tmp_path: Path) -> None:
    curves = keeper(tmp_path)
    curves.draw()
    curves.add(STEP)
    assert not list(tmp_path.iterdir())  # nothing to show, then nothing due
    curves.add(CheckpointSaved(10, "last"))
    assert "step 10 of 100, epoch 1 of 10<" in picture(tmp_path)
    curves.add(replace(STEP, step=20))
    curves.add(VALIDATION)
    assert "step 20 of 100, epoch 2 of 10; best mask AP 0.250 at step 20<" in picture(tmp_path)
    assert "box AP" in picture(tmp_path)
    curves.add(replace(STEP, step=30))
    curves.draw()
    assert "step 30 of 100" in picture(tmp_path)
    kept = json.loads((tmp_path / "curves.json").read_text())
    assert [point["step"] for point in kept["steps"]] == [10, 20, 30]
    assert kept["validations"][0]["metrics"] == VALIDATION.metrics


def test_another_start_goes_on_where_its_checkpoint_was(tmp_path: Path) -> None:
    first = keeper(tmp_path)
    for step in (10, 20, 30):
        first.add(replace(STEP, step=step))
    first.add(VALIDATION)
    second = keeper(tmp_path)
    second.add(started(20))  # what came after the checkpoint comes again
    second.add(replace(STEP, step=30, images_per_second=9.0))
    second.add(replace(VALIDATION, step=40, score=0.2))
    kept = json.loads((tmp_path / "curves.json").read_text())
    assert [(point["step"], point["images_per_second"]) for point in kept["steps"]] == [(10, 4.0), (20, 4.0), (30, 9.0)]
    assert [point["step"] for point in kept["validations"]] == [20, 40]
    assert "best mask AP 0.250 at step 20" in picture(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"steps": [], "validations": [{}]}', b'{"steps": [3]}'])
def test_damaged_books_are_begun_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "curves.json").write_bytes(content)
    curves = keeper(tmp_path)
    curves.add(STEP)
    curves.draw()
    assert "step 10 of 100" in picture(tmp_path)


def test_what_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "curves.json").mkdir()
    notes: list[TrainingEvent] = []
    curves = keeper(tmp_path, notes)
    curves.add(STEP)
    for _ in range(3):
        curves.draw()
    (note,) = notes
    assert isinstance(note, DataNote)
    assert note.text.startswith("the curves of the run cannot be written: ")


def test_a_validation_in_a_task_may_come_late_and_twice() -> None:
    points = CurvePoints()
    for step, score in ((40, 0.3), (20, 0.3), (60, None), (40, 0.2)):
        points.add(replace(VALIDATION, step=step, score=score))
    assert [(point.step, point.score) for point in points.validations] == [(20, 0.3), (40, 0.2), (60, None)]
    assert points.best == (20, 0.3)
    assert CurvePoints().best is None


@pytest.mark.parametrize("more", [0, 1, 2, 5 * _MOST_POINTS])
def test_a_long_run_joins_neighbours(more: int) -> None:
    points = CurvePoints()
    for step in range(1, _MOST_POINTS + more + 1):
        points.add(replace(STEP, step=step, losses={"rpn_box": float(step)}, images_per_second=float(step)))
    assert len(points.steps) <= _MOST_POINTS
    assert steps_of(points) == sorted(set(steps_of(points)))
    assert steps_of(points)[-1] == _MOST_POINTS + more
    if more in (1, 2):
        assert points.steps[0].step == 2
        assert points.steps[0].losses == {"rpn_box": 1.5}
        assert len(points.steps) == _MOST_POINTS // 2 + more


def test_a_loss_that_begins_later_is_joined_too() -> None:
    points = CurvePoints()
    for step in range(1, _MOST_POINTS + 2):
        points.add(replace(STEP, step=step, losses={"a": 1.0} if step == 1 else {"a": 3.0, "b": 5.0}))
    assert points.steps[0].losses == {"a": 2.0, "b": 5.0}
