"""Images in object stores: one request each, tried again where that helps, and the line that ends a run."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from obstore.exceptions import GenericError

from maskrcnn_core.errors import ImageError, StorageError
from pipelines import storage
from pipelines.images.manifest import build_manifest, changes_since
from pipelines.images.reading import ImageReader
from pipelines.images.reading_threads import ReadingThreads
from pipelines.images.source import entries, open_source
from tests.pipelines.object_server import ObjectServer

CONTENT = bytes(range(250)) * 4
A = "s3://bucket/a.jpg"


@pytest.fixture
def server(object_store: ObjectServer) -> ObjectServer:
    """The server with one image."""
    object_store.objects["/bucket/a.jpg"] = CONTENT
    return object_store


def read(uri: str = A, most_bytes: int = 5000) -> bytes | tuple[str, str]:
    """The content, or status and error."""
    content = ImageReader(most_bytes).read(uri)
    if isinstance(content, bytes):
        return content
    assert str(content).isprintable()
    return content.status, str(content)


def methods(server: ObjectServer) -> list[str]:
    return [request.method for request in server.requests]


# ---- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uri", [A, "gs://bucket/a.jpg", "az://bucket/a.jpg", "abfs://bucket/a.jpg"])
def test_an_image_costs_one_request(server: ObjectServer, uri: str) -> None:
    for count in range(1, 4):
        assert read(uri) == CONTENT
        assert methods(server) == ["GET"] * count
    assert all("authorization" in request.headers for request in server.requests)


@pytest.mark.parametrize("uri", [A, "gs://bucket/a.jpg", "az://bucket/a.jpg"])
def test_what_is_not_there_costs_one_request(server: ObjectServer, uri: str) -> None:
    assert read(uri.replace("a.jpg", "b.jpg")) == ("missing", "no such file")
    assert methods(server) == ["GET"]


@pytest.mark.parametrize("uri", [A, "gs://bucket/a.jpg"])
def test_what_is_too_large_is_not_read(server: ObjectServer, uri: str) -> None:
    """The size is that of the answer: the content, which does not come, is not waited for."""
    server.sizes["/bucket/a.jpg"] = 5001
    assert read(uri) == ("too_large", "the file has 5001 bytes, at most 5000 are read")
    assert methods(server) == ["GET"]


def test_many_are_read_at_once(server: ObjectServer) -> None:
    reader, threads = ImageReader(5000), ReadingThreads(32, limit=30)
    reader.read(A)
    server.delay, started = 0.2, time.monotonic()
    calls = [threads.submit(lambda: reader.read(A)) for _ in range(64)]
    assert [call.result() for call in calls] == [CONTENT] * 64
    assert time.monotonic() - started < 6.4  # of 12.8 one after the other
    assert len(server.requests) == 65


# ---- faults of the way -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["503 SlowDown", "500 InternalError", "429 SlowDown", "cut"])
def test_what_passes_is_tried_again(server: ObjectServer, fault: str) -> None:
    server.faults = [fault]
    assert read() == CONTENT
    assert methods(server) == ["GET", "GET"]


def test_an_object_is_read_anew_where_the_rest_of_it_cannot_be_had(server: ObjectServer) -> None:
    server.faults = ["cut", "whole"]
    assert read() == CONTENT


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("503 SlowDown", "503 Service Unavailable"), ("429 SlowDown", "429 Too Many Requests"), ("cut", "S3 answers")],
)
def test_what_does_not_pass_is_a_row(server: ObjectServer, fault: str, reason: str) -> None:
    server.always = fault
    status, error = read()
    assert status == "unreadable"
    assert reason in error
    assert len(server.requests) >= 8  # two attempts of each of four requests


@pytest.mark.parametrize("fault", ["hang", "stall"])
def test_a_server_that_hangs_is_left_after_the_request_timeout(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv("MASKRCNN_STORAGE_REQUEST_TIMEOUT", "0.2")
    server.faults = [fault, fault]  # both attempts of the first request
    started = time.monotonic()
    assert read() == CONTENT
    assert 0.4 < time.monotonic() - started < 2.5


def test_a_server_that_is_not_there_ends_the_run_after_some_images(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("MASKRCNN_STORAGE_MAX_ATTEMPTS", "1")
    reader = ImageReader(5000)
    for _ in range(15):
        assert isinstance(reader.read(A), ImageError)
    with pytest.raises(StorageError, match=r"16 images in a row could not be read.*check the network and the S3"):
        reader.read(A)


# ---- credentials -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["a.jpg", "a//b.jpg"])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("403 InvalidAccessKeyId", "the access key is unknown to S3; check AWS_ACCESS_KEY_ID"),
        ("403 SignatureDoesNotMatch", "the secret key does not fit the access key"),
        ("400 ExpiredToken", "the AWS session has expired; sign in again"),
        ("400 InvalidToken", "AWS_SESSION_TOKEN is not valid"),
        ("404 NoSuchBucket", "there is no such bucket; check its name"),
    ],
)
def test_what_no_other_image_would_be_read_with_ends_the_run(
    server: ObjectServer, fault: str, message: str, key: str
) -> None:
    server.always = fault
    with pytest.raises(StorageError, match=message) as raised:
        read(f"s3://bucket/{key}")
    assert "\n" not in str(raised.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", ["403 AccessDenied", "403"])
def test_a_denied_image_is_a_row_after_one_request(server: ObjectServer, fault: str) -> None:
    server.always = fault
    status, error = read()
    assert (status, error.startswith("access denied: ")) == ("unreadable", True)
    assert len(server.requests) == 1


def test_names_are_no_reasons(server: ObjectServer) -> None:
    odd = "Error performing GET x in 1s - Server returned non-2xx status code: 403 <Code>InvalidAccessKeyId</Code>.jpg"
    for name in ("<Code>NoSuchBucket</Code>.jpg", odd, "Error performing token request.jpg"):
        assert read(f"s3://bucket/{name}") == ("missing", "no such file")
        server.faults = ["403 AccessDenied", "404 NoSuchKey"]
        assert read(f"s3://bucket/{name}")[1].startswith("access denied: ")
        assert read(f"s3://bucket/{name}") == ("missing", "no such file")


@pytest.mark.parametrize(
    ("scheme", "text", "message"),
    [
        (
            "s3",
            "The operation lacked valid authentication credentials for path External AWS credential provider: "
            "UnauthorizedSSOTokenError: 'over'",
            r"the AWS session has expired; sign in again \(aws sso login\)",
        ),
        (
            "gs",
            "Generic GCS error: Error performing token request: Error performing GET http://host/token in 1ms - Server "
            "returned non-2xx status code: 403 Forbidden: no",
            "no Google credentials that are accepted",
        ),
    ],
)
def test_credentials_that_cannot_be_fetched_end_the_run(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch, scheme: str, text: str, message: str
) -> None:
    def fails(*_: object) -> bytes:
        raise GenericError(text)

    monkeypatch.setattr("obstore.get", fails)
    with pytest.raises(StorageError, match=message):
        read(f"{scheme}://bucket/a.jpg")


def test_public_buckets_are_read_without_credentials(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKRCNN_STORAGE_ANONYMOUS", "1")
    for uri in (A, "gs://bucket/a.jpg", "az://bucket/a.jpg"):
        assert read(uri) == CONTENT
        assert "authorization" not in server.requests[-1].headers


def test_without_credentials_public_buckets_are_read_and_others_end_the_run(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    assert read() == CONTENT
    server.always = "403 AccessDenied"
    with pytest.raises(StorageError, match="no AWS credentials; set AWS_ACCESS_KEY_ID or AWS_PROFILE"):
        read()


def test_profiles_and_session_tokens(server: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text(
        "[lab]\naws_access_key_id = LABKEY\naws_secret_access_key = secret\naws_session_token = LABTOKEN\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert read() == CONTENT
    assert "Credential=LABKEY/" in server.requests[-1].headers["authorization"]
    assert server.requests[-1].headers["x-amz-security-token"] == "LABTOKEN"
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StorageError, match=r"AWS_PROFILE names a profile that ~/\.aws does not have"):
        read()


def test_the_endpoint_of_s3_goes_before_that_of_all_services(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.address)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert read() == CONTENT


def test_a_bundle_of_authorities_that_is_not_there_ends_the_run(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", "/none.pem")
    for uri in ("s3://other/a.jpg", "gs://other/a.jpg"):
        with pytest.raises(StorageError, match="the file that AWS_CA_BUNDLE names cannot be read"):
            read(uri)


@pytest.mark.parametrize("elsewhere", ["301", "301 PermanentRedirect", "400 AuthorizationHeaderMalformed"])
def test_a_bucket_in_another_region_is_read_there(
    server: ObjectServer, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")  # AWS_REGION goes before it
    server.region, server.elsewhere = "eu-west-1", elsewhere
    assert read() == CONTENT
    before = len(server.requests)
    assert read() == CONTENT
    assert methods(server)[before:] == ["GET"]  # it is known by now
    assert "/us-east-1/" in server.requests[0].headers["authorization"]
    assert "/eu-west-1/" in server.requests[-1].headers["authorization"]


def test_a_region_that_nobody_tells_is_a_row(server: ObjectServer) -> None:
    server.always = "301"
    assert read()[0] == "unreadable"


def test_a_process_that_was_forked_reads_as_well(server: ObjectServer) -> None:
    """obstore's threads stay in the parent: there it would wait for ever."""
    program = (
        "import os, signal\n"
        "from pipelines.storage.object_stores import read_object\n"
        f"first = read_object({A!r}, 5000)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    signal.alarm(20)\n"
        f"    os._exit(7 if read_object({A!r}, 5000) == first else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 7


# ---- other stores ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "fault", "message"),
    [
        ("gs://bucket/a.jpg", "404 NoSuchBucket", "there is no such bucket; check its name"),
        ("gs://bucket/a.jpg", "401 AuthenticationRequired", "no Google credentials that are accepted"),
        ("az://bucket/a.jpg", "404 ContainerNotFound", "there is no such container; check its name"),
        ("az://bucket/a.jpg", "403 AuthenticationFailed", "no Azure credentials that are accepted"),
    ],
)
def test_other_stores_end_the_run_likewise(server: ObjectServer, uri: str, fault: str, message: str) -> None:
    server.always = fault
    with pytest.raises(StorageError, match=message):
        read(uri)


@pytest.mark.parametrize(
    ("uri", "fault"),
    [
        ("gs://bucket/a.jpg", "403 AccessDenied"),
        ("az://bucket/a.jpg", "403 AuthorizationPermissionMismatch"),
        ("abfs://bucket/a.jpg", "403 AuthorizationFailure"),
    ],
)
def test_other_stores_deny_single_images(server: ObjectServer, uri: str, fault: str) -> None:
    server.always = fault
    assert "access denied" in read(uri)[1]


def test_other_stores_without_their_settings(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/none.json")
    monkeypatch.delenv("GOOGLE_BEARER_TOKEN")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME")
    for uri, variable in (("gs://odd/a.jpg", "GOOGLE_APPLICATION_CREDENTIALS"), ("az://odd/a.jpg", "AZURE_STORAGE")):
        with pytest.raises(StorageError, match=f"set {variable}"):
            read(uri)


@pytest.mark.parametrize("key", ["a//b.jpg", "/a.jpg", "a/../b.jpg", "a\tb.jpg", "a/", ""])
def test_names_that_other_stores_are_not_asked_for(server: ObjectServer, key: str) -> None:
    status, error = read(f"gs://bucket/{key}")
    assert (status, "by such names" in error) == ("unreadable", True)
    assert server.requests == []


def test_tables_and_coco_files_name_images_of_other_stores(server: ObjectServer, tmp_path: Path) -> None:
    server.objects |= {"/bucket/set/ü b.jpg": b"g", "/bucket/set/train2017/1.jpg": b"t"}
    uris = ["gs://bucket/a.jpg", "az://bucket/a.jpg", "gs://bucket/set/ü b.jpg"]
    (tmp_path / "list.csv").write_text("\n".join(["uri", *uris]))
    pq.write_table(pa.table({"uri": uris}), tmp_path / "list.parquet")
    (tmp_path / "coco.json").write_text(
        json.dumps({"images": [{"id": id, "file_name": uri} for id, uri in enumerate(uris, 1)]})
    )
    for name in ("list.csv", "list.parquet", "coco.json"):
        manifest = build_manifest(open_source(f"{tmp_path}/{name}"), f"{tmp_path}/{name}.manifest")
        assert sorted(manifest.read(0).column("uri").to_pylist()) == sorted(uris)
    assert [read(uri) for uri in uris] == [CONTENT, CONTENT, b"g"]
    (tmp_path / "below.json").write_text(json.dumps({"images": [{"id": 1, "file_name": "train2017/1.jpg"}]}))
    assert listed(f"{tmp_path}/below.json", "gs://bucket/set") == ["gs://bucket/set/train2017/1.jpg"]


def listed(images: str, image_root: str | None = None) -> list[str]:
    source = open_source(images, image_root)
    return sorted(uri for part in source.parts for some in entries(part) for uri in some.uris)


def test_prefixes_of_other_stores_are_listed(server: ObjectServer, tmp_path: Path) -> None:
    names = ["set/a.jpg", "set/x/b.PNG", "set/.cache/c.jpg", "set/notes.txt", "settle/d.jpg", "set/x/ü d.jpg"]
    server.objects |= {f"/bucket/{name}": b"x" for name in names}
    everything = [f"gs://bucket/set/{name}" for name in ("a.jpg", "x/b.PNG", "x/ü d.jpg")]
    assert listed("gs://bucket/set") == listed("gs://bucket/set/") == everything
    assert listed("gs://bucket/set/*.jpg") == everything[:1]
    assert listed("gs://bucket/**/b.PNG") == everything[1:2]
    assert listed("gs://bucket/a.jpg") == ["gs://bucket/a.jpg"]
    assert len(listed("gs://bucket")) == 5
    manifest = build_manifest(open_source("gs://bucket/set"), f"{tmp_path}/manifest")
    assert manifest.read(0).column("size").to_pylist() == [1, 1, 1]
    assert changes_since(manifest, "gs://bucket/set") is None
    assert [read(uri) for uri in everything] == [b"x"] * 3


@pytest.mark.parametrize("images", ["gs://bucket/none", "gs://bucket/list.csv"])
def test_what_cannot_be_listed_is_said_in_one_line(server: ObjectServer, images: str) -> None:
    with pytest.raises(StorageError, match="expected a prefix, glob or image there"):
        open_source(images)
    server.always = "404 NoSuchBucket"
    with pytest.raises(StorageError, match="there is no such bucket; check its name"):
        open_source(images)


def test_nothing_is_written_to_other_stores() -> None:
    for uri in ("gs://bucket/out", "az://bucket/out"):
        with pytest.raises(StorageError, match="is not supported; expected a local path or s3://bucket/key"):
            storage.write_bytes_atomically(uri, b"x")
