import json
from pathlib import Path

import pytest

from jobs.verify import main
from tests.generated_labels import MODEL, failed_record, random_record, write_run


def test_a_whole_run_is_three_lines_and_code_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write_run(tmp_path / "run", [random_record(seed) for seed in range(6)] + [failed_record()])
    assert main(["--labels", str(tmp_path / "run")]) == 0
    objects = sum(len(row["detections"]) for row in rows)
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/run: 7 rows (6 ok, 1 unreadable) in 2 files, 7 images in the manifest",
        f"{objects} detections, {objects} masks; model {MODEL}",
        "2 of the files hold no SHA-256 (an earlier release, or another program, wrote them): their rows are "
        "checked, but changed values in them would not show",
        "verified: one row for each image, every row well-formed, one model",
    ]


def test_offenders_are_listed_and_the_code_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", [random_record(seed) for seed in range(7)])
    (tmp_path / "run" / "labels" / "labels-001.parquet").unlink()
    assert main(["--labels", str(tmp_path / "run"), "--output", str(tmp_path / "found.json")]) == 1
    shown = capsys.readouterr().out
    assert "NOT verified: 3 offences" in shown
    assert "  missing: 2\n    image 105: no row; expected one row for each image\n" in shown
    assert json.loads((tmp_path / "found.json").read_text())["offences"] == {"missing": 2, "counts": 1}


def test_a_wrong_folder_is_one_line_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--labels", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: labels: ")
    assert err.count("\n") == 1
