"""Numbers are shown before they are written, and a place that cannot be written is found before the work."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import pipelines.evaluation.run
from jobs import evaluate, export, report
from maskrcnn_core.errors import StorageError
from pipelines.storage.writable import require_writable, require_writable_folder
from tests.core.evaluation.synthetic import annotation, annotation_file, detection, found, label_table, random_problem


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    annotations, labels = random_problem(1)
    pq.write_table(labels, tmp_path / "labels.parquet")
    (tmp_path / "val.json").write_text(json.dumps(annotations))
    return ["--labels", str(tmp_path / "labels.parquet"), "--annotations", str(tmp_path / "val.json")]


@pytest.mark.parametrize(
    "place", ["/proc/x.json", "/proc/a/b/x.json", "{folder}/val.json/x.json", "{folder}", "{folder}/" + "x" * 300]
)
def test_a_place_that_cannot_be_written_costs_no_work(
    place: str,
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipelines.evaluation.run, "read_inputs", lambda *_: pytest.fail("has begun to work"))
    output = place.format(folder=tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert evaluate.main([*arguments, "--output", output]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: output: ")
    assert "cannot be written" in err or "is a folder; expected the name of a file" in err
    assert "no such file" not in err.lower().replace("no such file or directory", "")
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_numbers_are_there_though_the_file_is_not(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(uri: str, content: bytes) -> None:
        raise StorageError(f"{uri}: cannot be written: No space left on device; choose another place")

    monkeypatch.setattr("pipelines.storage.write_bytes_atomically", full)
    assert evaluate.main([*arguments, "--output", str(tmp_path / "scores.json")]) == 2
    out, err = capsys.readouterr()
    assert "COCO scores" in out
    assert "AP per category" in out
    assert err.splitlines() == [
        f"error: {tmp_path}/scores.json: cannot be written: No space left on device; choose another place"
    ]


def test_other_jobs_say_that_a_place_cannot_be_written(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    labels = arguments[:2]
    assert report.main([*labels, "--output", "/proc/x"]) == 2
    assert export.main([*labels, "--format", "coco", "--output", "/proc/x.json"]) == 2
    assert evaluate.main([*arguments, "--report", "/proc/x"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("cannot be written: /proc takes no new files") == err.count("\n") == 3


def test_asking_leaves_nothing(tmp_path: Path) -> None:
    require_writable(str(tmp_path / "a" / "b" / "c.json"))
    require_writable_folder(str(tmp_path / "a" / "b"))
    require_writable_folder(str(tmp_path))
    assert not list(tmp_path.iterdir())
    with pytest.raises(StorageError, match="holds a NUL"):
        require_writable(f"{tmp_path}/a\0b")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="is a file; expected the name of a folder"):
        require_writable_folder(str(tmp_path / "file"))


NAMES = ["[/red]", "[link=http://x]y[/link]", "a\x1b[2Jb", ":smile:", "a\nb", "\ud800"]


def test_names_are_shown_as_they_are_and_obeyed_by_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations = annotation_file([annotation(n, 1, n, [10, 10, 20, 20]) for n in range(1, len(NAMES) + 1)], [1])
    annotations["categories"] = [{"id": n, "name": name} for n, name in enumerate(NAMES[:-1], 1)]
    annotations["categories"].append({"id": len(NAMES), "name": "cat"})
    (tmp_path / "val.json").write_text(json.dumps(annotations))
    rows = label_table({1: found(detection(2, 0.9, [10, 10, 20, 20]))})
    pq.write_table(rows.replace_schema_metadata(None), tmp_path / "labels.parquet")
    command = ["--labels", str(tmp_path / "labels.parquet"), "--annotations", str(tmp_path / "val.json")]
    assert evaluate.main(command) == 0
    shown = capsys.readouterr().out
    for name in ("[/red]", "[link=http://x]y[/link]", r"a\x1b[2Jb", ":smile:", r"a\nb"):
        assert f" {name} " in shown
    assert "\x1b" not in shown
