"""A whole run passes; each way to spoil it is found, in one process and by Ray tasks alike."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from maskrcnn_core.errors import StorageError
from pipelines import storage
from pipelines.cluster.config import ClusterConfig
from pipelines.cluster.connection import connect
from pipelines.verification import run as verification
from pipelines.verification.config import VerifyRun
from pipelines.verification.run import VerificationSummary, verify
from tests.generated_labels import MODEL, failed_record, random_record, write_run

RECORDS = [random_record(seed) for seed in range(22)] + [failed_record(), failed_record("missing")]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """24 images in 5 files, two of them failed."""
    write_run(tmp_path / "run", RECORDS)
    return tmp_path / "run"


def label_file(run: Path, number: int = 1) -> Path:
    return run / "labels" / f"labels-{number:03d}.parquet"


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def delete_files(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def offences(summary: VerificationSummary) -> dict[str, int]:
    return dict(summary.findings.counts)


@pytest.mark.parametrize("manifest_parts", [0, 1, 4])
def test_a_whole_run_passes(tmp_path: Path, manifest_parts: int) -> None:
    rows = write_run(tmp_path / "run", RECORDS, manifest_parts=manifest_parts)
    for uri in (tmp_path / "run", tmp_path / "run" / "labels"):
        summary = verify(VerifyRun(str(uri), output=str(tmp_path / "found.json")))
        assert summary.passed
        assert (summary.images, summary.rows, summary.files) == (24, 24, 5)
        assert summary.counts.statuses == {"missing": 1, "ok": 22, "unreadable": 1}
        assert summary.counts.masks == sum(len(row["detections"]) for row in rows)
        assert summary.models == (MODEL,)
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["passed"] is True
    assert written["offences"] == {}


SPOILED: dict[str, tuple[Callable[[Path], object], dict[str, int]]] = {
    "a file is gone": (lambda run: label_file(run).unlink(), {"missing": 5, "counts": 1}),
    "a row is gone": (lambda run: rewrite(label_file(run), lambda t: t.slice(1)), {"missing": 1, "counts": 1}),
    "a file is there twice": (
        lambda run: (run / "labels" / "copy.parquet").write_bytes(label_file(run).read_bytes()),
        {"repeated": 5, "counts": 1},
    ),
    "a row is there twice": (
        lambda run: rewrite(label_file(run), lambda t: pa.concat_tables([t, t.slice(2, 1)])),
        {"repeated": 1, "counts": 1},
    ),
    "a file is torn": (
        lambda run: label_file(run).write_bytes(label_file(run).read_bytes()[:-100]),
        {"unreadable file": 1, "missing": 5, "counts": 1},
    ),
    "a file is empty": (
        lambda run: label_file(run).write_bytes(b""),
        {"unreadable file": 1, "missing": 5, "counts": 1},
    ),
    "a file of another model": (
        lambda run: rewrite(label_file(run), lambda t: t.set_column(7, t.field(7), [["other"] * 5])),
        {"model": 5, "models": 1},
    ),
    "a file of another schema version": (
        lambda run: rewrite(
            label_file(run), lambda t: t.replace_schema_metadata({**t.schema.metadata, b"maskrcnn.schema_version": "0"})
        ),
        {"schema version": 1, "missing": 5, "counts": 1},
    ),
    "a file without a column": (
        lambda run: rewrite(label_file(run), lambda t: t.drop_columns("error")),
        {"schema": 1, "missing": 5, "counts": 1},
    ),
    "a file with another category table": (
        lambda run: rewrite(
            label_file(run),
            lambda t: t.replace_schema_metadata(
                {**t.schema.metadata, b"maskrcnn.categories": b'[{"id":1,"name":"person"}]'}
            ),
        ),
        {"category tables": 1, "category": 9},
    ),
    "it isn't finished": (lambda run: (run / "_run" / "_SUCCESS").unlink(), {"unfinished": 1}),
    "no labels at all": (
        lambda run: delete_files(run / "labels"),
        {"missing": 24, "counts": 1},
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_what_is_spoiled_is_found(run: Path, name: str) -> None:
    spoil, expected = SPOILED[name]
    spoil(run)
    summary = verify(VerifyRun(str(run)))
    assert offences(summary) == expected
    assert not summary.passed
    culprits = {Path(offence.file).name for offence in summary.findings.first if offence.file}
    assert culprits <= {"labels-001.parquet", "copy.parquet"}


def test_a_broken_row_names_its_file(run: Path) -> None:
    def spoil(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        next(row for row in rows if row["detections"])["detections"][0]["segmentation"]["counts"] = "0T"
        return pa.Table.from_pylist(rows, schema=table.schema)

    rewrite(label_file(run, 2), spoil)
    summary = verify(VerifyRun(str(run)))
    assert offences(summary) == {"mask": 1}
    assert summary.findings.first[0].file.endswith("labels-002.parquet")
    assert "ends within a number" in summary.findings.first[0].got


def test_an_empty_run_of_no_images_passes(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [])
    summary = verify(VerifyRun(str(tmp_path / "run")))
    assert summary.passed
    assert summary.rows == 0


def test_what_is_no_run_is_the_users_mistake(run: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such folder"):
        verify(VerifyRun(str(tmp_path / "none")))
    with pytest.raises(StorageError, match="no _run/manifest"):
        verify(VerifyRun(str(tmp_path)))
    with pytest.raises(StorageError, match="is a folder"):
        verify(VerifyRun(str(run), output=str(tmp_path)))


@pytest.mark.slow
def test_a_run_on_s3(run: Path, s3_folder: str) -> None:
    for path in run.rglob("*"):
        if path.is_file():
            storage.write_bytes_atomically(
                storage.join(s3_folder, "run", str(path.relative_to(run))), path.read_bytes()
            )
    output = storage.join(s3_folder, "found.json")
    assert verify(VerifyRun(storage.join(s3_folder, "run"), output=output)).passed
    assert json.loads(storage.read_bytes(output))["rows"] == 24


# ---- with Ray --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connect(ClusterConfig(num_cpus=4)):
        yield
    assert not ray.is_initialized()


@pytest.mark.ray
@pytest.mark.parametrize("ids_per_bucket", [100, 7])
def test_ray_tasks_find_the_same(
    tmp_path: Path, cluster: None, monkeypatch: pytest.MonkeyPatch, ids_per_bucket: int
) -> None:
    write_run(tmp_path / "run", RECORDS, manifest_parts=3)
    label_file(tmp_path / "run", 0).unlink()
    (tmp_path / "run" / "labels" / "copy.parquet").write_bytes(label_file(tmp_path / "run", 2).read_bytes())
    label_file(tmp_path / "run", 3).write_bytes(b"torn")
    here = verify(VerifyRun(str(tmp_path / "run")))
    monkeypatch.setattr(verification, "_INLINE_ROWS", 0)
    monkeypatch.setattr(verification, "_LEAST_ROWS_PER_TASK", 8)
    monkeypatch.setattr(verification, "_IDS_PER_BUCKET", ids_per_bucket)
    spread = verify(VerifyRun(str(tmp_path / "run")))
    assert offences(spread) == offences(here) == {"missing": 10, "repeated": 5, "unreadable file": 1, "counts": 1}
    assert (spread.counts, spread.models, spread.images) == (here.counts, here.models, here.images)


@pytest.mark.ray
def test_a_mistake_inside_a_task_is_one_line_too(run: Path, cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "_INLINE_ROWS", 0)
    rewrite(run / "_run" / "manifest.parquet", lambda table: table.rename_columns(["id", "uri"]))
    with pytest.raises(StorageError, match="the run's manifest"):
        verify(VerifyRun(str(run)))
