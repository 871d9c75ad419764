"""What `--images` may name."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskrcnn_core.errors import AnnotationError, ConfigError, StorageError, UserError
from pipelines.images import local_folders
from pipelines.images import manifest as manifest_module
from pipelines.images import tables as source_tables_module
from pipelines.images.manifest import (
    MANIFEST_SCHEMA,
    Manifest,
    build_manifest,
    changes_since,
    open_manifest,
    stable_image_id,
)
from pipelines.images.source import open_source
from pipelines.storage.s3_client import s3_client


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


@pytest.fixture
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Manifest]:
    """The manifest of a setting `images`, in a folder of its own."""

    def build(images: Path | str, image_root: str | None = None) -> Manifest:
        return build_manifest(open_source(str(images), image_root), str(tmp_path_factory.mktemp("manifest")))

    return build


Build = Callable[..., Manifest]


def table_of(manifest: Manifest) -> pa.Table:
    table = pa.concat_tables(manifest.tables())
    assert table.schema == MANIFEST_SCHEMA
    assert table.num_rows == len(manifest)
    ids = table.column("image_id").to_pylist()
    assert ids == sorted(ids)
    return table


def names_of(manifest: Manifest, root: Path) -> list[str]:
    return sorted(Path(uri).relative_to(root).as_posix() for uri in table_of(manifest).column("uri").to_pylist())


def test_folder_is_searched_recursively_for_images_of_any_case(tmp_path: Path, build: Build) -> None:
    touch(tmp_path, "b.JPG", "a/deep/er.png", "a.tiff", "notes.txt", "a/.hidden.png", ".cache/x.png", "jpg")
    assert names_of(build(tmp_path), tmp_path) == ["a.tiff", "a/deep/er.png", "b.JPG"]
    assert names_of(build(f"{tmp_path}/"), tmp_path) == ["a.tiff", "a/deep/er.png", "b.JPG"]


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("*.jpg", ["a.jpg", "b.jpg"]),
        ("?.jpg", ["a.jpg", "b.jpg"]),
        ("[!a].jpg", ["b.jpg"]),
        ("*/*.jpg", ["x/c.jpg"]),
        ("**/*.jpg", ["a.jpg", "b.jpg", "x/c.jpg", "x/y/d.jpg"]),
        ("x/**", ["x/c.jpg", "x/y/d.jpg"]),
        ("x*/y/d.*", ["x/y/d.jpg"]),
    ],
)
def test_glob(tmp_path: Path, glob: str, expected: list[str], build: Build) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "x/c.jpg", "x/y/d.jpg", "a.txt", "x/c.json")
    assert names_of(build(f"{tmp_path}/{glob}"), tmp_path) == expected


def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(tmp_path: Path, build: Build) -> None:
    touch(tmp_path, "set [1]/a.jpg")
    assert names_of(build(tmp_path / "set [1]"), tmp_path) == ["set [1]/a.jpg"]


def test_one_image_and_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: Build) -> None:
    touch(tmp_path, "set/a.jpg")
    monkeypatch.chdir(tmp_path)
    assert names_of(build("set/a.jpg"), tmp_path) == ["set/a.jpg"]
    assert names_of(build("set"), tmp_path) == ["set/a.jpg"]
    assert names_of(build("set/*"), tmp_path) == ["set/a.jpg"]
    monkeypatch.chdir(tmp_path / "set")
    assert names_of(build("a.jpg"), tmp_path) == ["set/a.jpg"]
    assert names_of(build("*.jpg"), tmp_path) == ["set/a.jpg"]
    assert names_of(build("."), tmp_path) == ["set/a.jpg"]


def test_ids_are_unique_positive_and_those_of_the_uris(tmp_path: Path, build: Build) -> None:
    touch(tmp_path / "one", *(f"{index}.jpg" for index in range(100)))
    before = build(str(tmp_path / "one"))
    ids = table_of(before).column("image_id").to_pylist()
    assert len(set(ids)) == 100
    assert all(0 <= image_id < 2**63 for image_id in ids)
    assert stable_image_id(str(tmp_path / "one" / "0.jpg")) in ids
    assert build(str(tmp_path / "one")).digest == before.digest
    (tmp_path / "one").rename(tmp_path / "two")
    assert build(str(tmp_path / "two")).digest != before.digest  # other places: another run


def test_a_collision_of_ids_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: Build) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    monkeypatch.setattr(manifest_module, "stable_image_id", lambda name: 5)
    with pytest.raises(AnnotationError, match="image id 5 twice"):
        build(str(tmp_path))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("empty", "no images in .*it is empty"),
        ("other", "no images in .*1 other files"),
        ("absent", "no file or folder"),
        ("absent/*.jpg", "no folder"),
        ("full/*.png", "no images in .*no match"),
        ("other/notes.txt", "is no image"),
        ("other/notes.*", "no images in .*1 other files"),
    ],
)
def test_nothing_to_label_is_one_clear_line(tmp_path: Path, images: str, message: str, build: Build) -> None:
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "other/notes.txt", "full/a.jpg")
    with pytest.raises(StorageError, match=message) as raised:
        build(f"{tmp_path}/{images}")
    assert "\n" not in str(raised.value)


def coco(path: Path, *images: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": list(images), "annotations": []}))
    return path


@pytest.mark.parametrize("place", ["annotations", "images", "."])
def test_coco_images_are_found_beside_the_json_with_their_ids_and_sizes(
    tmp_path: Path, place: str, build: Build
) -> None:
    touch(tmp_path / place, "a.jpg", "b.jpg")
    entries = [{"id": 7, "file_name": "a.jpg", "width": 4, "height": 3}, {"id": 2, "file_name": "b.jpg"}]
    found = build(str(coco(tmp_path / "annotations" / "instances.json", *entries)))
    assert found.kind == "coco"
    base = (tmp_path / place).resolve()
    assert table_of(found).to_pylist() == [
        {"image_id": 2, "uri": str(base / "b.jpg"), "size": None, "etag": None, "width": None, "height": None},
        {"image_id": 7, "uri": str(base / "a.jpg"), "size": None, "etag": None, "width": 4, "height": 3},
    ]


def test_coco_image_root_and_missing_files(tmp_path: Path, build: Build) -> None:
    touch(tmp_path / "elsewhere", "a.jpg")
    entries = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "lost.jpg"}]
    source = coco(tmp_path / "set" / "instances.json", *entries)
    with pytest.raises(StorageError, match="--image_root"):
        build(str(source))
    assert names_of(build(source, str(tmp_path / "elsewhere")), tmp_path) == ["elsewhere/a.jpg", "elsewhere/lost.jpg"]
    with pytest.raises(ConfigError, match="only has a meaning with a COCO json"):
        build(str(tmp_path / "elsewhere"), "somewhere")


def test_coco_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: Build) -> None:
    touch(tmp_path, "images/a.jpg")
    coco(tmp_path / "annotations" / "x.json", {"id": 1, "file_name": "a.jpg"})
    monkeypatch.chdir(tmp_path / "annotations")
    assert names_of(build("x.json"), tmp_path) == ["images/a.jpg"]
    monkeypatch.chdir(tmp_path)
    assert names_of(build("annotations/x.json"), tmp_path) == ["images/a.jpg"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "no entries"),
        ('{"images": []}', "no entries"),
        ('{"images": [{"id": "x", "file_name": "a"}]}', "image at position 0: id 'x', expected a whole number"),
        ('{"images": [{"id": 1}]}', "image 1: file_name None, expected text"),
        ('{"images": [3]}', "image at position 0: got 3, expected an object"),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]}', "image 1: listed twice"),
        ('{"images": [{"id": 99999999999999999999, "file_name": "a.jpg"}]}', "expected a whole number of 64 bits"),
    ],
)
def test_malformed_coco(tmp_path: Path, text: str, message: str, build: Build) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError, match=message):
        build(str(tmp_path / "bad.json"))


def test_parquet_manifest_keeps_ids_and_resolves_names_beside_it(tmp_path: Path, build: Build) -> None:
    place = tmp_path / "list.parquet"
    pq.write_table(pa.table({"uri": ["b.jpg", "/abs/a.jpg", "s3://bucket/c.jpg"], "image_id": [3, 1, 2]}), place)
    found = build(str(place))
    assert found.kind == "parquet"
    assert table_of(found).column("image_id").to_pylist() == [1, 2, 3]
    assert table_of(found).column("uri").to_pylist() == ["/abs/a.jpg", "s3://bucket/c.jpg", str(tmp_path / "b.jpg")]
    pq.write_table(pa.table({"uri": ["b.jpg"], "width": [5], "height": [6]}), place)
    row = table_of(build(str(place))).to_pylist()[0]
    assert (row["image_id"], row["width"], row["height"]) == (stable_image_id(str(tmp_path / "b.jpg")), 5, 6)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": ["a"]}, "expected `uri`"),
        ({"uri": pa.array([], pa.string())}, "no rows"),
        ({"uri": ["a", None]}, "row 2: uri is 'None', expected text"),
        ({"uri": ["a"], "image_id": ["x"]}, "row 1: image_id is 'x', expected a whole number"),
        ({"uri": ["a", "a"]}, "twice"),
        ({"uri": ["a", "b"], "image_id": [1, 1]}, "image id 1 twice"),
    ],
)
def test_malformed_parquet_manifest(tmp_path: Path, columns: dict, message: str, build: Build) -> None:
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")
    with pytest.raises(AnnotationError, match=message):
        build(str(tmp_path / "list.parquet"))


def test_a_file_that_is_no_parquet(tmp_path: Path, build: Build) -> None:
    touch(tmp_path, "list.parquet")
    with pytest.raises(AnnotationError, match="cannot read the manifest"):
        build(str(tmp_path / "list.parquet"))


def test_real_coco_annotations(shared_data: Path, build: Build) -> None:
    found = build(str(shared_data / "coco" / "annotations" / "instances_val.json"))
    assert len(found) == 44
    assert all(Path(uri).is_file() for uri in table_of(found).column("uri").to_pylist())


# ---- several parts, chunks, changes ----------------------------------------------------------------------------------


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces, parts and row groups of a few rows, so that a small set has many."""
    for name, rows in (("_PIECE_ROWS", 16), ("_PART_ROWS", 20), ("_ROWS_PER_GROUP", 4)):
        monkeypatch.setattr(manifest_module, name, rows)
    for module in (local_folders, source_tables_module):
        monkeypatch.setattr(module, "BATCH_ROWS", 8)


@pytest.mark.usefixtures("small_parts")
def test_many_parts_hold_every_image_once_and_can_be_read_in_chunks(tmp_path: Path, build: Build) -> None:
    names = [f"{index % 7}/{index % 3}/{index}.jpg" for index in range(211)] + ["top.jpg", "1/middle.jpg"]
    touch(tmp_path, *names)
    found = build(tmp_path)
    assert len(found.parts) > 5
    assert max(found.parts) <= 80  # 20 were asked for; where parts are cut is estimated from samples
    assert names_of(found, tmp_path) == sorted(names)
    whole = found.read(2)
    for start in range(0, found.parts[2], 3):
        stop = min(start + 3, found.parts[2])
        assert found.read(2, start, stop).equals(whole.slice(start, stop - start))
    again = open_manifest(found.folder)
    assert again == found
    assert not list(Path(found.folder).glob("pieces/*"))
    manifest_module._PART_ROWS = 1000
    assert build(tmp_path).digest == found.digest  # however it is cut


@pytest.mark.usefixtures("small_parts")
def test_ids_of_two_parts_that_collide_are_found(tmp_path: Path, build: Build) -> None:
    ids = [*range(50), *range(100, 150), 17]
    place = tmp_path / "list.parquet"
    pq.write_table(pa.table({"uri": [f"{number}.jpg" for number in range(101)], "image_id": ids}), place)
    with pytest.raises(AnnotationError, match=r"image id 17 twice, for '.*17.jpg' and '.*100.jpg'"):
        build(str(place))


def test_what_was_not_finished_is_no_manifest(tmp_path: Path, build: Build) -> None:
    touch(tmp_path, "a.jpg")
    found = build(tmp_path)
    (Path(found.folder) / "manifest.json").unlink()
    assert open_manifest(found.folder) is None


def test_a_changed_source_is_noticed(tmp_path: Path, build: Build) -> None:
    touch(tmp_path / "set", "a.jpg", "deep/b.jpg")
    images = str(tmp_path / "set")
    found = build(images)
    assert changes_since(found, images) is None
    assert "images was" in str(changes_since(found, str(tmp_path)))
    touch(tmp_path / "set", "deep/c.jpg")
    assert "has changed since its images were listed" in str(changes_since(found, images))
    table = tmp_path / "list.parquet"
    pq.write_table(pa.table({"uri": ["a.jpg"]}), table)
    listed = build(table)
    assert changes_since(listed, str(table)) is None
    pq.write_table(pa.table({"uri": ["a.jpg", "b.jpg"]}), table)
    assert "has changed" in str(changes_since(listed, str(table)))


def test_csv_with_a_uri_column(tmp_path: Path, build: Build) -> None:
    (tmp_path / "list.csv").write_text('uri,image_id,size\n"a, b.jpg",5,100\n/abs/c.jpg,6,\n')
    rows = table_of(build(tmp_path / "list.csv")).to_pylist()
    assert [(row["image_id"], row["uri"], row["size"]) for row in rows] == [
        (5, str(tmp_path / "a, b.jpg"), 100),
        (6, "/abs/c.jpg", None),
    ]
    (tmp_path / "list.csv").write_text("path\na.jpg\n")
    with pytest.raises(AnnotationError, match="expected a column uri"):
        build(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text("uri,image_id\na.jpg,x\n")
    with pytest.raises(AnnotationError, match="row 1: image_id is 'x', expected a whole number"):
        build(tmp_path / "list.csv")


# ---- S3 --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keys(s3_folder: str) -> list[str]:
    """1,500 keys below s3://bucket/folder/set: 1,200 flat ones in one prefix, others in sub-prefixes and above them."""
    client = s3_client()
    names = [f"flat/{'0Az_-'[index % 5]}{index:05d}.jpg" for index in range(1200)]
    names += [f"days/{day}/{index}.png" for day in range(10) for index in range(28)] + [f"{n}.jpg" for n in range(20)]
    for name in [*names, "flat/notes.txt", "days/.cache/x.jpg"]:
        client.put_object(Bucket="bucket", Key=f"folder/set/{name}", Body=b"x" * 3)
    return names


def test_s3_prefix_of_many_pages(keys: list[str], build: Build) -> None:
    source = open_source("s3://bucket/folder/set/")
    assert len(source.parts) > 3
    found = build("s3://bucket/folder/set/")
    rows = table_of(found).to_pylist()
    assert sorted(row["uri"] for row in rows) == sorted(f"s3://bucket/folder/set/{name}" for name in keys)
    assert {row["size"] for row in rows} == {3}
    assert len(rows[0]["etag"]) == 32
    assert rows[0]["image_id"] == stable_image_id(rows[0]["uri"])
    some = build("s3://bucket/folder/set/days/*/1.png")
    assert len(some) == 10
    with pytest.raises(StorageError, match="no match"):
        build("s3://bucket/folder/set/days/*.gif")


@pytest.mark.parametrize("form", ["CSV", "Parquet"])
@pytest.mark.usefixtures("s3_folder")
def test_s3_inventory(form: str, build: Build) -> None:
    client = s3_client()
    names = ["a b.jpg", "ü.png", "notes.txt", "old.jpg"]
    if form == "CSV":
        lines = [f'"images","{quote_plus(name)}","7","{"false" if name == "old.jpg" else "true"}"' for name in names]
        content, place = gzip.compress("\n".join(lines).encode()), "inv/data/1.csv.gz"
    else:
        columns = {
            "bucket": ["images"] * 4,
            "key": names,
            "size": [7] * 4,
            "is_latest": [n != "old.jpg" for n in names],
        }
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), sink)
        content, place = sink.getvalue().to_pybytes(), "inv/data/1.parquet"
    client.put_object(Bucket="bucket", Key=place, Body=content)
    document = {
        "sourceBucket": "images",
        "destinationBucket": "arn:aws:s3:::bucket",
        "fileFormat": form,
        "fileSchema": "Bucket, Key, Size, IsLatest",
        "files": [{"key": place, "size": len(content)}],
    }
    client.put_object(Bucket="bucket", Key="inv/manifest.json", Body=json.dumps(document).encode())
    rows = table_of(build("s3://bucket/inv/manifest.json")).to_pylist()
    assert sorted((row["uri"], row["size"]) for row in rows) == [("s3://images/a b.jpg", 7), ("s3://images/ü.png", 7)]


@pytest.mark.usefixtures("s3_folder")
def test_a_bucket_that_is_not_there_is_one_clear_line(build: Build) -> None:
    with pytest.raises(StorageError, match=r"no such bucket; check its name|no file or folder"):
        build("s3://no-such-bucket-here/images/")
