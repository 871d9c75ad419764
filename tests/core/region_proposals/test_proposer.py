"""Records of proposals: what of the boxes is kept, and what becomes of files that are no images."""

import io
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn_core.errors import ConfigError, ImageError
from maskrcnn_core.records.checks import check_rows
from maskrcnn_core.records.proposals import proposals_to_table
from maskrcnn_core.region_proposals.proposer import Proposer, fingerprint, kept_boxes
from maskrcnn_core.region_proposals.settings import (
    EdgeBoxesConfig,
    GridConfig,
    ProposeConfig,
    SelectiveSearchConfig,
    SlidingWindowsConfig,
    deciding_values,
)

GRID = ProposeConfig("grid", grid=GridConfig((2,), (0.0,)))


def encoded(width: int, height: int, **more: object) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, height), (90, 20, 200)).save(content, "JPEG", **more)
    return content.getvalue()


def proposer(config: ProposeConfig, max_pixels: int = 10_000, apply_exif: bool = True) -> Proposer:
    return Proposer(config, max_pixels=max_pixels, apply_exif=apply_exif)


def test_boxes_are_cut_to_the_image_and_come_once() -> None:
    found = np.array(
        [[-5, -5, 10, 10], [0, 0, 5, 5], [30, 10, 50, 50], [50, 50, 3, 3], [2, 2, 8, 0.5], [1, 1, 9, 8]], float
    )
    boxes, scores = kept_boxes((found, None), (20, 40), ProposeConfig("grid", min_side=2))
    assert boxes.tolist() == [[0, 0, 5, 5], [30, 10, 10, 10], [1, 1, 9, 8]]
    assert scores.tolist() == pytest.approx([1, 2 / 3, 1 / 3])
    boxes, scores = kept_boxes((found, np.linspace(0.9, 0.4, 6)), (20, 40), ProposeConfig("grid", max_proposals=2))
    assert scores.tolist() == pytest.approx([0.9, 0.7])
    assert boxes.dtype == np.float32
    assert scores.dtype == np.float32


def test_nothing_found() -> None:
    boxes, scores = kept_boxes((np.empty((0, 4)), None), (20, 40), GRID)
    assert (boxes.shape, scores.shape) == ((0, 4), (0,))


def test_an_image_file_becomes_a_record() -> None:
    record = proposer(GRID).propose(encoded(40, 20))
    assert (record.status, record.width, record.height) == ("ok", 40, 20)
    assert record.boxes.tolist() == [[0, 0, 20, 10], [20, 0, 20, 10], [0, 10, 20, 10], [20, 10, 20, 10]]
    assert record.scores.tolist() == [1, 0.75, 0.5, 0.25]
    assert proposer(GRID).propose(torch.zeros(3, 20, 40, dtype=torch.uint8)).boxes.tolist() == record.boxes.tolist()


def test_images_are_turned_by_their_orientation_or_not() -> None:
    exif = Image.Exif()
    exif[274] = 6
    content = encoded(40, 20, exif=exif)
    turned, as_stored = (proposer(GRID, apply_exif=apply).propose(content) for apply in (True, False))
    assert (turned.width, turned.height, as_stored.width, as_stored.height) == (20, 40, 40, 20)


def test_what_is_no_image_has_a_record_that_says_why() -> None:
    found = proposer(GRID, max_pixels=100)
    assert found.propose(ImageError("missing", "no such file")).status == "missing"
    assert found.propose(b"nothing").status in ("unreadable", "unsupported")
    assert found.propose(encoded(40, 20)).status == "too_large"
    for record in (found.propose(b"nothing"), found.propose(encoded(40, 20))):
        assert record.error
        assert len(record.boxes) == len(record.scores) == 0


@pytest.mark.parametrize("method", ["grid", "sliding_windows"])
def test_rows_keep_every_rule(method: str) -> None:
    config = ProposeConfig(method)  # type: ignore[arg-type]
    sizes = [(1, 1), (333, 7), (13, 200), (97, 61)]
    records = [proposer(config, 100_000).propose(encoded(*size)) for size in sizes]
    table = proposals_to_table([1, 2, 3, 4], ["a", "b", "c", "d"], records, "m")
    for batch in table.to_batches():
        assert check_rows(batch, (), "m").first == ()
    assert all(0 < len(record.boxes) <= 2000 for record in records)


def test_the_fingerprint_is_of_what_decides() -> None:
    same = ProposeConfig("grid", sliding_windows=SlidingWindowsConfig(step=0.5))  # of another method
    assert fingerprint(same) == fingerprint(ProposeConfig("grid"))
    for other in (
        ProposeConfig("sliding_windows"),
        ProposeConfig("grid", 100),
        ProposeConfig("grid", min_side=2),
        GRID,
    ):
        assert fingerprint(other) != fingerprint(ProposeConfig("grid"))
    windows = ProposeConfig("sliding_windows", min_side=2, sliding_windows=SlidingWindowsConfig(sides=(8, 16)))
    as_floats = ProposeConfig("sliding_windows", min_side=2.0, sliding_windows=SlidingWindowsConfig(sides=(8.0, 16.0)))
    assert fingerprint(windows) == fingerprint(as_floats)
    assert deciding_values(GRID) == {
        "propose.method": "grid",
        "propose.max_proposals": 2000,
        "propose.min_side": 0.0,
        "propose.grid.cells": [2],
        "propose.grid.overlaps": [0.0],
    }


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ProposeConfig("edge_boxes"), "propose.edge_boxes.model: got '', expected .*opencv_extra"),
        (lambda: ProposeConfig("grid", max_proposals=0), "propose.max_proposals: got 0, expected 1 to"),
        (lambda: GridConfig((2, 3), (0.5,)), r"propose.grid.overlaps: got \(0.5,\), expected one for each"),
        (lambda: GridConfig((2,), (1.0,)), "propose.grid.overlaps: got 1.0, expected numbers from 0 to below 1"),
        (lambda: GridConfig((), ()), "propose.grid.cells"),
        (lambda: SlidingWindowsConfig(sides=()), "propose.sliding_windows.sides"),
        (lambda: SlidingWindowsConfig(step=0.0), "propose.sliding_windows.step: got 0.0, expected 0.01 to 1"),
        (lambda: SelectiveSearchConfig(side=-1), "propose.selective_search.side"),
        (lambda: EdgeBoxesConfig("x", alpha=1.0), "propose.edge_boxes.alpha"),
    ],
)
def test_mistakes_in_settings(make: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.parametrize("method", ["selective_search", "edge_boxes"])
def test_without_the_contrib_package(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ProposeConfig(method, edge_boxes=EdgeBoxesConfig("model.yml"))  # type: ignore[arg-type]
    plain = ModuleType("cv2")
    plain.__version__ = "4.14.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cv2", plain)
    with pytest.raises(ConfigError, match=f"{method} needs .* lacks them; .* exclude each other: pip uninstall"):
        fingerprint(config)
    monkeypatch.setitem(sys.modules, "cv2", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"no OpenCV is installed .* pip install opencv-contrib-python-headless"):
        fingerprint(config)
