import errno
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from maskrcnn_core.data.coco import json_spans
from maskrcnn_core.data.coco.column_schema import ColumnsInfo
from maskrcnn_core.data.coco.conversion import SCORING, Reader
from maskrcnn_core.data.coco.json_columns import columns_of_json
from maskrcnn_core.errors import AnnotationError, StorageError
from pipelines import storage
from pipelines.annotations import cache, columns, shared
from pipelines.annotations.columns import annotation_columns, content_digest, needs_tasks
from pipelines.annotations.shared import publish_columns, shared_columns
from pipelines.annotations.tasks import convert_in_tasks
from pipelines.cluster.config import ClusterConfig
from pipelines.cluster.connection import connect
from tests.core.data.coco.test_columns import document, same


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, in which every file counts as large."""
    monkeypatch.setenv("MASKRCNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(columns, "SMALL_BYTES", 10)
    return tmp_path / "cache" / "annotations"


def write(path: Path, content: dict[str, Any] | None = None, seconds_ago: int = 60) -> str:
    path.write_text(json.dumps(content or document()))
    then = time.time() - seconds_ago
    os.utime(path, (then, then))
    return str(path)


def folders(root: Path) -> list[str]:
    return sorted(folder.name for folder in root.iterdir() if folder.is_dir() and folder.name != "digests")


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were read, in order."""
    seen: list[str] = []
    real = columns_of_json

    def read(content: Any, reader: Reader, *, source: str, **options: Any) -> Any:
        seen.append(source)
        return real(content, reader, source=source, **options)

    monkeypatch.setattr(columns, "columns_of_json", read)
    return seen


def test_a_file_is_read_once_whatever_its_name(tmp_path: Path, empty_cache: Path, readings: list[str]) -> None:
    first, moved = write(tmp_path / "a.json"), write(tmp_path / "b.json")
    one, other = annotation_columns(first, Reader()), annotation_columns(moved, Reader())
    assert same(one, other)
    assert readings == [first]
    assert len(folders(empty_cache)) == 1
    write(tmp_path / "a.json", document(seed=1))  # of the same size, or nearly
    assert not same(one, annotation_columns(first, Reader()))
    assert readings == [first, first]


def test_a_file_that_changes_at_once_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", seconds_ago=0)
    before = content_digest(path)
    stat = os.stat(path)
    content = (tmp_path / "a.json").read_bytes().replace(b"dog", b"cat")
    (tmp_path / "a.json").write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert content_digest(path) != before


def test_digests_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.json")
    digest = content_digest(path)
    assert len(digest) == 64
    monkeypatch.setattr(storage, "open_stream", None)
    assert content_digest(path) == digest


def test_readers_share_what_is_the_same_for_them(tmp_path: Path, empty_cache: Path, readings: list[str]) -> None:
    path = write(tmp_path / "a.json")
    one = annotation_columns(path, Reader())
    assert same(one, annotation_columns(path, SCORING))
    assert len(readings) == 1
    content = document()
    del content["images"][1]["width"]
    path = write(tmp_path / "b.json", content)
    assert len(annotation_columns(path, Reader())) == 4
    assert len(annotation_columns(path, SCORING)) == 5
    assert len(readings) == 3


def test_sizes_of_pictures_are_those_of_their_folder(tmp_path: Path, readings: list[str]) -> None:
    content = document()
    del content["images"][1]["width"]
    path = write(tmp_path / "b.json", content)

    def sized(side: int, images: str) -> list[int]:
        found = annotation_columns(path, Reader(sizes=lambda name, by_url: (side, side)), images=images)
        sizes: list[int] = found.sizes[1].tolist()
        return sizes

    assert sized(32, "/one") == [32, 32]
    assert sized(16, "/two") == [16, 16]
    assert sized(99, "/one") == [32, 32]  # as it was found there
    assert len(readings) == 2
    # Where no picture was looked at, the folder does not matter.
    path = write(tmp_path / "whole.json")
    assert sized(32, "/one") == sized(32, "/two") == [64, 64]
    assert len(readings) == 3


def test_errors_name_the_file(tmp_path: Path, empty_cache: Path) -> None:
    path = write(tmp_path / "a.json", {"images": [], "annotations": []})
    with pytest.raises(AnnotationError, match=r"a\.json: section 'categories'"):
        annotation_columns(path, Reader())
    assert not folders(empty_cache)
    with pytest.raises(StorageError, match="no such file"):
        annotation_columns(str(tmp_path / "none.json"), Reader())


def test_two_processes_make_one_folder(tmp_path: Path, empty_cache: Path) -> None:
    path = write(tmp_path / "a.json", document(images=50, objects=3000))
    script = (
        "import sys\n"
        "from pipelines.annotations import columns\n"
        "from maskrcnn_core.data.coco.conversion import Reader\n"
        "columns.SMALL_BYTES = 10\n"
        "print(columns.annotation_columns(sys.argv[1], Reader()).folder)\n"
    )
    command = [sys.executable, "-c", script, path]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=os.getcwd()) for _ in range(2)]
    answers = {process.communicate()[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(answers) == 1
    assert len(folders(empty_cache)) == 1


def test_a_torn_folder_is_made_again(tmp_path: Path, empty_cache: Path) -> None:
    path = write(tmp_path / "a.json")
    made = annotation_columns(path, Reader()).folder
    assert made is not None
    (made / "info.json").unlink()
    assert len(annotation_columns(path, Reader())) == 5


def test_what_was_used_last_stays(tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, used = write(tmp_path / "a.json"), write(tmp_path / "b.json", document(seed=2))
    names = [annotation_columns(path, Reader()).folder for path in (old, used)]
    assert names[0] is not None
    long_ago = time.time() - 10**6
    os.utime(names[0] / "info.json", (long_ago, long_ago))
    monkeypatch.setattr(cache, "MOST_BYTES", sum(file.stat().st_size for file in names[0].iterdir()) * 5 // 2)
    third = annotation_columns(write(tmp_path / "c.json", document(seed=3)), Reader()).folder
    assert folders(empty_cache) == sorted(folder.name for folder in (names[1], third) if folder is not None)


def test_a_cache_that_cannot_be_written_is_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MASKRCNN_CACHE", str(tmp_path / "file"))
    assert len(annotation_columns(write(tmp_path / "a.json"), Reader())) == 5


def test_a_full_disk_is_said(tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("maskrcnn_core.data.coco.columns_writer.pa.OSFile", full)
    with pytest.raises(StorageError, match=r"annotations: columns .* \(No space left on device\); make room, or set"):
        annotation_columns(write(tmp_path / "a.json"), Reader())
    assert not folders(empty_cache)


def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.json")
    real = columns_of_json

    def cut(content: Any, reader: Reader, **options: Any) -> Any:
        os.truncate(path, 100)
        return real(content, reader, **options)

    monkeypatch.setattr(columns, "columns_of_json", cut)
    with pytest.raises(StorageError, match=r"a\.json: was cut while it was read"):
        annotation_columns(path, Reader())


def test_other_machines_get_what_a_run_publishes(
    tmp_path: Path, empty_cache: Path, readings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.json")
    run = str(tmp_path / "run" / "annotations")
    assert shared_columns(run, path) is None
    one = annotation_columns(path, Reader(), shared=run)
    publish_columns(run, {path: one})
    publish_columns(run, {path: one})  # as a run that goes on does
    monkeypatch.setenv("MASKRCNN_CACHE", str(tmp_path / "other machine"))
    os.unlink(path)
    there = annotation_columns(path, Reader(), shared=run)
    assert there.folder is not None
    assert str(tmp_path / "other machine") in str(there.folder)
    assert same(one, there)
    # What is sent to a third machine is opened there.
    sent = pickle.dumps(there)
    monkeypatch.setenv("MASKRCNN_CACHE", str(tmp_path / "third machine"))
    arrived = pickle.loads(sent)
    assert same(one, arrived)
    assert "third machine" in str(arrived.folder)
    assert len(readings) == 1
    assert shared_columns(run, "another file") is None


def test_columns_are_published_and_read_through_s3(
    tmp_path: Path, s3_folder: str, readings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, run = f"{s3_folder}/annotations.json", f"{s3_folder}/run/annotations"
    storage.write_bytes_atomically(uri, json.dumps(document()).encode())
    one = annotation_columns(uri, Reader())
    assert content_digest(uri) == one.info.digest
    publish_columns(run, {uri: one})
    monkeypatch.setenv("MASKRCNN_CACHE", str(tmp_path / "other machine"))
    assert same(one, annotation_columns(uri, Reader(), shared=run))
    assert readings == [uri]


def test_a_publication_that_was_cut_off_is_completed(tmp_path: Path) -> None:
    path, run = write(tmp_path / "a.json"), tmp_path / "run"
    one = annotation_columns(path, Reader())
    assert one.folder is not None
    (run / one.folder.name).mkdir(parents=True)
    (run / one.folder.name / "images.arrow").write_bytes(b"torn")
    publish_columns(str(run), {path: one})
    for file in one.folder.iterdir():
        assert (run / one.folder.name / file.name).read_bytes() == file.read_bytes()
    assert ColumnsInfo.from_json((run / one.folder.name / "info.json").read_bytes()) == one.info


def test_small_files_are_read_by_everyone(tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "SMALL_BYTES", 1 << 20)
    path = write(tmp_path / "a.json")
    one = annotation_columns(path, Reader())
    assert one.folder is None
    publish_columns(str(tmp_path / "run"), {path: one})
    assert not (tmp_path / "run").exists()
    assert shared._INDEX == "index.json"


def test_tasks_are_for_large_files_that_are_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.json")
    assert not needs_tasks(path)
    assert not needs_tasks("")
    assert not needs_tasks(str(tmp_path / "none.json"))
    monkeypatch.setattr(columns, "TASKS_BYTES", 10)
    assert needs_tasks(path)
    annotation_columns(path, Reader())
    assert not needs_tasks(path)


@pytest.mark.ray
def test_tasks_make_the_same_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.json", document(images=20, objects=400))
    here = annotation_columns(path, Reader())
    monkeypatch.setenv("MASKRCNN_CACHE", str(tmp_path / "again"))
    monkeypatch.setattr(json_spans, "PIECE_BYTES", 5000)
    wrong = document(objects=400)
    wrong["annotations"][333]["id"] = "x"
    wrong_path = write(tmp_path / "b.json", wrong)
    with connect(ClusterConfig(num_cpus=4)):
        assert same(here, annotation_columns(path, Reader(), convert=convert_in_tasks))
        with pytest.raises(AnnotationError, match="annotation at position 333"):
            annotation_columns(wrong_path, Reader(), convert=convert_in_tasks)
