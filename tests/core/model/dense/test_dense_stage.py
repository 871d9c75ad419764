"""The dense stage: its steps in order, and the anchors that it keeps."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from maskrcnn_core.model.box_coding import DeltaCoding
from maskrcnn_core.model.dense import dense_stage as module
from maskrcnn_core.model.dense.anchors import RatioAnchors, pyramid_anchors
from maskrcnn_core.model.dense.dense_stage import DenseRules, DenseStage
from maskrcnn_core.model.dense.losses import SampledLoss
from maskrcnn_core.model.dense.selection import ProposalRule, best_detections, best_proposals
from maskrcnn_core.model.dense.shared_head import SharedHead
from maskrcnn_core.model.loss_counts import divided, own_count
from maskrcnn_core.model.survivors import DetectionRule
from maskrcnn_core.structures import Detections, ImageFeatures, Proposals, Targets, tensors_of

STRIDES = (8, 16)
ANCHORS = RatioAnchors((12.0, 24.0), (0.5, 2.0), rounded=False, fitted_strides=False)
RULES = DenseRules(
    train=ProposalRule(30, 20, 0.7, 1.0),
    test=ProposalRule(20, 10, 0.6, 1.0),
    detection=DetectionRule(min_score=0.6, max_candidates=50, nms_overlap=0.5, max_detections=15, min_size=1.0),
)
LOSS = SampledLoss(0.5, 0.3, 16, 0.5, 0.7, 0.1)

each_size = pytest.mark.parametrize("fixed_size", [False, True])


def stage_of(num_classes: int) -> DenseStage:
    torch.manual_seed(0)
    head = SharedHead(4, ANCHORS.per_level(2)[0], 1, num_classes)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return DenseStage(head, ANCHORS, DeltaCoding((4.0, 4.0, 4.0, 4.0)), LOSS, RULES)


def features_of(height: int = 48, width: int = 64, *, fixed_size: bool = False, seed: int = 1) -> ImageFeatures:
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(2, 4, height // stride, width // stride, generator=generator) for stride in STRIDES]
    sizes = torch.tensor([[height, width], [height - 9, width - 5]])
    return ImageFeatures(maps, STRIDES, sizes, torch.zeros(2, 3, height, width), fixed_size=fixed_size)


def anchors_of(features: ImageFeatures) -> list[Tensor]:
    shapes = [(level.shape[-2], level.shape[-1]) for level in features.maps]
    return pyramid_anchors(ANCHORS, STRIDES, shapes, features.input_shape, torch.device("cpu"))


def assert_same(found: Detections | Proposals, expected: Detections | Proposals) -> None:
    assert tensors_of(found).keys() == tensors_of(expected).keys()
    for name, value in tensors_of(expected).items():
        assert tensors_of(found)[name].equal(value), name


@each_size
def test_steps_in_order(fixed_size: bool) -> None:
    stage, features = stage_of(3), features_of(fixed_size=fixed_size)
    anchors = anchors_of(features)
    given = (anchors, features.input_sizes, stage.coding)
    found = stage.detections(features)
    expected = best_detections(stage.head(features.maps), *given, RULES.detection, fixed_size=fixed_size)
    assert_same(found, expected)
    assert min(found.count.tolist()) > 0
    assert len(found.labels[found.valid].unique()) == 3
    assert not found.scores.requires_grad
    if fixed_size:
        assert found.boxes.shape[1] == RULES.detection.max_detections
    proposing = stage_of(1)
    for rule in (RULES.train, RULES.test):
        proposals = best_proposals(proposing.head(features.maps), *given, rule, fixed_size=fixed_size)
        assert_same(proposing.proposals(features, rule), proposals)
        assert not proposing.proposals(features, rule).boxes.requires_grad


@each_size
def test_losses_are_those_of_its_loss(fixed_size: bool) -> None:
    stage, features = stage_of(1), features_of(fixed_size=fixed_size)
    boxes = torch.tensor([[[10.0, 8, 30, 20]], [[0.0, 0, 1, 1]]])
    real = torch.tensor([[True], [False]])
    targets = Targets(boxes, real.long(), real, ~real & False, seeds=torch.tensor([3, 4]))
    losses = divided(stage.losses(features, targets), own_count)
    expected = divided(LOSS(stage.head, features, anchors_of(features), stage.coding, targets), own_count)
    assert losses == expected
    assert all(loss > 0 for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in stage.parameters())


def test_other_rules_share_the_weights() -> None:
    stage, features = stage_of(3), features_of()
    few = stage.with_rules(replace(RULES, detection=replace(RULES.detection, max_detections=2)))
    assert few.head is stage.head
    assert few.detections(features).boxes.equal(stage.detections(features).boxes[:, :2])
    assert stage.rules == RULES


def test_anchors_of_a_shape_are_made_once_and_the_newest_shapes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def watched(*arguments: object) -> list[Tensor]:
        made.append(arguments[3])
        return pyramid_anchors(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "pyramid_anchors", watched)
    monkeypatch.setattr(module, "_SHAPES_WITH_ANCHORS", 2)
    stage = stage_of(1)
    assert stage.kept_grids() == []
    first = stage.grid(features_of(48, 64))
    assert all(one.equal(other) for one, other in zip(first, anchors_of(features_of(48, 64)), strict=True))
    assert stage.grid(features_of(48, 64, seed=2)) is first
    second = stage.grid(features_of(64, 48))
    assert [id(grid) for grid in stage.kept_grids()] == [id(first), id(second)]
    third = stage.grid(features_of(64, 64))
    assert [id(grid) for grid in stage.kept_grids()] == [id(second), id(third)]
    assert stage.grid(features_of(48, 64)) is not first
    assert made == [(48, 64), (64, 48), (64, 64), (48, 64)]
