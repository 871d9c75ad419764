import os
import stat
from pathlib import Path

import pytest

from maskrcnn_core.errors import StorageError
from pipelines import storage


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path)
    return f"{request.getfixturevalue('s3_folder')}/{request.node.name.replace('[', '-').strip(']')}"


def test_what_is_written_can_be_read_and_listed(folder: str) -> None:
    names = ["b.parquet", "a.PARQUET", "deep/er/c.parquet", "notes.txt", ".hidden.parquet"]
    for name in names:
        storage.write_bytes_atomically(storage.join(folder, name), name.encode())
    assert all(storage.read_bytes(storage.join(folder, name)) == name.encode() for name in names)
    shown = [storage.join(folder, name) for name in ("a.PARQUET", "b.parquet", "deep/er/c.parquet")]
    assert storage.list_files(folder, ".parquet") == shown
    assert storage.list_files(folder, (".txt", ".none")) == [storage.join(folder, "notes.txt")]
    assert len(storage.list_files(folder)) == 4


def test_existence_of_files_and_folders(folder: str) -> None:
    file = storage.join(folder, "deep", "file")
    assert not storage.exists(file)
    storage.write_bytes_atomically(file, b"")
    assert storage.exists(file)
    assert not storage.is_folder(file)
    assert storage.is_folder(storage.join(folder, "deep"))
    assert not storage.exists(storage.join(folder, "dee"))


def test_writing_again_replaces(folder: str) -> None:
    file = storage.join(folder, "file")
    for content in (b"first", b"2nd", b""):
        storage.write_bytes_atomically(file, content)
        assert storage.read_bytes(file) == content
    assert storage.list_files(folder) == [file]


def test_missing_files_are_named(folder: str) -> None:
    missing = storage.join(folder, "none")
    with pytest.raises(StorageError, match=r"/none: no such file$"):
        storage.read_bytes(missing)
    with pytest.raises(StorageError, match=r"/none: no such folder$"):
        storage.list_files(missing)


def test_a_file_is_no_folder_and_a_folder_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="is a file; expected a folder"):
        storage.list_files(str(tmp_path / "file"))
    for attempt in (storage.read_bytes, lambda uri: storage.write_bytes_atomically(uri, b"")):
        with pytest.raises(StorageError, match="is a folder; expected a file"):
            attempt(str(tmp_path))


def test_a_missing_bucket_is_named(s3_folder: str) -> None:
    with pytest.raises(StorageError, match="s3://elsewhere/file"):
        storage.read_bytes("s3://elsewhere/file")
    with pytest.raises(StorageError, match="s3://elsewhere/file"):
        storage.write_bytes_atomically("s3://elsewhere/file", b"1")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StorageError, match="No space left on device"):
        storage.write_bytes_atomically(str(file), b"new")
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == [b"old"]


def test_files_have_the_usual_rights(tmp_path: Path) -> None:
    (tmp_path / "usual").write_bytes(b"")
    storage.write_bytes_atomically(str(tmp_path / "ours"), b"")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "ours")}
    assert len(modes) == 1


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("gs://bucket/key", "scheme gs:// is not supported"),
        ("https://host/file", "scheme https:// is not supported"),
        ("s3://", "the bucket is missing"),
        ("", "the path is empty"),
    ],
)
def test_uris_of_another_kind(uri: str, expected: str) -> None:
    with pytest.raises(StorageError, match=expected):
        storage.filesystem_and_path(uri)


def test_local_paths_come_out_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    paths = [storage.filesystem_and_path(uri)[1] for uri in ("a/b", "./a/../a/b", "~/x", "file:///a%20b")]
    assert paths == [str(tmp_path / "a/b"), str(tmp_path / "a/b"), "/home/someone/x", "/a b"]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("a", "b"), "a/b"),
        (("a/", "/b/", "c"), "a/b/c"),
        (("/", "b"), "/b"),
        (("s3://bucket", "b"), "s3://bucket/b"),
        (("s3://bucket/", "b", "c.x"), "s3://bucket/b/c.x"),
    ],
)
def test_join(parts: tuple[str, ...], expected: str) -> None:
    assert storage.join(*parts) == expected


def test_what_may_help_is_tried_again_on_s3_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.storage.files._PAUSE_SECONDS", 0.0)
    outcomes: list[OSError | str] = []

    def action() -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    broken = OSError("AWS Error INTERNAL_FAILURE during GetObject operation: Failed to flush response stream")
    outcomes[:] = [broken, broken, "content"]
    assert storage.patiently("s3://bucket/key", action) == "content"
    for uri, errors in (
        ("/local", [broken]),
        ("s3://bucket/key", [broken] * 4),
        ("s3://bucket/key", [FileNotFoundError("gone")]),
        ("s3://bucket/key", [OSError("AWS Error ACCESS_DENIED during GetObject operation")]),
        (
            "s3://bucket/key",
            [
                OSError(
                    "AWS Error UNKNOWN (HTTP status 403) during GetObject operation: "
                    "Unable to parse ExceptionName: ExpiredToken"
                )
            ],
        ),
    ):
        outcomes[:] = [*errors, "too late"]
        with pytest.raises(type(errors[-1])):
            storage.patiently(uri, action)
        assert outcomes == ["too late"]


def test_a_deleted_folder_leaves_nothing_on_s3(s3_folder: str) -> None:
    for name in ("deleted/a", "deleted/b/c", "deleted.tmp/d"):
        storage.write_bytes_atomically(f"{s3_folder}/{name}", b"x")
    storage.delete_folder(f"{s3_folder}/deleted")
    assert not storage.exists(f"{s3_folder}/deleted")
    assert storage.read_bytes(f"{s3_folder}/deleted.tmp/d") == b"x"
    storage.delete_folder(f"{s3_folder}/deleted")  # one that is not there is fine
