"""Names of files as the world has them."""

import os
import socket
import threading
from pathlib import Path

import pytest

from maskrcnn_core.data.files import Folder, TooManyBytes, local_path, located, read_image_file, read_local, uri_of


@pytest.mark.parametrize(
    ("folder", "name", "place"),
    [
        ("/data", "a.jpg", "/data/a.jpg"),
        ("/data/", "x/a.jpg", "/data/x/a.jpg"),
        ("/", "a.jpg", "/a.jpg"),
        ("s3://b/f", "a//b.jpg", "s3://b/f/a//b.jpg"),
        ("/data", "../a.jpg", "/data/../a.jpg"),
        ("/data", "/else/a.jpg", "/else/a.jpg"),
        ("s3://b/f", "/else/a.jpg", "/else/a.jpg"),
        ("/data", "s3://b/a.jpg", "s3://b/a.jpg"),
        ("/data", "file:///a%20b.jpg", "file:///a%20b.jpg"),
        ("/data", "http://a/b.jpg", "http://a/b.jpg"),
        ("/data", "C:\\a.jpg", "/data/C:\\a.jpg"),
        ("/data", "odd name://a.jpg", "/data/odd name://a.jpg"),
    ],
)
def test_where_a_name_leads(folder: str, name: str, place: str) -> None:
    assert located(folder, name) == place
    assert Folder(folder).path(name) == place


@pytest.mark.parametrize("name", [b"a.jpg", b"caf\xe9.jpg", b"\xff\xfe", b"a\nb", "é".encode(), b"100%25", b"a#b?c d"])
def test_every_path_has_a_uri_that_a_record_can_hold(name: bytes) -> None:
    path = os.fsdecode(b"/data/" + name)
    uri = uri_of(path)
    uri.encode()
    assert local_path(uri) == path


def test_a_path_that_is_text_is_its_own_uri() -> None:
    assert uri_of("/a b/é%20#?\n.jpg") == "/a b/é%20#?\n.jpg"
    assert uri_of("/a/\ud800.jpg") == "/a/\\ud800.jpg"  # no file can have this name
    assert local_path("file:///a%20b") == "/a b"
    assert local_path("file://localhost/a") == "/a"


@pytest.fixture
def awkward(tmp_path: Path) -> Path:
    """A folder with a pipe that nobody writes, a socket, a folder and links that lead nowhere or in a circle."""
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as one, pytest.MonkeyPatch.context() as place:
        place.chdir(tmp_path)  # the length of a socket's path is limited
        one.bind("socket.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "lost.jpg").symlink_to("nowhere")
    (tmp_path / "to_pipe.jpg").symlink_to("pipe.jpg")
    (tmp_path / "good.jpg").write_bytes(b"content")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pipe.jpg", "a named pipe, expected a regular file"),
        ("to_pipe.jpg", "a named pipe"),
        ("socket.jpg", "a socket"),
        ("folder.jpg", "a folder"),
        ("/dev/zero", "a device"),
        ("/dev/urandom", "a device"),
        ("loop.jpg", "Too many levels"),
        ("a\0b.jpg", "no file can have this name"),
        ("\ud800.jpg", "no file can have this name"),
        ("x" * 300, "too long"),
        ("x/" * 5000, "too long"),
        ("good.jpg/below.jpg", "Not a directory"),
        ("http://a/b.jpg", "http:// is not read"),
        ("gs://a/b.jpg", "gs:// is not read"),
    ],
)
def test_what_is_no_regular_file_is_an_error_at_once(awkward: Path, name: str, message: str) -> None:
    with pytest.raises(OSError, match=message):
        Folder(str(awkward)).read(name)


def test_a_file_is_read_as_far_as_it_went_when_it_was_opened(awkward: Path) -> None:
    assert read_local("/proc/self/pagemap") == b""  # says that it is empty, and gives gigabytes
    assert read_local(str(awkward / "good.jpg")) == b"content"
    with pytest.raises(TooManyBytes, match="has 7 bytes, at most 6 are read"):
        read_local(str(awkward / "good.jpg"), 6)
    with pytest.raises(FileNotFoundError):
        read_local(str(awkward / "lost.jpg"))


def test_a_pipe_that_takes_a_files_place_while_it_is_opened(awkward: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = os.stat(awkward / "good.jpg")
    monkeypatch.setattr(os, "stat", lambda path: good)
    with pytest.raises(OSError, match="a named pipe"):
        read_local(str(awkward / "pipe.jpg"))


def test_absolute_names_are_read_where_they_are(awkward: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = Folder(str(tmp_path_factory.mktemp("elsewhere")))
    for name in (str(awkward / "good.jpg"), (awkward / "good.jpg").as_uri(), f"{awkward}/folder.jpg/../good.jpg"):
        assert elsewhere.read(name) == read_image_file(name) == b"content"
    with pytest.raises(FileNotFoundError):
        elsewhere.read("good.jpg")
    assert Folder(awkward.as_uri()).read("good.jpg") == b"content"


def test_a_name_that_is_no_utf_8(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.jpg")
    with open(path, "wb") as stream:
        stream.write(b"content")
    assert Folder(str(tmp_path)).read("caf\udce9.jpg") == b"content"
    assert read_image_file(uri_of(os.fsdecode(path))) == b"content"


def test_names_on_s3(s3_folder: str) -> None:
    import boto3

    boto3.client("s3").put_object(Bucket="bucket", Key="folder/a+b %41#?é.jpg", Body=b"content")
    for folder in (Folder(s3_folder), Folder(f"{s3_folder}/")):
        assert folder.read("a+b %41#?é.jpg") == b"content"
        with pytest.raises(FileNotFoundError):
            folder.read("none.jpg")
        with pytest.raises(OSError, match="Empty path component"):
            folder.read("a//b.jpg")
    assert Folder("/nowhere").read(f"{s3_folder}/a+b %41#?é.jpg") == b"content"
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(folder.read("a+b %41#?é.jpg"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"content"] * 4
