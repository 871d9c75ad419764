"""Images inside Parquet files, from the list to the bytes."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maskrcnn_core.data.files import TooManyBytes
from maskrcnn_core.errors import AnnotationError, ImageError
from pipelines import storage
from pipelines.images import parquet_images
from pipelines.images.manifest import build_manifest
from pipelines.images.parquet_images import ParquetRow, RowGroups, image_column, parquet_row_of
from pipelines.images.reading import ImageReader, read_image
from pipelines.images.source import open_source
from pipelines.labelling.config import LabelRun
from tests.fuzz.labelling_here import run_here

CONTENTS = [f"image {index}".encode() for index in range(25)]


def write(path: Path, columns: dict[str, Any], rows: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows)
    return path


def rows_of(images: str, folder: Path) -> list[tuple[int, str]]:
    manifest = build_manifest(open_source(images), str(folder))
    tables = [table for table in manifest.tables()]
    return [(row["image_id"], row["uri"]) for table in tables for row in table.to_pylist()]


SHAPES = {
    "bytes": CONTENTS,
    "structs": [{"bytes": content, "path": f"{index}.jpg"} for index, content in enumerate(CONTENTS)],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_each_row_is_an_image_and_neighbours_stay_together(shape: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a b#ü.parquet", {"label": list(range(25)), "image": SHAPES[shape]})
    rows = rows_of(str(path), tmp_path / "manifest")
    found = [parquet_row_of(uri) for _, uri in rows]
    assert [(row.group, row.row) for row in found if row] == [(index // 10, index % 10) for index in range(25)]
    reader = ImageReader(1000)
    assert [reader.read(uri) for _, uri in rows] == CONTENTS
    assert read_image(rows[7][1]) == CONTENTS[7]
    ids = [image_id for image_id, _ in rows]
    assert ids == list(range(ids[0], ids[0] + 25))
    assert 0 <= ids[0] < 2**63 - 2**23


def test_given_ids_are_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image_id": list(range(25)), "image": CONTENTS})
    assert [image_id for image_id, _ in rows_of(str(path), tmp_path / "manifest")] == list(range(25))
    for wrong in ([None, *range(24)], [str(index) for index in range(25)]):
        path = write(tmp_path / "b.parquet", {"image_id": wrong, "image": CONTENTS})
        with pytest.raises(AnnotationError, match="expected a whole number in each row"):
            rows_of(str(path), tmp_path / "other")


def test_a_glob_names_many_files_and_a_folder_none(tmp_path: Path) -> None:
    for name in ("x/1.parquet", "2.parquet", "3.PARQUET"):
        write(tmp_path / "data" / name, {"image": CONTENTS})
    assert len(rows_of(str(tmp_path / "data/**/*.parquet"), tmp_path / "m1")) == 50
    Image.new("RGB", (4, 4)).save(tmp_path / "data" / "c.png")
    assert len(rows_of(str(tmp_path / "data"), tmp_path / "m2")) == 1


def test_which_column_holds_the_images() -> None:
    def column(**types: pa.DataType) -> str | None:
        return image_column(pa.schema(list(types.items())))

    struct = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])
    assert column(image=struct, mask=struct) == "image.bytes"
    assert column(picture=pa.binary(), name=pa.string()) == "picture"
    assert column(picture=pa.binary(), thumb=pa.binary()) is None
    assert column(image=pa.string()) is None
    assert column(image=pa.struct([("bytes", pa.string())])) is None


def test_a_table_without_images_says_what_it_has(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"a": [1], "b": ["x"]})
    with pytest.raises(AnnotationError, match=r"columns \['a', 'b'\]; expected `uri`, or `image`"):
        rows_of(str(path), tmp_path / "manifest")


def test_what_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(write(tmp_path / "a.parquet", {"image": [b"one", None, b""]}))
    groups = RowGroups()
    assert groups.read(ParquetRow(path, "image", 0, 0), 3) == b"one"
    assert groups.read(ParquetRow(path, "image", 0, 2), 3) == b""
    with pytest.raises(TooManyBytes):
        groups.read(ParquetRow(path, "image", 0, 0), 2)
    for row, message in (
        (ParquetRow(path, "image", 0, 1), "is null"),
        (ParquetRow(path, "image", 0, 3), "has 3 rows, not 4"),
        (ParquetRow(path, "image", 1, 0), "has 1 row groups, not 2"),
        (ParquetRow(path, "other", 0, 0), "damaged or has changed"),
    ):
        with pytest.raises(ImageError, match=message):
            groups.read(row, 100)
    nothing = ImageReader(100).read(ParquetRow(str(tmp_path / "b.parquet"), "image", 0, 0).uri)
    assert isinstance(nothing, ImageError)
    assert nothing.status == "missing"
    monkeypatch.setattr(parquet_images, "_MOST_GROUP_BYTES", 1)
    with pytest.raises(ImageError, match="smaller ones"):
        RowGroups().read(ParquetRow(path, "image", 0, 0), 100)


def test_many_empty_rows_are_no_fault_of_the_store(s3_folder: str, tmp_path: Path) -> None:
    """Whatever is refused so often in a row by storage itself ends a run."""
    path = f"{s3_folder}/a.parquet"
    local = write(tmp_path / "a.parquet", {"image": [*[None] * 20, b"one"]}, rows=30)
    storage.write_bytes_atomically(path, local.read_bytes())
    reader = ImageReader(100)
    found = [reader.read(ParquetRow(path, "image", 0, row).uri) for row in range(21)]
    assert {str(content) for content in found[:20]} == {"image is null in this row"}
    assert found[20] == b"one"


def test_a_group_is_read_once_for_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, reads = str(write(tmp_path / "a.parquet", {"image": CONTENTS})), []
    opened = storage.filesystem_and_path

    def counted(uri: str) -> Any:
        reads.append(uri)
        return opened(uri)

    monkeypatch.setattr(storage, "filesystem_and_path", counted)
    groups = RowGroups()
    for index in range(25):
        groups.read(ParquetRow(path, "image", index // 10, index % 10), 100)
    assert len(reads) == 3


def test_they_are_labelled(tmp_path: Path) -> None:
    contents = []
    for index in range(7):
        buffer = io.BytesIO()
        Image.new("RGB", (20 + index, 10)).save(buffer, "PNG")
        contents.append(buffer.getvalue())
    path = write(tmp_path / "a.parquet", {"image": [*contents, b"no picture"]}, rows=3)
    summary = run_here(LabelRun(str(tmp_path / "none"), str(path), str(tmp_path / "out")))
    assert summary.images == 8
    assert summary.statuses == {"ok": 7, "unreadable": 1}
