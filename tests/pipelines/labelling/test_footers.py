"""Which label files a run opens again to count their rows; without Ray."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from maskrcnn_core.errors import StorageError
from pipelines.images.manifest import Tasks, one_by_one
from pipelines.labelling import footers
from pipelines.labelling.worker import LabelWorker
from pipelines.labels import chunks
from pipelines.labels.chunks import Chunk, LabelFile, read_footer
from pipelines.verification.config import VerifyRun
from pipelines.verification.run import verify
from tests.fuzz.labelling_here import label_here
from tests.pipelines.fake_detector import write_images

IMAGES = 7  # in four files of two


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images/, one of them broken, and a run out/ that lacks its second file and the end."""
    folder = tmp_path_factory.mktemp("begun")
    write_images(folder / "images", IMAGES)
    (folder / "images" / "003.png").write_bytes(b"broken")
    label_here(folder / "images", folder / "out")
    for name in ("_SUCCESS", "files.parquet"):
        (folder / "out" / "_run" / name).unlink()
    labels(folder / "out")[1].unlink()
    return folder


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    return shutil.copytree(begun / "out", tmp_path / "out")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the label files whose footers are read."""
    names: list[str] = []

    def noting(uri: str) -> LabelFile:
        names.append(Path(uri).name)
        return read_footer(uri)

    monkeypatch.setattr(chunks, "read_footer", noting)
    return names


def labels(run: Path) -> Sequence[Path]:
    return sorted((run / "labels").glob("*.parquet"))


def test_what_a_worker_writes_is_what_the_footer_says(begun: Path, tmp_path: Path) -> None:
    path = labels(begun / "out")[0]
    written = chunks.write_labels(pq.read_table(path), str(tmp_path / "again.parquet"))
    assert written == read_footer(str(tmp_path / "again.parquet"))
    assert (written.size, len(written.sha256)) == ((tmp_path / "again.parquet").stat().st_size, 64)


def test_a_run_opens_none_of_the_files_that_it_has_written(begun: Path, tmp_path: Path, opened: list[str]) -> None:
    summary = label_here(begun / "images", tmp_path / "new")
    assert opened == []
    assert (summary.images, summary.statuses, summary.detections) == (IMAGES, {"ok": 6, "unreadable": 1}, 6)
    assert [failure.uri for failure in summary.failures] == [str(begun / "images" / "003.png")]
    assert verify(VerifyRun(str(tmp_path / "new"))).passed


def test_a_resumed_run_opens_each_earlier_file_once(begun: Path, run: Path, opened: list[str]) -> None:
    names = [path.name for path in labels(run)]
    summary = label_here(begun / "images", run)
    assert sorted(opened) == names
    assert len(names) == 3
    assert summary.statuses == {"ok": 6, "unreadable": 1}
    assert summary.labelled_now == 2
    assert verify(VerifyRun(str(run))).passed


def test_a_file_that_was_broken_between_two_starts_is_noticed(begun: Path, run: Path) -> None:
    path = labels(run)[-1]
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(StorageError, match=r"cannot read the labels .*; delete the file to label it again"):
        label_here(begun / "images", run)
    path.unlink()
    assert label_here(begun / "images", run).statuses == {"ok": 6, "unreadable": 1}


def test_a_file_that_changes_while_the_run_goes_on_is_opened(
    begun: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label_chunk = LabelWorker.label_chunk

    def label_and_break(self: LabelWorker, chunk: Chunk) -> LabelFile:
        file = label_chunk(self, chunk)
        labels(run)[0].write_bytes(b"PAR1 torn")
        return file

    monkeypatch.setattr(LabelWorker, "label_chunk", label_and_break)
    with pytest.raises(StorageError, match="cannot read the labels"):
        label_here(begun / "images", run)


def test_many_footers_are_read_in_tasks_and_come_in_order(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uris = [str(path) for path in labels(begun / "out")]
    connected: list[bool] = []

    def tasks() -> Tasks:
        connected.append(True)
        return lambda *some: iter([*one_by_one(*some)][::-1])

    here = footers.footers_before(uris, tasks)
    assert not connected
    monkeypatch.setattr(footers, "_MOST_FOOTERS_HERE", 2)
    monkeypatch.setattr(footers, "_FOOTERS_OF_A_TASK", 2)
    assert footers.footers_before(uris, tasks) == here
    assert connected == [True]
