import copy
import json
import pickle
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskrcnn_core.data.coco import json_columns, json_spans, json_stream
from maskrcnn_core.data.coco.columns import INFO_FILE, AnnotationColumns, open_columns, places_of_objects
from maskrcnn_core.data.coco.conversion import SCORING, Reader
from maskrcnn_core.data.coco.dataset import dataset_of
from maskrcnn_core.data.coco.json_columns import columns_of_json, convert_here
from maskrcnn_core.errors import AnnotationError, StorageError

SIDE = 64


def document(images: int = 5, objects: int = 23, seed: int = 0) -> dict[str, Any]:
    """Objects of all forms, in a random order of images; the last image has none."""
    random_ = random.Random(seed)
    annotations = []
    for number in range(objects):
        x, y = random_.randrange(20) + 0.25, random_.randrange(20)
        entry: dict[str, Any] = {
            "id": number,
            "image_id": random_.randrange(images - 1),
            "category_id": random_.choice([3, 7]),
        }
        entry |= {"bbox": [x, y, 10.5, 12], "area": 99, "iscrowd": int(number % 5 == 0)}
        form = number % 4
        if form == 0:
            entry["segmentation"] = {"size": [SIDE, SIDE], "counts": [5, 7, SIDE * SIDE - 12]}
        elif form < 3:
            part = [x, y, x + 10.1, y, x + 10.1, y + 12.3]
            entry["segmentation"] = [part] * form
        if entry["category_id"] == 7:
            entry |= {"keypoints": [1.5, 2, 2, 0, 0, 0], "num_keypoints": 1}
        annotations.append(entry)
    return {
        "info": {"year": 2017},
        "images": [
            {"id": number, "file_name": f"{number} é.jpg", "width": SIDE, "height": SIDE} for number in range(images)
        ],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "person", "keypoints": ["nose", "eye"]}, {"id": 3, "name": "dog"}],
    }


@pytest.fixture(params=[1 << 22, 200])
def piece_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The file is one piece, or many."""
    monkeypatch.setattr(json_spans, "PIECE_BYTES", request.param)
    return int(request.param)


def read(
    content: dict[str, Any] | bytes, folder: Path | None = None, reader: Reader | None = None
) -> AnnotationColumns:
    if not isinstance(content, bytes):
        content = json.dumps(content).encode()
    if folder is not None:
        folder.mkdir()
    return columns_of_json(content, reader or Reader(), source="file", folder=folder)


def same(one: AnnotationColumns, other: AnnotationColumns) -> bool:
    return (
        one.info == other.info
        and one.images.equals(other.images)
        and [one.entries(index) for index in range(len(one))] == [other.entries(index) for index in range(len(other))]
    )


def test_entries_come_out_as_they_were_read(piece_bytes: int) -> None:
    content = document()
    columns = read(content)
    assert len(columns) == 5
    for index, image in enumerate(content["images"]):
        expected = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
        entries = columns.entries(index)
        assert [entry["id"] for entry in entries] == [entry["id"] for entry in expected]
        for entry, given in zip(entries, expected, strict=True):
            assert entry["bbox"] == given["bbox"]
            assert entry.get("keypoints") == given.get("keypoints")
            if isinstance(given.get("segmentation"), list):
                assert [list(part) for part in entry["segmentation"]] == given["segmentation"]
        assert columns.image_entry(index) == image
    assert not columns.entries(4)


def test_a_folder_holds_the_same_and_another_process_maps_it(tmp_path: Path, piece_bytes: int) -> None:
    in_memory, in_folder = read(document()), read(document(), tmp_path / "columns")
    assert same(in_memory, in_folder)
    assert same(in_memory, open_columns(str(tmp_path / "columns")))
    assert same(in_memory, pickle.loads(pickle.dumps(in_memory)))
    passed_on = pickle.dumps(in_folder)
    assert len(passed_on) < 300
    assert same(in_memory, pickle.loads(passed_on))


def test_pieces_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = document(objects=60)
    for number, change in enumerate(({"bbox": [0, 0, -1, 2]}, {"area": None}, {"iscrowd": "1"}, {"image_id": 99})):
        odd["annotations"][number * 7] |= change
    whole = read(odd)
    monkeypatch.setattr(json_spans, "PIECE_BYTES", 100)
    assert same(whole, read(odd))
    assert whole.info.faults.counts == {"field": 3, "no mask": 12, "object": 1}
    # Sections in any order, and text that pieces are not found in.
    assert same(whole, read(dict(reversed(odd.items()))))
    assert same(whole, read(json.dumps(odd).encode("utf-16")))
    monkeypatch.setattr(json_columns, "_WHOLE_BYTES", 10)
    assert same(whole, read(json.dumps(odd).encode("utf-16")))


def test_a_wrong_file_is_refused_with_the_place_in_the_whole_file(piece_bytes: int) -> None:
    wrong = document()
    wrong["annotations"][17] = {"image_id": 1}
    with pytest.raises(AnnotationError, match="annotation at position 17: id None"):
        read(wrong)
    wrong = document()
    wrong["annotations"][20]["id"] = wrong["annotations"][2]["id"]
    with pytest.raises(AnnotationError, match="annotation 2: duplicate id"):
        read(wrong)
    wrong = document()
    wrong["annotations"][11]["category_id"] = 1000
    with pytest.raises(AnnotationError, match="annotation 11: category_id 1000 is not in section 'categories'"):
        read(wrong)


@pytest.mark.parametrize("name", ["images", "annotations", "categories"])
def test_a_section_is_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = document()
    del content[name]
    with pytest.raises(AnnotationError, match=f"section '{name}': got no such section"):
        read(content)
    monkeypatch.setattr(json_columns, "_WHOLE_BYTES", 10)
    with pytest.raises(AnnotationError, match=f"section '{name}': got no such section"):
        read(content)


def test_a_section_of_another_kind() -> None:
    for value in (None, {"id": 1}, "text", 3):
        content = document() | {"images": value}
        with pytest.raises(AnnotationError, match="section 'images': got something else, expected a list"):
            read(content)
        with pytest.raises(AnnotationError, match="section 'images': got something else, expected a list"):
            read(json.dumps(content).encode("utf-16"))


def test_no_entry_is_larger_than_a_reader_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_spans, "LONGEST_ENTRY", 1000)
    monkeypatch.setattr(json_stream, "LONGEST_ENTRY", 1000)
    monkeypatch.setattr(json_spans, "PIECE_BYTES", 100)
    monkeypatch.setattr(json_columns, "_WHOLE_BYTES", 10)
    content = document()
    content["annotations"][3]["note"] = "x" * (1 << 24)
    with pytest.raises(AnnotationError, match="an entry of more than"):
        read(content)


def test_torn_text_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    torn = json.dumps(document()).encode()[:-40]
    with pytest.raises(AnnotationError, match="not JSON"):
        read(torn)
    monkeypatch.setattr(json_columns, "_WHOLE_BYTES", 10)
    with pytest.raises(AnnotationError, match="not JSON"):
        read(torn)


def test_no_object_at_all_and_no_image_at_all(tmp_path: Path) -> None:
    content = document()
    content["annotations"] = []
    empty = read(content, tmp_path / "empty")
    assert len(empty) == 5
    assert not list(empty.batches())
    assert [empty.entries(index) for index in range(5)] == [[]] * 5
    content["images"] = []
    assert len(read(content, tmp_path / "nothing")) == 0


def test_numbers_of_all_objects() -> None:
    content = document()
    columns = read(content)
    images, batches = zip(*columns.objects_by_image(), strict=True)
    entries = content["annotations"]
    assert np.concatenate(images).tolist() == [entry["image_id"] for entry in entries]
    assert np.concatenate([batch.category_ids for batch in batches]).tolist() == [e["category_id"] for e in entries]
    assert np.concatenate([batch.crowds for batch in batches]).tolist() == [e["iscrowd"] == 1 for e in entries]
    assert np.concatenate([batch.have_mask for batch in batches]).tolist() == ["segmentation" in e for e in entries]


def test_places_need_no_order_where_objects_lie_by_image() -> None:
    ids = np.array([30, 10, 20])
    firsts, numbers, order = places_of_objects(ids, np.array([30, 30, 20]))
    assert (firsts.tolist(), numbers.tolist(), order) == ([0, 2, 2], [2, 0, 1], None)
    firsts, numbers, order = places_of_objects(ids, np.array([20, 30, 10, 30]))
    assert order is not None
    assert (firsts.tolist(), numbers.tolist(), order.tolist()) == ([0, 2, 3], [2, 1, 1], [1, 3, 2, 0])


def test_readers_that_need_no_names_or_sizes_keep_such_images() -> None:
    content = document()
    del content["images"][1]["file_name"]
    del content["images"][2]["width"]
    columns = read(content, reader=SCORING)
    assert len(columns) == 5
    assert not columns.info.is_plain
    assert "file_name" not in columns.image_entry(1)
    assert "width" not in columns.image_entry(2)
    training = read(content)
    assert (len(training), training.info.left_out) == (3, (1, 2))
    assert read(document()).info.is_plain
    sized = read(content, reader=Reader("kept", lambda name, named_by_url: (SIDE, SIDE)))
    assert sized.info.sized_by_pictures
    assert not sized.info.is_plain
    assert sized.sizes.tolist() == [[SIDE, SIDE]] * 5


def test_keypoints_that_cannot_be_used_matter_to_those_who_ask() -> None:
    content = document()
    content["categories"].append({"id": 9, "name": "cat", "keypoints": ["tail"]})
    columns = read(content)
    with pytest.raises(AnnotationError, match="different lists of keypoints"):
        dataset_of(columns, require_masks=False)
    assert dataset_of(columns, require_masks=False, keypoints=False).keypoint_names == ()
    content["categories"][-1]["keypoints"] = ["tail", "tail"]
    with pytest.raises(AnnotationError, match=r"category 9: keypoints .* expected a list of different names"):
        dataset_of(read(content), require_masks=False)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no annotation columns"):
        open_columns(str(tmp_path))
    columns = read(document(), tmp_path / "columns")
    information = tmp_path / "columns" / INFO_FILE
    information.write_bytes(replace(columns.info, version=99).to_json())
    with pytest.raises(AnnotationError, match="version 99"):
        open_columns(str(tmp_path / "columns"))
    information.write_text("[]")
    with pytest.raises(AnnotationError, match="no annotation columns"):
        open_columns(str(tmp_path / "columns"))


def test_pieces_are_converted_in_order_by_whoever_is_given(piece_bytes: int) -> None:
    seen: list[bytes] = []

    def convert(pieces: Iterator[bytes], *known: Any) -> Iterator[Any]:
        for piece in pieces:
            seen.append(piece)
            yield from convert_here(iter([piece]), *known)

    content = document()
    columns = columns_of_json(json.dumps(content).encode(), Reader(), source="file", convert=convert)
    assert same(columns, read(copy.deepcopy(content)))
    assert (len(seen) == 1) == (piece_bytes > 1000)
