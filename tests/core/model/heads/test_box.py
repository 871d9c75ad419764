"""The box head: its order of features, its losses on padded samples, and which boxes become detections."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import complete_box_iou_loss, generalized_box_iou_loss

from maskrcnn_core.boxes import decode_deltas, encode_deltas
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.box_coding import DeltaCoding
from maskrcnn_core.model.heads.box import BoxHead, RoISamples, box_losses, detections_and_regions
from maskrcnn_core.model.loss_counts import divided, own_count
from maskrcnn_core.model.survivors import DetectionRule
from maskrcnn_core.structures import Detections, Proposals
from tests.core.slots import trimmed

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
CODING = DeltaCoding(WEIGHTS)
NUM_CLASSES = 3

each_size = pytest.mark.parametrize("fixed_size", [False, True])


@pytest.mark.parametrize("class_agnostic", [True, False])
def test_head_is_linear_layers_over_row_column_channel(class_agnostic: bool) -> None:
    torch.manual_seed(0)
    head = BoxHead(4, 3, 8, 2, NUM_CLASSES, class_agnostic=class_agnostic)
    features = torch.randn(5, 4, 3, 3)
    logits, deltas = head(features)
    x = torch.stack([features[:, :, i, j] for i in range(3) for j in range(3)], dim=1).reshape(5, 36)
    for layer in head.layers:
        x = (x @ layer.weight.t() + layer.bias).clamp(min=0)
    torch.testing.assert_close(logits, head.classes(x))
    torch.testing.assert_close(deltas, head.deltas(x).reshape(5, 1 if class_agnostic else NUM_CLASSES, 4))
    none = head(features[:0])
    assert none[0].shape == (0, NUM_CLASSES + 1)
    assert none[1].shape == (0, 1 if class_agnostic else NUM_CLASSES, 4)


def test_convolution_and_matrix_product_agree_in_value_and_gradient() -> None:
    torch.manual_seed(0)
    head, twin = (BoxHead(4, 3, 8, 1, NUM_CLASSES, class_agnostic=False) for _ in range(2))
    twin.load_state_dict(head.state_dict())
    features = torch.randn(6, 4, 3, 3)
    sum(part.square().sum() for part in head(features)).backward()
    sum(part.square().sum() for part in twin.double()(features.double())).backward()  # float64: the matrix product
    for one, other in zip(head.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["none", "frozen_batch", "group"])
@pytest.mark.parametrize("layers", [0, 1])
def test_convolutions_come_before_the_layers(norm: str, layers: int) -> None:
    torch.manual_seed(0)
    head = BoxHead(4, 3, 16, layers, NUM_CLASSES, class_agnostic=False, convs=2, conv_channels=8, conv_norm=norm)
    features = torch.randn(5, 4, 3, 3)
    x = features
    convs: Any = head.convs
    for conv in convs:
        if norm == "none":
            x = functional.conv2d(x, conv.weight, conv.bias, padding=1)
        elif norm == "frozen_batch":
            conv.scale.uniform_(0.5, 2)
            conv.shift.uniform_(-1, 1)
            x = functional.conv2d(x, conv.weight, padding=1)
            x = x * conv.scale[:, None, None] + conv.shift[:, None, None]
        else:
            assert conv[0].bias is None
            x = functional.conv2d(x, conv[0].weight, padding=1)
            x = functional.group_norm(x, 8, conv[1].weight, conv[1].bias)
        x = x.clamp(min=0)
    if layers:
        x = (x.permute(0, 2, 3, 1).flatten(1) @ head.layers[0].weight.t() + head.layers[0].bias).clamp(min=0)
    else:
        x = torch.stack([x[:, :, i, j] for i in range(3) for j in range(3)]).mean(dim=0)
    logits, deltas = head(features)
    torch.testing.assert_close(logits, head.classes(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(deltas, head.deltas(x).unflatten(1, (NUM_CLASSES, 4)), rtol=1e-4, atol=1e-5)
    (logits.square().sum() + deltas.square().sum()).backward()
    assert all(parameter.grad.any() for parameter in head.parameters())
    assert head(features[:0])[0].shape == (0, NUM_CLASSES + 1)


def test_without_layers_the_grid_may_have_any_size() -> None:
    head = BoxHead(4, 7, 1024, 0, NUM_CLASSES, class_agnostic=True)
    assert {name: tuple(value.shape) for name, value in head.named_parameters()} == {
        "classes.weight": (NUM_CLASSES + 1, 4),
        "classes.bias": (NUM_CLASSES + 1,),
        "deltas.weight": (4, 4),
        "deltas.bias": (4,),
    }
    constant = torch.randn(2, 4, 1, 1)
    for side in (1, 4, 7):
        torch.testing.assert_close(head(constant.expand(2, 4, side, side))[0], head.classes(constant[:, :, 0, 0]))


@pytest.mark.parametrize("norm", ["none", "frozen_batch", "group"])
def test_names_of_parameters(norm: str) -> None:
    head = BoxHead(4, 3, 16, 1, NUM_CLASSES, class_agnostic=False, convs=1, conv_channels=8, conv_norm=norm)
    of_convs = {
        "none": ["convs.0.weight", "convs.0.bias"],
        "frozen_batch": ["convs.0.weight", "convs.0.scale", "convs.0.shift"],
        "group": ["convs.0.0.weight", "convs.0.1.weight", "convs.0.1.bias"],
    }[norm]
    others = [f"{layer}.{kind}" for layer in ("layers.0", "classes", "deltas") for kind in ("weight", "bias")]
    assert list(head.state_dict()) == of_convs + others


def random_boxes(*shape: int) -> Tensor:
    corners = torch.rand(*shape, 2) * 50
    return torch.cat((corners, corners + 5 + torch.rand(*shape, 2) * 30), dim=-1)


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
@pytest.mark.parametrize("agnostic", [True, False])
@pytest.mark.parametrize("garbage", [0.0, float("inf"), float("nan")])
def test_losses_are_plain_torch_on_the_real_regions(beta: float, agnostic: bool, garbage: float) -> None:
    torch.manual_seed(0)
    # Image 0: 2 positives, 2 negatives, 1 empty slot. Image 1: 1 positive, 2 negatives, 2 empty slots.
    positive = torch.tensor([[True, True, False, False, False], [True, False, False, False, False]])
    valid = torch.tensor([[True] * 4 + [False], [True] * 3 + [False] * 2])
    labels = torch.where(positive, torch.tensor([[0, 2, 0, 0, 0], [1, 0, 0, 0, 0]]), NUM_CLASSES)
    boxes, objects = random_boxes(2, 5), random_boxes(2, 5)
    logits = torch.randn(2, 5, NUM_CLASSES + 1)
    deltas = torch.randn(2, 5, 1 if agnostic else NUM_CLASSES, 4)
    real_logits, real_labels = logits[valid], labels[valid]
    own = deltas[positive] if agnostic else deltas[positive][torch.arange(3), labels[positive]][:, None]
    wanted = encode_deltas(objects[positive], boxes[positive], WEIGHTS)
    if beta == 0:
        box_loss = functional.l1_loss(own[:, 0], wanted, reduction="sum") / 7
    else:
        box_loss = functional.smooth_l1_loss(own[:, 0], wanted, beta=beta, reduction="sum") / 7
    logits[~valid] = garbage
    boxes[~valid], objects[~positive] = garbage, garbage
    logits.requires_grad_()
    deltas.requires_grad_()
    samples = RoISamples(boxes, labels, objects, torch.zeros_like(labels), positive, valid, max_positives=2)
    losses = divided(box_losses(logits, deltas, samples, coding=CODING, smooth_l1_beta=beta), own_count)
    torch.testing.assert_close(losses["roi_class"], functional.cross_entropy(real_logits, real_labels))
    torch.testing.assert_close(losses["roi_box"], box_loss)
    losses["roi_box"].backward()
    assert deltas.grad.isfinite().all()
    assert (deltas.grad.abs().sum(dim=(2, 3)) > 0).tolist() == positive.tolist()


@pytest.mark.parametrize(("kind", "peer"), [("giou", generalized_box_iou_loss), ("ciou", complete_box_iou_loss)])
@pytest.mark.parametrize("agnostic", [True, False])
def test_overlap_losses_compare_decoded_boxes(
    agnostic: bool, kind: str, peer: Callable[[Tensor, Tensor], Tensor]
) -> None:
    torch.manual_seed(0)
    positive = torch.tensor([[True, True, False], [True, False, False]])
    labels = torch.where(positive, torch.tensor([[0, 2, 0], [1, 0, 0]]), NUM_CLASSES)
    boxes, objects = random_boxes(2, 3), random_boxes(2, 3)
    deltas = torch.randn(2, 3, 1 if agnostic else NUM_CLASSES, 4, requires_grad=True)
    samples = RoISamples(
        boxes, labels, objects, torch.zeros_like(labels), positive, torch.ones_like(positive), max_positives=2
    )
    logits = torch.randn(2, 3, NUM_CLASSES + 1)
    losses = divided(box_losses(logits, deltas, samples, coding=CODING, smooth_l1_beta=1.0, box_loss=kind), own_count)
    own = deltas[positive][torch.arange(3), 0 if agnostic else labels[positive]]
    expected = peer(decode_deltas(own, boxes[positive], WEIGHTS), objects[positive]).sum() / 6
    torch.testing.assert_close(losses["roi_box"], expected)
    losses["roi_box"].backward()
    assert torch.equal(deltas.grad.abs().sum(dim=(2, 3)) > 0, positive)


@pytest.mark.parametrize("valid", [True, False])
def test_losses_without_positives(valid: bool) -> None:
    logits, deltas = torch.zeros(1, 4, NUM_CLASSES + 1), torch.randn(1, 4, NUM_CLASSES, 4, requires_grad=True)
    none = torch.zeros(1, 4, dtype=torch.bool)
    background = torch.full((1, 4), NUM_CLASSES)
    zeros = torch.zeros(1, 4, 4)
    samples = RoISamples(zeros, background, zeros, torch.zeros_like(background), none, none | valid, max_positives=0)
    losses = divided(box_losses(logits, deltas, samples, coding=CODING, smooth_l1_beta=1.0), own_count)
    assert losses["roi_box"].item() == 0.0
    assert losses["roi_class"].item() == pytest.approx(torch.tensor(4.0).log().item() if valid else 0.0)
    losses["roi_box"].backward()
    assert not deltas.grad.any()


RULE = DetectionRule(min_score=0.3, max_candidates=100, nms_overlap=0.5, max_detections=10, min_size=0.01)


def detect(
    logits: Tensor, deltas: Tensor, proposals: Proposals, sizes: Tensor, rule: DetectionRule, fixed_size: bool
) -> Detections:
    return detections_and_regions(logits, deltas, proposals, sizes, CODING, rule, fixed_size=fixed_size)[0]


def proposals_of(boxes: list[list[list[float]]], count: list[int]) -> Proposals:
    padded = torch.tensor(boxes)
    return Proposals(padded, torch.ones(padded.shape[:2]), torch.tensor(count))


def logits_of(probabilities: list[list[list[float]]]) -> Tensor:
    return torch.tensor(probabilities).clamp(min=1e-9).log()


@each_size
def test_detections_by_eye(fixed_size: bool) -> None:
    # Regions 0 and 1 are nearly the same; 0 is class 0 (0.6) or class 1 (0.4), 1 is class 0 (0.9); 2 is background.
    # Region 3 is not real, however sure it looks. The image is 48 wide.
    near, other = [0.0, 0, 20, 20], [0.0, 0, 20, 19]
    proposals = proposals_of([[near, other, [30.0, 30, 60, 60], [1.0, 1, 9, 9]]], [3])
    logits = logits_of([[[0.6, 0.4, 0], [0.9, 0.05, 0.05], [0.35, 0.1, 0.55], [1, 0, 0]]])
    found = trimmed(detect(logits, torch.zeros(1, 4, 2, 4), proposals, torch.tensor([[50, 48]]), RULE, fixed_size))
    assert found.count.tolist() == [3]
    assert found.labels.tolist() == [[0, 1, 0]]
    torch.testing.assert_close(found.scores, torch.tensor([[0.9, 0.4, 0.35]]))
    torch.testing.assert_close(found.boxes[0], torch.tensor([other, near, [30.0, 30, 48, 50]]))


@each_size
def test_each_class_has_its_own_deltas_unless_agnostic(fixed_size: bool) -> None:
    proposals = proposals_of([[[10.0, 10, 20, 20]]], [1])
    logits = logits_of([[[0.5, 0.5, 0]]])
    shift = torch.zeros(1, 1, 2, 4)
    shift[0, 0, 1, 0] = 10.0  # dx of class 1: 10 / weight 10 * width 10 = 10 pixels
    found = detect(logits, shift, proposals, torch.tensor([[99, 99]]), RULE, fixed_size)
    by_label = {int(label): box.tolist() for label, box in zip(found.labels[0], found.boxes[0], strict=True)}
    assert by_label == {0: [10, 10, 20, 20], 1: [20, 10, 30, 20]}
    shared = detect(logits, shift[:, :, 1:], proposals, torch.tensor([[99, 99]]), RULE, fixed_size)
    assert shared.boxes[0].tolist() == [[20, 10, 30, 20]] * 2


@each_size
def test_images_are_padded_to_the_fullest_and_cut_at_the_most(fixed_size: bool) -> None:
    boxes = [[float(x), 0, float(x) + 9, 9] for x in range(0, 60, 10)]
    proposals = proposals_of([boxes, boxes], [6, 1])
    logits = logits_of([[[1 - 0.1 * i, 0.1 * i] for i in range(6)]] * 2)
    sizes = torch.tensor([[99, 99]] * 2)
    found = detect(logits, torch.zeros(2, 6, 1, 4), proposals, sizes, RULE, fixed_size)
    assert found.count.tolist() == [6, 1]
    assert found.boxes.shape == (2, 6, 4)
    assert found.boxes[1, 1:].tolist() == [[0.0, 0.0, 1.0, 1.0]] * 5  # never a box without area
    assert not found.scores[1, 1:].any()
    few = replace(RULE, max_detections=2)
    found = detect(logits, torch.zeros(2, 6, 1, 4), proposals, sizes, few, fixed_size)
    assert found.count.tolist() == [2, 1]
    torch.testing.assert_close(found.scores, torch.tensor([[1.0, 0.9], [1.0, 0.0]]))


@each_size
def test_classes_compete_only_where_asked(fixed_size: bool) -> None:
    # Region 0 is class 0 (0.5) or class 1 (0.45); region 1, nearly the same box, is class 1 (0.8).
    proposals = proposals_of([[[0.0, 0, 20, 20], [0.0, 0, 20, 19]]], [2])
    logits = logits_of([[[0.5, 0.45, 0.05], [0.1, 0.8, 0.1]]])
    arguments = (logits, torch.zeros(1, 2, 2, 4), proposals, torch.tensor([[50, 50]]))
    found = trimmed(detect(*arguments, RULE, fixed_size))
    assert (found.labels.tolist(), found.count.tolist()) == ([[1, 0]], [2])
    together = trimmed(detect(*arguments, replace(RULE, nms_per_class=False), fixed_size))
    assert (together.labels.tolist(), together.count.tolist()) == ([[1]], [1])


@each_size
@pytest.mark.parametrize("nms", ["soft_linear", "soft_gaussian"])
@pytest.mark.parametrize("per_class", [True, False])
def test_soft_detections_by_eye(per_class: bool, nms: str, fixed_size: bool) -> None:
    # Boxes 0 and 1 have IoU 0.6; box 1 is of class 0 or, weaker, of class 1; box 2 is far off and not real.
    proposals = proposals_of([[[0.0, 0, 10, 10], [0.0, 0, 10, 6], [30.0, 30, 40, 40]]], [2])
    logits = logits_of([[[0.9, 0.05, 0.05], [0.6, 0.35, 0.05], [0.9, 0.05, 0.05]]])
    rule = replace(RULE, nms=nms, soft_sigma=0.8, nms_per_class=per_class, min_score=0.1)
    arguments = (logits, torch.zeros(1, 3, 2, 4), proposals, torch.tensor([[50, 50]]))
    found, regions = detections_and_regions(*arguments, CODING, rule, fixed_size=fixed_size)
    by_overlap = {"soft_linear": 0.4, "soft_gaussian": math.exp(-(0.6**2) / 0.8)}[nms]
    by_itself = {"soft_linear": 0.0, "soft_gaussian": math.exp(-1 / 0.8)}[nms]  # of one box, the other class
    weak = 0.35 if per_class else 0.35 * by_overlap * by_itself
    expected = [
        (score, label, region)
        for score, label, region in ((0.9, 0, 0), (0.6 * by_overlap, 0, 1), (weak, 1, 1))
        if score > 0.1
    ]
    expected.sort(key=lambda one: -one[0])
    assert found.count.tolist() == [len(expected)]
    found, regions = trimmed(found), regions[:, : len(expected)]
    torch.testing.assert_close(found.scores, torch.tensor([[score for score, _, _ in expected]]))
    assert found.labels.tolist() == [[label for _, label, _ in expected]]
    assert regions.tolist() == [[region for _, _, region in expected]]


@each_size
def test_soft_detections_without_overlap_are_the_hard_ones(fixed_size: bool) -> None:
    boxes = [[float(x), 0, float(x) + 9, 9] for x in range(0, 60, 10)]
    proposals = proposals_of([boxes, boxes], [6, 1])
    logits = logits_of([[[1 - 0.1 * i, 0.1 * i] for i in range(6)]] * 2)
    arguments = (logits, torch.zeros(2, 6, 1, 4), proposals, torch.tensor([[99, 99]] * 2))
    hard = detect(*arguments, replace(RULE, max_detections=4), fixed_size)
    for nms in ("soft_linear", "soft_gaussian"):
        soft = detect(*arguments, replace(RULE, max_detections=4, nms=nms), fixed_size)
        for name in ("boxes", "scores", "labels", "count"):
            assert torch.equal(getattr(soft, name), getattr(hard, name)), name


@each_size
def test_each_detection_names_its_proposal(fixed_size: bool) -> None:
    near, other = [0.0, 0, 20, 20], [0.0, 0, 20, 19]
    proposals = proposals_of([[near, other, [30.0, 30, 60, 60]]] * 2, [3, 1])
    logits = logits_of([[[0.6, 0.4, 0], [0.9, 0.05, 0.05], [0.35, 0.1, 0.55]]] * 2)
    arguments = (logits, torch.zeros(2, 3, 2, 4), proposals, torch.tensor([[99, 99]] * 2))
    _, regions = detections_and_regions(*arguments, CODING, RULE, fixed_size=fixed_size)
    assert regions[:, :3].tolist() == [[1, 0, 2], [0, 0, 0]]


def test_unknown_nms_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.box_head\.nms: got 'softer', expected 'hard', 'soft_linear'"):
        replace(RULE, nms="softer")


@each_size
@pytest.mark.parametrize("nms", ["hard", "soft_linear", "soft_gaussian"])
@pytest.mark.parametrize(("images", "slots"), [(0, 3), (2, 0)])
def test_no_images_and_no_regions(images: int, slots: int, nms: str, fixed_size: bool) -> None:
    proposals = Proposals(torch.zeros(images, slots, 4), torch.zeros(images, slots), torch.zeros(images).long())
    found = detect(
        torch.zeros(images, slots, 3),
        torch.zeros(images, slots, 2, 4),
        proposals,
        torch.full((images, 2), 50),
        replace(RULE, nms=nms),
        fixed_size,
    )
    assert trimmed(found).boxes.shape == (images, 0, 4)
    assert found.count.tolist() == [0] * images


@each_size
@pytest.mark.parametrize("count", [0, 2])
def test_nothing_found(count: int, fixed_size: bool) -> None:
    proposals = proposals_of([[[0.0, 0, 9, 9], [20.0, 20, 29, 29]]], [count])
    logits = logits_of([[[0.1, 0.9]] * 2])
    found = detect(logits, torch.zeros(1, 2, 1, 4), proposals, torch.tensor([[50, 50]]), RULE, fixed_size)
    assert found.count.tolist() == [0]
    assert trimmed(found).boxes.shape == (1, 0, 4)


@each_size
@pytest.mark.parametrize(
    "box", [[-5.0, 10, 0.005, 20], [47.995, 10, 60, 20], [5.0, 49.995, 20, 70], [60.0, 60, 70, 70]]
)
def test_what_is_left_of_a_box_within_the_image_has_a_least_size(box: list[float], fixed_size: bool) -> None:
    proposals = proposals_of([[box, [0.0, 0, 20, 20]]], [2])
    logits, sizes = logits_of([[[0.9, 0.1], [0.6, 0.4]]]), torch.tensor([[50, 48]])
    found = detect(logits, torch.zeros(1, 2, 1, 4), proposals, sizes, RULE, fixed_size)
    assert found.count.tolist() == [1]
    assert found.boxes[0, 0].tolist() == [0.0, 0.0, 20.0, 20.0]
