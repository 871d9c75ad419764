"""Which anchors become proposals, and which detections: by eye and against plain references, in the shapes of a CPU and
of a GPU."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

from maskrcnn_core.boxes import decode_deltas
from maskrcnn_core.model.box_coding import DeltaCoding
from maskrcnn_core.model.dense.selection import ProposalRule, best_detections, best_proposals
from maskrcnn_core.model.survivors import DetectionRule
from maskrcnn_core.structures import DenseOutputs, Proposals
from tests.core.slots import trimmed

UNIT = (1.0, 1.0, 1.0, 1.0)
DETECTION = DetectionRule(min_score=0.5, max_candidates=20, nms_overlap=0.5, max_detections=12, min_size=1.0)

each_size = pytest.mark.parametrize("fixed_size", [False, True])


def boxes_at(*corners: tuple[float, float], side: float = 10.0) -> Tensor:
    return torch.tensor([[x, y, x + side, y + side] for x, y in corners])


def propose(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    sizes: Tensor,
    rule: ProposalRule,
    fixed_size: bool,
) -> Proposals:
    """`best_proposals` of logits [N, A_l]."""
    outputs = DenseOutputs([level[..., None] for level in logits], list(deltas))
    return best_proposals(outputs, anchors, sizes, DeltaCoding(), rule, fixed_size=fixed_size)


@each_size
def test_proposals_by_eye(fixed_size: bool) -> None:
    # Level 0: two near-equal anchors and one far; level 1: the first again, which another level never suppresses.
    anchors = [boxes_at((0, 0), (1, 0), (50, 50)), boxes_at((0, 0), (95, 95))]
    logits = [torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[-1.0, 3.0]])]
    deltas = [torch.zeros(1, 3, 4), torch.zeros(1, 2, 4)]
    found = trimmed(
        propose(logits, deltas, anchors, torch.tensor([[100, 98]]), ProposalRule(10, 10, 0.7, 1e-3), fixed_size)
    )
    assert found.count.tolist() == [4]
    # The last one is cut at the image's borders; its score is the best.
    expected = [[95, 95, 98, 100], [1, 0, 11, 10], [50, 50, 60, 60], [0, 0, 10, 10]]
    torch.testing.assert_close(found.boxes[0], torch.tensor(expected, dtype=torch.float32))
    torch.testing.assert_close(found.scores[0], torch.tensor([3.0, 2.0, 0.0, -1.0]).sigmoid())
    best = trimmed(
        propose(logits, deltas, anchors, torch.tensor([[100, 98]]), ProposalRule(1, 10, 0.7, 1e-3), fixed_size)
    )
    assert best.boxes[0].tolist() == [[95, 95, 98, 100], [1, 0, 11, 10]]  # one of each level
    top = propose(logits, deltas, anchors, torch.tensor([[100, 98]]), ProposalRule(10, 1, 0.7, 1e-3), fixed_size)
    assert top.boxes[0].tolist() == [[95, 95, 98, 100]]


@each_size
def test_images_have_their_own_counts_and_small_boxes_go(fixed_size: bool) -> None:
    anchors = [boxes_at((0, 0), (40, 40))]
    logits, deltas = [torch.zeros(2, 2)], [torch.zeros(2, 2, 4)]
    sizes = torch.tensor([[100, 100], [100, 42]])
    found = propose(logits, deltas, anchors, sizes, ProposalRule(10, 10, 0.7, 5.0), fixed_size)
    assert found.count.tolist() == [2, 1]  # the second image leaves 2 pixels of the second box
    assert found.boxes[1].tolist() == [[0, 0, 10, 10], [0, 0, 1, 1]]  # never a box without area
    assert found.scores[1, 1] == 0
    nothing = propose(logits, deltas, anchors, sizes, ProposalRule(10, 10, 0.7, 50.0), fixed_size)
    assert nothing.count.tolist() == [0, 0]
    assert not nothing.valid.any()


@each_size
def test_proposals_of_low_objectness_go_before_nms(fixed_size: bool) -> None:
    """A probability of 0.05 is a logit of -2.94; the rule of torchvision's MobileNet models."""
    anchors, deltas = [boxes_at((0, 0), (20, 0), (40, 0))], [torch.zeros(2, 3, 4)]
    logits = [torch.tensor([[-2.9, -3.0, 1.0], [-9.0, -9.0, -9.0]])]
    rule = ProposalRule(10, 10, 0.7, 1e-3, min_score=0.05)
    found = trimmed(propose(logits, deltas, anchors, torch.tensor([[100, 100], [100, 100]]), rule, fixed_size))
    assert found.count.tolist() == [2, 0]
    assert found.boxes[0, :, 0].tolist() == [40, 0]


@each_size
def test_proposals_are_a_slow_reference(fixed_size: bool) -> None:
    torch.manual_seed(0)
    anchors = []
    for number in (60, 20):
        corners = torch.rand(number, 2) * 80
        anchors.append(torch.cat((corners, corners + 5 + torch.rand(number, 2) * 30), dim=1))
    logits = [torch.randn(2, len(a)) for a in anchors]
    deltas = [torch.randn(2, len(a), 4) * 0.2 for a in anchors]
    found = propose(
        logits, deltas, anchors, torch.tensor([[90, 100], [70, 60]]), ProposalRule(30, 25, 0.5, 1.0), fixed_size
    )
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


@each_size
def test_no_images(fixed_size: bool) -> None:
    anchors = boxes_at((0, 0), (40, 40))
    logits, deltas, sizes = torch.zeros(0, 2), torch.zeros(0, 2, 4), torch.zeros(0, 2, dtype=torch.int64)
    found = propose([logits], [deltas], [anchors], sizes, ProposalRule(10, 10, 0.7, 1.0), fixed_size)
    assert trimmed(found).boxes.shape == (0, 0, 4)


@each_size
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_full_precision_results(dtype: torch.dtype, fixed_size: bool) -> None:
    anchors, sizes = [boxes_at((0, 0), (40, 40))], torch.tensor([[99, 99]])
    logits, deltas = [torch.ones(1, 2, dtype=dtype)], [torch.zeros(1, 2, 4, dtype=dtype)]
    found = propose(logits, deltas, anchors, sizes, ProposalRule(10, 10, 0.7, 1.0), fixed_size)
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    outputs = DenseOutputs([logits[0][..., None]], deltas)
    detections = best_detections(outputs, anchors, sizes, DeltaCoding(), DETECTION, fixed_size=fixed_size)
    assert detections.count.tolist() == [2]
    assert detections.boxes.dtype == detections.scores.dtype == torch.float32


@each_size
def test_detections_by_eye(fixed_size: bool) -> None:
    # Level 0: two near-equal anchors and one far; level 1: the first again, half a pixel lower.
    anchors = [boxes_at((0, 0), (1, 0), (50, 50)), boxes_at((0, 0.5))]
    logits = [torch.tensor([[[2.0, 1.0], [3.0, -1.0], [0.5, 0.1]]]), torch.tensor([[[4.0, 0.5]]])]
    outputs = DenseOutputs(logits, [torch.zeros(1, 3, 4), torch.zeros(1, 1, 4)])
    select = partial(best_detections, outputs, anchors, torch.tensor([[55, 100]]), DeltaCoding(), fixed_size=fixed_size)
    found = trimmed(select(DETECTION))
    # Of class 0 the best of level 1 leaves nothing of both near anchors; of class 1 the first anchor stays. The far one
    # is cut at the lower border; below one half is nothing.
    boxes = [[0, 0.5, 10, 10.5], [0, 0, 10, 10], [50, 50, 60, 55], [50, 50, 60, 55]]
    assert found.boxes[0].tolist() == boxes
    assert found.labels.tolist() == [[0, 1, 0, 1]]
    torch.testing.assert_close(found.scores[0], torch.tensor([4.0, 1.0, 0.5, 0.1]).sigmoid())
    assert found.masks is found.keypoints is found.mask_boxes is None
    # Classes that compete; one candidate of each level; one detection.
    together = trimmed(select(replace(DETECTION, nms_per_class=False)))
    assert together.boxes[0].tolist() == [boxes[0], boxes[2]]
    one_each = trimmed(select(replace(DETECTION, max_candidates=1, nms_overlap=1.0)))
    assert one_each.boxes[0].tolist() == [[0, 0.5, 10, 10.5], [1, 0, 11, 10]]
    assert trimmed(select(replace(DETECTION, max_detections=1))).boxes[0].tolist() == [boxes[0]]


def slow_detections(
    outputs: DenseOutputs, anchors: Sequence[Tensor], image: int, size: tuple[int, int], rule: DetectionRule
) -> list[tuple[float, int, list[float]]]:
    """(score, label, box) of one image, pair by pair."""
    candidates = []
    for logits, deltas, references in zip(outputs.logits, outputs.deltas, anchors, strict=True):
        pairs = [(float(logits[image, a, k]), a, k) for a in range(logits.shape[1]) for k in range(logits.shape[2])]
        for logit, anchor, label in sorted(pairs, key=lambda pair: -pair[0])[: rule.max_candidates]:
            box = decode_deltas(deltas[image, anchor], references[anchor], UNIT).tolist()
            x1, x2 = (min(max(x, 0.0), size[1]) for x in box[::2])
            y1, y2 = (min(max(y, 0.0), size[0]) for y in box[1::2])
            score = float(torch.tensor(logit).sigmoid())
            if score > rule.min_score and min(x2 - x1, y2 - y1) >= rule.min_size:
                candidates.append((score, label, [x1, y1, x2, y2]))
    kept = []
    for label in {candidate[1] for candidate in candidates}:
        own = [candidate for candidate in candidates if candidate[1] == label]
        boxes, scores = torch.tensor([box for _, _, box in own]), torch.tensor([score for score, _, _ in own])
        kept += [own[index] for index in nms(boxes, scores, rule.nms_overlap).tolist()]
    return sorted(kept, key=lambda candidate: -candidate[0])[: rule.max_detections]


@each_size
@pytest.mark.parametrize("max_detections", [12, 100])
def test_detections_are_a_slow_reference(max_detections: int, fixed_size: bool) -> None:
    torch.manual_seed(0)
    anchors = []
    for number in (60, 20, 3):
        corners = torch.rand(number, 2) * 60
        anchors.append(torch.cat((corners, corners + 5 + torch.rand(number, 2) * 30), dim=1))
    outputs = DenseOutputs(
        [torch.randn(3, len(a), 3) * 2 for a in anchors], [torch.randn(3, len(a), 4) * 0.2 for a in anchors]
    )
    outputs.logits[1][1] -= 9  # one level of one image has nothing, and one image has nothing at all
    for logits in outputs.logits:
        logits[2] -= 20
    sizes = [(90, 100), (70, 60), (80, 80)]
    rule = replace(DETECTION, max_detections=max_detections)
    found = best_detections(outputs, anchors, torch.tensor(sizes), DeltaCoding(), rule, fixed_size=fixed_size)
    counts = []
    for image, size in enumerate(sizes):
        expected = slow_detections(outputs, anchors, image, size, rule)
        counts.append(len(expected))
        scores, labels, boxes = (
            (torch.tensor(column) for column in zip(*expected, strict=True))
            if expected
            else (torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
        )
        count = int(found.count[image])
        assert count == len(expected)
        assert found.labels[image, :count].equal(labels)
        torch.testing.assert_close(found.scores[image, :count], scores)
        torch.testing.assert_close(found.boxes[image, :count], boxes)
        # What is left over holds the unit box and nothing.
        assert (found.boxes[image, count:] == torch.tensor([0.0, 0, 1, 1])).all()
        assert not found.scores[image, count:].any()
        assert not found.labels[image, count:].any()
    assert counts[2] == 0 < counts[1]
    assert found.boxes.shape[1] == (min(max_detections, 49) if fixed_size else max(counts))


@each_size
@pytest.mark.parametrize("nms", ["hard", "soft_linear", "soft_gaussian"])
def test_nothing_to_detect(nms: str, fixed_size: bool) -> None:
    anchors, rule = [boxes_at((0, 0), (40, 40))], replace(DETECTION, nms=nms)
    for images, logit in ((0, 9.0), (2, -9.0)):
        outputs = DenseOutputs([torch.full((images, 2, 3), logit)], [torch.zeros(images, 2, 4)])
        sizes = torch.full((images, 2), 50)
        found = best_detections(outputs, anchors, sizes, DeltaCoding(), rule, fixed_size=fixed_size)
        assert found.count.tolist() == [0] * images
        assert trimmed(found).boxes.shape == (images, 0, 4)
