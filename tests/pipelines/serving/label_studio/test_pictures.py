"""Which pictures of tasks are fetched, and with what."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from maskrcnn_core.errors import ConfigError, ImageError
from pipelines.serving.label_studio.pictures import LabelStudioSite, TaskPictures, read_token
from pipelines.serving.uploads import UploadLimits
from tests.pipelines.serving.label_studio.site import LEGACY, REFRESH, Site, running_site

LIMITS = UploadLimits(max_images=4, max_bytes=1000, max_pixels=10_000, uris=("s3://bucket/folder",))


@pytest.fixture
def site() -> Iterator[Site]:
    with running_site() as site:
        site.files["/data/upload/1/a b.jpg"] = b"never"
        site.files["/data/upload/1/a.jpg"] = b"picture"
        yield site


def pictures(address: str, token: str = "") -> TaskPictures:
    return TaskPictures(LabelStudioSite(address, token), LIMITS, lambda uri: f"object {uri}".encode())


def test_pictures_of_the_site(site: Site) -> None:
    own = pictures(site.address)
    assert own.read("/data/upload/1/a.jpg") == b"picture"
    assert own.read(f"{site.address}/data/upload/1/a.jpg") == b"picture"
    assert own.read("s3://bucket/folder/a.jpg") == b"object s3://bucket/folder/a.jpg"


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/other/a.jpg",
        "http://127.0.0.1:1/data/upload/1/a.jpg",
        "//127.0.0.1:1/a.jpg",
        "http://169.254.169.254/latest/meta-data",
        "{site}@127.0.0.1:1/a.jpg",
        "{site}.example.org/a.jpg",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "\\\\127.0.0.1\\a.jpg",
        "/data/upload/1/a b.jpg",
        "/data\r\nX: y",
        "",
    ],
)
def test_no_other_address_is_asked(site: Site, uri: str) -> None:
    answer = pictures(site.address).read(uri.replace("{site}", site.address))
    assert isinstance(answer, ImageError)
    assert answer.status == "missing"
    assert [path for path, _ in site.asked if path != "/"] == []
    assert isinstance(pictures("").read("/data/upload/1/a.jpg"), ImageError)


def test_a_legacy_token_is_sent(site: Site) -> None:
    site.token = f"Token {LEGACY}"
    assert isinstance(pictures(site.address).read("/data/upload/1/a.jpg"), ImageError)
    assert pictures(site.address, LEGACY).read("/data/upload/1/a.jpg") == b"picture"


def test_a_personal_token_buys_another_one_once(site: Site) -> None:
    site.token = "Bearer access"
    own = pictures(site.address, REFRESH)
    assert [own.read("/data/upload/1/a.jpg") for _ in range(3)] == [b"picture"] * 3
    assert [path for path, _ in site.asked].count("/api/token/refresh") == 1


def test_the_token_stays_with_the_site(site: Site) -> None:
    """Its cloud storage is another host."""
    with running_site() as storage:
        storage.files["/signed"] = b"from the storage"
        site.files["/tasks/1/resolve/"] = f"{storage.address.replace('127.0.0.1', 'localhost')}/signed"
        site.files["/local"] = "/data/upload/1/a.jpg"
        site.files["/ftp"] = "ftp://127.0.0.1/a"
        own = pictures(site.address, LEGACY)
        assert own.read("/tasks/1/resolve/") == b"from the storage"
        assert storage.asked == [("/signed", "")]
        assert own.read("/local") == b"picture"
        assert site.asked[-1][1] == f"Token {LEGACY}"
        assert isinstance(own.read("/ftp"), ImageError)


@pytest.mark.parametrize(("path", "status"), [("/none", "missing"), ("/loop", "missing"), ("/large", "too_large")])
def test_what_cannot_be_had(site: Site, path: str, status: str) -> None:
    site.files |= {"/loop": "/loop", "/large": bytes(1001)}
    answer = pictures(site.address).read(path)
    assert isinstance(answer, ImageError)
    assert answer.status == status
    assert site.address not in str(answer)


def test_a_site_that_is_down(site: Site) -> None:
    assert isinstance(pictures("http://127.0.0.1:9").read("/a.jpg"), ImageError)


def test_a_token_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{LEGACY}\n")
    assert read_token(str(tmp_path / "token")) == LEGACY
    for text in ("", "two words", "a\nb"):
        (tmp_path / "token").write_text(text)
        with pytest.raises(ConfigError, match=r"serve\.label_studio_token"):
            read_token(str(tmp_path / "token"))
    with pytest.raises(ConfigError, match=r"serve\.label_studio_token"):
        read_token(str(tmp_path / "none"))
