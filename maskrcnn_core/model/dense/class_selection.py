"""Detections where the candidates are the best of each class (SSD, section 2.2 and Caffe's `DetectionOutput`)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from maskrcnn_core.boxes import clip_boxes, have_min_size, keep_best, suppress
from maskrcnn_core.model.box_coding import BoxCoding
from maskrcnn_core.model.dense.scores import level_scores
from maskrcnn_core.model.losses import full_precision
from maskrcnn_core.model.survivors import DetectionRule, merged
from maskrcnn_core.structures import DenseOutputs, Detections, real_or_unit, valid_slots


def best_of_each_class(
    outputs: DenseOutputs,
    anchors: Sequence[Tensor],
    sizes: Tensor,
    coding: BoxCoding,
    rule: DetectionRule,
    *,
    score_from: str,
    fixed_size: bool = False,
) -> Detections:
    """As `selection.best_detections`, with the rule's `max_candidates` of each class, over all levels."""
    scores = torch.cat([level_scores(outputs, level, score_from) for level in range(len(anchors))], dim=1)
    choose = _candidates_of_fixed_size if fixed_size else _candidates
    ranked, anchor, labels, valid = choose(scores, rule)
    # The candidates' boxes: [N, M, 4].
    chosen = torch.cat(outputs.deltas, dim=1).gather(1, anchor[..., None].expand(-1, -1, 4))
    boxes = coding.decode(full_precision(chosen), torch.cat(list(anchors))[anchor])
    valid &= have_min_size(clip_boxes(boxes, sizes), rule.min_size)
    if rule.clip_first:
        boxes = clip_boxes(boxes, sizes)
    # Suppression, and the best of what it leaves: [N, D].
    if fixed_size and rule.nms == "hard" and rule.nms_per_class:
        keep = _suppress_classes(boxes, ranked, valid, scores.shape[2], rule)
        slots, count = keep_best(keep, ranked, rule.max_detections, fixed_size=True)
        kept = ranked.gather(1, slots)
    else:
        ranked, order = torch.where(valid, ranked, 0.0).sort(dim=1, descending=True, stable=True)
        boxes, labels = boxes.gather(1, order[..., None].expand(-1, -1, 4)), labels.gather(1, order)
        valid = valid.gather(1, order)
        boxes, slots, kept, count = merged(boxes, ranked, labels, valid, rule, fixed_size=fixed_size)
    real = valid_slots(count, slots.shape[1])
    best = boxes.gather(1, slots[..., None].expand(-1, -1, 4))
    return Detections(
        boxes=real_or_unit(best if rule.clip_first else clip_boxes(best, sizes), real),
        scores=torch.where(real, kept, 0.0),
        labels=torch.where(real, labels.gather(1, slots), 0),
        count=count,
    )


def _candidates_of_fixed_size(scores: Tensor, rule: DetectionRule) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best anchors of each class, class by class, best first.

    Args:
        scores: [N, A, K].

    Returns:
        Scores, anchors, classes and which count, each [N, K * M].
    """
    most = min(rule.max_candidates, scores.shape[1])
    ranked, anchor = scores.transpose(1, 2).topk(most, dim=2)
    labels = torch.arange(scores.shape[2], device=scores.device)[:, None].expand_as(anchor)
    ranked, anchor, labels = (part.flatten(1) for part in (ranked, anchor, labels))
    return ranked, anchor, labels, ranked > rule.min_score


def _candidates(scores: Tensor, rule: DetectionRule) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `_candidates_of_fixed_size`, all classes together, best first: of the few scores that are high enough."""
    num_classes, flat = scores.shape[2], scores.flatten(1)
    most = int((flat > rule.min_score).sum(dim=1).max()) if flat.numel() else 0
    ranked, pair = flat.topk(most, dim=1)
    anchor, labels = pair // num_classes, pair % num_classes
    # How many better ones of its class come before each: its place among them, sorted by class.
    order = labels.argsort(dim=1, stable=True)
    places = torch.arange(most, device=scores.device).expand_as(order)
    by_class = labels.gather(1, order)
    starts = torch.searchsorted(by_class, torch.arange(num_classes, device=scores.device).repeat(len(order), 1))
    ranks = torch.empty_like(order).scatter_(1, order, places - starts.gather(1, by_class))
    return ranked, anchor, labels, (ranked > rule.min_score) & (ranks < rule.max_candidates)


def _suppress_classes(boxes: Tensor, ranked: Tensor, valid: Tensor, num_classes: int, rule: DetectionRule) -> Tensor:
    """Survivors [N, K * M] within each class, all classes of all images side by side."""
    keep = suppress(
        boxes.unflatten(1, (num_classes, -1)).flatten(0, 1),
        ranked.unflatten(1, (num_classes, -1)).flatten(0, 1),
        None,
        valid.unflatten(1, (num_classes, -1)).flatten(0, 1),
        rule.nms_overlap,
        ranked=True,
        max_kept=rule.max_detections,
        fixed_size=True,
    )
    return keep.view(len(boxes), -1)
