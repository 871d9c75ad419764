"""The predictor over an image pyramid: views, batches, and the same answer where there is nothing to merge."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maskrcnn_core.config.heads import KeypointHeadConfig, MaskHeadConfig
from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.data.transform import prepare_image, resized_size
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.inference.predictor import Predictor
from maskrcnn_core.inference.settings import PredictorSettings, check_settings
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.structures import Detections, ImageBatch
from tests.small_detector import FINDING, finding_detector

CONFIG = replace(
    FINDING,
    keypoint_head=KeypointHeadConfig(
        enabled=True, channels=16, layers=1, names=("left_a", "nose", "right_a"), categories=("three",)
    ),
)


def predictor_of(settings: PredictorSettings, config: ModelConfig = CONFIG) -> Predictor:
    return Predictor(finding_detector(config), config, settings)


def image_of(height: int = 64, width: int = 96, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def test_a_pyramid_of_one_view_changes_nothing() -> None:
    plain = predictor_of(PredictorSettings())
    once = plain.predict([image_of()])[0]
    assert once.status == "ok"
    assert len(once.detections) == 8
    batch = image_batch(plain, [image_of(), image_of(seed=1)])
    expected, merged = plain.detect(batch), plain.detect_in_views([batch])
    assert merged.count.equal(expected.count)
    assert merged.labels.equal(expected.labels)
    torch.testing.assert_close(merged.scores, expected.scores)
    torch.testing.assert_close(merged.boxes, expected.boxes, atol=1e-3, rtol=1e-5)
    for name in ("masks", "keypoints"):
        one, other = getattr(merged, name), getattr(expected, name)
        assert one is not None, name
        valid = expected.valid
        torch.testing.assert_close(one[valid], other[valid], atol=1e-2, rtol=1e-3)


def image_batch(predictor: Predictor, images: list[Tensor]) -> ImageBatch:
    items = [predictor._preparation.prepare(place, image) for place, image in enumerate(images)]
    return predictor._preparation.padded(items).views[0]


def test_a_mirrored_image_has_the_mirrored_detections() -> None:
    predictor = predictor_of(PredictorSettings(test_short_sides=(64, 96), test_flip=True))
    image = image_of()
    there, back = predictor.predict([image, image.flip(-1)])
    assert there.status == "ok", there.error
    assert len(there.detections) == len(back.detections) > 0
    # The set of views is the same for both, but for the order, so the answers mirror each other.
    for one, other in zip(there.detections, back.detections, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-4)
        assert one.category_id == other.category_id
        x, y, width, height = other.bbox
        assert one.bbox == pytest.approx((96 - x - width, y, width, height), abs=0.02)
        assert (one.keypoints is None) == (other.keypoints is None) == (one.category == "seven")


def test_all_views_are_looked_at_and_batches_stay_within_the_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = (64 * 96 + 96 * 160) * 2  # of one image: 96 x 144 is padded
    settings = PredictorSettings(test_short_sides=(64, 96), test_flip=True, batch_pixels=2 * pixels)
    predictor = predictor_of(settings)
    seen: list[list[tuple[int, ...]]] = []
    detect = predictor._merged

    def watched(sizes: list[ImageBatch], *arguments: Any) -> Detections:
        seen.append([tuple(images.pixels.shape) for images in sizes])
        return detect(sizes, *arguments)

    monkeypatch.setattr(predictor, "_merged", watched)
    records = predictor.predict([image_of(seed=seed) for seed in range(3)])
    assert [record.status for record in records] == ["ok"] * 3
    assert seen == [[(count, 3, 64, 96), (count, 3, 96, 160)] for count in (2, 1)]


def test_an_image_alone_is_the_same_as_in_a_batch() -> None:
    predictor = predictor_of(PredictorSettings(test_short_sides=(48, 64), test_flip=True))
    images = [image_of(), image_of(60, 90, seed=1), image_of(96, 64, seed=2)]
    together = predictor.predict(images)
    for image, record in zip(images, together, strict=True):
        alone = predictor.predict([image])[0]
        assert record.status == alone.status == "ok"
        assert [d.category_id for d in record.detections] == [d.category_id for d in alone.detections]
        for one, other in zip(record.detections, alone.detections, strict=True):
            assert one.bbox == pytest.approx(other.bbox, abs=0.02)
            assert one.score == pytest.approx(other.score, abs=1e-4)


def test_nothing_above_the_score() -> None:
    predictor = predictor_of(PredictorSettings(test_short_sides=(64, 96), test_flip=True, min_score=1.0))
    assert predictor.predict([image_of()])[0].detections == ()


def test_a_box_detector_has_a_pyramid_too() -> None:
    config = replace(CONFIG, mask_head=MaskHeadConfig(enabled=False), keypoint_head=KeypointHeadConfig())
    torch.manual_seed(0)
    detector = build_detector(config, load_pretrained=False)
    record = Predictor(detector, config, PredictorSettings(test_flip=True)).predict([image_of()])[0]
    assert record.status == "ok"
    assert len(record.detections) > 0
    assert all(found.rle_counts is None and found.keypoints is None for found in record.detections)


def test_the_longer_side_may_grow_in_proportion() -> None:
    predictor = predictor_of(PredictorSettings(test_short_sides=(32, 64, 128)))
    views = predictor._preparation.prepare(0, image_of(50, 200)).views
    assert [tuple(view.shape) for view in views] == [(3, 12, 48), (3, 24, 96), (3, 48, 192)]


def test_the_resize_rule_of_the_model_is_used() -> None:
    config = replace(CONFIG, input=replace(CONFIG.input, resize="antialias", scale="byte"))
    image = image_of(200, 301)
    rule = config.input
    expected = prepare_image(image, size=(64, 96), mean=rule.mean, std=rule.std, scale="byte", resize="antialias")
    assert predictor_of(PredictorSettings(), config)._preparation.prepare(0, image).views[0].equal(expected)
    assert resized_size(48, 71, 64, 96) == (64, 94)  # 94.67, which the other rule rounds up
    assert predictor_of(PredictorSettings(), config)._preparation.prepare(0, image_of(48, 71)).views[0].shape == (
        3,
        64,
        95,
    )


@pytest.mark.parametrize("sides", [(0,), (64, -1)])
def test_lengths_are_checked(sides: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="test_short_sides: got"):
        PredictorSettings(test_short_sides=sides)


def test_real_images(shared_data: Path) -> None:
    files = sorted((shared_data / "coco" / "images").glob("*.jpg"))[:2]
    predictor = predictor_of(PredictorSettings(test_short_sides=(48, 64, 80), test_flip=True))
    for record in predictor.predict([file.read_bytes() for file in files]):
        assert record.status == "ok", record.error
        boxes = np.array([found.bbox for found in record.detections])
        assert len(boxes) > 0
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 0] + boxes[:, 2] <= record.width + 1e-3).all()
        assert (boxes[:, 1] + boxes[:, 3] <= record.height + 1e-3).all()


def test_masks_on_proposals_are_refused() -> None:
    config = replace(CONFIG, mask_head=replace(CONFIG.mask_head, regions="proposals"))
    check_settings(config, PredictorSettings())
    for settings in (PredictorSettings(test_flip=True), PredictorSettings(test_short_sides=(64,))):
        with pytest.raises(ConfigError, match=r"label\.test_short_sides, label\.test_flip: .*mask_head\.regions"):
            check_settings(config, settings)
