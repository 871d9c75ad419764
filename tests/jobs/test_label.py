"""The words of jobs.label; the work is tested in tests/pipelines/labelling/test_run.py."""

from pathlib import Path
from typing import Any

import pytest

from jobs import label as job
from jobs.summaries import exit_code
from pipelines.labelling.config import LabelConfig, LabelRun
from pipelines.labelling.run import LabelSummary
from pipelines.labels.chunks import FailedImage


def summary(**changes: object) -> LabelSummary:
    values: dict[str, Any] = {
        "images": 10,
        "statuses": {"missing": 1, "ok": 8, "unreadable": 1},
        "detections": 33,
        "failed": 2,
        "failures": (FailedImage(3, "/x/a b.jpg", "missing", "no such file"),),
        "labelled_now": 6,
        "seconds": 12.3,
        "images_per_second": 1.5,
        "waiting_share": 0.03,
        "labels": "out/labels",
        "skipped_because_done": False,
    }
    return LabelSummary(**values | changes)


def settings(images: str = "photos", **label: Any) -> LabelRun:
    return LabelRun("ckpt", images, "my out", label=LabelConfig(**label))


def test_summary_tells_counts_failures_and_what_to_do_next() -> None:
    assert job.summary_lines(settings("set/instances.json"), summary()) == [
        "finished: 10 images (8 ok, 1 missing, 1 unreadable), 33 detections, 4 of them by earlier starts",
        "6 images in 12 s (1.50 images/s without start-up; detectors waited for images 3% of their time)",
        "labels: out/labels",
        "failed images (first 1 of 2):",
        "  missing: /x/a b.jpg: no such file",
        "try them again with the same command and --label.retry_failed true",
        "next:",
        "  python -m jobs.verify --labels 'my out'",
        "  python -m jobs.evaluate --labels 'my out' --annotations set/instances.json",
        "  python -m jobs.report --labels 'my out' --output 'my out/report'",
    ]
    done = summary(skipped_because_done=True, failed=0, failures=(), statuses={"ok": 10})
    lines = job.summary_lines(settings(), done)
    assert lines[0] == "already finished: 10 images (10 ok), 33 detections; nothing to do"
    assert lines[-2:] == [
        "  python -m jobs.verify --labels 'my out'",
        "  python -m jobs.report --labels 'my out' --output 'my out/report'",
    ]


@pytest.mark.parametrize(("allowed", "code"), [(1.0, 0), (0.2, 0), (0.19, 1), (0.0, 1)])
def test_exit_code_follows_the_share_of_failed_images(allowed: float, code: int) -> None:
    run = settings(max_failed_fraction=allowed)
    assert exit_code(run.label, summary()) == code
    assert any("more than label.max_failed_fraction" in line for line in job.summary_lines(run, summary())) == bool(
        code
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "{tmp}/absent"], "no file or folder"),
        (["--images", "{tmp}"], "no config.json in it"),
        (["--images", "{tmp}", "--label.rows_per_file", "-1"], "label.rows_per_file"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    assert job.main(["--checkpoint", str(tmp_path), "--output", str(tmp_path / "out"), *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
