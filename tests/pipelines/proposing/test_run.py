"""`jobs.propose` as a run: one row for each image, resumed and read again like the proposals of an RPN."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maskrcnn_core.errors import ConfigError, StorageError
from maskrcnn_core.records.schema import is_proposals_schema
from maskrcnn_core.region_proposals.settings import GridConfig, Method, ProposeConfig
from pipelines.cluster.config import ClusterConfig
from pipelines.cluster.connection import connect
from pipelines.labelling.config import LabelConfig
from pipelines.labels.proposals import open_proposals
from pipelines.proposing.config import ProposeRun
from pipelines.proposing.run import propose
from pipelines.verification.config import VerifyRun
from pipelines.verification.run import verify
from tests.pipelines.interruptions import Job

# Ray warns about settings of its own that it sets itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

LABEL = {"num_workers": 1, "rows_per_file": 2}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def write_images(folder: Path, number: int) -> Path:
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(number):
        blocks = random.integers(0, 256, (3 + index % 2, 4, 3), np.uint8)
        Image.fromarray(blocks.repeat(9, 0).repeat(9, 1)).save(folder / f"{index:03d}.png")
    return folder


def run_of(images: Path, output: Path, method: Method = "grid", **settings: Any) -> ProposeRun:
    return ProposeRun(
        str(images), str(output), propose=ProposeConfig(method), label=LabelConfig(**{**LABEL, **settings})
    )


def rows(output: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(file) for file in sorted((output / "labels").iterdir())).sort_by("image_id")


def require_method(method: Method) -> None:
    if method == "selective_search" and not hasattr(pytest.importorskip("cv2"), "ximgproc"):
        pytest.skip("the OpenCV that is installed is not opencv-contrib-python-headless")


def test_every_image_has_a_row_also_those_that_fail(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 4)
    (images / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0cut")
    Image.new("L", (500, 500)).save(images / "large.png")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["uri", *map(str, sorted(images.iterdir())), str(images / "gone.jpg")]) + "\n")
    summary = propose(run_of(table, tmp_path / "out", max_pixels=10_000))
    assert summary.statuses == {"ok": 4, "unreadable": 1, "missing": 1, "too_large": 1}
    assert summary.detections == 4 * 197
    found = rows(tmp_path / "out")
    assert is_proposals_schema(found.schema)
    by_name = {Path(row["uri"]).name: row for row in found.to_pylist()}
    assert [len(by_name[name]["proposals"]) for name in ("000.png", "cut.jpg", "gone.jpg")] == [197, 0, 0]
    assert by_name["large.png"]["error"]
    assert verify(VerifyRun(str(tmp_path / "out"))).passed
    assert propose(run_of(table, tmp_path / "out", max_pixels=10_000)).skipped_because_done


@pytest.mark.parametrize("method", ["sliding_windows", "selective_search"])
def test_a_run_that_lost_files_goes_on_with_equal_rows(method: Method, tmp_path: Path) -> None:
    require_method(method)
    images = write_images(tmp_path / "images", 8)
    run = run_of(images, tmp_path / "out", method)
    propose(run)
    before = rows(tmp_path / "out")
    assert before.column("status").to_pylist() == ["ok"] * 8
    files = sorted((tmp_path / "out" / "labels").iterdir())
    assert len(files) == 4
    files[1].unlink()
    files[3].unlink()
    (tmp_path / "out" / "_run" / "_SUCCESS").unlink()
    again = propose(run)
    assert (again.images, again.labelled_now) == (8, 4)
    assert rows(tmp_path / "out").equals(before)


@pytest.mark.slow
def test_a_killed_job_goes_on_with_equal_rows(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 300)
    output = tmp_path / "out"
    arguments = ["--images", str(images), "--output", str(output), "--propose.method", "sliding_windows"]
    arguments += ["--label.rows_per_file", "2", "--label.num_workers", "1"]
    job = Job("propose", arguments, tmp_path)
    while not list(output.glob("labels/*.parquet")) and job.process.poll() is None:
        time.sleep(0.01)
    assert job.process.poll() is None, job.out
    os.killpg(job.process.pid, signal.SIGKILL)
    job.process.wait()
    written = len(list(output.glob("labels/*.parquet")))
    summary = propose(run_of(images, output, "sliding_windows"))
    assert summary.images == 300
    assert 0 < summary.labelled_now <= 300 - 2 * written
    propose(run_of(images, tmp_path / "whole", "sliding_windows"))
    assert rows(output).equals(rows(tmp_path / "whole"))
    assert verify(VerifyRun(str(output))).passed


def test_proposals_are_read_by_what_trains_and_detects(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 3)
    propose(run_of(images, tmp_path / "out"))
    files = open_proposals(str(tmp_path / "out"), "proposals")
    ids = rows(tmp_path / "out").column("image_id").to_pylist()
    files.require(ids)
    read = files.read(ids[0], 16)
    assert read.boxes[0].tolist() == [0, 0, 18, 13.5]  # half of 36 x 27 pixels
    assert len(read) == 16
    assert read.scores[0] == 1


def test_other_settings_are_another_run(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 2)
    propose(run_of(images, tmp_path / "out"))
    with pytest.raises(StorageError, match=r"propose\.method was 'grid', now 'sliding_windows'"):
        propose(run_of(images, tmp_path / "out", "sliding_windows"))
    other = ProposeConfig("grid", grid=GridConfig((3,), (0.5,)))
    with pytest.raises(StorageError, match=r"propose\.grid\.cells was \[2, 5, 10\], now \[3\]"):
        propose(ProposeRun(str(images), str(tmp_path / "out"), propose=other))


def test_what_is_missing_is_said_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_images(tmp_path / "images", 2)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigError, match="selective_search needs the contrib parts of OpenCV"):
        propose(run_of(images, tmp_path / "out", "selective_search"))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def cluster() -> Iterator[None]:
    with connect(ClusterConfig(num_cpus=4)):
        yield


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_ray_writes_the_same_rows(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 6)
    summary = propose(run_of(images, tmp_path / "ray", "sliding_windows", num_workers=0))
    assert summary.statuses == {"ok": 6}
    alone = ProposeRun(
        str(images),
        str(tmp_path / "alone"),
        propose=ProposeConfig("sliding_windows"),
        label=LabelConfig(num_workers=1, rows_per_file=2),
        cluster=ClusterConfig(ray=False),
    )
    propose(alone)
    assert rows(tmp_path / "ray").equals(rows(tmp_path / "alone"))
