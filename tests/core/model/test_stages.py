"""Detectors of one stage alone, and the same detector with other numbers of results."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from maskrcnn_core.config.heads import BoxHeadConfig, MaskHeadConfig
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.inference.views import MergeRule, View, detect_in_views, mirrored
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.dense.dense_stage import DenseStage
from maskrcnn_core.model.dense.shared_head import SharedHead
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.structures import ImageBatch, Targets
from tests.core.model.test_detector import CONFIG, images_of
from tests.small_detector import finding_detector, with_fixed_size_on

SIZES = [(96, 96), (70, 128)]
PROPOSING = replace(CONFIG, box_head=BoxHeadConfig(enabled=False), mask_head=MaskHeadConfig(enabled=False))

each_size = pytest.mark.parametrize("fixed_size", [False, True])


def one_stage(*, fixed_size: bool) -> Detector:
    """Three classes, whose scores differ from place to place, straight from the dense stage."""
    torch.manual_seed(0)
    proposing = build_detector(PROPOSING, load_pretrained=False)
    dense = proposing.dense
    assert dense is not None
    head = SharedHead(CONFIG.pyramid.channels, dense.anchors.per_level(1)[0], 1, num_classes=3)
    torch.nn.init.normal_(head.logits.weight, std=0.3)
    rules = replace(dense.rules, detection=replace(dense.rules.detection, max_detections=12))
    stage = DenseStage(head, dense.anchors, dense.coding, dense.loss, rules)
    detector = Detector(proposing.trunk, proposing.pyramid, stage, None)
    return with_fixed_size_on(detector, ("cpu",) if fixed_size else ()).eval()


@each_size
def test_a_one_stage_detector_finds_boxes_and_has_no_masks(fixed_size: bool) -> None:
    detector, images = one_stage(fixed_size=fixed_size), images_of(*SIZES)
    found = detector.detect(images)
    assert found.masks is found.keypoints is found.mask_boxes is None
    assert found.count.tolist() == [12, 12]
    assert len(found.labels.unique()) > 1
    for index, (height, width) in enumerate(SIZES):
        boxes = found.boxes[index]
        assert (boxes >= 0).all()
        assert (boxes[:, [0, 2]] <= width).all()
        assert (boxes[:, [1, 3]] <= height).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (found.scores[index].diff() <= 0).all()
    assert ((found.scores > 0.05) & (found.scores < 1)).all()
    features = detector.features(images)
    assert features.fixed_size == fixed_size
    assert detector.dense is not None
    for name in ("boxes", "scores", "labels", "count"):
        assert getattr(detector.dense.detections(features), name).equal(getattr(found, name)), name
    assert detector.masks(features, found) is None
    assert detector.heatmaps(features, found) is None
    assert detector.kept_grids() == detector.dense.kept_grids()
    # No keypoints, of whatever heatmaps.
    assert not detector.keypoints(features, torch.ones(2, 12, 5, 8, 8), found).any()


def test_a_one_stage_detector_finds_the_same_in_the_shapes_of_a_gpu() -> None:
    images = images_of(*SIZES)
    numbers: dict[str, Any] = {"min_score": 0.9, "max_detections": 60, "max_proposals": 1}
    free, fixed = (one_stage(fixed_size=size).adapted(**numbers).detect(images) for size in (False, True))
    slots = free.boxes.shape[1]
    assert 0 < slots < fixed.boxes.shape[1] == 60
    for name in ("boxes", "scores", "labels"):
        torch.testing.assert_close(getattr(fixed, name)[:, :slots], getattr(free, name))
    assert fixed.count.equal(free.count)


@each_size
def test_a_one_stage_detector_sees_several_views(fixed_size: bool) -> None:
    images = images_of((96, 96), (96, 96))
    views = [View(images), View(mirrored(images), flipped=True)]
    found = detect_in_views(one_stage(fixed_size=fixed_size), views, MergeRule(nms_overlap=0.5, max_detections=7))
    assert found.count.tolist() == [7, 7]
    assert found.masks is found.keypoints is None


@each_size
def test_a_batch_of_a_one_stage_detector_is_one_by_one(fixed_size: bool) -> None:
    detector, batch = one_stage(fixed_size=fixed_size), images_of((96, 128), (80, 100))
    together = detector.detect(batch)
    for index in range(2):
        one = slice(index, index + 1)
        alone = detector.detect(ImageBatch(batch.pixels[one], batch.input_sizes[one], batch.original_sizes[one]))
        torch.testing.assert_close(together.boxes[index], alone.boxes[0], atol=1e-2, rtol=0)
        torch.testing.assert_close(together.scores[index], alone.scores[0], atol=1e-4, rtol=0)


def test_a_dense_stage_alone_learns_and_proposes() -> None:
    torch.manual_seed(0)
    detector = build_detector(PROPOSING, load_pretrained=False)
    nothing = torch.zeros(2, 0)
    targets = Targets(torch.zeros(2, 0, 4), nothing.long(), nothing.bool(), nothing.bool())
    losses = detector.train()(images_of((96, 96), (96, 96)), targets)
    assert set(losses) == {"rpn_objectness", "rpn_box"}
    proposals = detector.eval().propose(images_of(*SIZES))
    assert 0 < int(proposals.count.min()) <= int(proposals.count.max()) <= 30


def test_without_a_dense_stage_proposals_have_to_be_given() -> None:
    given = replace(CONFIG, dense=replace(CONFIG.dense, enabled=False))
    detector, images = build_detector(given, load_pretrained=False).eval(), images_of((96, 96))
    nothing = torch.zeros(1, 0)
    targets = Targets(torch.zeros(1, 0, 4), nothing.long(), nothing.bool(), nothing.bool())
    neither = Detector(detector.trunk, detector.pyramid, None, None).eval()
    for refused in (
        lambda: detector.detect(images),
        lambda: detector.propose(images),
        lambda: detector(images, targets),
        lambda: neither.detect(images),
    ):
        with pytest.raises(ConfigError, match=r"model\.dense\.enabled: is false, so this detector makes no proposals"):
            refused()
    assert detector.kept_grids() == []


@each_size
def test_an_adapted_detector_gives_other_numbers_of_results(fixed_size: bool) -> None:
    detector = finding_detector(CONFIG, fixed_size_on=("cpu",) if fixed_size else ()).eval()
    images, before = images_of(*SIZES), {name: value.clone() for name, value in detector.state_dict().items()}
    adapted = detector.adapted(min_score=0.0, max_detections=5, max_proposals=7)
    assert adapted.detect(images).boxes.shape == (2, 5, 4)
    proposals = adapted.propose(images)
    assert proposals.count.tolist() == [7, 7]
    assert proposals.boxes.equal(detector.propose(images).boxes[:, :7])
    assert adapted.features(images).fixed_size == fixed_size
    assert not adapted.adapted(min_score=1.0, max_detections=5, max_proposals=7).detect(images).count.any()
    # It shares the weights, and the other is what it was.
    assert detector.detect(images).count.tolist() == [12, 12]
    assert [p.data_ptr() for p in adapted.parameters()] == [p.data_ptr() for p in detector.parameters()]
    assert adapted.state_dict().keys() == before.keys()
    assert all(value.equal(before[name]) for name, value in detector.state_dict().items())


def test_every_other_setting_is_adapted_along() -> None:
    detector = finding_detector(CONFIG)
    adapted = detector.adapted(min_score=0.3, max_detections=4, max_proposals=9)
    old, new = detector.dense, adapted.dense
    assert old is not None
    assert new is not None
    assert new.rules.train == old.rules.train
    assert new.rules.test == replace(old.rules.test, post_nms=9)
    assert new.rules.detection == replace(old.rules.detection, min_score=0.3, max_detections=4)
    assert (new.anchors, new.coding, new.loss) == (old.anchors, old.coding, old.loss)
    assert detector.regions is not None
    assert adapted.regions is not None
    box, other = detector.regions.box, adapted.regions.box
    assert other.detection == replace(box.detection, min_score=0.3, max_detections=4)
    assert (other.coding, other.loss, other.transform, other.head) == (box.coding, box.loss, box.transform, box.head)
    assert adapted.regions.mask is detector.regions.mask
    assert adapted.regions.sampling == detector.regions.sampling
    assert adapted.regions.num_classes == detector.regions.num_classes


def test_an_adapted_detector_computes_maps_as_it_is_told() -> None:
    detector, images = finding_detector(CONFIG).eval(), images_of((96, 96))
    seen = []

    def maps(pixels: torch.Tensor) -> list[torch.Tensor]:
        seen.append(tuple(pixels.shape))
        return detector.maps(pixels)

    adapted = detector.adapted(min_score=0.05, max_detections=12, max_proposals=30, maps=maps)
    assert adapted.detect(images).boxes.equal(detector.detect(images).boxes)
    assert seen == [(1, 3, 96, 96)]
