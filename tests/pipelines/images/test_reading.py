"""One image by a name from outside: its bytes or its row, and never the end of the run for its own fault."""

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pyarrow as pa
import pytest
from pyarrow import fs

from maskrcnn_core.data.files import uri_of
from maskrcnn_core.errors import ImageError, StorageError
from pipelines import storage
from pipelines.images import reading
from pipelines.images.reading import ImageReader, read_image
from pipelines.storage.s3_settings import S3Error, error_code, explain, is_forbidden, is_hopeless
from tests.pipelines.faulty_proxy import Faults, faulty_proxy


def failure(uri: str, below: str = "") -> tuple[str, str]:
    found = ImageReader(100, below).read(uri)
    assert isinstance(found, ImageError)
    assert str(found).isprintable()
    return found.status, str(found)


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("pipe.jpg", "unreadable", "a named pipe"),
        ("/dev/zero", "unreadable", "a device"),
        ("NoSuchBucket.jpg", "unreadable", "a folder"),
        ("IMG_0403.jpg", "unreadable", "a folder"),
        ("a\0b.jpg", "unreadable", "no file can have this name"),
        ("\ud800.jpg", "unreadable", "no file can have this name"),
        ("caf\udce9.jpg", "missing", "no such file"),
        ("a\n\x1b[2J.jpg", "missing", "no such file"),
        ("x" * 5000, "unreadable", "too long"),
        ("large.jpg", "too_large", "has 101 bytes, at most 100 are read"),
        ("none.jpg", "missing", "no such file"),
        ("http://a/b.jpg", "unreadable", "scheme http:// is not supported"),
        ("ftp://a/b.jpg", "unreadable", "scheme ftp:// is not supported"),
        ("s3://", "unreadable", "bucket is missing"),
        ("x\\a.jpg", "missing", "there is one with / in place of"),
        ("x/a%2ejpg", "missing", "there is one without %-codes"),
    ],
)
def test_what_cannot_be_read_is_a_row(tmp_path: Path, name: str, status: str, message: str) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for folder in ("NoSuchBucket.jpg", "IMG_0403.jpg", "x"):
        (tmp_path / folder).mkdir()
    (tmp_path / "large.jpg").write_bytes(b"x" * 101)
    (tmp_path / "x" / "a.jpg").write_bytes(b"content")
    uri = name if "://" in name or name.startswith("/") else f"{tmp_path}/{name}"
    found = failure(uri)
    assert found[0] == status
    assert message in found[1]
    with pytest.raises(ImageError):
        read_image(uri) if name != "large.jpg" else (_ for _ in ()).throw(ImageError("too_large", ""))


def test_whatever_a_library_raises_is_the_images_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (pa.ArrowInvalid("odd"), pa.ArrowNotImplementedError("odd"), KeyError("odd"), MemoryError("odd")):

        def fails(uri: str, most: int, error: Exception = error) -> bytes:
            raise error

        monkeypatch.setattr(reading, "_read", fails)
        for uri in (str(tmp_path), "s3://bucket/a.jpg"):
            assert failure(uri)[0] == "unreadable"
            assert "odd" in failure(uri)[1]


def test_names_that_are_no_utf_8_are_read(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9 #%41.jpg")
    with open(path, "wb") as stream:
        stream.write(b"content")
    assert ImageReader(100).read(uri_of(os.fsdecode(path))) == b"content"


@pytest.mark.parametrize(
    ("uri", "is_below"),
    [
        ("/data/set/a.jpg", True),
        ("/data/set/../set/a.jpg", True),
        ("file:///data/set/a.jpg", True),
        ("/data/set", False),
        ("/data/set/../a.jpg", False),
        ("/data/set2/a.jpg", False),
        ("/data/set/x/../../../etc/passwd", False),
        ("file:///data/set/%2e%2e/a.jpg", False),
        ("s3://data/set/a.jpg", False),
    ],
)
def test_a_root_is_not_left(uri: str, is_below: bool) -> None:
    status, message = failure(uri, below="/data/set")
    assert (status == "missing") == is_below, message
    assert ("outside of image_root, /data/set" in message) != is_below


def test_a_root_on_s3_is_not_left() -> None:
    assert "outside" in failure("s3://bucket/other/a.jpg", below="s3://bucket/set")[1]
    assert "outside" in failure("s3://other/set/a.jpg", below="s3://bucket/set")[1]
    assert "outside" in failure("/etc/passwd", below="s3://bucket/set")[1]
    assert storage.below("s3://bucket/set/../a.jpg", "s3://bucket/set/")  # a name as any other


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("When reading information for key '{key}' in bucket 'b': AWS Error ACCESS_DENIED during HeadObject operation: "
        "No response body.", "ACCESS_DENIED"),
        ("for key '{key}': AWS Error UNKNOWN (HTTP status 503) during GetObject operation: slow", "503"),
        ("for key '{key}': AWS Error UNKNOWN (HTTP status 403) during HeadObject operation: No response body.", "403"),
        ("AWS Error UNKNOWN (HTTP status 403) during GetObject operation: Unable to parse ExceptionName: ExpiredToken "
        "Message: {key}", "ExpiredToken"),
        ("Path '{key}' is of no kind", ""),
    ],
)  # fmt: skip
def test_reasons_are_read_from_codes_not_from_names(text: str, code: str) -> None:
    for key in (
        "IMG_0403.jpg",
        "NoSuchBucket.jpg",
        "AccessDenied/ExpiredToken.jpg",
        "AWS Error NO_SUCH_BUCKET during HeadObject operation.jpg",
    ):
        assert error_code(OSError(text.format(key=key)), f"s3://b/{key}") == code
        assert error_code(OSError(text.format(key=key)), f"/data/{key}") == ""  # no words of ours are in local errors


def test_codes() -> None:
    assert error_code(PermissionError(13, "no"), "/a") == "AccessDenied"
    assert error_code(S3Error("SlowDown", "AccessDenied.jpg"), "s3://b/AccessDenied.jpg") == "SlowDown"
    assert is_hopeless("NoSuchBucket")
    assert not is_hopeless("a NoSuchBucket b")
    assert is_forbidden("403")
    assert not is_forbidden("IMG_0403")
    assert explain("ACCESS_DENIED") is not None
    assert explain("SlowDown") is None


# ---- S3 --------------------------------------------------------------------------------------------------------------

KEYS = (
    "a//double.jpg", "/lead.jpg", "//two.jpg", "a/../up.jpg", "a/./dot.jpg", "a/..", "end/", "sp ace.jpg", "p+lus.jpg",
    "%41.jpg", "q?.jpg", "h#.jpg", "t\tab.jpg", "b\\s.jpg", "ü.jpg", "x" * 900 + ".jpg", "~t.jpg",
)  # fmt: skip


@pytest.fixture
def faults(s3_folder: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    address = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("MASKRCNN_STORAGE_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("pipelines.storage.files._PAUSE_SECONDS", 0.01)
    assert address.hostname is not None
    assert address.port is not None
    with faulty_proxy(address.hostname, address.port) as (url, made):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        yield made


@pytest.mark.parametrize("key", KEYS)
def test_every_key_that_s3_has_is_read(s3_folder: str, key: str) -> None:
    boto3.client("s3").put_object(Bucket="bucket", Key=key, Body=key.encode())
    assert ImageReader(9999).read(f"s3://bucket/{key}") == key.encode()


@pytest.mark.parametrize("key", ["none.jpg", "a//none.jpg", "/none.jpg", "a/../none.jpg", "a//"])
def test_a_key_that_is_not_there_is_missing(s3_folder: str, key: str) -> None:
    assert failure(f"s3://bucket/{key}") == ("missing", "no such file")


def test_a_large_object_of_any_key_is_too_large(s3_folder: str) -> None:
    for key in ("large.jpg", "a//large.jpg"):
        boto3.client("s3").put_object(Bucket="bucket", Key=key, Body=b"x" * 101)
        assert failure(f"s3://bucket/{key}") == ("too_large", "the file has 101 bytes, at most 100 are read")


@pytest.mark.parametrize("key", ["IMG_0403.jpg", "flaky.jpg", "AccessDenied.jpg", "a//IMG_0403.jpg"])
def test_a_fault_of_the_server_is_tried_again_whatever_the_name(faults: Faults, key: str) -> None:
    boto3.client("s3").put_object(Bucket="bucket", Key=key, Body=b"content")
    faults.throttle_every = 3
    for _ in range(4):
        assert ImageReader(100).read(f"s3://bucket/{key}") == b"content"
    faults.throttle_every = 1
    status, message = failure(f"s3://bucket/{key}")
    assert status == "unreadable"
    assert "access denied" not in message


@pytest.mark.parametrize("key", ["some.jpg", "a//some.jpg"])
def test_denied_and_hopeless(faults: Faults, key: str) -> None:
    faults.refuse = "AccessDenied"
    assert failure(f"s3://bucket/{key}")[1].startswith("access denied")
    faults.refuse = "InvalidAccessKeyId"
    with pytest.raises(StorageError, match="the access key is unknown to S3"):
        ImageReader(100).read(f"s3://bucket/{key}")


def test_reading_that_hangs_ends_the_run_after_some_images() -> None:
    reader = ImageReader(100)
    for _ in range(15):
        assert str(reader.late("/mnt/a.jpg", 600)) == "reading took longer than 600 s (label.image_timeout)"
    with pytest.raises(StorageError, match="16 images in a row could not be read"):
        reader.late("/mnt/a.jpg", 600)


def test_a_region_that_cannot_be_found_out_is_no_fault_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(bucket: str) -> str:
        raise OSError(
            "When resolving region for bucket 'odd': AWS Error NETWORK_CONNECTION during HeadBucket operation"
        )

    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fs, "resolve_s3_region", offline)
    reader = ImageReader(100)
    for _ in range(15):
        assert isinstance(reader.read("s3://odd/a.jpg"), ImageError)
    with pytest.raises(StorageError, match="16 images in a row could not be read"):
        reader.read("s3://odd/a.jpg")
