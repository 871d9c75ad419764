"""What `--images` may name."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskrcnn_core.errors import AnnotationError, ConfigError, StorageError, UserError
from pipelines import manifest as manifest_module
from pipelines.manifest import MANIFEST_SCHEMA, build_manifest, stable_image_id


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def names_of(images: Path | str, root: Path, image_root: str | None = None) -> list[str]:
    table = build_manifest(str(images), image_root).table
    assert table.schema == MANIFEST_SCHEMA
    return [Path(uri).relative_to(root).as_posix() for uri in table.column("uri").to_pylist()]


def test_folder_is_searched_recursively_for_images_of_any_case(tmp_path: Path) -> None:
    touch(tmp_path, "b.JPG", "a/deep/er.png", "a.tiff", "notes.txt", "a/.hidden.png", ".cache/x.png", "jpg")
    assert names_of(tmp_path, tmp_path) == ["a.tiff", "a/deep/er.png", "b.JPG"]
    assert names_of(f"{tmp_path}/", tmp_path) == ["a.tiff", "a/deep/er.png", "b.JPG"]


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
def test_glob(tmp_path: Path, glob: str, expected: list[str]) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "x/c.jpg", "x/y/d.jpg", "a.txt", "x/c.json")
    assert names_of(f"{tmp_path}/{glob}", tmp_path) == expected


def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "set [1]/a.jpg")
    assert names_of(tmp_path / "set [1]", tmp_path) == ["set [1]/a.jpg"]


def test_one_image_and_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "set/a.jpg")
    monkeypatch.chdir(tmp_path)
    assert names_of("set/a.jpg", tmp_path) == ["set/a.jpg"]
    assert names_of("set", tmp_path) == ["set/a.jpg"]
    assert names_of("set/*", tmp_path) == ["set/a.jpg"]
    monkeypatch.chdir(tmp_path / "set")
    assert names_of("a.jpg", tmp_path) == ["set/a.jpg"]
    assert names_of("*.jpg", tmp_path) == ["set/a.jpg"]
    assert names_of(".", tmp_path) == ["set/a.jpg"]


def test_ids_are_unique_positive_and_stay_when_the_folder_moves(tmp_path: Path) -> None:
    touch(tmp_path / "one", *(f"{index}.jpg" for index in range(100)))
    before = build_manifest(str(tmp_path / "one"))
    (tmp_path / "one").rename(tmp_path / "two")
    after = build_manifest(str(tmp_path / "two"))
    ids = before.table.column("image_id").to_pylist()
    assert ids == after.table.column("image_id").to_pylist()
    assert len(set(ids)) == 100
    assert all(0 <= image_id < 2**63 for image_id in ids)
    assert before.digest != after.digest  # other places: another run
    assert build_manifest(str(tmp_path / "two")).digest == after.digest
    assert stable_image_id("0.jpg") in ids


def test_a_collision_of_ids_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    monkeypatch.setattr(manifest_module, "stable_image_id", lambda name: 5)
    with pytest.raises(AnnotationError, match="image id 5 twice"):
        build_manifest(str(tmp_path))


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
def test_nothing_to_label_is_one_clear_line(tmp_path: Path, images: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "other/notes.txt", "full/a.jpg")
    with pytest.raises(StorageError, match=message) as raised:
        build_manifest(f"{tmp_path}/{images}")
    assert "\n" not in str(raised.value)


def coco(path: Path, *images: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": list(images), "annotations": []}))
    return path


@pytest.mark.parametrize("place", ["annotations", "images", "."])
def test_coco_images_are_found_beside_the_json_with_their_ids_and_sizes(tmp_path: Path, place: str) -> None:
    touch(tmp_path / place, "a.jpg", "b.jpg")
    entries = [{"id": 7, "file_name": "a.jpg", "width": 4, "height": 3}, {"id": 2, "file_name": "b.jpg"}]
    found = build_manifest(str(coco(tmp_path / "annotations" / "instances.json", *entries)))
    assert found.source == "coco"
    base = (tmp_path / place).resolve()
    assert found.table.to_pylist() == [
        {"image_id": 2, "uri": str(base / "b.jpg"), "width": None, "height": None},
        {"image_id": 7, "uri": str(base / "a.jpg"), "width": 4, "height": 3},
    ]


def test_coco_image_root_and_missing_files(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "a.jpg")
    entries = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "lost.jpg"}]
    source = coco(tmp_path / "set" / "instances.json", *entries)
    with pytest.raises(StorageError, match="--image_root"):
        build_manifest(str(source))
    assert names_of(source, tmp_path, str(tmp_path / "elsewhere")) == ["elsewhere/a.jpg", "elsewhere/lost.jpg"]
    with pytest.raises(ConfigError, match="only has a meaning with a COCO json"):
        build_manifest(str(tmp_path / "elsewhere"), "somewhere")


def test_coco_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "images/a.jpg")
    coco(tmp_path / "annotations" / "x.json", {"id": 1, "file_name": "a.jpg"})
    monkeypatch.chdir(tmp_path / "annotations")
    assert names_of("x.json", tmp_path) == ["images/a.jpg"]
    monkeypatch.chdir(tmp_path)
    assert names_of("annotations/x.json", tmp_path) == ["images/a.jpg"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "no entries"),
        ('{"images": []}', "no entries"),
        ('{"images": [{"id": "x", "file_name": "a"}]}', r"images\[0\]"),
        ('{"images": [{"id": 1}]}', r"images\[0\]"),
        ('{"images": [3]}', r"images\[0\]"),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]}', "image id 1 twice"),
        ('{"images": [{"id": 99999999999999999999, "file_name": "a.jpg"}]}', "wrong type"),
    ],
)
def test_malformed_coco(tmp_path: Path, text: str, message: str) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError, match=message):
        build_manifest(str(tmp_path / "bad.json"))


def test_parquet_manifest_keeps_ids_and_resolves_names_beside_it(tmp_path: Path) -> None:
    place = tmp_path / "list.parquet"
    pq.write_table(pa.table({"uri": ["b.jpg", "/abs/a.jpg", "s3://bucket/c.jpg"], "image_id": [3, 1, 2]}), place)
    found = build_manifest(str(place))
    assert found.source == "parquet"
    assert found.table.column("image_id").to_pylist() == [1, 2, 3]
    assert found.table.column("uri").to_pylist() == ["/abs/a.jpg", "s3://bucket/c.jpg", str(tmp_path / "b.jpg")]
    pq.write_table(pa.table({"uri": ["b.jpg"], "width": [5], "height": [6]}), place)
    row = build_manifest(str(place)).table.to_pylist()[0]
    assert (row["image_id"], row["width"], row["height"]) == (stable_image_id("b.jpg"), 5, 6)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": ["a"]}, "expected `uri`"),
        ({"uri": pa.array([], pa.string())}, "no rows"),
        ({"uri": ["a", None]}, "no text"),
        ({"uri": ["a"], "image_id": ["x"]}, "no integer"),
        ({"uri": ["a", "a"]}, "twice"),
        ({"uri": ["a", "b"], "image_id": [1, 1]}, "image id 1 twice"),
    ],
)
def test_malformed_parquet_manifest(tmp_path: Path, columns: dict, message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")
    with pytest.raises(AnnotationError, match=message):
        build_manifest(str(tmp_path / "list.parquet"))


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    touch(tmp_path, "list.parquet")
    with pytest.raises(AnnotationError, match="cannot read the manifest"):
        build_manifest(str(tmp_path / "list.parquet"))


def test_real_coco_annotations(shared_data: Path) -> None:
    found = build_manifest(str(shared_data / "coco" / "annotations" / "instances_val.json"))
    assert len(found) == 44
    assert all(Path(uri).is_file() for uri in found.table.column("uri").to_pylist())
