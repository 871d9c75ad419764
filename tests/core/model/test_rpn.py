"""Proposals and the RPN's losses, by eye and against plain references."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import complete_box_iou_loss, generalized_box_iou_loss, nms

from maskrcnn_core.boxes import decode_deltas, encode_deltas
from maskrcnn_core.model.rpn import ProposalRule, RPNHead, RPNLossRule, propose, sampled_rpn_losses
from maskrcnn_core.structures import Targets
from tests.core.slots import trimmed

UNIT = (1.0, 1.0, 1.0, 1.0)
EVERYTHING = RPNLossRule(
    positive_overlap=0.7,
    negative_overlap=0.3,
    batch_size=1000,
    positive_fraction=1.0,
    crowd_overlap=0.7,
    smooth_l1_beta=1 / 9,
)


def boxes_at(*corners: tuple[float, float], side: float = 10.0) -> Tensor:
    return torch.tensor([[x, y, x + side, y + side] for x, y in corners])


def rpn_losses(
    logits: list[Tensor], deltas: list[Tensor], anchors: list[Tensor], targets: Targets, rule: RPNLossRule
) -> dict[str, Tensor]:
    """`sampled_rpn_losses` from the outputs of all anchors, level by level."""
    all_logits, all_deltas = torch.cat(logits, dim=1), torch.cat(deltas, dim=1)

    def outputs(index: Tensor) -> tuple[Tensor, Tensor]:
        return all_logits.gather(1, index), all_deltas.gather(1, index[..., None].expand(-1, -1, 4))

    return sampled_rpn_losses(outputs, anchors, targets, rule)


def test_head_is_position_major() -> None:
    torch.manual_seed(0)
    head = RPNHead(4, 3, 2)
    features = torch.randn(2, 4, 5, 6)
    logits, deltas = head([features, features[..., :2, :2]])
    assert [tuple(level.shape) for level in logits] == [(2, 90), (2, 12)]
    assert [tuple(level.shape) for level in deltas] == [(2, 90, 4), (2, 12, 4)]
    x = functional.relu(head.convs[1](functional.relu(head.convs[0](features))))
    row, column, anchor = 3, 4, 2
    position = (row * 6 + column) * 3 + anchor
    torch.testing.assert_close(logits[0][1, position], head.objectness(x)[1, anchor, row, column])
    torch.testing.assert_close(deltas[0][1, position], head.deltas(x)[1, anchor * 4 : anchor * 4 + 4, row, column])


def test_proposals_by_eye() -> None:
    # Level 0: two near-equal anchors and one far; level 1: the first again, which another level never suppresses.
    anchors = [boxes_at((0, 0), (1, 0), (50, 50)), boxes_at((0, 0), (95, 95))]
    logits = [torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[-1.0, 3.0]])]
    deltas = [torch.zeros(1, 3, 4), torch.zeros(1, 2, 4)]
    found = trimmed(propose(logits, deltas, anchors, torch.tensor([[100, 98]]), ProposalRule(10, 10, 0.7, 1e-3)))
    assert found.count.tolist() == [4]
    # The last one is cut at the image's borders; its score is the best.
    expected = [[95, 95, 98, 100], [1, 0, 11, 10], [50, 50, 60, 60], [0, 0, 10, 10]]
    torch.testing.assert_close(found.boxes[0], torch.tensor(expected, dtype=torch.float32))
    torch.testing.assert_close(found.scores[0], torch.tensor([3.0, 2.0, 0.0, -1.0]).sigmoid())
    best = trimmed(propose(logits, deltas, anchors, torch.tensor([[100, 98]]), ProposalRule(1, 10, 0.7, 1e-3)))
    assert best.boxes[0].tolist() == [[95, 95, 98, 100], [1, 0, 11, 10]]  # one of each level
    top = propose(logits, deltas, anchors, torch.tensor([[100, 98]]), ProposalRule(10, 1, 0.7, 1e-3))
    assert top.boxes[0].tolist() == [[95, 95, 98, 100]]


def test_images_have_their_own_counts_and_small_boxes_go() -> None:
    anchors = [boxes_at((0, 0), (40, 40))]
    logits, deltas = [torch.zeros(2, 2)], [torch.zeros(2, 2, 4)]
    sizes = torch.tensor([[100, 100], [100, 42]])
    found = propose(logits, deltas, anchors, sizes, ProposalRule(10, 10, 0.7, 5.0))
    assert found.count.tolist() == [2, 1]  # the second image leaves 2 pixels of the second box
    assert found.boxes[1].tolist() == [[0, 0, 10, 10], [0, 0, 1, 1]]  # never a box without area
    assert found.scores[1, 1] == 0
    nothing = propose(logits, deltas, anchors, sizes, ProposalRule(10, 10, 0.7, 50.0))
    assert nothing.count.tolist() == [0, 0]
    assert not nothing.valid.any()


def test_proposals_of_low_objectness_go_before_nms() -> None:
    """A probability of 0.05 is a logit of -2.94; the rule of torchvision's MobileNet models."""
    anchors, deltas = [boxes_at((0, 0), (20, 0), (40, 0))], [torch.zeros(2, 3, 4)]
    logits = [torch.tensor([[-2.9, -3.0, 1.0], [-9.0, -9.0, -9.0]])]
    rule = ProposalRule(10, 10, 0.7, 1e-3, min_score=0.05)
    found = trimmed(propose(logits, deltas, anchors, torch.tensor([[100, 100], [100, 100]]), rule))
    assert found.count.tolist() == [2, 0]
    assert found.boxes[0, :, 0].tolist() == [40, 0]


def test_proposals_are_a_slow_reference() -> None:
    torch.manual_seed(0)
    anchors = []
    for number in (60, 20):
        corners = torch.rand(number, 2) * 80
        anchors.append(torch.cat((corners, corners + 5 + torch.rand(number, 2) * 30), dim=1))
    logits = [torch.randn(2, len(a)) for a in anchors]
    deltas = [torch.randn(2, len(a), 4) * 0.2 for a in anchors]
    found = propose(logits, deltas, anchors, torch.tensor([[90, 100], [70, 60]]), ProposalRule(30, 25, 0.5, 1.0))
    for image, (height, width) in enumerate([(90, 100), (70, 60)]):
        kept = []
        for level in range(2):
            best = logits[level][image].argsort(descending=True)[:30]
            boxes = decode_deltas(deltas[level][image, best], anchors[level][best], UNIT)
            x1, y1, x2, y2 = boxes.unbind(1)
            boxes = torch.stack(
                (x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)), dim=1
            )
            big = ((boxes[:, 2] - boxes[:, 0] >= 1) & (boxes[:, 3] - boxes[:, 1] >= 1)).nonzero()[:, 0]
            scores = logits[level][image, best].sigmoid()
            for index in big[nms(boxes[big], scores[big], 0.5)].tolist():
                kept.append((float(scores[index]), boxes[index]))
        kept = sorted(kept, key=lambda item: -item[0])[:25]
        count = int(found.count[image])
        assert count == len(kept)
        torch.testing.assert_close(found.boxes[image, :count], torch.stack([box for _, box in kept]))
        torch.testing.assert_close(found.scores[image, :count], torch.tensor([score for score, _ in kept]))


def targets_of(boxes: Tensor, valid: Tensor, crowd: Tensor) -> Targets:
    return Targets(boxes, torch.zeros(boxes.shape[:2], dtype=torch.int64), valid, crowd)


def test_losses_by_hand() -> None:
    anchors = boxes_at((0, 0), (40, 40), (80, 80), (120, 0))
    # Image 0: the first anchor is positive (IoU 0.9), the others negative. Image 1: nothing in it, but the last
    # anchor lies in a crowd.
    boxes = torch.tensor([[[0.0, 0, 10, 9], [float("nan")] * 4], [[110.0, 0, 150, 40], [0, 0, 0, 0]]])
    boxes = boxes.nan_to_num(0.0)
    valid = torch.tensor([[True, False], [False, False]])
    crowd = torch.tensor([[False, False], [True, False]])
    torch.manual_seed(0)
    logits, deltas = torch.randn(2, 4, requires_grad=True), torch.randn(2, 4, 4, requires_grad=True)
    losses = rpn_losses(
        [logits[:, :3], logits[:, 3:]],
        [deltas[:, :3], deltas[:, 3:]],
        [anchors[:3], anchors[3:]],
        targets_of(boxes, valid, crowd),
        EVERYTHING,
    )
    sampled = torch.cat((logits[0], logits[1, :3]))
    wanted = torch.tensor([1.0, 0, 0, 0, 0, 0, 0])
    torch.testing.assert_close(losses["rpn_objectness"], functional.binary_cross_entropy_with_logits(sampled, wanted))
    target = encode_deltas(boxes[0, 0], anchors[0], UNIT)
    expected = functional.smooth_l1_loss(deltas[0, 0], target, beta=1 / 9, reduction="sum") / 7
    torch.testing.assert_close(losses["rpn_box"], expected)
    sum(losses.values()).backward()
    assert logits.grad[1, 3] == 0
    assert (deltas.grad.abs().sum(dim=2) > 0).nonzero().tolist() == [[0, 0]]


def test_nothing_to_sample_is_zero_and_finite() -> None:
    anchors = boxes_at((0, 0), (40, 40))
    crowd = torch.tensor([[[0.0, 0, 100, 100]]])
    logits, deltas = torch.zeros(1, 2, requires_grad=True), torch.zeros(1, 2, 4, requires_grad=True)
    yes, no = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.bool)
    losses = rpn_losses([logits], [deltas], [anchors], targets_of(crowd, no, yes), EVERYTHING)
    assert {name: loss.item() for name, loss in losses.items()} == {"rpn_objectness": 0.0, "rpn_box": 0.0}
    sum(losses.values()).backward()
    assert not logits.grad.any()


@pytest.mark.parametrize(("kind", "peer"), [("giou", generalized_box_iou_loss), ("ciou", complete_box_iou_loss)])
def test_overlap_losses_compare_decoded_boxes(kind: str, peer: Callable[[Tensor, Tensor], Tensor]) -> None:
    anchors = boxes_at((0, 0), (40, 40), (80, 80))
    boxes = torch.tensor([[[0.0, 0, 10, 9], [41, 40, 50, 50]]])
    real = torch.ones(1, 2, dtype=torch.bool)
    torch.manual_seed(0)
    logits, deltas = torch.randn(1, 3), (0.3 * torch.randn(1, 3, 4)).requires_grad_()
    rule = replace(EVERYTHING, box_loss=kind)
    losses = rpn_losses([logits], [deltas], [anchors], targets_of(boxes, real, ~real), rule)
    expected = peer(decode_deltas(deltas[0, :2], anchors[:2], UNIT), boxes[0]).sum() / 3
    torch.testing.assert_close(losses["rpn_box"], expected)
    losses["rpn_box"].backward()
    assert (deltas.grad.abs().sum(dim=2) > 0).tolist() == [[True, True, False]]


def test_no_images() -> None:
    anchors = boxes_at((0, 0), (40, 40))
    logits, deltas, sizes = torch.zeros(0, 2), torch.zeros(0, 2, 4), torch.zeros(0, 2, dtype=torch.int64)
    found = propose([logits], [deltas], [anchors], sizes, ProposalRule(10, 10, 0.7, 1.0))
    assert trimmed(found).boxes.shape == (0, 0, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_full_precision_results(dtype: torch.dtype) -> None:
    anchors = boxes_at((0, 0), (40, 40))
    logits, deltas = [torch.zeros(1, 2, dtype=dtype)], [torch.zeros(1, 2, 4, dtype=dtype)]
    found = propose(logits, deltas, [anchors], torch.tensor([[99, 99]]), ProposalRule(10, 10, 0.7, 1.0))
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    one = torch.ones(1, 1, dtype=torch.bool)
    losses = rpn_losses(logits, deltas, [anchors], targets_of(anchors[None, :1], one, ~one), EVERYTHING)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
