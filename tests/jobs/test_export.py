import json
from pathlib import Path

import pytest

from jobs.export import main
from tests.generated_labels import failed_record, random_record, write_run


def test_it_says_what_was_written_and_how_to_use_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write_run(tmp_path / "run", [random_record(seed) for seed in range(6)] + [failed_record()])
    output = str(tmp_path / "tasks.json")
    arguments = ["--labels", str(tmp_path / "run"), "--format", "label_studio", "--output", output]
    assert main([*arguments, "--export.polygons", "true"]) == 0
    objects = sum(len(row["detections"]) for row in rows)
    assert capsys.readouterr().out.splitlines() == [
        f"exported: 6 images, {objects} objects",
        "left out: 1 images that failed",
        f"written: {output}",
        f"written: {output}.interface.xml",
        f"use: paste {output}.interface.xml as the labelling interface, then import {output}",
    ]
    assert len(json.loads(Path(output).read_text("utf-8"))) == 6


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (["--format", "voc"], "format: got voc, expected one of coco, coco_dataset, yolo"),
        (["--labels", "{run}/none"], "none: no such file or folder; expected labels written by python -m jobs.label"),
        (["--output", "{run}/labels"], "exists already; choose another name, or delete it first"),
        (["--output", "{run}/labels/labels-000.parquet/out.json"], "cannot be written"),
        (["--export.min_score", "2"], "export.min_score: got 2.0, expected a number from 0 to 1"),
        (["--export.categories", '["cat"]'], "export.categories: 'cat' is no category of the labels"),
    ],
)
def test_a_mistake_is_one_line(
    change: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "run", [random_record(0)])
    arguments = ["--labels", "{run}", "--format", "coco", "--output", "{run}/out.json", *change]
    assert main([argument.format(run=tmp_path / "run") for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert expected in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run" / "out.json").exists()
