"""What commands share on a terminal."""

import pytest

from jobs.terminal import PlainProgress, new_table, plain_console, progress_numbers, score_text, text_cell
from pipelines.labelling.progress import LabelProgress


def test_progress_line() -> None:
    state = LabelProgress(images=4000, done=400, detections=7, failed=0, images_per_second=1.0)
    assert progress_numbers(state) == "1.00 images/s  7 detections  waiting 0%  left 1:00:00"
    state = LabelProgress(images=4, done=0, detections=0, failed=0, images_per_second=0.0)
    assert progress_numbers(state) == "0.00 images/s  0 detections"


def test_plain_lines_become_rare(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    show = PlainProgress(clock=lambda: now)
    for second in range(1, 41):
        now = float(second)
        show(LabelProgress(100, second, 0, 0, 1.0))
    lines = [dict(pair.split("=") for pair in line.split()) for line in capsys.readouterr().out.splitlines()]
    assert [int(line["done"]) for line in lines] == [5, 15, 35]
    assert [int(line["seconds_left"]) for line in lines] == [95, 85, 65]
    assert {line["event"] for line in lines} == {"progress"}


def test_a_table_obeys_no_name(capsys: pytest.CaptureFixture[str]) -> None:
    table = new_table("Scores", "", "box")
    table.add_row(text_cell("[red]:cat:\x1b[2J"), score_text(0.12345))
    table.add_row(text_cell("dog"), score_text(-1))
    plain_console().print(table)
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.strip() == "Scores"
    assert [line.split() for line in lines if "0.123" in line or "dog" in line] == [
        ["[red]:cat:\\x1b[2J", "0.123"],
        ["dog", "-"],
    ]
