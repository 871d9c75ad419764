"""Selective search and edge boxes of OpenCV's contrib package: by eye, and the same whatever came before."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.region_proposals.edge_boxes import EdgeBoxes
from maskrcnn_core.region_proposals.proposer import fingerprint
from maskrcnn_core.region_proposals.selective_search import SelectiveSearch, resized
from maskrcnn_core.region_proposals.settings import EdgeBoxesConfig, ProposeConfig, SelectiveSearchConfig
from tests.core.region_proposals.edge_model import write_edge_model

cv2 = pytest.importorskip("cv2", reason="opencv-contrib-python-headless is not installed")
if not hasattr(cv2, "ximgproc"):
    pytest.skip("the OpenCV that is installed is not opencv-contrib-python-headless", allow_module_level=True)

TINY = [(1, 1), (2, 2), (1, 60), (60, 1), (9, 33), (17, 16)]


def picture(*squares: tuple[int, int, int, int]) -> np.ndarray:
    """Grey, with rectangles x, y, width, height in other colours."""
    pixels = np.full((96, 128, 3), (60, 60, 60), np.uint8)
    for number, (x, y, w, h) in enumerate(squares):
        pixels[y : y + h, x : x + w] = ((220, 30, 40), (20, 200, 60), (30, 60, 230))[number % 3]
    return pixels


def best_overlap(boxes: np.ndarray, box: tuple[int, int, int, int]) -> float:
    x, y, w, h = boxes.T
    wide = np.minimum(x + w, box[0] + box[2]) - np.maximum(x, box[0])
    high = np.minimum(y + h, box[1] + box[3]) - np.maximum(y, box[1])
    common = np.clip(wide, 0, None) * np.clip(high, 0, None)
    return float((common / (w * h + box[2] * box[3] - common)).max())


def searched(pixels: np.ndarray, **settings: object) -> np.ndarray:
    return SelectiveSearch(SelectiveSearchConfig(**settings))(pixels)  # type: ignore[arg-type]


@pytest.mark.parametrize(("side", "least"), [(0, 0.85), (256, 0.85)])
def test_selective_search_finds_what_stands_out(side: int, least: float) -> None:
    squares = ((10, 12, 40, 30), (70, 40, 44, 44))
    boxes = searched(picture(*squares), side=side)
    assert [best_overlap(boxes, square) > least for square in squares] == [True, True]
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= [128.01, 96.01]).all()


def test_an_image_has_the_same_boxes_whatever_came_before() -> None:
    random = np.random.default_rng(0)
    noisy = random.integers(0, 256, (24, 32, 3), np.uint8).repeat(3, 0).repeat(3, 1)
    search = SelectiveSearch(SelectiveSearchConfig(side=0))
    alone = search(noisy)
    assert len(alone) > 20
    search(picture((3, 3, 20, 20)))
    assert np.array_equal(search(noisy), alone)
    assert not np.array_equal(alone, alone[np.argsort(-alone[:, 2] * alone[:, 3], kind="stable")])  # no plain order


def test_strategies_differ() -> None:
    noisy = np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8).repeat(5, 0).repeat(5, 1)
    counts = [len(searched(noisy, strategy=strategy, side=0)) for strategy in ("single", "fast", "quality")]
    assert counts == sorted(counts)
    assert counts[0] < counts[2]


@pytest.mark.parametrize("size", TINY)
def test_tiny_images(size: tuple[int, int], tmp_path: Path) -> None:
    write_edge_model(tmp_path / "model.yml")
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    assert len(searched(pixels, side=50)) >= 1
    boxes, scores = EdgeBoxes(EdgeBoxesConfig(str(tmp_path / "model.yml")), 10)(pixels)
    assert boxes.shape == (len(scores), 4)


def test_the_longer_side_is_resized() -> None:
    pixels = picture()
    assert resized(cv2, pixels, 0) is pixels
    assert resized(cv2, pixels, 64).shape == (48, 64, 3)
    assert resized(cv2, pixels, 256).shape == (192, 256, 3)
    assert resized(cv2, pixels[:, :1], 10).shape == (10, 1, 3)


def test_edge_boxes_find_a_square_with_a_forest_made_by_hand(tmp_path: Path) -> None:
    """One tree that calls strong gradients edges; the best box is around the only contour."""
    write_edge_model(tmp_path / "model.yml")
    found = EdgeBoxes(EdgeBoxesConfig(str(tmp_path / "model.yml")), 50)
    boxes, scores = found(picture((30, 20, 60, 60)))
    assert 0 < len(boxes) <= 50
    assert best_overlap(boxes[:1], (30, 20, 60, 60)) > 0.65
    assert (boxes[0, :2] <= [30, 20]).all()
    assert (boxes[0, :2] + boxes[0, 2:] >= [90, 80]).all()
    assert (np.diff(scores) <= 0).all()
    assert ((scores >= 0) & (scores <= 1)).all()
    again = found(picture((30, 20, 60, 60)))
    assert np.array_equal(again[0], boxes)
    flat, none = found(picture())
    assert (flat.shape, none.shape) == ((0, 4), (0,))


def test_the_model_file_counts_and_may_not_be_something_else(tmp_path: Path) -> None:
    path = tmp_path / "model.yml"
    config = ProposeConfig("edge_boxes", edge_boxes=EdgeBoxesConfig(str(path)))
    with pytest.raises(ConfigError, match=r"propose.edge_boxes.model: .*model.yml' cannot be used \(No such file"):
        fingerprint(config)
    write_edge_model(path)
    first = fingerprint(config)
    path.write_text(path.read_text().replace("stride: 2", "stride: 4"))
    assert fingerprint(config) != first
    for content, why in ((b"no forest", "it has no options"), (b"\x1f\x8b\x08cut", "cannot be used")):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=why):
            fingerprint(config)


def test_a_packed_model_file_is_the_same(tmp_path: Path) -> None:
    write_edge_model(tmp_path / "model.yml")
    (tmp_path / "model.yml.gz").write_bytes(gzip.compress((tmp_path / "model.yml").read_bytes()))
    plain, packed = (EdgeBoxes(EdgeBoxesConfig(str(tmp_path / name)), 50) for name in ("model.yml", "model.yml.gz"))
    assert np.array_equal(plain(picture((40, 30, 48, 40)))[0], packed(picture((40, 30, 48, 40)))[0])
