import pickle
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import fs

from maskrcnn_core.data import proposals as module
from maskrcnn_core.data.proposals import (
    ImageProposals,
    ProposalFiles,
    pad_proposals,
    resize_proposals,
)
from maskrcnn_core.errors import ImageError, StorageError
from maskrcnn_core.records.labels import record_schema, records_to_table
from maskrcnn_core.records.proposals import ProposalRecord, failed_proposals, proposals_to_table
from maskrcnn_core.records.schema import ROWS_PER_GROUP, is_proposals_schema


def found(
    *boxes: tuple[float, float, float, float], scores: tuple[float, ...] = (), size: tuple[int, int] = (100, 200)
) -> ProposalRecord:
    """A row of boxes x, y, width, height in an image of `size` (height, width)."""
    values = np.array(boxes, np.float32).reshape(-1, 4)
    given = scores or tuple(np.linspace(0.9, 0.1, len(boxes)))
    return ProposalRecord("ok", None, size[1], size[0], values, np.array(given, np.float32))


def random_record(seed: int, count: int = 30) -> ProposalRecord:
    random = np.random.default_rng(seed)
    boxes = random.uniform(0, 50, (count, 4)).astype(np.float32) + np.float32(1)
    scores = np.sort(random.random(count).astype(np.float32))[::-1].copy()
    return ProposalRecord("ok", None, 200, 100, boxes, scores)


def write(path: Path, records: dict[int, ProposalRecord], rows_per_group: int = ROWS_PER_GROUP) -> str:
    table = proposals_to_table(list(records), [f"{n}.jpg" for n in records], list(records.values()), "model")
    pq.write_table(table, path, row_group_size=rows_per_group)
    return str(path)


def open_files(*paths: str) -> ProposalFiles:
    return ProposalFiles(paths, fs.LocalFileSystem(), "data.train.proposals")


# ---- frames and padding ----------------------------------------------------------------------------------------------


def test_resize_and_flip_by_eye() -> None:
    boxes = ImageProposals(torch.tensor([[10.0, 20.0, 30.0, 60.0]]), torch.tensor([0.5]), (100, 200))
    resized = resize_proposals(boxes, (50, 400))  # half as high, twice as wide
    assert resized.boxes.tolist() == [[20.0, 10.0, 60.0, 30.0]]
    assert resized.size == (50, 400)
    mirrored = resize_proposals(boxes, (50, 400), flip=True)  # 200 - 30 and 200 - 10, then twice as wide
    assert mirrored.boxes.tolist() == [[340.0, 10.0, 380.0, 30.0]]
    twice = resize_proposals(resize_proposals(boxes, boxes.size, flip=True), boxes.size, flip=True)
    assert twice.boxes.tolist() == boxes.boxes.tolist()


def test_padding_to_the_longest_and_at_least_one_slot() -> None:
    two = ImageProposals(torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0]]), torch.tensor([0.9, 0.8]), (9, 9))
    none = ImageProposals(torch.zeros(0, 4), torch.zeros(0), (9, 9))
    batch = pad_proposals([none, two])
    assert batch.count.tolist() == [0, 2]
    assert batch.valid.tolist() == [[False, False], [True, True]]
    assert batch.boxes[0].tolist() == [[0.0, 0.0, 1.0, 1.0]] * 2  # never a box without area
    assert batch.boxes[1].tolist() == two.boxes.tolist()
    assert pad_proposals([none]).boxes.shape == (1, 1, 4)
    assert pad_proposals([]).boxes.shape == (0, 1, 4)


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows_per_group", [1, 3, 100])
def test_every_image_is_found_whatever_its_file_and_row_group(tmp_path: Path, rows_per_group: int) -> None:
    records = {image_id: random_record(image_id, count=image_id % 7) for image_id in (9, 4, 30, 2, 11, 7, 1, 25)}
    ids = list(records)
    first = write(tmp_path / "a.parquet", {image_id: records[image_id] for image_id in ids[:5]}, rows_per_group)
    second = write(tmp_path / "b.parquet", {image_id: records[image_id] for image_id in ids[5:]}, rows_per_group)
    files = open_files(first, second)
    assert len(files) == 8
    for image_id, record in records.items():
        read = files.read(image_id, limit=1000)
        assert (read.size, len(read)) == ((100, 200), len(record.scores))
        expected = np.concatenate([record.boxes[:, :2], record.boxes[:, :2] + record.boxes[:, 2:]], axis=1)
        np.testing.assert_array_equal(read.boxes.numpy(), expected)
        np.testing.assert_array_equal(read.scores.numpy(), record.scores)
        assert len(files.read(image_id, limit=2)) == min(2, len(record.scores))


def test_boxes_are_sorted_clipped_and_empty_ones_left_out(tmp_path: Path) -> None:
    record = found(
        (-10.0, -10.0, 30.0, 30.0),  # sticks out
        (5.0, 5.0, 0.0, 10.0),  # no area
        (300.0, 0.0, 10.0, 10.0),  # outside
        (150.0, 90.0, 100.0, 100.0),
        scores=(0.2, 0.9, 0.8, 0.7),
    )
    read = open_files(write(tmp_path / "a.parquet", {1: record})).read(1, limit=10)
    assert read.boxes.tolist() == [[150.0, 90.0, 200.0, 100.0], [0.0, 0.0, 20.0, 20.0]]
    assert read.scores.tolist() == pytest.approx([0.7, 0.2])


def test_a_reader_travels_to_another_process_and_serves_many_threads(tmp_path: Path) -> None:
    records = {image_id: random_record(image_id) for image_id in range(40)}
    files = pickle.loads(pickle.dumps(open_files(write(tmp_path / "a.parquet", records, 4))))
    wrong: list[int] = []

    def read_all(seed: int) -> None:
        for image_id in np.random.default_rng(seed).permutation(40).tolist():
            if files.read(image_id, 1000).scores.tolist() != records[image_id].scores.tolist():
                wrong.append(image_id)

    threads = [threading.Thread(target=read_all, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_more_files_than_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_OPEN_FILES", 2)
    paths = [write(tmp_path / f"{image_id}.parquet", {image_id: random_record(image_id)}) for image_id in range(5)]
    files = open_files(*paths)
    for image_id in (0, 1, 2, 0, 4, 3, 1):
        assert files.read(image_id, 9).scores.tolist() == random_record(image_id).scores[:9].tolist()
        assert len(files._open) <= 2


def test_no_files_and_no_rows(tmp_path: Path) -> None:
    for files in (open_files(), open_files(write(tmp_path / "none.parquet", {}))):
        assert len(files) == 0
        files.require([])
        with pytest.raises(StorageError, match="1 of 1 images have no row"):
            files.require([1])


def test_images_without_proposals_are_named_before_any_work(tmp_path: Path) -> None:
    records = {1: found((0, 0, 5, 5)), 2: found(), 3: failed_proposals("missing", "no such file")}
    files = open_files(write(tmp_path / "a.parquet", records))
    files.require([1, 2])
    assert len(files.read(2, 10)) == 0  # the RPN found nothing: that is no fault
    with pytest.raises(StorageError, match=r"data\.train\.proposals: 2 of 3 images have no row, .* image id 7, 8; exp"):
        files.require([7, 1, 8])
    with pytest.raises(StorageError, match=r"1 of 2 images have no proposals because they failed .* image id 3;"):
        files.require([1, 3])
    with pytest.raises(ImageError, match=r"image 7: data\.train\.proposals: no row of this image"):
        files.read(7, 10)
    with pytest.raises(ImageError, match=r"image 3: .* the image failed"):
        files.read(3, 10)


def test_what_is_no_proposal_file_is_said(tmp_path: Path) -> None:
    detections = str(tmp_path / "labels.parquet")
    pq.write_table(records_to_table([], [], [], "model", record_schema(())), detections)
    with pytest.raises(StorageError, match=r"holds detections, expected proposals .* --label\.record proposals writes"):
        open_files(detections)
    (tmp_path / "text.parquet").write_text("no Parquet")
    with pytest.raises(StorageError, match="cannot be read as Parquet"):
        open_files(str(tmp_path / "text.parquet"))
    one = write(tmp_path / "one.parquet", {1: found()})
    with pytest.raises(StorageError, match="image id 1 has more than one row"):
        open_files(one, write(tmp_path / "two.parquet", {1: found()}))


def test_a_row_group_too_large_to_read_for_one_image_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_GROUP_BYTES", 2000)
    records = {image_id: random_record(image_id) for image_id in range(40)}
    open_files(write(tmp_path / "small.parquet", records))
    with pytest.raises(StorageError, match=r"a row group of 40 images .* write the file again with row_group_size=16"):
        open_files(write(tmp_path / "large.parquet", records, 40))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1.0, 2.0, 3.0], "score": 0.5}, "bbox is not 4 finite numbers"),
        ({"bbox": [1.0, 2.0, 3.0, float("nan")], "score": 0.5}, "bbox is not 4 finite numbers"),
        ({"bbox": [1.0, 2.0, 3.0, 4.0], "score": float("inf")}, "whose score is none"),
    ],
)
def test_faulty_proposals_cost_their_image(tmp_path: Path, change: dict, message: str) -> None:
    table = proposals_to_table([1], ["1.jpg"], [found()], "model")
    rows = table.to_pylist()
    rows[0]["proposals"] = [change]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), tmp_path / "a.parquet")
    with pytest.raises(ImageError, match=message):
        open_files(str(tmp_path / "a.parquet")).read(1, 10)


def test_files_of_another_tool_need_only_the_columns_that_are_read(tmp_path: Path) -> None:
    """As DuckDB or pandas writes them: float64, no metadata, nothing declared non-null."""
    rows = [
        {
            "image_id": 5,
            "width": 20,
            "height": 10,
            "status": "ok",
            "proposals": [{"score": 0.5, "bbox": [1.0, 2.0, 3.0, 4.0]}],
        }
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    files = open_files(str(tmp_path / "a.parquet"))
    read = files.read(5, 10)
    assert (read.boxes.tolist(), read.scores.tolist(), read.size) == ([[1.0, 2.0, 4.0, 6.0]], [0.5], (10, 20))


def test_fingerprint_follows_the_content_and_not_the_names(tmp_path: Path) -> None:
    one = open_files(write(tmp_path / "a.parquet", {1: found((0, 0, 5, 5))}))
    same = open_files(write(tmp_path / "b.parquet", {1: found((0, 0, 5, 5))}))
    moved = open_files(write(tmp_path / "c.parquet", {1: found((0, 0, 5, 6))}))
    assert one.fingerprint == same.fingerprint != moved.fingerprint
    assert len(one.fingerprint) == 32


def test_schema_says_its_kind() -> None:
    table = proposals_to_table([1], ["1.jpg"], [found()], "model")
    assert is_proposals_schema(table.schema)
    assert not is_proposals_schema(record_schema(()))
    assert not is_proposals_schema(pa.schema([]))
