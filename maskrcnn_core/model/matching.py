"""Which object each anchor or proposal stands for, and which of them are sampled for the loss.

Letters: N images, A candidates (anchors or proposals), G ground truth, S sampled.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn_core.boxes import pairwise_coverage, pairwise_iou
from maskrcnn_core.structures import Targets

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1

_OBJECTS_AT_ONCE = 16


@dataclass(frozen=True)
class Matches:
    """Candidates assigned to ground truth.

    Attributes:
        kinds: [N, A] int64, POSITIVE, NEGATIVE or IGNORED.
        objects: [N, A] int64, index of the object with the best overlap; meaningful where positive.
    """

    kinds: Tensor
    objects: Tensor


@dataclass(frozen=True)
class Samples:
    """Candidates drawn for the loss; positives come first.

    Attributes:
        index: [N, S] int64 into the candidates.
        positive: [N, S] bool.
        valid: [N, S] bool, false for an empty slot.
        max_positives: positives lie in the first `max_positives` slots.
    """

    index: Tensor
    positive: Tensor
    valid: Tensor
    max_positives: int


def match(
    candidates: Tensor,
    targets: Targets,
    *,
    positive_overlap: float,
    negative_overlap: float,
    rescue_best: bool,
    crowd_overlap: float,
    fixed_size: bool = False,
) -> Matches:
    """Assign each candidate to the object that it overlaps most.

    Args:
        candidates: [N, A, 4] or [1, A, 4] shared by all images.
        targets: needs at least one slot (G >= 1).
        positive_overlap: IoU from which a candidate is positive.
        negative_overlap: IoU below which it is negative; between the two it is ignored.
        rescue_best: for each object its best candidates are positive whatever their IoU above 0 (Faster R-CNN,
            3.1.2, rule i).
        crowd_overlap: a negative with more than this share of its area in a crowd region is ignored.
        fixed_size: no shape depends on data, and nothing waits for the device.
    """
    # The best IoU of each candidate, its object, and whether it is rescued: [N, A].
    if fixed_size:
        best, objects, leading = _overlaps_at_once(candidates, targets, rescue_best=rescue_best)
    else:
        best, objects, leading = _overlaps_by_image(candidates, targets, rescue_best=rescue_best)
    # By its best overlap; between the two limits it is ignored.
    kinds = torch.where(best < negative_overlap, NEGATIVE, IGNORED)
    kinds = torch.where((best >= positive_overlap) | leading, POSITIVE, kinds)
    return Matches(without_crowds(kinds, candidates, targets, crowd_overlap, fixed_size=fixed_size), objects)


def without_crowds(
    kinds: Tensor, candidates: Tensor, targets: Targets, crowd_overlap: float, *, fixed_size: bool
) -> Tensor:
    """Kinds [N, A] in which negatives in a crowd region are ignored; arguments as of `match`."""
    # Looking first would make a GPU wait for the answer; on a CPU it saves the work of most batches.
    if fixed_size or bool(targets.crowd.any()):
        in_crowd = pairwise_coverage(candidates, targets.boxes).masked_fill(~targets.crowd[:, None, :], 0.0)
        kinds = torch.where((in_crowd.amax(dim=2) > crowd_overlap) & (kinds == NEGATIVE), IGNORED, kinds)
    return kinds


def _overlaps_at_once(candidates: Tensor, targets: Targets, *, rescue_best: bool) -> tuple[Tensor, Tensor, Tensor]:
    """For each candidate the best IoU, its object, and whether it is the best candidate of any object; all [N, A]."""
    overlaps = pairwise_iou(targets.boxes, candidates).masked_fill(~targets.valid[..., None], -1.0)  # [N, G, A]
    best, objects = overlaps.max(dim=1)
    if not rescue_best:
        return best, objects, torch.zeros_like(best, dtype=torch.bool)
    best_of_object = overlaps.amax(dim=2, keepdim=True)
    return best, objects, ((overlaps == best_of_object) & (best_of_object > 0)).any(dim=1)


def _overlaps_by_image(candidates: Tensor, targets: Targets, *, rescue_best: bool) -> tuple[Tensor, Tensor, Tensor]:
    """`_overlaps_at_once` image by image and a few objects at a time: on a CPU the work then stays in the cache, and
    padded slots of crowded batches (N x G x A may pass a gigabyte) cost nothing."""
    num_images, num_candidates = len(targets.boxes), candidates.shape[1]
    best = candidates.new_full((num_images, num_candidates), -1.0)
    objects = torch.zeros(num_images, num_candidates, dtype=torch.int64)
    leading = torch.zeros(num_images, num_candidates, dtype=torch.bool)
    # One image, some of its objects: [g, A]; a candidate keeps the best of all.
    for image in range(num_images):
        own = candidates[image if len(candidates) > 1 else 0]
        real = targets.valid[image].nonzero()[:, 0]
        for slots in real.split(_OBJECTS_AT_ONCE) if len(real) else ():
            overlaps = pairwise_iou(targets.boxes[image, slots], own)
            if rescue_best:
                best_of_object = overlaps.amax(dim=1, keepdim=True)
                leading[image] |= ((overlaps == best_of_object) & (best_of_object > 0)).any(dim=0)
            here, which = overlaps.max(dim=0)
            better = here > best[image]
            objects[image] = torch.where(better, slots[which], objects[image])
            best[image] = torch.where(better, here, best[image])
    return best, objects, leading


def sample(kinds: Tensor, num_samples: int, positive_fraction: float, seeds: Tensor | None = None) -> Samples:
    """Draw candidates at random, at most a fraction of them positive, negatives filling up (Fast R-CNN, section 2.3).

    With a seed, what is drawn of an image depends on the seed and the candidates that may be drawn, in their order; not
    on how many slots that may not stand between or after them, which other images decide.

    Args:
        kinds: [N, A] as in `Matches`; a slot that is not real is IGNORED.
        num_samples: S, reduced to A where there are fewer candidates; the limit of positives is not reduced with it.
        seeds: [N] int64, what the draws of each image depend on; None = torch's default generator of the device.

    The shape of the result depends on the shape of `kinds` alone.
    """
    num_candidates = kinds.shape[1]
    max_positives = min(int(num_samples * positive_fraction), num_candidates)
    num_samples = min(num_samples, num_candidates)
    # A random key for each candidate: [N, A].
    if seeds is None:
        keys = torch.rand(kinds.shape, device=kinds.device)
    else:
        keys = seeded_uniform(seeds, (kinds != IGNORED).cumsum(dim=1))
    # The highest keys among positives [N, max_positives] and among negatives [N, S].
    positive_keys, positive_index = torch.where(kinds == POSITIVE, keys, -1.0).topk(max_positives, dim=1)
    negative_keys, negative_index = torch.where(kinds == NEGATIVE, keys, -1.0).topk(num_samples, dim=1)
    drawn_positive = positive_keys >= 0
    # Negatives only fill what the positives leave.
    slots_left = num_samples - drawn_positive.sum(dim=1, keepdim=True)
    ranks = torch.arange(num_samples, device=kinds.device)
    drawn_negative = (negative_keys >= 0) & (ranks < slots_left)
    # Both side by side: [N, max_positives + S].
    index = torch.cat((positive_index, negative_index), dim=1)
    drawn = torch.cat((drawn_positive, drawn_negative), dim=1)
    # Empty slots go to the end; the order is otherwise kept, so positives stay in front.
    order = torch.argsort((~drawn).to(torch.uint8), dim=1, stable=True)[:, :num_samples]
    index, valid = index.gather(1, order), drawn.gather(1, order)
    positive = (kinds.gather(1, index) == POSITIVE) & valid
    return Samples(index, positive, valid, max_positives)


def seeded_uniform(seeds: Tensor, numbers: Tensor) -> Tensor:
    """[N] int64, [N, A] int64 -> [N, A] float64 in [0, 1): entry i, j depends on `seeds[i]` and `numbers[i, j]` alone.

    So an image draws the same whichever images stand beside it and whatever the device. SplitMix64 (Steele et al.,
    OOPSLA 2014), of which the upper 53 bits are kept: of 24, among a quarter of a million anchors, some would be equal,
    and which of these is drawn would be the device's choice.
    """
    mixed = seeds[:, None] + numbers * _wrapped(0x9E3779B97F4A7C15)
    mixed = (mixed ^ _shifted(mixed, 30)) * _wrapped(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ _shifted(mixed, 27)) * _wrapped(0x94D049BB133111EB)
    mixed = mixed ^ _shifted(mixed, 31)
    return _shifted(mixed, 11).to(torch.float64) * 2.0**-53


def _wrapped(word: int) -> int:
    """64 unsigned bits as the signed number that torch has for them."""
    return word - (1 << 64) if word >> 63 else word


def _shifted(words: Tensor, bits: int) -> Tensor:
    """Shifted right with zeros coming in; torch's own shift repeats the sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)
