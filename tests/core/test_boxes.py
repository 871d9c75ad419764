"""Boxes against numbers by eye, literal references and torchvision."""

import math
from collections.abc import Callable

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

from maskrcnn_core.boxes import (
    _suppress_at_once,
    box_areas,
    clip_boxes,
    decode_deltas,
    encode_deltas,
    have_min_size,
    keep_best,
    pairwise_coverage,
    pairwise_iou,
    scale_boxes,
    soft_suppress,
    suppress,
)

UNIT = (1.0, 1.0, 1.0, 1.0)
HEAD = (10.0, 10.0, 5.0, 5.0)


def random_boxes(*shape: int, seed: int = 0, whole: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(*shape, 2, generator=generator) * 100
    sides = torch.rand(*shape, 2, generator=generator) * 60 + 1
    boxes = torch.cat((corners, corners + sides), dim=-1)
    return boxes.ceil() if whole else boxes


def test_areas_by_eye() -> None:
    assert box_areas(torch.tensor([[0.0, 0, 2, 3], [1, 1, 1, 5], [-1, -1, 1, 1]])).tolist() == [6, 0, 4]


def test_iou_by_eye() -> None:
    # 2 x 2 against: itself; shifted by one right (2 / 6); touching; far; empty.
    first = torch.tensor([[0.0, 0, 2, 2]])
    second = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2], [2, 0, 4, 2], [9, 9, 10, 10], [1, 1, 1, 1]])
    torch.testing.assert_close(pairwise_iou(first, second), torch.tensor([[1, 1 / 3, 0, 0, 0]]))


def test_iou_is_torchvisions_also_in_batches() -> None:
    first, second = random_boxes(3, 5), random_boxes(3, 7, seed=1)
    got = pairwise_iou(first, second)
    for image in range(3):
        torch.testing.assert_close(got[image], torchvision.ops.box_iou(first[image], second[image]))
    torch.testing.assert_close(pairwise_iou(first[:1], second)[2], pairwise_iou(first[0], second[2]))


def test_overlaps_of_empty_boxes_and_lists_are_zero_not_nan() -> None:
    empty = torch.zeros(2, 4)
    assert pairwise_iou(empty, empty).tolist() == [[0, 0], [0, 0]]
    assert pairwise_coverage(empty, empty).tolist() == [[0, 0], [0, 0]]
    assert pairwise_iou(torch.zeros(3, 0, 4), torch.zeros(3, 2, 4)).shape == (3, 0, 2)
    assert pairwise_coverage(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 0)


def test_coverage_is_the_share_of_the_first_box() -> None:
    small, large = torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 11, 10]])
    assert pairwise_coverage(small, large).item() == pytest.approx(0.5)
    assert pairwise_coverage(large, small).item() == pytest.approx(0.02)


def test_encode_by_eye() -> None:
    # From centre (5, 5) side 10 to centre (7, 5), 20 wide and 5 high: dx 0.2, dw log 2, dh log 1/2.
    reference, box = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[-3.0, 2.5, 17, 7.5]])
    deltas = encode_deltas(box, reference, UNIT)
    torch.testing.assert_close(deltas, torch.tensor([[0.2, 0, math.log(2), -math.log(2)]]))
    torch.testing.assert_close(encode_deltas(box, reference, HEAD), deltas * torch.tensor(HEAD))


coordinate = st.floats(-500, 500, width=32)
side = st.floats(0.5, 500, width=32)
box_parts = st.tuples(coordinate, coordinate, side, side)


@settings(deadline=None, max_examples=60)
@given(box_parts, box_parts, st.sampled_from([UNIT, HEAD]))
def test_decode_inverts_encode(
    one: tuple[float, ...], other: tuple[float, ...], weights: tuple[float, float, float, float]
) -> None:
    box, reference = (torch.tensor([[x, y, x + w, y + h]], dtype=torch.float64) for x, y, w, h in (one, other))
    # Beyond the limit of the scale the round trip is cut on purpose.
    if bool(((box[:, 2:] - box[:, :2]) / (reference[:, 2:] - reference[:, :2]) > 62).any()):
        return
    back = decode_deltas(encode_deltas(box, reference, weights), reference, weights)
    torch.testing.assert_close(back, box, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("weights", [UNIT, HEAD])
def test_coding_is_torchvisions(weights: tuple[float, float, float, float]) -> None:
    coder = BoxCoder(weights)
    boxes, references = random_boxes(50), random_boxes(50, seed=1)
    deltas = encode_deltas(boxes, references, weights)
    torch.testing.assert_close(deltas, coder.encode_single(boxes, references))
    wild = torch.randn(50, 4, generator=torch.Generator().manual_seed(2)) * 20
    torch.testing.assert_close(decode_deltas(wild, references, weights), coder.decode_single(wild, references))


def test_coding_stays_finite_for_wild_deltas_and_empty_boxes() -> None:
    reference = torch.tensor([[0.0, 0, 16, 16]])
    grown = decode_deltas(torch.full((1, 4), 1e4) * torch.tensor([0, 0, 1, 1]), reference, UNIT)
    torch.testing.assert_close(grown[0, 2] - grown[0, 0], torch.tensor(1000.0))
    assert encode_deltas(torch.zeros(2, 4), torch.zeros(2, 4), UNIT).isfinite().all()
    assert decode_deltas(torch.zeros(0, 4), torch.zeros(0, 4), UNIT).shape == (0, 4)


def test_clip_by_eye_with_a_size_for_each_image() -> None:
    boxes = torch.tensor([[-5.0, -6, 100, 100]]).expand(2, 3, 4)
    clipped = clip_boxes(boxes, torch.tensor([[10, 20], [30, 40]]))
    assert clipped[:, 2].tolist() == [[0, 0, 20, 10], [0, 0, 40, 30]]
    assert clip_boxes(torch.zeros(2, 0, 4), torch.tensor([[1, 1], [2, 2]])).shape == (2, 0, 4)


def test_min_size_needs_both_sides() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1], [0, 0, 1, 2], [3, 3, 3, 3]])
    assert have_min_size(boxes, 2.0).tolist() == [True, False, False, False]
    assert have_min_size(boxes, 0.0).all()


def test_scale_by_eye_and_back() -> None:
    boxes = torch.tensor([[[1.0, 2, 3, 4]]])
    small, large = torch.tensor([[10, 10]]), torch.tensor([[30, 20]])
    scaled = scale_boxes(boxes, small, large)
    assert scaled.tolist() == [[[2, 6, 6, 12]]]
    torch.testing.assert_close(scale_boxes(scaled, large, small), boxes)


def all_valid(scores: Tensor) -> Tensor:
    return torch.ones_like(scores, dtype=torch.bool)


@pytest.mark.parametrize("fixed_size", [False, True])
def test_suppress_by_eye(fixed_size: bool) -> None:
    # Slots 0 and 1 overlap by 0.9; slot 2 is far; slot 3 is slot 1 in another group.
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 10, 9]]])
    scores, groups = torch.tensor([[0.5, 0.9, 0.1, 0.2]]), torch.tensor([[0, 0, 0, 1]])
    assert suppress(boxes, scores, groups, all_valid(scores), 0.5, fixed_size=fixed_size).tolist() == [
        [False, True, True, True]
    ]
    assert suppress(boxes, scores, groups, all_valid(scores), 0.95, fixed_size=fixed_size).all()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("way", [suppress, _suppress_at_once])
def test_suppress_is_torchvisions_in_each_image(way: Callable[..., Tensor], seed: int) -> None:
    boxes = random_boxes(3, 60, seed=seed, whole=True)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 8, (3, 60), generator=generator) / 8  # with many ties
    groups = torch.randint(0, 3, (3, 60), generator=generator)
    keep = way(boxes, scores, groups, all_valid(scores), 0.4)
    for image in range(3):
        kept = torchvision.ops.batched_nms(boxes[image], scores[image], groups[image], 0.4)
        assert sorted(kept.tolist()) == keep[image].nonzero()[:, 0].tolist()
        assert 0 < len(kept) < 60


@pytest.mark.parametrize("way", [suppress, _suppress_at_once])
def test_of_equal_scores_the_earlier_slot_stays(way: Callable[..., Tensor]) -> None:
    boxes, scores = torch.tensor([[[5.0, 5, 9, 9]] * 6]), torch.full((1, 6), 0.5)
    keep = way(boxes, scores, torch.zeros(1, 6, dtype=torch.int64), all_valid(scores), 0.5)
    assert keep.tolist() == [[True] + [False] * 5]


@pytest.mark.parametrize("way", [suppress, _suppress_at_once])
def test_invalid_slots_are_as_if_absent(way: Callable[..., Tensor]) -> None:
    boxes, groups = random_boxes(2, 40, whole=True), torch.zeros(2, 40, dtype=torch.int64)
    scores = torch.rand(2, 40, generator=torch.Generator().manual_seed(1))
    valid = torch.rand(2, 40, generator=torch.Generator().manual_seed(2)) > 0.5
    keep = way(boxes, scores, groups, valid, 0.3)
    assert not (keep & ~valid).any()
    for image in range(2):
        real = valid[image].nonzero()[:, 0]
        kept = real[torchvision.ops.nms(boxes[image, real], scores[image, real], 0.3)]
        assert sorted(kept.tolist()) == keep[image].nonzero()[:, 0].tolist()


@pytest.mark.parametrize("fixed_size", [False, True])
@pytest.mark.parametrize("slots", [0, 3])
def test_nothing_valid_keeps_nothing(slots: int, fixed_size: bool) -> None:
    nothing = torch.zeros(2, slots, dtype=torch.bool)
    keep = suppress(
        torch.zeros(2, slots, 4), torch.zeros(2, slots), nothing.long(), nothing, 0.5, fixed_size=fixed_size
    )
    assert keep.shape == (2, slots)
    assert not keep.any()


def soft(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    valid: Tensor,
    gaussian: bool,
    max_kept: int = 1000,
    fixed_size: bool = False,
) -> tuple[Tensor, Tensor]:
    return soft_suppress(
        boxes,
        scores,
        groups,
        valid,
        gaussian=gaussian,
        max_overlap=0.3,
        sigma=0.5,
        min_score=0.05,
        max_kept=max_kept,
        fixed_size=fixed_size,
    )


def slow_soft_suppress(
    boxes: list[list[float]], scores: list[float], groups: list[int], slots: list[int], gaussian: bool
) -> list[tuple[int, float]]:
    """Bodla et al., figure 2, for one image: (slot, score) of the boxes that stay above 0.05, best first."""
    score_of, kept = {slot: scores[slot] for slot in slots}, []
    for group in set(groups):
        left = {slot for slot in slots if groups[slot] == group}
        while left:
            best = max(left, key=lambda slot: (score_of[slot], -slot))
            left.remove(best)
            kept.append((best, score_of[best]))
            for other in left:
                overlap = float(torchvision.ops.box_iou(torch.tensor([boxes[best]]), torch.tensor([boxes[other]])))
                if gaussian:
                    score_of[other] *= math.exp(-(overlap**2) / 0.5)
                elif overlap > 0.3:
                    score_of[other] *= 1 - overlap
    return sorted((item for item in kept if item[1] > 0.05), key=lambda item: -item[1])


@pytest.mark.parametrize("fixed_size", [False, True])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("gaussian", [True, False])
def test_soft_suppress_is_the_slow_reference(gaussian: bool, seed: int, fixed_size: bool) -> None:
    boxes, generator = random_boxes(3, 25, seed=seed), torch.Generator().manual_seed(seed)
    boxes = boxes - 0.8 * boxes[..., :2].repeat(1, 1, 2)  # closer together
    scores = torch.rand(3, 25, generator=generator)
    groups = torch.randint(0, 3, (3, 25), generator=generator)
    valid = torch.rand(3, 25, generator=generator) > 0.3
    slots, kept = soft(boxes, scores, groups, valid, gaussian, fixed_size=fixed_size)
    few_slots, few_kept = soft(boxes, scores, groups, valid, gaussian, max_kept=5, fixed_size=fixed_size)
    assert few_slots.shape == (3, 5)
    longest = 0
    for image in range(3):
        expected = slow_soft_suppress(
            boxes[image].tolist(),
            scores[image].tolist(),
            groups[image].tolist(),
            valid[image].nonzero()[:, 0].tolist(),
            gaussian,
        )
        count, longest = len(expected), max(longest, len(expected))
        assert slots[image, :count].tolist() == [slot for slot, _ in expected]
        torch.testing.assert_close(kept[image, :count], torch.tensor([score for _, score in expected]))
        assert not kept[image, count:].any()
        # Of all that stay, the best.
        assert few_slots[image].tolist() == [slot for slot, _ in expected[:5]]
        torch.testing.assert_close(few_kept[image], torch.tensor([score for _, score in expected[:5]]))
    assert slots.shape == kept.shape == (3, 25 if fixed_size else longest)
    lowered = (kept > 0) & (kept < scores.gather(1, slots))
    assert lowered.sum() > 5  # boxes that overlap others stay, too


@pytest.mark.parametrize("fixed_size", [False, True])
def test_soft_suppress_by_eye(fixed_size: bool) -> None:
    # Slot 1 covers 0.6 of slot 0 and 2 lies far away; 3 is 1 in another group. Linear: 0.8 * 0.4 = 0.32.
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 6], [50, 50, 60, 60], [0, 0, 10, 6]]])
    scores, groups = torch.tensor([[0.9, 0.8, 0.4, 0.6]]), torch.tensor([[0, 0, 0, 1]])
    slots, kept = soft(boxes, scores, groups, all_valid(scores), gaussian=False, fixed_size=fixed_size)
    assert slots.tolist() == [[0, 3, 2, 1]]
    torch.testing.assert_close(kept, torch.tensor([[0.9, 0.6, 0.4, 0.32]]))
    slots, kept = soft(boxes, scores, groups, all_valid(scores), gaussian=True, fixed_size=fixed_size)
    assert slots.tolist() == [[0, 3, 2, 1]]
    torch.testing.assert_close(kept, torch.tensor([[0.9, 0.6, 0.4, 0.8 * math.exp(-0.72)]]))


@pytest.mark.parametrize("fixed_size", [False, True])
def test_soft_suppress_without_overlap_only_sorts(fixed_size: bool) -> None:
    corners = torch.arange(6.0)[:, None] * 20
    boxes = torch.cat((corners, corners, corners + 10, corners + 10), dim=1)[None]
    scores = torch.tensor([[0.3, 0.9, 0.04, 0.5, 0.5, 0.1]])
    slots, kept = soft(boxes, scores, torch.zeros(1, 6).long(), all_valid(scores), gaussian=True, fixed_size=fixed_size)
    taken = slots[kept > 0]
    assert taken.tolist() == [1, 3, 4, 0, 5]  # of equal scores the earlier slot first; the weakest not at all
    assert kept[0, :5].tolist() == scores[0, taken].tolist()


@pytest.mark.parametrize("fixed_size", [False, True])
@pytest.mark.parametrize("gaussian", [True, False])
@pytest.mark.parametrize(("images", "slots"), [(2, 0), (0, 3), (2, 3)])
def test_soft_suppress_of_nothing(images: int, slots: int, gaussian: bool, fixed_size: bool) -> None:
    nothing = torch.zeros(images, slots, dtype=torch.bool)
    boxes, scores = torch.zeros(images, slots, 4), torch.ones(images, slots)
    order, kept = soft(boxes, scores, nothing.long(), nothing, gaussian, fixed_size=fixed_size)
    assert order.shape == kept.shape == (images, slots if fixed_size else 0)
    assert not kept.any()


def test_the_best_that_were_kept_by_eye() -> None:
    keep = torch.tensor([[True, False, True, True], [False, False, False, True]])
    scores = torch.tensor([[0.2, 0.9, 0.7, 0.7], [0.9, 0.8, 0.7, 0.0]])
    order, count = keep_best(keep, scores, 2)
    # Of the first image the tie of slots 2 and 3, in their order; the second has one survivor.
    assert (order[0].tolist(), order[1, 0].item(), count.tolist()) == ([2, 3], 3, [2, 1])
    assert keep_best(keep[1:], scores[1:], 2)[0].shape == (1, 1)
    assert keep_best(keep[1:], scores[1:], 2, fixed_size=True)[0].shape == (1, 2)


@pytest.mark.parametrize(
    ("images", "slots", "least", "width"), [(2, 0, 1, 0), (2, 3, 0, 0), (2, 3, 1, 1), (0, 3, 0, 0)]
)
def test_the_best_of_nothing(images: int, slots: int, least: int, width: int) -> None:
    nothing = torch.zeros(images, slots)
    order, count = keep_best(nothing.bool(), nothing, 5, least=least)
    assert order.shape == (images, width)
    assert count.tolist() == [0] * images
