"""Images in tar shards, from the list to the bytes; beside folders, globs and S3."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskrcnn_core.errors import ImageError, StorageError
from pipelines import storage
from pipelines.images.manifest import build_manifest
from pipelines.images.reading import ImageReader, read_image
from pipelines.images.source import open_source
from pipelines.images.tar_shards import Member, member_of
from pipelines.labelling.config import LabelRun
from pipelines.labelling.run import label
from pipelines.verification.config import VerifyRun
from pipelines.verification.run import verify
from tests.fuzz.labelling_here import label_here
from tests.pipelines.fake_detector import FAKE, write_images

LONG = "long/" + "x" * 150 + ".png"
STRANGE = "a & b#1/ü %41=.jpeg"


def write_tar(path: Path, files: Mapping[str, bytes], mode: str = "w", form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=form) as tar:  # type: ignore[call-overload]
        folder = tarfile.TarInfo("folder.png")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def listed(images: str, folder: Path) -> list[str]:
    manifest = build_manifest(open_source(images), str(folder))
    return sorted(uri for table in manifest.tables() for uri in table.column("uri").to_pylist())


def contents(uris: list[str]) -> dict[str, bytes]:
    found = {}
    for uri in uris:
        member = member_of(uri)
        assert member is not None
        found[member.name] = read_image(uri)
    return found


FILES = {"0/a.jpg": b"first", "0/a.json": b"{}", "B.PNG": b"", LONG: b"x" * 3000, STRANGE: b"last"}
IMAGES = {name: content for name, content in FILES.items() if not name.endswith(".json")}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_the_images_of_a_shard_and_their_bytes(tmp_path: Path, form: int) -> None:
    shard = write_tar(tmp_path / "shards" / "000.tar", FILES, form=form)
    uris = listed(str(shard), tmp_path / "manifest")
    assert contents(uris) == IMAGES
    assert all(uri.startswith(f"{shard}#offset=") for uri in uris)
    assert all(uri.isascii() and " " not in uri.removeprefix(str(shard)) for uri in uris)


@pytest.mark.parametrize("images", ["shards", "shards/*.tar", "shards/**"])
def test_shards_in_folders_and_globs(tmp_path: Path, images: str) -> None:
    write_tar(tmp_path / "shards" / "000.tar", {"a.jpg": b"a"})
    write_tar(
        tmp_path / "shards" / "001.TAR" if images == "shards" else tmp_path / "shards" / "001.tar", {"a.jpg": b"b"}
    )
    write_tar(tmp_path / "shards" / ".hidden.tar", {"c.jpg": b"c"})
    uris = listed(str(tmp_path / images), tmp_path / "manifest")
    assert [read_image(uri) for uri in uris] == [b"a", b"b"]  # the same name twice, and two ids


def test_files_and_shards_side_by_side(tmp_path: Path) -> None:
    write_images(tmp_path / "set", 2)
    write_tar(tmp_path / "set" / "deep" / "more.tar", {"x.png": b"x"})
    uris = listed(str(tmp_path / "set"), tmp_path / "manifest")
    assert [Path(uri).name for uri in uris] == ["000.png", "001.png", f"{Path(uris[2]).name}"]
    assert read_image(uris[2]) == b"x"


def test_shards_on_s3_are_read_by_ranges(bucket: str, tmp_path: Path) -> None:
    for number, key in enumerate(("shards/000.tar", "shards/a//b.tar")):
        content = write_tar(tmp_path / f"{number}.tar", {**FILES, "which.png": key.encode()}).read_bytes()
        boto3.client("s3", region_name="us-east-1").put_object(Bucket="bucket", Key=key, Body=content)
    assert contents(listed(f"{bucket}/shards/000.tar", tmp_path / "one")) == {**IMAGES, "which.png": b"shards/000.tar"}
    *others, strange = listed(f"{bucket}/shards", tmp_path / "both")
    assert contents(others) == {**IMAGES, "which.png": b"shards/000.tar"}
    assert strange == f"{bucket}/shards/a//b.tar"  # which nothing here can open and look into
    odd = Member(f"{bucket}/shards/a//b.tar", 512, 6, "x.png")
    assert len(read_image(odd.uri)) == 6


@pytest.mark.parametrize("where", ["in a file", "in a header", "between two files"])
def test_a_torn_shard_gives_what_is_whole_and_a_row_that_says_so(tmp_path: Path, where: str) -> None:
    write_images(tmp_path / "pictures", 3)
    files = {path.name: path.read_bytes() for path in sorted((tmp_path / "pictures").iterdir())}
    shard = write_tar(tmp_path / "shards" / "000.tar", {**files, "big.png": bytes(4096)})
    last = max((member_of(uri) for uri in listed(str(shard), tmp_path / "list")), key=lambda member: member.offset)
    assert last is not None
    end = last.offset + {"in a file": 3000, "in a header": -200, "between two files": -512}[where]
    shard.write_bytes(shard.read_bytes()[:end])
    summary = label_here(tmp_path / "shards", tmp_path / "out")
    assert summary.statuses == {"ok": 3, "unreadable": 1 + (where == "in a file")}
    assert any("torn, or none" in failure.error for failure in summary.failures)


def test_a_shard_that_shrinks_or_goes_costs_its_own_images(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "000.tar", {"a.jpg": b"a" * 100, "b.jpg": b"b" * 100})
    first, second = listed(str(shard), tmp_path / "manifest")
    member = member_of(second)
    assert member is not None
    shard.write_bytes(shard.read_bytes()[: member.offset + 40])
    assert read_image(first) == b"a" * 100
    with pytest.raises(ImageError, match=r"the tar file ends within it: 40 of 100 bytes are there"):
        read_image(second)
    shard.unlink()
    with pytest.raises(ImageError, match="no such file"):
        read_image(first)


def test_too_large_images_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write_tar(tmp_path / "000.tar", {"a.jpg": b"a" * 100})
    monkeypatch.setattr("pipelines.images.reading.read_local_range", lambda *_: pytest.fail("it was read"))
    found = ImageReader(99).read(listed(str(shard), tmp_path / "manifest")[0])
    assert isinstance(found, ImageError)
    assert found.status == "too_large"


@pytest.mark.parametrize("content", [b"", b"no tar at all", bytes(2000), b"x" * 5000])
def test_what_is_no_shard_is_a_row_or_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "000.tar").write_bytes(content)
    write_images(tmp_path / "shards", 1)
    uris = listed(str(tmp_path / "shards"), tmp_path / "manifest")
    assert uris[-1].endswith(".png") or uris[0].endswith((".png", ".tar"))
    assert sum(uri.endswith(".png") for uri in uris) == 1


def test_a_compressed_shard_names_itself(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "000.tar", {"a.jpg": b"a"}, mode="w:gz")
    assert listed(str(shard), tmp_path / "manifest") == [str(shard)]


def test_a_shard_without_images_is_told(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "000.tar", {"a.txt": b"a"})
    with pytest.raises(StorageError, match=r"no images in .*000.tar.* \(1 other files\)"):
        listed(str(shard), tmp_path / "manifest")


@pytest.mark.parametrize(
    "uri",
    [
        *("a.jpg", "a#b.jpg", "s3://b/a.tar#offset=1", "a.tar#offset=x&length=1&name=a", "#offset=1&length=1&name=a"),
        *("a.tar#offset=1&length=1&name=a#b", "a.tar#offset=9999999999999999999&length=1&name=a"),
    ],
)
def test_other_names_are_none_of_shards(uri: str) -> None:
    assert member_of(uri) is None


def test_names_come_back() -> None:
    for name in (LONG, STRANGE, "a/../b.jpg", "\udcff.jpg", ""):
        member = Member("s3://bucket/x#y.tar", 512, 7, name)
        found = member_of(member.uri)
        assert found is not None
        assert (found.shard, found.offset, found.length) == ("s3://bucket/x#y.tar", 512, 7)
        assert found.uri == member.uri


def test_from_shards_to_proven_rows(tmp_path: Path) -> None:
    write_images(tmp_path / "pictures", 25)
    files = sorted((tmp_path / "pictures").iterdir())
    for number in range(3):
        some = {path.name: path.read_bytes() for path in files[number::3]}
        write_tar(tmp_path / "shards" / f"{number:03d}.tar", some)
    summary = label(LabelRun("good", str(tmp_path / "shards"), str(tmp_path / "out")), detector=FAKE)
    assert summary.statuses == {"ok": 25}
    rows = pa.concat_tables([pq.read_table(path) for path in storage.list_files(summary.labels, ".parquet")])
    assert sorted(str(member_of(uri).name) for uri in rows.column("uri").to_pylist()) == [path.name for path in files]
    assert verify(VerifyRun(str(tmp_path / "out"))).passed
