"""`--label.record proposals` and `--proposals`, with a predictor that needs no weights."""

import io
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch import Tensor

from maskrcnn_core.config.model import Category
from maskrcnn_core.data.proposals import ImageProposals
from maskrcnn_core.errors import ImageError, StorageError
from maskrcnn_core.inference.preparation import Request
from maskrcnn_core.inference.settings import PredictorSettings, combined_fingerprint
from maskrcnn_core.records.detections import DetectionRecord
from maskrcnn_core.records.labels import ImageRecord
from maskrcnn_core.records.proposals import ProposalRecord, failed_proposals
from maskrcnn_core.records.schema import ROWS_PER_GROUP, is_proposals_schema
from pipelines import storage
from pipelines.cluster.config import ClusterConfig
from pipelines.cluster.connection import connect
from pipelines.labelling.config import LabelConfig, LabelRun
from pipelines.labelling.detector import Detector
from pipelines.labelling.progress import ProgressBoard
from pipelines.labelling.run import LabelSummary, label
from pipelines.labelling.worker import LabelWorker
from pipelines.labelling.worker_settings import WorkerSettings
from pipelines.labels.proposals import open_proposals

# Ray warns about settings of its own that it sets itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CATEGORIES = (Category(1, "thing"),)
LIMIT = 3


class FakePredictor:
    """Proposes width - 8 boxes of an image; detects each proposal that it is given as a thing."""

    max_proposals = LIMIT
    categories = CATEGORIES
    idle_since = 0.0

    def __init__(self, checkpoint: str, settings: PredictorSettings) -> None:
        self.fingerprint = combined_fingerprint(checkpoint, settings)

    def propose_each(self, requests: Iterable[Request | None]) -> Generator[list[tuple[int, ProposalRecord]]]:
        for request in filter(None, requests):
            yield [(request.key, self._propose_one(request.content))]

    def _propose_one(self, image: bytes | Tensor | ImageError) -> ProposalRecord:
        if isinstance(image, ImageError):
            return failed_proposals(image.status, str(image))
        assert isinstance(image, bytes)
        opened = Image.open(io.BytesIO(image))
        if opened.width == 13:
            return failed_proposals("failed", "ValueError: cannot digest 13", opened.width, opened.height)
        boxes = np.array([[i, 1, 2, 2] for i in range(opened.width - 8)], np.float32).reshape(-1, 4)
        scores = np.linspace(0.9, 0.5, len(boxes), dtype=np.float32)
        return ProposalRecord("ok", None, opened.width, opened.height, boxes, scores)

    def predict_each(self, requests: Iterable[Request | None]) -> Generator[list[tuple[int, ImageRecord]]]:
        for request in filter(None, requests):
            assert request.proposals is not None
            yield [(request.key, self._detect_one(request.content, request.proposals))]

    def _detect_one(self, image: bytes | Tensor | ImageError, found: ImageProposals | ImageError) -> ImageRecord:
        if isinstance(image, ImageError):
            return ImageRecord(image.status, str(image), None, None)
        if isinstance(found, ImageError):
            return ImageRecord(found.status, str(found), None, None)
        objects = tuple(
            DetectionRecord(1, "thing", score, (x1, y1, x2 - x1, y2 - y1))
            for (x1, y1, x2, y2), score in zip(found.boxes.tolist(), found.scores.tolist(), strict=True)
        )
        return ImageRecord("ok", None, found.size[1], found.size[0], objects)


def load_fake(checkpoint: str, settings: PredictorSettings) -> FakePredictor:
    return FakePredictor(checkpoint, settings)


def describe_fake(checkpoint: str, settings: PredictorSettings) -> tuple[str, tuple[Category, ...]]:
    return combined_fingerprint(checkpoint, settings), CATEGORIES


FAKE = Detector(load_fake, describe_fake)


def write_images(folder: Path, widths: Sequence[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, width in enumerate(widths):
        Image.new("RGB", (width, 10)).save(folder / f"{index:03d}.png")


def as_rows(folder: Path) -> pa.Table:
    uris = [str(path) for path in sorted(folder.iterdir())]
    return pa.table({"image_id": list(range(len(uris))), "uri": uris})


def worker(settings: PredictorSettings, proposals: str = "") -> LabelWorker:
    given = WorkerSettings("good", settings, proposals=proposals, threads=1, group_size=2)
    return LabelWorker(load_fake, given, ProgressBoard())


def test_worker_makes_proposals_and_detects_from_them(tmp_path: Path) -> None:
    write_images(tmp_path / "images", [8, 10, 9, 14, 11])
    (tmp_path / "images" / "005.png").symlink_to("nowhere.png")
    rows = as_rows(tmp_path / "images")
    table = worker(PredictorSettings(record="proposals")).label(rows)
    assert is_proposals_schema(table.schema)
    assert [len(found) for found in table.column("proposals").to_pylist()] == [0, 2, 1, 6, 3, 0]
    assert table.column("status").to_pylist() == ["ok"] * 5 + ["missing"]
    pq.write_table(table, tmp_path / "proposals.parquet")

    detects = worker(PredictorSettings(proposals="print"), str(tmp_path / "proposals.parquet"))
    detected = detects.label(rows).to_pylist()
    assert [len(row["detections"]) for row in detected] == [0, 2, 1, LIMIT, 3, 0]
    assert detected[1]["detections"][1]["bbox"] == [1.0, 1.0, 2.0, 2.0]
    assert [row["width"] for row in detected] == [8, 10, 9, 14, 11, None]
    assert detected[5]["status"] == "missing"


def test_an_image_that_fails_costs_no_other_one(tmp_path: Path) -> None:
    write_images(tmp_path / "images", [9, 13, 10])
    rows = worker(PredictorSettings(record="proposals")).label(as_rows(tmp_path / "images")).to_pylist()
    assert [(row["status"], len(row["proposals"])) for row in rows] == [("ok", 1), ("failed", 0), ("ok", 2)]
    assert rows[1]["error"] == "ValueError: cannot digest 13"


def test_an_image_without_proposals_fails_alone(tmp_path: Path) -> None:
    write_images(tmp_path / "images", [9, 10, 11])
    rows = as_rows(tmp_path / "images")
    table = worker(PredictorSettings(record="proposals")).label(rows.slice(0, 2))
    pq.write_table(table, tmp_path / "proposals.parquet")
    detects = worker(PredictorSettings(proposals="print"), str(tmp_path / "proposals.parquet"))
    found = detects.label(rows).to_pylist()
    assert [row["status"] for row in found] == ["ok", "ok", "failed"]
    assert "no row of this image" in found[2]["error"]


def test_an_empty_batch_has_the_same_schema(tmp_path: Path) -> None:
    write_images(tmp_path / "images", [9])
    rows, proposer = as_rows(tmp_path / "images"), worker(PredictorSettings(record="proposals"))
    assert proposer.label(rows.slice(0, 0)).schema == proposer.label(rows).schema


# ---- with Ray --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connect(ClusterConfig(num_cpus=4)):
        yield


def run_label(images: Path, output: Path, proposals: Path | None = None, **settings: Any) -> LabelSummary:
    run = LabelRun(
        "good",
        str(images),
        str(output),
        proposals=None if proposals is None else str(proposals),
        label=LabelConfig(**settings),
    )
    return label(run, detector=FAKE)


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_proposals_are_written_continued_and_read_again(tmp_path: Path) -> None:
    images, first = tmp_path / "images", tmp_path / "first"
    widths = [8 + number % 6 if number % 6 != 5 else 8 for number in range(40)]
    write_images(images, widths)
    summary = run_label(images, first, record="proposals", rows_per_file=20)
    assert (summary.images, summary.failed, summary.detections) == (40, 0, sum(widths) - 8 * 40)
    for file in (first / "labels").iterdir():
        assert is_proposals_schema(pq.read_schema(file))
        metadata = pq.read_metadata(file)
        assert max(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)) <= ROWS_PER_GROUP
    assert run_label(images, first, record="proposals", rows_per_file=20).skipped_because_done

    (first / "_run" / "_SUCCESS").unlink()
    next((first / "labels").iterdir()).unlink()
    again = run_label(images, first, record="proposals", rows_per_file=20)
    assert (again.images, again.detections) == (40, summary.detections)
    assert 0 < again.labelled_now < 40
    with pytest.raises(StorageError, match=r"record was 'proposals', now None"):
        run_label(images, first)
    with pytest.raises(StorageError, match=r"max_detections was None, now 5"):
        run_label(images, first, record="proposals", max_detections=5)

    detected = run_label(images, tmp_path / "second", first)
    assert detected.statuses == {"ok": 40}
    assert detected.detections == sum(min(LIMIT, width - 8) for width in widths)
    with pytest.raises(StorageError, match=r"proposals was '.*', now None"):
        run_label(images, tmp_path / "second")

    write_images(tmp_path / "more", [9, *widths, 9])  # in another place: other images, with other ids
    with pytest.raises(StorageError, match=r"proposals \(.*first\): 42 of 42 images have no row"):
        run_label(tmp_path / "more", tmp_path / "third", first)
    with pytest.raises(StorageError, match=r"holds detections, expected proposals"):
        run_label(images, tmp_path / "third", tmp_path / "second")
    with pytest.raises(StorageError, match=r"proposals: .*nowhere: no such file or folder"):
        run_label(images, tmp_path / "third", tmp_path / "nowhere")
    assert not (tmp_path / "third").exists()


def test_proposals_on_s3(tmp_path: Path, s3_folder: str) -> None:
    write_images(tmp_path / "images", [9, 11])
    pq.write_table(
        worker(PredictorSettings(record="proposals")).label(as_rows(tmp_path / "images")),
        tmp_path / "proposals.parquet",
    )
    storage.write_bytes_atomically(f"{s3_folder}/labels/a.parquet", (tmp_path / "proposals.parquet").read_bytes())
    files = open_proposals(s3_folder, "proposals")
    assert len(files.read(1, 10)) == 3
