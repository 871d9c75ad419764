"""The box head: its order of features, its losses on padded samples, and which boxes become detections."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from maskrcnn_core.boxes import encode_deltas
from maskrcnn_core.model.box_head import BoxHead, DetectionRule, RoISamples, box_losses, detections_from_boxes
from maskrcnn_core.model.losses import smooth_l1_sum
from maskrcnn_core.structures import Proposals

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
NUM_CLASSES = 3


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
    losses = box_losses(logits, deltas, samples, delta_weights=WEIGHTS, smooth_l1_beta=beta)
    torch.testing.assert_close(losses["roi_class"], functional.cross_entropy(real_logits, real_labels))
    torch.testing.assert_close(losses["roi_box"], box_loss)
    losses["roi_box"].backward()
    assert deltas.grad.isfinite().all()
    assert (deltas.grad.abs().sum(dim=(2, 3)) > 0).tolist() == positive.tolist()


@pytest.mark.parametrize("valid", [True, False])
def test_losses_without_positives(valid: bool) -> None:
    logits, deltas = torch.zeros(1, 4, NUM_CLASSES + 1), torch.randn(1, 4, NUM_CLASSES, 4, requires_grad=True)
    none = torch.zeros(1, 4, dtype=torch.bool)
    background = torch.full((1, 4), NUM_CLASSES)
    zeros = torch.zeros(1, 4, 4)
    samples = RoISamples(zeros, background, zeros, torch.zeros_like(background), none, none | valid, max_positives=0)
    losses = box_losses(logits, deltas, samples, delta_weights=WEIGHTS, smooth_l1_beta=1.0)
    assert losses["roi_box"].item() == 0.0
    assert losses["roi_class"].item() == pytest.approx(torch.tensor(4.0).log().item() if valid else 0.0)
    losses["roi_box"].backward()
    assert not deltas.grad.any()


def test_smooth_l1_by_eye() -> None:
    # beta 2: 1 -> 1 / 4 (square part); 4 -> 4 - 1 (linear part). beta 0: |difference|.
    predicted = torch.tensor([[1.0, 4, 0, -4], [9, 9, 9, 9]], requires_grad=True)
    wanted = torch.tensor([[0.0, 0, 0, 0], [float("nan")] * 4])
    counted = torch.tensor([True, False])
    assert smooth_l1_sum(predicted, wanted, counted, 2.0).item() == pytest.approx(0.25 + 3 + 3)
    assert smooth_l1_sum(predicted, wanted, counted, 0.0).item() == pytest.approx(9.0)
    smooth_l1_sum(predicted, wanted, counted, 2.0).backward()
    torch.testing.assert_close(predicted.grad, torch.tensor([[0.5, 1, 0, -1], [0, 0, 0, 0]]))
    assert smooth_l1_sum(predicted[:0], wanted[:0], counted[:0], 1.0).item() == 0


RULE = DetectionRule(WEIGHTS, min_score=0.3, max_candidates=100, nms_overlap=0.5, max_detections=10, min_size=0.01)


def proposals_of(boxes: list[list[list[float]]], count: list[int]) -> Proposals:
    padded = torch.tensor(boxes)
    return Proposals(padded, torch.ones(padded.shape[:2]), torch.tensor(count))


def logits_of(probabilities: list[list[list[float]]]) -> Tensor:
    return torch.tensor(probabilities).clamp(min=1e-9).log()


def test_detections_by_eye() -> None:
    # Regions 0 and 1 are nearly the same; 0 is class 0 (0.6) or class 1 (0.4), 1 is class 0 (0.9); 2 is background.
    # Region 3 is not real, however sure it looks. The image is 48 wide.
    near, other = [0.0, 0, 20, 20], [0.0, 0, 20, 19]
    proposals = proposals_of([[near, other, [30.0, 30, 60, 60], [1.0, 1, 9, 9]]], [3])
    logits = logits_of([[[0.6, 0.4, 0], [0.9, 0.05, 0.05], [0.35, 0.1, 0.55], [1, 0, 0]]])
    found = detections_from_boxes(logits, torch.zeros(1, 4, 2, 4), proposals, torch.tensor([[50, 48]]), RULE)
    assert found.count.tolist() == [3]
    assert found.labels.tolist() == [[0, 1, 0]]
    torch.testing.assert_close(found.scores, torch.tensor([[0.9, 0.4, 0.35]]))
    torch.testing.assert_close(found.boxes[0], torch.tensor([other, near, [30.0, 30, 48, 50]]))


def test_each_class_has_its_own_deltas_unless_agnostic() -> None:
    proposals = proposals_of([[[10.0, 10, 20, 20]]], [1])
    logits = logits_of([[[0.5, 0.5, 0]]])
    shift = torch.zeros(1, 1, 2, 4)
    shift[0, 0, 1, 0] = 10.0  # dx of class 1: 10 / weight 10 * width 10 = 10 pixels
    found = detections_from_boxes(logits, shift, proposals, torch.tensor([[99, 99]]), RULE)
    by_label = {int(label): box.tolist() for label, box in zip(found.labels[0], found.boxes[0], strict=True)}
    assert by_label == {0: [10, 10, 20, 20], 1: [20, 10, 30, 20]}
    shared = detections_from_boxes(logits, shift[:, :, 1:], proposals, torch.tensor([[99, 99]]), RULE)
    assert shared.boxes[0].tolist() == [[20, 10, 30, 20]] * 2


def test_images_are_padded_to_the_fullest_and_cut_at_the_most() -> None:
    boxes = [[float(x), 0, float(x) + 9, 9] for x in range(0, 60, 10)]
    proposals = proposals_of([boxes, boxes], [6, 1])
    logits = logits_of([[[1 - 0.1 * i, 0.1 * i] for i in range(6)]] * 2)
    sizes = torch.tensor([[99, 99]] * 2)
    found = detections_from_boxes(logits, torch.zeros(2, 6, 1, 4), proposals, sizes, RULE)
    assert found.count.tolist() == [6, 1]
    assert found.boxes.shape == (2, 6, 4)
    assert not found.boxes[1, 1:].any()
    assert not found.scores[1, 1:].any()
    few = DetectionRule(WEIGHTS, 0.3, 100, 0.5, max_detections=2, min_size=0.01)
    found = detections_from_boxes(logits, torch.zeros(2, 6, 1, 4), proposals, sizes, few)
    assert found.count.tolist() == [2, 1]
    torch.testing.assert_close(found.scores, torch.tensor([[1.0, 0.9], [1.0, 0.0]]))


@pytest.mark.parametrize("count", [0, 2])
def test_nothing_found(count: int) -> None:
    proposals = proposals_of([[[0.0, 0, 9, 9], [20.0, 20, 29, 29]]], [count])
    logits = logits_of([[[0.1, 0.9]] * 2])
    found = detections_from_boxes(logits, torch.zeros(1, 2, 1, 4), proposals, torch.tensor([[50, 50]]), RULE)
    assert found.count.tolist() == [0]
    assert found.boxes.shape == (1, 0, 4)
