"""Run lengths of annotations are checked many at once: each has the outcome that it has by itself."""

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from maskrcnn_core.data.coco import annotations as coco_annotations
from maskrcnn_core.data.coco import masks as coco_masks
from maskrcnn_core.data.coco.annotations import Asked, read_annotations
from maskrcnn_core.data.coco.entry_faults import FaultList

HEIGHT, WIDTH = 5, 7
IMAGES = {1: {"id": 1, "width": WIDTH, "height": HEIGHT}, 2: {"id": 2}}


def text_of(seed: int) -> str:
    pixels = np.random.default_rng(seed).random((HEIGHT, WIDTH)) < 0.5
    return coco_mask.encode(np.asfortranarray(pixels, np.uint8))["counts"].decode()


def annotation(number: int, segmentation: Any, image: int = 1) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": 1, "bbox": [1, 1, 3, 3], "segmentation": segmentation}


def runs(number: int, **other: Any) -> dict[str, Any]:
    return {"size": [HEIGHT, WIDTH], "counts": text_of(number)} | other


ODD: tuple[Any, ...] = (
    runs(0, counts="0T"),  # ends within a number
    runs(0, counts=""),
    runs(0, counts="50Ā5"),
    runs(0, counts="5\ud8005"),
    runs(0, counts="0" * 20_000),
    runs(0, counts=b"S1"),
    runs(0, counts=[35]),
    runs(0, counts=[34]),
    runs(0, counts=7),
    runs(0, size=[WIDTH, HEIGHT]),
    runs(0, size=[5.0, 7.0], counts="S1"),
    runs(0, size=None),
    {"counts": text_of(0)},
    {},
    [runs(0), runs(1)],
    [[1, 1, 4, 1, 4, 4]],
    [],
    None,
    "text",
)


def read(entries: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[Any, Any]]:
    faults = FaultList()
    return list(read_annotations(iter(entries), IMAGES, Asked(), faults)), dict(faults.faults().counts)


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_odd_ones_among_sound_ones_change_neither(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(coco_annotations, "_ENTRIES_AT_ONCE", at_once)
    shapes = [shape for number, odd in enumerate(ODD) for shape in (runs(number), odd)]
    entries = [annotation(number, shape) for number, shape in enumerate(shapes)]
    alone = [read([entry]) for entry in entries]
    clean, counts = read(entries)
    assert clean == [one for found, _ in alone for one in found]
    assert counts == {kind: sum(each.get(kind, 0) for _, each in alone) for kind in counts}
    assert counts["no mask"] > 8
    assert [one["segmentation"] for one in clean[::2]] == shapes[::2]


def test_annotations_of_images_without_a_size_or_that_are_not_there() -> None:
    entries = [annotation(1, runs(1), 2), annotation(2, runs(2), 3), annotation(3, runs(3, counts="0T"), 2)]
    entries += [annotation(4, runs(4)), annotation(5, runs(5, counts="0T"))]
    clean, counts = read(entries)
    assert [("segmentation" in one, one["id"]) for one in clean] == [(False, 1), (False, 3), (True, 4), (False, 5)]
    assert counts == {"object": 1, "no mask": 1}
    assert read([]) == ([], {})


def test_sound_ones_are_not_decompressed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("decompressed")

    monkeypatch.setattr(coco_masks, "run_lengths", refuse)
    entries = [annotation(number, runs(number)) | {"area": 9} for number in range(10)]
    assert read(entries) == ([entry | {"iscrowd": 0} for entry in entries], {})


@pytest.mark.parametrize("counts", ["5Ā5", "5ÿ5", "5\ud8005"])
def test_characters_beyond_ascii_are_none_of_the_alphabet(counts: str) -> None:
    """None of them is a "?", which is one."""
    mask, why = coco_masks.read_mask({"size": [5, 5], "counts": counts}, 5, 5, None)
    assert mask is None
    assert "alphabet" in why
