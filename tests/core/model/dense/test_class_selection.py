"""The best of each class as detections, against a literal reference, whatever the device's shapes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

from maskrcnn_core.model.box_coding import DeltaCoding
from maskrcnn_core.model.dense.class_selection import best_of_each_class
from maskrcnn_core.model.survivors import DetectionRule
from maskrcnn_core.structures import DenseOutputs, Detections

RULE = DetectionRule(min_score=0.3, max_candidates=4, nms_overlap=0.45, max_detections=9, min_size=0.0)
SIZES = torch.tensor([[60, 80], [60, 80]])


def outputs(seed: int = 0) -> tuple[DenseOutputs, list[Tensor]]:
    """Two images, two levels, three classes and background."""
    generator = torch.Generator().manual_seed(seed)
    anchors = []
    for count in (30, 12):
        corners = torch.rand(count, 2, generator=generator) * torch.tensor([60.0, 40.0])
        anchors.append(torch.cat((corners, corners + 10 + 15 * torch.rand(count, 2, generator=generator)), dim=1))
    logits = [1.5 * torch.randn(2, len(level), 4, generator=generator) for level in anchors]
    deltas = [0.2 * torch.randn(2, len(level), 4, generator=generator) for level in anchors]
    return DenseOutputs(logits, deltas), anchors


def literal(outputs: DenseOutputs, anchors: list[Tensor], rule: DetectionRule, image: int) -> list[tuple[float, int]]:
    """Score and class of what is left, best first: class by class, as the text says."""
    scores = torch.cat([level[image] for level in outputs.logits]).softmax(dim=1)
    boxes = DeltaCoding().decode(torch.cat([level[image] for level in outputs.deltas]), torch.cat(anchors))
    boxes = torchvision.ops.clip_boxes_to_image(boxes, (60, 80))
    found = []
    for label in range(3):
        order = scores[:, label].argsort(descending=True)[: rule.max_candidates]
        order = order[scores[order, label] > rule.min_score]
        kept = order[torchvision.ops.nms(boxes[order], scores[order, label], rule.nms_overlap)]
        found += [(float(scores[index, label]), label) for index in kept]
    return sorted(found, reverse=True)[: rule.max_detections]


def select(rule: DetectionRule, *, fixed_size: bool, seed: int = 0) -> Detections:
    made, anchors = outputs(seed)
    return best_of_each_class(made, anchors, SIZES, DeltaCoding(), rule, score_from="softmax", fixed_size=fixed_size)


@pytest.mark.parametrize("fixed_size", [False, True])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("most", [1, 4, 1000])
def test_the_literal_rule(fixed_size: bool, seed: int, most: int) -> None:
    rule = replace(RULE, max_candidates=most)
    found = select(rule, fixed_size=fixed_size, seed=seed)
    made, anchors = outputs(seed)
    for image in range(2):
        expected = literal(made, anchors, rule, image)
        count = int(found.count[image])
        assert count == len(expected) > 1
        assert found.labels[image, :count].tolist() == [label for _, label in expected]
        torch.testing.assert_close(found.scores[image, :count], torch.tensor([score for score, _ in expected]))
        assert not found.scores[image, count:].any()
    if fixed_size:
        assert found.boxes.shape == (2, min(9, 3 * min(most, 42)), 4)


@pytest.mark.parametrize("fixed_size", [False, True])
@pytest.mark.parametrize("change", [{"nms": "soft_gaussian"}, {"nms_per_class": False}])
def test_other_suppressions_in_both_forms(fixed_size: bool, change: dict[str, Any]) -> None:
    found = select(replace(RULE, **change), fixed_size=fixed_size)
    other = select(replace(RULE, **change), fixed_size=not fixed_size)
    assert found.count.tolist() == other.count.tolist()
    for image, count in enumerate(found.count.tolist()):
        torch.testing.assert_close(found.boxes[image, :count], other.boxes[image, :count])


@pytest.mark.parametrize("fixed_size", [False, True])
def test_nothing_is_good_enough(fixed_size: bool) -> None:
    found = select(replace(RULE, min_score=1.0), fixed_size=fixed_size)
    assert found.count.tolist() == [0, 0]
    assert found.boxes.shape[1] == (9 if fixed_size else 0)
