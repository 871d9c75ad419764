"""Whole labelling runs with a detector that needs no weights, on a Ray cluster and in processes of this machine."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from maskrcnn_core.errors import CheckpointError, ConfigError, StorageError, UserError
from maskrcnn_core.records.labels import schema_categories
from pipelines.cluster.config import ClusterConfig
from pipelines.cluster.connection import connect
from pipelines.labelling.config import LabelConfig, LabelRun
from pipelines.labelling.progress import LabelProgress
from pipelines.labelling.run import LabelSummary, label
from tests.pipelines.fake_detector import CATEGORIES, FAKE, write_images

# Ray warns about settings of its own that it sets itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def run_of(tmp_path: Path, images: Path | str, checkpoint: str = "good", **settings: Any) -> LabelRun:
    return LabelRun(checkpoint, str(images), str(tmp_path / "out"), label=LabelConfig(**settings))


def run_label(run: LabelRun, seen: list[LabelProgress] | None = None) -> LabelSummary:
    return label(run, None if seen is None else seen.append, detector=FAKE)


def rows_of(summary: LabelSummary) -> list[dict]:
    files = sorted(Path(summary.labels).glob("*.parquet"))
    return sorted(pa.concat_tables([pq.read_table(file) for file in files]).to_pylist(), key=lambda row: row["uri"])


@pytest.fixture(scope="module", params=[pytest.param("ray", marks=pytest.mark.ray), "processes"])
def cluster(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each test on a Ray cluster, and in processes of this machine."""
    if request.param == "ray":
        with connect(ClusterConfig(num_cpus=4)):
            yield "ray"
    else:
        yield "processes"
    assert not ray.is_initialized()


def spoil(folder: Path) -> dict[str, str]:
    """Ten broken image files; name -> expected status."""
    good = io.BytesIO()
    Image.new("RGB", (32, 32), (9, 99, 199)).save(good, "PNG")
    content = good.getvalue()
    bad = {
        "empty.png": b"",
        "text.jpg": b"not an image",
        "truncated.png": content[: len(content) // 2],
        "header_only.png": content[:8],
        "zeros.jpg": bytes(500),
        "html.png": b"<html>404</html>",
        "wrong_magic.png": b"\0" + content[1:],
    }
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    Image.new("L", (200, 200)).save(folder / "too_large.png")
    (folder / "dangling.jpg").symlink_to(folder / "nowhere.jpg")
    Image.new("RGB", (13, 8)).save(folder / "poison.png")
    return dict.fromkeys(bad, "unreadable") | {
        "too_large.png": "too_large",
        "dangling.jpg": "missing",
        "poison.png": "failed",
    }


@pytest.mark.usefixtures("cluster")
def test_ten_bad_files_cost_no_good_one_and_a_second_call_does_nothing(tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_images(images, 30)
    expected = spoil(images)
    # A folder listing leaves out links that lead nowhere; a manifest names what it likes.
    manifest = tmp_path / "manifest.parquet"
    names = sorted(path.name for path in images.iterdir())
    pq.write_table(pa.table({"uri": [str(images / name) for name in names]}), manifest)
    run = run_of(tmp_path, manifest, "poisoned", max_pixels=10_000, rows_per_file=16)
    seen: list[LabelProgress] = []
    summary = run_label(run, seen)
    rows = rows_of(summary)
    assert [row["uri"] for row in rows] == [str(images / name) for name in names]
    assert {Path(row["uri"]).name: row["status"] for row in rows if row["status"] != "ok"} == expected
    assert all((row["error"] is None) == (row["status"] == "ok") for row in rows)
    assert (summary.images, summary.labelled_now, summary.failed, summary.detections) == (40, 40, 10, 30)
    assert summary.statuses == {"ok": 30, "unreadable": 7, "too_large": 1, "missing": 1, "failed": 1}
    assert len(summary.failures) == 10
    assert summary.images_per_second > 0
    assert all(progress.images == 40 and progress.done <= 40 for progress in seen)
    for file in Path(summary.labels).glob("*.parquet"):
        assert schema_categories(pq.read_schema(file)) == CATEGORIES
        assert pq.read_metadata(file).num_rows <= 16
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["_run", "labels"]

    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    again = run_label(run)
    assert again.skipped_because_done
    assert (again.images, again.labelled_now, again.statuses) == (40, 0, summary.statuses)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == written

    with pytest.raises(StorageError, match=r"min_score was None, now 0\.9"):
        run_label(run_of(tmp_path, manifest, "poisoned", max_pixels=10_000, min_score=0.9))
    with pytest.raises(StorageError, match="holds another run"):
        run_label(run_of(tmp_path, manifest, "good", max_pixels=10_000))
    write_images(tmp_path / "more", 1)
    with pytest.raises(StorageError, match=r"images was '.*manifest.parquet', now '.*more'"):
        run_label(run_of(tmp_path, tmp_path / "more", "poisoned", max_pixels=10_000))


@pytest.mark.usefixtures("cluster")
def test_an_interrupted_run_is_continued_where_it_was(tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_images(images, 40)
    run = run_of(tmp_path, images, "slow", rows_per_file=8)

    def stop(progress: LabelProgress) -> None:
        if progress.done >= 24:
            raise InterruptedError("as Ctrl-C would")

    complete = run_label(LabelRun("slow", str(images), str(tmp_path / "reference")))
    with pytest.raises(InterruptedError):
        label(run, stop, detector=FAKE)
    # What an interruption leaves: some whole files, no mark of success, and possibly a temporary file.
    files = sorted((tmp_path / "out" / "labels").glob("*.parquet"))
    files[0].unlink()
    (tmp_path / "out" / "labels" / ".labels-torn.parquet.tmp").write_bytes(b"PAR1 torn")
    summary = run_label(run)
    assert summary.images == 40
    assert 8 <= summary.labelled_now < 40
    assert rows_of(summary) == [{**row, "model": summary_model(summary)} for row in rows_of(complete)]


def summary_model(summary: LabelSummary) -> str:
    return rows_of(summary)[0]["model"]


@pytest.mark.usefixtures("cluster")
def test_an_image_that_kills_the_process_becomes_a_row(tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_images(images, 9)
    Image.new("RGB", (13, 8)).save(images / "004.png")
    summary = run_label(run_of(tmp_path, images, "deadly"))
    assert [row["status"] for row in rows_of(summary)] == ["ok"] * 4 + ["failed"] + ["ok"] * 4
    assert "ended the detector's process" in summary.failures[0].error


@pytest.mark.usefixtures("cluster")
def test_an_image_that_takes_too_long_becomes_a_row(tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_images(images, 4)
    Image.new("RGB", (13, 8)).save(images / "002.png")
    summary = run_label(run_of(tmp_path, images, "hangs", image_timeout=0.5))
    assert [row["status"] for row in rows_of(summary)] == ["ok", "ok", "failed", "ok"]
    assert "took longer than 0.5 s (label.image_timeout)" in summary.failures[0].error


@pytest.mark.usefixtures("cluster")
def test_a_run_in_which_nothing_is_finished_ends_with_one_line(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (13, 8)).save(images / "000.png")
    with pytest.raises(UserError, match=r"label\.stalled_minutes: no label file was finished for 0\.05 minutes"):
        run_label(run_of(tmp_path, images, "hangs", stalled_minutes=0.05))


@pytest.mark.usefixtures("cluster")
def test_a_process_killed_between_writing_and_committing_a_file_costs_nothing(tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_images(images, 40)
    clean = run_label(LabelRun("good", str(images), str(tmp_path / "clean")))
    run = run_of(tmp_path, images, str(tmp_path / "dies_committing"), rows_per_file=4)
    summary = run_label(run)
    deaths = len(list((tmp_path / "deaths").iterdir()))
    assert deaths > 0
    assert rows_of(summary) == [{**row, "model": summary_model(summary)} for row in rows_of(clean)]
    assert not list((tmp_path / "out" / "labels").glob(".*"))  # what the dead left half-written
    assert run_label(run).skipped_because_done


@pytest.mark.usefixtures("cluster")
def test_failed_images_are_labelled_again_when_asked_for(tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_images(images, 12)
    names = [str(images / f"{index:03d}.png") for index in range(12)]
    pq.write_table(pa.table({"uri": names}), tmp_path / "list.parquet")
    good = (images / "005.png").read_bytes()
    (images / "005.png").write_bytes(b"broken")
    (images / "007.png").unlink()
    run = run_of(tmp_path, tmp_path / "list.parquet", rows_per_file=4)
    first = run_label(run)
    assert first.statuses == {"ok": 10, "unreadable": 1, "missing": 1}
    assert run_label(run).skipped_because_done
    (images / "005.png").write_bytes(good)
    again = run_label(replace(run, label=replace(run.label, retry_failed=True)))
    assert (again.images, again.statuses, again.labelled_now) == (12, {"ok": 11, "missing": 1}, 2)
    rows = rows_of(again)
    assert [row["uri"] for row in rows] == names
    assert [row for row in rows if row["uri"] != names[5]] == [row for row in rows_of(again) if row["uri"] != names[5]]
    assert run_label(run).skipped_because_done


@pytest.mark.usefixtures("cluster")
def test_a_source_that_changes_during_a_run_is_noticed(tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_images(images, 12)
    run = run_of(tmp_path, images, rows_per_file=4)
    run_label(run)
    (tmp_path / "out" / "_run" / "_SUCCESS").unlink()
    next((tmp_path / "out" / "labels").iterdir()).unlink()
    write_images(images, 13)
    with pytest.raises(StorageError, match=r"has changed since .* --label.changed_source keep"):
        run_label(run)
    kept = run_label(replace(run, label=replace(run.label, changed_source="keep")))
    assert kept.images == 12


@pytest.mark.usefixtures("cluster")
def test_two_hundred_images_of_which_forty_are_broken_in_ten_ways(tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_images(images, 160)
    clean = run_label(LabelRun("poisoned", str(images), str(tmp_path / "clean"), label=LabelConfig(max_pixels=10_000)))
    expected: dict[str, str] = {}
    for number in range(4):
        (images / str(number)).mkdir()
        spoilt = spoil(images / str(number))
        expected |= {f"{number}/{name}": status for name, status in spoilt.items()}
    assert len(expected) == 40
    names = sorted([*(f"{index:03d}.png" for index in range(160)), *expected])
    pq.write_table(pa.table({"uri": [str(images / name) for name in names]}), tmp_path / "list.parquet")
    rows = rows_of(run_label(run_of(tmp_path, tmp_path / "list.parquet", "poisoned", max_pixels=10_000)))
    assert len(rows) == 200
    good = [row for row in rows if row["status"] == "ok"]
    assert good == rows_of(clean)
    found = {row["uri"].removeprefix(f"{images}/"): row["status"] for row in rows if row["status"] != "ok"}
    assert found == expected


@pytest.mark.usefixtures("cluster")
def test_labels_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_images(images, 20)
    one = run_label(LabelRun("good", str(images), str(tmp_path / "one")))
    settings = LabelConfig(num_workers=2, rows_per_file=3)
    two = run_label(LabelRun("good", str(images), str(tmp_path / "two"), label=settings))
    assert rows_of(one) == rows_of(two)


@pytest.mark.usefixtures("cluster")
def test_a_broken_detector_ends_the_run_with_its_own_error(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 20)
    with pytest.raises(Exception, match="nothing works at all"):
        run_label(run_of(tmp_path, tmp_path / "images", "broken"))
    assert not list((tmp_path / "out").rglob("_SUCCESS"))


@pytest.mark.parametrize("checkpoint", ["no_such"])
def test_mistakes_come_before_any_work(tmp_path: Path, checkpoint: str) -> None:
    write_images(tmp_path / "images", 1)
    with pytest.raises(CheckpointError):
        run_label(run_of(tmp_path, tmp_path / "images", checkpoint))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(StorageError, match="no images in"):
        run_label(run_of(tmp_path, tmp_path / "nothing"))
    assert not (tmp_path / "out").exists()


def test_labels_of_unknown_origin_are_left_alone(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 1)
    (tmp_path / "out" / "labels").mkdir(parents=True)
    pq.write_table(pa.table({"mine": [1]}), tmp_path / "out" / "labels" / "mine.parquet")
    with pytest.raises(StorageError, match="unknown origin"):
        run_label(run_of(tmp_path, tmp_path / "images"))
    assert json.dumps(pq.read_table(tmp_path / "out" / "labels" / "mine.parquet").to_pylist()) == '[{"mine": 1}]'


def test_an_address_where_no_cluster_is_gets_one_line_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # the cluster of this module's tests may still run
    with (
        pytest.raises(ConfigError, match=r"cluster\.address: cannot join .*Connection refused"),
        connect(ClusterConfig(address="127.0.0.1:1")),
    ):
        pass
