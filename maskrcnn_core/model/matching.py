"""Which object each anchor or proposal stands for, and which of them are sampled for the loss.

Letters: N images, A candidates (anchors or proposals), G ground truth, S sampled.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn_core.boxes import pairwise_coverage, pairwise_iou
from maskrcnn_core.structures import Targets

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


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
    """
    overlaps = pairwise_iou(targets.boxes, candidates).masked_fill(~targets.valid[..., None], -1.0)  # [N, G, A]
    best, objects = overlaps.max(dim=1)
    kinds = torch.where(best < negative_overlap, NEGATIVE, IGNORED)
    kinds = torch.where(best >= positive_overlap, POSITIVE, kinds)
    if rescue_best:
        best_of_object = overlaps.amax(dim=2, keepdim=True)
        rescued = ((overlaps == best_of_object) & (best_of_object > 0)).any(dim=1)
        kinds = torch.where(rescued, POSITIVE, kinds)
    # Looking first would make a GPU wait for the answer; on a CPU it saves the work of most batches.
    if targets.crowd.is_cuda or bool(targets.crowd.any()):
        in_crowd = pairwise_coverage(candidates, targets.boxes).masked_fill(~targets.crowd[:, None, :], 0.0)
        kinds = torch.where((in_crowd.amax(dim=2) > crowd_overlap) & (kinds == NEGATIVE), IGNORED, kinds)
    return Matches(kinds, objects)


def sample(kinds: Tensor, num_samples: int, positive_fraction: float) -> Samples:
    """Draw candidates at random, at most a fraction of them positive, negatives filling up (Fast R-CNN, section 2.3).

    Args:
        kinds: [N, A] as in `Matches`.
        num_samples: S, reduced to A where there are fewer candidates.

    The shape of the result depends on the shape of `kinds` alone. Draws come from torch's default generator of the
    device.
    """
    num_candidates = kinds.shape[1]
    num_samples = min(num_samples, num_candidates)
    max_positives = min(int(num_samples * positive_fraction), num_candidates)
    keys = torch.rand(kinds.shape, device=kinds.device)
    positive_keys, positive_index = torch.where(kinds == POSITIVE, keys, -1.0).topk(max_positives, dim=1)
    negative_keys, negative_index = torch.where(kinds == NEGATIVE, keys, -1.0).topk(num_samples, dim=1)
    drawn_positive = positive_keys >= 0
    places_left = num_samples - drawn_positive.sum(dim=1, keepdim=True)
    ranks = torch.arange(num_samples, device=kinds.device)
    drawn_negative = (negative_keys >= 0) & (ranks < places_left)
    index = torch.cat((positive_index, negative_index), dim=1)
    drawn = torch.cat((drawn_positive, drawn_negative), dim=1)
    # Empty slots go to the end; the order is otherwise kept, so positives stay in front.
    order = torch.argsort((~drawn).to(torch.uint8), dim=1, stable=True)[:, :num_samples]
    index, valid = index.gather(1, order), drawn.gather(1, order)
    positive = (kinds.gather(1, index) == POSITIVE) & valid
    return Samples(index, positive, valid, max_positives)
