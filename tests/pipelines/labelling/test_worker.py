"""A labelling worker with a detector that needs no weights, in this process."""

from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from maskrcnn_core.errors import ImageError, UserError
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.records.labels import schema_categories
from pipelines.images.reading import ImageReader
from pipelines.labelling.device_board import BrokenDetectorError
from pipelines.labelling.device_faults import this_device
from pipelines.labelling.progress import Counts, ProgressBoard
from pipelines.labelling.worker import LabelWorker
from pipelines.labelling.worker_settings import WorkerSettings
from tests.pipelines.fake_detector import CATEGORIES, load_fake, write_images


def worker(checkpoint: str = "good", board: ProgressBoard | None = None, max_pixels: int = 10_000) -> LabelWorker:
    settings = WorkerSettings(checkpoint, PredictorSettings(max_pixels=max_pixels), threads=1, group_size=4)
    return LabelWorker(load_fake, settings, board or ProgressBoard())


def as_rows(folder: Path) -> pa.Table:
    uris = [str(path) for path in sorted(folder.iterdir())]
    return pa.table({"image_id": list(range(len(uris))), "uri": uris})


def test_worker_returns_one_row_per_image_in_order_and_reports_the_counts(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 10)
    board = ProgressBoard()
    table = worker(board=board).label(as_rows(tmp_path / "images"))
    assert table.column("image_id").to_pylist() == list(range(10))
    assert table.column("height").to_pylist() == [8 + index % 3 for index in range(10)]
    assert schema_categories(table.schema) == CATEGORIES
    counts = board.snapshot()
    assert (counts.images, counts.detections, counts.failed) == (10, 10, 0)


def test_an_empty_batch_gives_an_empty_table_of_the_same_schema(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 1)
    rows, labeller = as_rows(tmp_path / "images"), worker()
    assert labeller.label(rows.slice(0, 0)).num_rows == 0
    assert labeller.label(rows.slice(0, 0)).schema == labeller.label(rows).schema


def test_only_the_culprit_of_a_failing_batch_fails(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 6)
    Image.new("RGB", (13, 8)).save(tmp_path / "images" / "002.png")
    rows = worker("poisoned").label(as_rows(tmp_path / "images")).to_pylist()
    assert [row["status"] for row in rows] == ["ok", "ok", "failed", "ok", "ok", "ok"]
    assert rows[2]["error"] == "ValueError: cannot digest 13"
    assert [len(row["detections"]) for row in rows] == [1, 1, 0, 1, 1, 1]


def test_a_detector_that_fails_on_everything_ends_its_process_instead_of_failing_every_image(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 16)
    board = ProgressBoard()
    failure = r"failed on 16 images in a row.*RuntimeError: nothing works at all"
    with pytest.raises(BrokenDetectorError, match=failure):
        worker("broken", board).label(as_rows(tmp_path / "images"))
    assert board.begin(12) == 1  # the images are not to blame
    for process in (-1, -2):
        board.fault(this_device(), process, "others before it")
    with pytest.raises(UserError, match=rf"given up after 3 processes each: .*{failure}"):
        worker("broken", board).label(as_rows(tmp_path / "images"))


@pytest.mark.parametrize("images", [1, 8])
def test_images_are_not_to_blame_where_the_detector_fails_on_one_of_ours(tmp_path: Path, images: int) -> None:
    write_images(tmp_path / "images", images)
    with pytest.raises(BrokenDetectorError, match=r"failed on (an image|8 images in a row), .*nothing works at all"):
        worker("broken").label(as_rows(tmp_path / "images"))


def test_images_that_all_fail_alone_have_rows_that_say_so(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for index in range(5):
        Image.new("RGB", (13, 8)).save(tmp_path / "images" / f"{index}.png")
    (tmp_path / "images" / "5.png").write_bytes(b"no image")
    rows = worker("poisoned").label(as_rows(tmp_path / "images")).to_pylist()
    assert [row["status"] for row in rows] == ["failed"] * 5 + ["unreadable"]


def test_an_image_that_ended_two_processes_alone_is_given_up_and_its_group_is_not(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 4)
    board = ProgressBoard()
    board.begin(0)  # the group of images 0 to 3 was begun once,
    board.begin(-1 - 2)  # and image 2 twice alone, each time without an end
    board.begin(-1 - 2)
    rows = worker(board=board).label(as_rows(tmp_path / "images")).to_pylist()
    assert [row["status"] for row in rows] == ["ok", "ok", "failed", "ok"]
    assert "ended the detector's process" in rows[2]["error"]
    assert board.snapshot().failed == 1
    assert board.begin(0) == 1  # finished work is forgotten


@pytest.mark.parametrize(
    ("name", "status"), [("absent.png", "missing"), ("folder", "unreadable"), ("big.png", "too_large")]
)
def test_files_that_cannot_be_read_say_why(tmp_path: Path, name: str, status: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "big.png").write_bytes(bytes(101))
    image = ImageReader(100).read(str(tmp_path / name))
    assert isinstance(image, ImageError)
    assert image.status == status
    (tmp_path / "small").write_bytes(b"12")
    assert ImageReader(100).read(str(tmp_path / "small")) == b"12"


def test_rate_leaves_out_the_start_up() -> None:
    assert Counts().images_per_second == 0.0
    assert Counts(images=10, seconds=4.0).images_per_second == 2.5
