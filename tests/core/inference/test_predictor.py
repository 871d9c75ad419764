"""Bytes in, records out: order, failures that cost one image, frames, budgets and fingerprints."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from maskrcnn_core.config.heads import MaskHeadConfig
from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.data.decode import decode_image
from maskrcnn_core.data.segmentation import run_lengths
from maskrcnn_core.data.transform import pad_batch, prepare_input
from maskrcnn_core.errors import CheckpointError, ImageError
from maskrcnn_core.inference.predictor import Predictor, describe_checkpoint, load_predictor
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.records.labels import ImageRecord
from maskrcnn_core.structures import Detections, ImageBatch
from maskrcnn_core.weights.checkpoint import save_checkpoint
from tests.small_detector import FINDING, finding_detector


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    detector = finding_detector()
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, detector.state_dict(), FINDING)
    return str(folder)


@pytest.fixture(scope="module")
def predictor(checkpoint: str) -> Predictor:
    return load_predictor(checkpoint, PredictorSettings(batch_pixels=1_000_000))


def encoded(height: int, width: int, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def decoded(content: bytes) -> Tensor:
    return decode_image(content, max_pixels=10**8, apply_exif=True)


def assert_same(got: ImageRecord, expected: ImageRecord) -> None:
    assert (got.status, got.width, got.height) == (expected.status, expected.width, expected.height)
    assert len(got.detections) == len(expected.detections)
    for one, other in zip(got.detections, expected.detections, strict=True):
        assert one.category_id == other.category_id
        assert one.score == pytest.approx(other.score, abs=1e-4)
        assert one.bbox == pytest.approx(other.bbox, abs=0.05)


def test_everything_keeps_its_place(predictor: Predictor) -> None:
    wide, tall = encoded(60, 90), encoded(150, 100, seed=1)
    contents: list[bytes | Tensor | ImageError] = [
        ImageError("missing", "no such object"),
        wide,
        b"no image",
        decoded(tall),
        tall,
        ImageError("too_large", "many\npixels"),
        decoded(wide),
        wide[: len(wide) // 2],
    ]
    records = predictor.predict(contents)
    statuses = ["missing", "ok", "unreadable", "ok", "ok", "too_large", "ok", "unreadable"]
    assert [record.status for record in records] == statuses
    assert [(record.width, record.height) for record in records if record.status == "ok"] == [
        (90, 60),
        (100, 150),
        (100, 150),
        (90, 60),
    ]
    assert records[5].error == "many pixels"
    assert all(record.detections == () for record in records if record.status != "ok")
    assert all(record.error is None for record in records if record.status == "ok")
    assert_same(records[6], records[1])
    assert_same(records[4], records[3])
    for place in (1, 3):
        assert len(records[place].detections) > 0
        assert_same(records[place], predictor.predict([contents[place]])[0])
    assert [record.status for record in predictor.predict(contents[::-1])] == statuses[::-1]
    assert predictor.predict([]) == []


def test_images_warped_to_a_square_come_back_in_their_own_frame() -> None:
    config = replace(FINDING, input=replace(FINDING.input, fit="square"))
    predictor = Predictor(finding_detector(config), config, PredictorSettings())
    wide, tall = encoded(60, 190), encoded(150, 40, seed=1)
    records = predictor.predict([wide, tall])
    for content, record in zip((wide, tall), records, strict=True):
        image = decoded(content)
        height, width = image.shape[1:]
        square = pad_batch([prepare_input(image, (64, 64), config.input)], [(64, 64)], 32)
        expected = predictor.detect(square)
        assert len(record.detections) == int(expected.count) > 0
        for slot, found in enumerate(record.detections):
            x, y, w, h = found.bbox
            scaled = expected.boxes[0, slot] * torch.tensor([width, height, width, height]) / 64
            assert [x, y, x + w, y + h] == pytest.approx(scaled.tolist(), abs=0.01)


def test_what_is_found_in_a_letterbox_lies_in_the_image() -> None:
    """An image with grey bars of its own is seen alike, and its records are moved by them."""
    config = replace(FINDING, input=replace(FINDING.input, fit="letterbox"))
    predictor = Predictor(finding_detector(config), config, PredictorSettings())
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 32, 64), dtype=np.uint8))
    barred = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    barred[:, 16:48] = image
    found, square = predictor.predict([image, barred])
    moved = []
    for entry in square.detections:
        x, y, width, height = entry.bbox
        top, bottom = (min(max(row - 16, 0), 32) for row in (y, y + height))
        moved.append((x, top, width, bottom - top))
    assert len(moved) == len(found.detections) > 0
    for entry in found.detections:  # the greys differ by a half, so scores that are close may change places
        assert any(entry.bbox == pytest.approx(box, abs=0.3) for box in moved)


def test_boxes_and_masks_are_in_original_pixels(predictor: Predictor) -> None:
    height, width = 45, 301  # long side decides: 301 -> 96, 45 -> 14
    record = predictor.predict([encoded(height, width)])[0]
    assert len(record.detections) > 0
    assert [d.score for d in record.detections] == sorted((d.score for d in record.detections), reverse=True)
    assert max(d.bbox[0] + d.bbox[2] for d in record.detections) > 96  # not the frame that the network saw
    covered = 0
    for detection in record.detections:
        assert (detection.category_id, detection.category) in ((7, "seven"), (3, "three"))
        x, y, w, h = detection.bbox
        assert x >= 0
        assert y >= 0
        assert x + w <= width + 1e-3
        assert y + h <= height + 1e-3
        assert detection.rle_counts is not None
        rle = {"size": [height, width], "counts": detection.rle_counts}
        assert int(run_lengths(rle, height, width).sum()) == height * width
        rows, columns = np.nonzero(pycocotools.mask.decode(rle))
        covered += len(rows)
        if len(rows):
            assert columns.min() >= x - 1
            assert columns.max() <= x + w
            assert rows.min() >= y - 1
            assert rows.max() <= y + h
    assert covered > 0


class Watched(nn.Module):
    """Passes batches on, notes their shapes, and raises where an image has a pixel brighter than the limit."""

    def __init__(self, detector: nn.Module, limit: float = float("inf"), error: type[Exception] = RuntimeError) -> None:
        super().__init__()
        self.detector, self.limit, self.error = detector, limit, error
        self.shapes: list[tuple[int, ...]] = []

    def detect(self, images: ImageBatch) -> Detections:
        self.shapes.append(tuple(images.pixels.shape))
        if images.pixels.max() > self.limit:
            raise self.error("cannot allocate memory\nwith a long trace")
        return self.detector.detect(images)


def watch(predictor: Predictor, monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> Watched:
    watched = Watched(predictor.detector, *arguments)
    monkeypatch.setattr(predictor, "detector", watched)
    return watched


def dim(seed: int, level: int = 100) -> Tensor:
    return torch.randint(0, level, (3, 64, 96), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, ValueError])
def test_an_image_that_fails_costs_only_itself(
    error: type[Exception], predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [dim(0), dim(1), torch.full((3, 64, 96), 255, dtype=torch.uint8), dim(3)]
    expected = predictor.predict(images)
    assert [record.status for record in expected] == ["ok"] * 4
    watched = watch(predictor, monkeypatch, 1.0, error)
    records = predictor.predict(images)
    assert watched.shapes[0][0] == 4  # they were one batch
    assert [record.status for record in records] == ["ok", "ok", "failed", "ok"]
    assert records[2] == ImageRecord("failed", f"{error.__name__}: cannot allocate memory", 96, 64)
    for place in (0, 1, 3):
        assert_same(records[place], expected[place])


def test_an_image_that_cannot_be_resized_costs_only_itself(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(image: Tensor, size: tuple[int, int], rule: InputConfig) -> Tensor:
        if image.shape[-1] == 40:
            raise MemoryError("not enough memory")
        return prepare_input(image, size, rule)

    monkeypatch.setattr("maskrcnn_core.inference.preparation.prepare_input", prepare)
    records = predictor.predict([dim(0), dim(1)[..., :40], dim(2)])
    assert [record.status for record in records] == ["ok", "failed", "ok"]
    assert records[1].error == "MemoryError: not enough memory"


@pytest.mark.parametrize(
    ("budget", "batches"),
    [(0, [1] * 5), (1, [1] * 5), (2 * 64 * 96, [2, 2, 1]), (3 * 64 * 96 - 1, [2, 2, 1]), (10**6, [5])],
)
def test_batches_stay_within_the_pixels(
    budget: int, batches: list[int], checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = load_predictor(checkpoint, PredictorSettings(batch_pixels=budget))
    watched = watch(predictor, monkeypatch)
    records = predictor.predict([dim(seed) for seed in range(5)])
    assert [record.status for record in records] == ["ok"] * 5
    assert watched.shapes == [(number, 3, 64, 96) for number in batches]


def test_only_images_of_one_padded_shape_share_a_batch(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = watch(predictor, monkeypatch)
    wide, nearly, tall = dim(0), dim(1)[..., :90], dim(2).transpose(1, 2).contiguous()
    records = predictor.predict([wide, tall, nearly, tall])
    assert sorted(watched.shapes) == [(2, 3, 64, 96), (2, 3, 96, 64)]
    assert [(record.width, record.height) for record in records] == [(96, 64), (64, 96), (90, 64), (64, 96)]


def test_overrides_replace_the_checkpoints(checkpoint: str, predictor: Predictor) -> None:
    image = dim(0, 256)
    found = predictor.predict([image])[0].detections
    assert len(found) == 8
    few = load_predictor(checkpoint, PredictorSettings(max_detections=3)).predict([image])[0].detections
    assert [(d.category_id, d.bbox) for d in few] == [(d.category_id, d.bbox) for d in found[:3]]
    limit = (found[3].score + found[4].score) / 2
    sure = load_predictor(checkpoint, PredictorSettings(min_score=limit)).predict([image])[0].detections
    assert [d.score for d in sure] == [d.score for d in found if d.score > limit]
    nothing = load_predictor(checkpoint, PredictorSettings(min_score=1.0)).predict([image])[0]
    assert (nothing.status, nothing.detections) == ("ok", ())


def test_images_over_the_limit_are_too_large(checkpoint: str) -> None:
    predictor = load_predictor(checkpoint, PredictorSettings(max_pixels=60 * 90 - 1))
    records = predictor.predict([encoded(60, 90), encoded(50, 90)])
    assert [record.status for record in records] == ["too_large", "ok"]


SETTINGS = [
    PredictorSettings(),
    PredictorSettings(precision="bfloat16"),
    PredictorSettings(max_pixels=99),
    PredictorSettings(apply_exif=False),
    PredictorSettings(min_score=0.5),
    PredictorSettings(max_detections=5),
    PredictorSettings(test_short_sides=(64, 80)),
    PredictorSettings(test_flip=True),
]


def test_fingerprint_is_known_without_the_network_and_follows_what_changes_results(checkpoint: str) -> None:
    prints = []
    for settings in SETTINGS:
        described, categories = describe_checkpoint(checkpoint, settings)
        assert categories == FINDING.categories
        assert described == load_predictor(checkpoint, settings).fingerprint
        assert len(described) == 32
        assert set(described) <= set("0123456789abcdef")
        prints.append(described)
    assert len(set(prints)) == len(SETTINGS)
    assert describe_checkpoint(checkpoint, PredictorSettings(batch_pixels=5, device="cuda"))[0] == prints[0]


def test_fingerprint_follows_the_weights(checkpoint: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    save_checkpoint(tmp_path, build_detector(FINDING, load_pretrained=False).state_dict(), FINDING)
    assert describe_checkpoint(str(tmp_path))[0] != describe_checkpoint(checkpoint)[0]


@pytest.mark.parametrize("read", [describe_checkpoint, load_predictor])
def test_no_checkpoint(read: Callable[[str], object], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        read(str(tmp_path / "none"))


def test_weights_of_another_configuration(tmp_path: Path) -> None:
    state = build_detector(FINDING, load_pretrained=False).state_dict()
    del state["pyramid.laterals.0.bias"]
    save_checkpoint(tmp_path, state, FINDING)
    with pytest.raises(CheckpointError, match=r"do not fit config\.json \(Missing key.*pyramid\.laterals\.0\.bias"):
        load_predictor(str(tmp_path))


def test_a_box_detector_gives_no_masks() -> None:
    config = replace(FINDING, mask_head=MaskHeadConfig(enabled=False))
    torch.manual_seed(0)
    predictor = Predictor(build_detector(config, load_pretrained=False), config, PredictorSettings())
    detections = predictor.predict([dim(0)])[0].detections
    assert len(detections) == 8
    assert all(detection.rle_counts is None for detection in detections)


def test_real_images(shared_data: Path, predictor: Predictor) -> None:
    files = sorted((shared_data / "coco" / "images").glob("*.jpg"))[:3]
    records = predictor.predict([file.read_bytes() for file in files])
    assert [record.status for record in records] == ["ok"] * len(files)
    for file, record in zip(files, records, strict=True):
        with Image.open(file) as image:
            assert (record.width, record.height) == image.size
