"""Images that are named instead of sent: read of the folders that are allowed, and of nowhere else."""

import json
from collections.abc import Iterator

import pytest

from pipelines import storage
from pipelines.serving.config import ServeConfig
from tests.pipelines.serving.local_service import (
    LocalDetector,
    LocalServer,
    Reply,
    local_server,
    new_service,
    picture,
)


@pytest.fixture(scope="module")
def server_of_objects(checkpoint: str, s3_folder: str) -> Iterator[LocalServer]:
    for name, content in {
        "open/a.png": picture(seed=1),
        "open/b.png": picture(seed=2),
        "open/text.jpg": b"text, and no image at all",
        "open/large.jpg": bytes(60_000),
        "secret/a.png": picture(seed=3),
    }.items():
        storage.write_bytes_atomically(f"{s3_folder}/{name}", content)
    service = new_service()
    config = ServeConfig(uris=(f"{s3_folder}/open",), max_bytes=50_000, max_images=3)
    with local_server({"default": LocalDetector(service)}, config) as server:
        server.run(service.use(checkpoint))
        yield server
        service.close()


def ask(server: LocalServer, path: str, document: object) -> Reply:
    return server.ask(path, json.dumps(document).encode(), {"Content-Type": "application/json; charset=utf-8"})


def test_a_named_image_is_as_one_that_is_sent(server_of_objects: LocalServer, s3_folder: str) -> None:
    uri = f"{s3_folder}/open/a.png"
    named = ask(server_of_objects, "/v1/detect", {"uri": uri}).json
    sent = server_of_objects.ask("/v1/detect", picture(seed=1)).json
    assert named["uri"] == uri
    assert named["detections"] == sent["detections"] != []


def test_several_have_records_in_order(server_of_objects: LocalServer, s3_folder: str) -> None:
    uris = [f"{s3_folder}/open/{name}" for name in ("b.png", "none.png", "text.jpg")]
    images = ask(server_of_objects, "/v1/detect:batch", {"uris": uris}).json["images"]
    assert [one["status"] for one in images] == ["ok", "missing", "unreadable"]
    assert [one["uri"] for one in images] == uris
    assert len({one["model"] for one in images}) == 1


@pytest.mark.parametrize(
    ("name", "status"),
    [("open/none.png", 404), ("open/text.jpg", 422), ("open/large.jpg", 413), ("secret/a.png", 403), ("open", 403)],
)
def test_others_have_their_status(server_of_objects: LocalServer, s3_folder: str, name: str, status: int) -> None:
    reply = ask(server_of_objects, "/v1/detect", {"uri": f"{s3_folder}/{name}"})
    assert reply.status == status
    assert "key" not in reply.json["detail"]
