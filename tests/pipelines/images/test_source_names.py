"""What `--images` may name when names are odd, folders run in circles and tables come from other tools."""

import gzip
import json
import os
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskrcnn_core.data.files import uri_of
from maskrcnn_core.errors import AnnotationError, ConfigError, StorageError, UserError
from pipelines.images import local_folders
from pipelines.images.manifest import build_manifest, changes_since
from pipelines.images.reading import ImageReader
from pipelines.images.source import entries, open_source


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def listed(images: object, image_root: str | None = None) -> list[str]:
    """All uris of a source, each of which a record can hold and a process can read or refuse."""
    source = open_source(str(images), image_root)
    uris = [uri for part in source.parts for some in entries(part) for uri in some.uris]
    for uri in uris:
        uri.encode()
    return uris


def names(images: object, image_root: str | None = None) -> list[str]:
    root = f"{os.path.abspath(str(images))}/"
    return sorted(uri.removeprefix(root) for uri in listed(images, image_root))


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_a_name_that_is_no_utf_8_is_listed_as_what_can_be_read(tmp_path: Path) -> None:
    home, tmp_path = tmp_path / "home", tmp_path / "set"
    touch(tmp_path, "good.jpg", "caf%E9.jpg", "new\nline.jpg", "\x1b[2J.jpg", "é.jpg", "bad/a.jpg")
    raw = os.fsencode(tmp_path)
    os.rename(raw + b"/bad", raw + b"/\xff")
    with open(raw + b"/caf\xe9.jpg", "wb") as stream:
        stream.write(b"odd")
    uris = listed(tmp_path)
    assert len(uris) == len(set(uris)) == 7
    assert {uri for uri in uris if "://" in uri} == {f"file://{tmp_path}/caf%E9.jpg", f"file://{tmp_path}/%FF/a.jpg"}
    contents = {uri: ImageReader(9).read(uri) for uri in uris}
    assert contents.pop(f"file://{tmp_path}/caf%E9.jpg") == b"odd"
    assert set(contents.values()) == {b"x"}
    manifest = build_manifest(open_source(str(tmp_path)), str(home))
    assert len(manifest) == 7
    assert changes_since(manifest, str(tmp_path)) is None


@pytest.mark.parametrize("parts", [1, 256])
def test_links_in_circles_come_to_an_end(tmp_path: Path, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_folders, "_MOST_LOCAL_PARTS", 4 * parts)
    touch(tmp_path, "set/a.jpg", "set/x/b.jpg", "set/x/y/c.jpg", "else/d.jpg", "else/deep/e.jpg", "set/.cache/f.jpg")
    links = {
        "up1": ".", "up2": ".", "x/parent": "..", "x/y/top": "../..", "x/y/self": "../y", "loop.jpg": "loop.jpg",
        "lost.jpg": "nowhere", "again.jpg": "a.jpg", "z": "x", "out1": "../else", "hidden": ".cache", "loop": "loop",
    }  # fmt: skip
    for name, target in links.items():
        (tmp_path / "set" / name).symlink_to(target)
    (tmp_path / "else" / "back").symlink_to(tmp_path / "set")
    (tmp_path / "else" / "self").symlink_to(".")
    (tmp_path / "else" / "deep" / "up").symlink_to("..")
    found = ["a.jpg", "again.jpg", "hidden/f.jpg", "out1/d.jpg", "out1/deep/e.jpg", "x/b.jpg", "x/y/c.jpg"]
    assert names(tmp_path / "set") == found
    assert names(tmp_path / "set" / "up1") == found
    assert [uri for uri in listed(f"{tmp_path}/set/**/*.jpg") if "/y/" in uri] == [f"{tmp_path}/set/x/y/c.jpg"]


def test_many_links_between_folders_do_not_multiply(tmp_path: Path) -> None:
    for k in range(10):
        touch(tmp_path, f"set/{k}/a.jpg", f"out/{k}/b.jpg")
    for k in range(10):
        (tmp_path / "set" / str(k) / "out").symlink_to(tmp_path / "out" / str(k))
        for other in range(10):
            (tmp_path / "set" / str(k) / f"to{other}").symlink_to(tmp_path / "set" / str(other))
            (tmp_path / "out" / str(k) / f"to{other}").symlink_to(tmp_path / "out" / str(other))
    found = names(tmp_path / "set")
    assert [name for name in found if name.endswith("a.jpg")] == [f"{k}/a.jpg" for k in range(10)]
    assert len(found) <= 10 + 10 * 10  # of each part at most every folder once


def test_pipes_devices_and_links_to_them_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "to_pipe.jpg").symlink_to("pipe.jpg")
    assert names(tmp_path) == ["a.jpg"]


def test_files_that_vanish_while_they_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, *(f"{k % 5}/{k}.jpg" for k in range(500)))
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for k in range(0, 500, 2):
                file = tmp_path / str(k % 5) / f"{k}.jpg"
                file.unlink(missing_ok=True)
                file.write_bytes(b"x")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(20):
            assert {f"{k % 5}/{k}.jpg" for k in range(1, 500, 2)} <= set(names(tmp_path))
    finally:
        stop.set()
        thread.join()
    real = local_folders._scanned

    def late(folder: str) -> Any:
        found = real(folder)
        for file in tmp_path.glob("0/*.jpg"):
            file.unlink()
        return found

    monkeypatch.setattr(local_folders, "_scanned", late)
    assert not any(name.startswith("0/") for name in names(tmp_path))


def test_a_folder_that_cannot_be_listed_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "lost+found/b.jpg")
    real = os.scandir

    def refusing(folder: str) -> Any:
        if folder.endswith("lost+found"):
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    assert names(tmp_path) == ["a.jpg", "lost+found"]
    failure = ImageReader(9).read(f"{tmp_path}/lost+found")
    assert "it is a folder" in str(failure)
    with pytest.raises(StorageError, match=r"cannot list .*Permission denied"):
        open_source(f"{tmp_path}/lost+found")


@pytest.mark.parametrize("glob", ["[z-a]*", "x[z-a]/*.jpg"])
def test_a_glob_that_is_none_is_one_line(tmp_path: Path, glob: str) -> None:
    touch(tmp_path, "a.jpg")
    with pytest.raises(ConfigError, match="is no pattern of names") as raised:
        listed(f"{tmp_path}/{glob}")
    assert "\n" not in str(raised.value)


def test_a_glob_below_a_folder_with_brackets_and_names_with_line_ends(tmp_path: Path) -> None:
    touch(tmp_path, "set [1]/a.jpg", "set [1]/x/b\nc.jpg", "set 1/d.jpg")
    assert listed(f"{tmp_path}/set [1]/*.jpg") == [f"{tmp_path}/set [1]/a.jpg"]
    assert listed(f"{tmp_path}/set [1]/**/b*") == [f"{tmp_path}/set [1]/x/b\nc.jpg"]
    assert listed(f"{tmp_path}/set [1]") == [f"{tmp_path}/set [1]/a.jpg", f"{tmp_path}/set [1]/x/b\nc.jpg"]


# ---- COCO json -------------------------------------------------------------------------------------------------------


def coco(folder: Path, *file_names: object, name: str = "set.json") -> Path:
    images = [{"id": k, "file_name": file} for k, file in enumerate(file_names, 1)]
    (folder / name).write_text(json.dumps({"images": images, "annotations": []}))
    return folder / name


def test_names_that_are_absolute_or_have_a_scheme_are_read_where_they_are(tmp_path: Path) -> None:
    touch(tmp_path, "data/a.jpg", "data/b c.jpg", "else/d.jpg")
    here = tmp_path / "data"
    absolute = [f"{here}/a.jpg", f"file://{here}/b%20c.jpg", f"{here}/../else/d.jpg", "s3://bucket/e.jpg"]
    expected = [f"{here}/a.jpg", f"file://{here}/b%20c.jpg", f"{tmp_path}/else/d.jpg", "s3://bucket/e.jpg"]
    assert listed(coco(tmp_path, *absolute)) == expected
    assert listed(coco(here, *absolute, "a.jpg")) == [*expected, f"{here}/a.jpg"]
    assert listed(coco(tmp_path, *absolute), str(tmp_path / "else")) == expected  # the reader refuses what leaves it
    for uri in expected[:3]:
        assert ImageReader(9).read(uri) == b"x"
    refusing = ImageReader(9, below=str(here))
    assert [isinstance(refusing.read(uri), bytes) for uri in expected[:3]] == [True, True, False]


@pytest.mark.parametrize(
    ("file_names", "message"),
    [
        (["x\\a.jpg"], r"backslashes where the files have /, as '.*/x/a.jpg': correct"),
        (["b%20c.jpg"], r"%-codes where the files have the characters, as '.*b c.jpg': correct"),
        (["C:\\Users\\me\\a.jpg", "old/er/b c.jpg"], r"folders that the files do not lie in any more, as"),
        (["none.jpg"], "give their folder with --image_root"),
        (["/none/a.jpg"], "by where they lie, expected files that are there"),
        (["http://a/b.jpg", "gs://a/b.jpg"], "'http://a/b.jpg' and others by where they lie"),
        (["a\0b.jpg"], "give their folder with --image_root"),
        (["x" * 5000], "give their folder with --image_root"),
        (["\ud800.jpg"], "give their folder with --image_root"),
    ],
)
def test_names_that_are_not_there_are_one_line_with_a_hint(tmp_path: Path, file_names: list[str], message: str) -> None:
    touch(tmp_path, "x/a.jpg", "b c.jpg")
    touch(tmp_path, "a.jpg") if "old/er/b c.jpg" in file_names else None
    with pytest.raises(StorageError, match=message) as raised:
        listed(coco(tmp_path, *file_names))
    assert "\n" not in str(raised.value)


def test_odd_names_beside_good_ones_are_rows(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb") as stream:
        stream.write(b"odd")
    os.mkfifo(tmp_path / "pipe.jpg")
    odd = [
        "caf\udce9.jpg",
        "\ud800.jpg",
        "a\0b.jpg",
        "x\0/b.jpg",
        "x" * 999 + "/b.jpg",
        "pipe.jpg",
        "x" * 5000,
        "http://a/b.jpg",
        "x\\a.jpg",
        "n\nl.jpg",
    ]
    source = coco(tmp_path, "a.jpg", *odd, "../../../etc/passwd")
    uris = listed(source)
    assert [isinstance(ImageReader(9).read(uri), bytes) for uri in uris[:11]] == [True, True] + [False] * 9
    assert len(build_manifest(open_source(str(source)), str(tmp_path / ".manifest"))) == 12


def test_a_root_that_is_found_though_most_images_are_missing(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{k}.jpg" for k in range(50, 100)))
    assert len(listed(coco(tmp_path, *(f"{k}.jpg" for k in range(100))))) == 100


@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"images": [{"id": 1' + "0" * 5000 + ', "file_name": "a.jpg"}]}', "\x00", '{"images": 3}']
)
def test_a_json_that_is_none_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError) as raised:
        listed(tmp_path / "bad.json")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


# ---- tables ----------------------------------------------------------------------------------------------------------

ROWS = "uri,image_id\r\né.jpg,7\r\nb.jpg,8.0\r\n"


@pytest.mark.parametrize(
    "content",
    [
        ROWS.encode(),
        ROWS.encode("utf-8-sig"),
        ROWS.encode("utf-16"),
        b"\xfe\xff" + ROWS.encode("utf-16-be"),
        gzip.compress(ROWS.encode("utf-8-sig")),
        ROWS.replace("\r\n", "\n\n").encode(),
    ],
)
def test_a_csv_in_any_marked_encoding(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    (part,) = open_source(str(tmp_path / "list.csv")).parts
    (some,) = entries(part)
    assert some.uris == [f"{tmp_path}/é.jpg", f"{tmp_path}/b.jpg"]
    assert some.ids == [7, 8]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ROWS.encode("latin-1"), "not UTF-8: byte 0xe9 is no part of a character; save it as UTF-8"),
        (ROWS.encode("utf-16-le"), "expected a column uri|not UTF-8"),
        (b'uri\n"' + b"x" * 140_000 + b"\n", r"is no CSV: field larger than field limit.*quote not closed"),
        (b"uri\n" + b"x" * 140_000 + b"\n", r"field larger than field limit"),
        (gzip.compress(ROWS.encode())[:-12], "cannot be unpacked"),
        (b"uri;image_id\na.jpg;1\n", r"is \['uri;image_id'\]; expected a column uri, and commas"),
        (b"", r"expected a column uri"),
        (b"uri,image_id\na.jpg,1\nb.jpg,\n", "row 2: no image_id"),
        (b"uri,image_id\na.jpg,1.5\n", "row 1: image_id is '1.5', expected a whole number"),
        (b"uri,image_id\na.jpg," + b"9" * 5000 + b"\n", "row 1: image_id is '9999"),
        (b"uri,image_id\na.jpg,99999999999999999999\n", "wrong type"),
        (b"image_id,uri\n1,a.jpg\n2\n", "row 2: uri is 'None', expected text"),
    ],
)
def test_a_csv_that_is_none_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(AnnotationError, match=message) as raised:
        build_manifest(open_source(str(tmp_path / "list.csv")), str(tmp_path / ".manifest"))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_a_csv_with_odd_names_has_a_row_for_each(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    odd = [
        "a\0b.jpg",
        "pipe.jpg",
        "/dev/zero",
        str(tmp_path),
        "x" * 5000,
        "s3://bucket/a//b.jpg",
        '"n\nl.jpg"',
        "~root",
    ]
    (tmp_path / "list.csv").write_text("\n".join(["uri", "a.jpg", *odd]))
    uris = listed(tmp_path / "list.csv")
    assert len(uris) == 9
    assert uris[-1] == f"{tmp_path}/~root"
    assert len(build_manifest(open_source(str(tmp_path / "list.csv")), str(tmp_path / ".manifest"))) == 9


@pytest.mark.parametrize(
    ("columns", "outcome"),
    [
        ({"uri": ["a.jpg"], "image_id": [1.0]}, [1]),
        ({"uri": ["a.jpg"], "image_id": ["1"]}, [1]),
        ({"uri": pa.array(["a.jpg"]).dictionary_encode(), "image_id": pa.array([1], pa.uint8())}, [1]),
        ({"uri": pa.array(["a.jpg"], pa.large_string())}, None),
        ({"uri": ["a\0b.jpg"], "size": [float("nan")], "etag": [None]}, None),
        ({"uri": ["a.jpg"], "image_id": [True]}, "image_id is 'True'"),
        ({"uri": ["a.jpg"], "image_id": [1.5]}, "image_id is '1.5'"),
        ({"uri": [b"a.jpg"]}, "row 1: uri is"),
        ({"uri": ["a.jpg", ""]}, "row 2: uri is ''"),
        ({"uri": [["a.jpg"]]}, "row 1: uri is"),
        ({"uri": ["a.jpg"], "width": ["x"]}, "width is 'x'"),
        ({"uri": ["a.jpg"], "etag": [5]}, "wrong type"),
    ],
)
def test_parquet_tables_of_other_tools(
    tmp_path: Path, columns: dict[str, Any], outcome: list[int] | str | None
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")

    def build() -> None:
        build_manifest(open_source(f"{tmp_path}/list.parquet"), f"{tmp_path}/.manifest")

    if isinstance(outcome, str):
        with pytest.raises(AnnotationError, match=outcome):
            build()
        return
    build()
    (part,) = open_source(f"{tmp_path}/list.parquet").parts
    (some,) = entries(part)
    assert some.ids == outcome


# ---- S3 --------------------------------------------------------------------------------------------------------------


def test_keys_that_are_no_paths_are_listed_and_read(s3_folder: str) -> None:
    keys = ["a//b.jpg", "/lead.jpg", "a/../up.jpg", "a/./dot.jpg", "a/good.jpg", "a/.hidden/x.jpg", "a/t\tab#?%41+.jpg"]
    client = boto3.client("s3")
    for key in keys:
        client.put_object(Bucket="bucket", Key=f"odd/{key}", Body=key.encode())
    uris = listed("s3://bucket/odd/")
    assert sorted(uris) == sorted(f"s3://bucket/odd/{key}" for key in keys if ".hidden" not in key)
    assert [ImageReader(99).read(uri) for uri in uris] == [
        uri.removeprefix("s3://bucket/odd/").encode() for uri in uris
    ]
    assert listed("s3://bucket/odd/a/*.jpg") == ["s3://bucket/odd/a/good.jpg", "s3://bucket/odd/a/t\tab#?%41+.jpg"]


def test_names_in_a_local_json_lead_to_s3(s3_folder: str, tmp_path: Path) -> None:
    boto3.client("s3").put_object(Bucket="bucket", Key="there/a.jpg", Body=b"x")
    there = "s3://bucket/there"
    assert listed(coco(tmp_path, f"{there}/a.jpg", f"{there}/gone.jpg")) == [f"{there}/a.jpg", f"{there}/gone.jpg"]
    assert listed(coco(tmp_path, "a.jpg"), there) == [f"{there}/a.jpg"]
    assert uri_of(f"{there}/a.jpg") == f"{there}/a.jpg"


@pytest.mark.parametrize("name", ["a%20b.jpg", "a b.jpg", "100%.jpg", "ä.jpg"])
def test_a_file_uri_means_the_same_as_its_path(tmp_path: Path, name: str) -> None:
    """Names in a json or a table are names, not parts of a URI, whatever the json itself is called by."""
    folder = tmp_path / "a folder"
    touch(folder, name)
    coco(folder, name)
    (folder / "set.csv").write_text(f"uri\n{name}\n")
    address = f"file://{quote(str(folder))}"
    for file in ("set.json", "set.csv"):
        assert listed(f"{address}/{file}") == listed(folder / file) == [str(folder / name)]
    assert listed(f"{address}/set.json", image_root=address) == [str(folder / name)]


def test_an_odd_key_beside_good_ones_is_looked_for_elsewhere(s3_folder: str, tmp_path: Path) -> None:
    client = boto3.client("s3")
    client.put_object(Bucket="bucket", Key="odd/good.jpg", Body=b"x")
    json_file = coco(tmp_path, "x//1.jpg", "good.jpg")
    assert listed(json_file, image_root="s3://bucket/odd") == ["s3://bucket/odd/x//1.jpg", "s3://bucket/odd/good.jpg"]
