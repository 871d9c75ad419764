import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskrcnn_core.data.coco.conversion import Reader
from maskrcnn_core.data.coco.json_columns import columns_of_json
from maskrcnn_core.errors import AnnotationError, StorageError
from pipelines import storage
from pipelines.annotations.columns import annotation_columns, content_digest
from tests.core.data.coco.test_columns import same
from tests.core.data.coco.test_shard_columns import boxes_alone


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKRCNN_CACHE", str(tmp_path / "cache"))


def write_shards(uri: str, content: dict[str, Any]) -> str:
    """Two shards of images and three of objects."""
    storage.write_bytes_atomically(f"{uri}/categories.json", json.dumps(content["categories"]).encode())
    for kind, entries, rows in (("images", content["images"], 3), ("objects", content["annotations"], 16)):
        for number, begin in enumerate(range(0, len(entries), rows)):
            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_pylist(entries[begin : begin + rows]), sink)
            storage.write_bytes_atomically(f"{uri}/{kind}/{number:05d}.parquet", sink.getvalue().to_pybytes())
    return uri


def from_json(content: dict[str, Any]) -> Any:
    return columns_of_json(json.dumps(content).encode(), Reader(), source="file")


def entries_of(columns: Any) -> list[Any]:
    return [columns.entries(index) for index in range(len(columns))]


def test_a_folder_of_shards_is_read_as_a_coco_file_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = boxes_alone()
    uri = write_shards(str(tmp_path / "shards"), content)
    columns = annotation_columns(uri, Reader())
    assert columns.folder is not None
    assert entries_of(columns) == entries_of(from_json(content))
    monkeypatch.setattr("pipelines.annotations.columns.read_shards", lambda *_, **__: pytest.fail("read again"))
    assert same(columns, annotation_columns(uri, Reader()))


def test_another_value_is_another_digest(tmp_path: Path) -> None:
    content = boxes_alone()
    uri = write_shards(str(tmp_path / "shards"), content)
    before = content_digest(uri)
    assert content_digest(write_shards(str(tmp_path / "moved"), content)) == before
    content["annotations"][-1]["id"] = 10**6
    assert content_digest(write_shards(uri, content)) != before


def test_shards_on_s3(s3_folder: str) -> None:
    content = boxes_alone()
    uri = write_shards(f"{s3_folder}/shards", content)
    assert entries_of(annotation_columns(uri, Reader())) == entries_of(from_json(content))


def test_folders_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageError, match=r"categories\.json"):
        annotation_columns(str(tmp_path / "empty"), Reader())
    (tmp_path / "empty" / "categories.json").write_text("[]")
    with pytest.raises(AnnotationError, match=r"empty: no images/\*\.parquet in it"):
        annotation_columns(str(tmp_path / "empty"), Reader())
    uri = write_shards(str(tmp_path / "shards"), boxes_alone())
    (tmp_path / "shards" / "objects" / "00001.parquet").write_bytes(b"no parquet")
    with pytest.raises(AnnotationError, match=r"00001\.parquet: cannot be read"):
        annotation_columns(uri, Reader())
    other = write_shards(str(tmp_path / "other"), {**boxes_alone(), "categories": {}})
    with pytest.raises(AnnotationError, match="got a dict, expected COCO's list of categories"):
        annotation_columns(other, Reader())
