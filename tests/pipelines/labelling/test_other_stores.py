"""Labelling of images in Google Cloud Storage and Azure, from their list to proven rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskrcnn_core.errors import StorageError
from pipelines import storage
from pipelines.labelling.config import LabelRun
from pipelines.labelling.run import LabelSummary, label
from pipelines.storage.config import StorageConfig
from pipelines.verification.config import VerifyRun
from pipelines.verification.run import verify
from tests.fuzz.labelling_here import _without_cluster
from tests.pipelines.fake_detector import FAKE, write_images
from tests.pipelines.object_server import ObjectServer

Run = Callable[..., LabelSummary]


@pytest.fixture
def run(object_store: ObjectServer, tmp_path: Path) -> Any:
    """Label a source; the server has ten images below `/bucket/set/x`."""
    write_images(tmp_path / "pictures", 10)
    for picture in sorted((tmp_path / "pictures").iterdir()):
        object_store.objects[f"/bucket/set/x/{picture.name}"] = picture.read_bytes()
    patient = StorageConfig(max_attempts=3)

    def run(images: str) -> LabelSummary:
        return label(LabelRun("good", images, str(tmp_path / "output"), storage=patient), detector=FAKE)

    with _without_cluster():
        yield run


def rows_of(summary: LabelSummary) -> list[dict[str, Any]]:
    files = storage.list_files(summary.labels, ".parquet")
    return sorted(pa.concat_tables([pq.read_table(file) for file in files]).to_pylist(), key=lambda row: row["uri"])


def test_a_prefix_to_labels(object_store: ObjectServer, run: Run, tmp_path: Path) -> None:
    object_store.faults = ["", "", "503 SlowDown", "cut", "500 InternalError"]  # after both listings
    summary = run("gs://bucket/set")
    assert summary.statuses == {"ok": 10}
    assert [row["uri"] for row in rows_of(summary)] == [f"gs://bucket/set/x/{number:03d}.png" for number in range(10)]
    assert verify(VerifyRun(labels=str(tmp_path / "output"))).passed
    before = len(object_store.requests)
    assert run("gs://bucket/set").skipped_because_done
    assert len(object_store.requests) <= before + 2  # whether the prefix is still there


def test_a_table_of_images_in_all_stores(object_store: ObjectServer, run: Run, tmp_path: Path) -> None:
    schemes = ("gs", "az", "abfs", "s3")
    uris = [f"{scheme}://bucket/set/x/00{number}.png" for scheme in schemes for number in range(2)]
    uris += ["gs://bucket/set/none.png", "az://bucket/a//b.png", str(tmp_path / "pictures" / "000.png")]
    (tmp_path / "list.csv").write_text("\n".join(["uri", *uris]))
    summary = run(str(tmp_path / "list.csv"))
    assert summary.statuses == {"ok": 9, "missing": 1, "unreadable": 1}
    assert [row["uri"] for row in rows_of(summary)] == sorted(uris)


@pytest.mark.parametrize("images", ["gs://bucket/set", "gs://bucket/set/x/000.png"])
def test_credentials_that_are_not_accepted_end_the_run_in_one_line(
    object_store: ObjectServer, run: Run, images: str
) -> None:
    object_store.always = "401 AuthenticationRequired"
    with pytest.raises(StorageError, match="no Google credentials that are accepted") as raised:
        run(images)
    assert "\n" not in str(raised.value)
