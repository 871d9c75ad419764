"""Which anchors become proposals, or detections: the best of each level, and of these what suppression leaves."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn_core.boxes import clip_boxes, have_min_size, keep_best, suppress
from maskrcnn_core.model.box_coding import BoxCoding
from maskrcnn_core.model.dense.scores import best_anchors, best_pairs
from maskrcnn_core.model.losses import full_precision
from maskrcnn_core.model.survivors import DetectionRule, merged
from maskrcnn_core.structures import DenseOutputs, Detections, Proposals, real_or_unit, valid_slots


@dataclass(frozen=True)
class ProposalRule:
    """How many anchors become proposals, and which.

    Attributes:
        pre_nms: best anchors kept per level before NMS.
        post_nms: proposals kept per image.
        nms_overlap: IoU above which the weaker of two proposals of a level goes.
        min_size: shortest side of a proposal, input pixels.
        min_score: lowest objectness of a proposal, as a probability.
    """

    pre_nms: int
    post_nms: int
    nms_overlap: float
    min_size: float
    min_score: float = 0.0


def best_proposals(
    outputs: DenseOutputs,
    anchors: Sequence[Tensor],
    sizes: Tensor,
    coding: BoxCoding,
    rule: ProposalRule,
    *,
    score_from: str = "sigmoid",
    fixed_size: bool = False,
) -> Proposals:
    """The best boxes of all levels after NMS within each level (FPN, section 4.1).

    Args:
        outputs: with one class, or with several, of which an anchor's best counts.
        anchors: per level [A_l, 4].
        sizes: [N, 2] input sizes; boxes are clipped to them.
        coding: of the deltas.
        score_from: as in `scores.level_scores`.
        fixed_size: no shape depends on data.

    Returns:
        Proposals with R = min(post_nms, candidates) slots; unless `fixed_size` only as many as the fullest image needs.
    """
    boxes, scores, levels = [], [], []
    for level, (deltas, level_anchors) in enumerate(zip(outputs.deltas, anchors, strict=True)):
        # Best of the level first, decoded.
        top, index = best_anchors(outputs, level, rule.pre_nms, score_from)
        chosen = deltas.detach().gather(1, index[..., None].expand(-1, -1, 4))
        boxes.append(coding.decode(full_precision(chosen), level_anchors[index]))
        scores.append(top)
        levels.append(torch.full_like(index, level))
    # Levels side by side: [N, M].
    all_boxes = clip_boxes(torch.cat(boxes, dim=1), sizes)
    all_scores, all_levels = torch.cat(scores, dim=1), torch.cat(levels, dim=1)
    valid = have_min_size(all_boxes, rule.min_size)
    if rule.min_score > 0:
        valid &= all_scores >= rule.min_score
    # Suppression within each level.
    if fixed_size:
        lengths = [level_scores.shape[1] for level_scores in scores]
        keep = _suppress_levels(all_boxes, all_scores, valid, lengths, rule)
    else:
        keep = suppress(all_boxes, all_scores, all_levels, valid, rule.nms_overlap, fixed_size=False)
    # Ties (saturated scores) keep the order of levels and of logits within a level.
    order, count = keep_best(keep, all_scores, rule.post_nms, least=1, fixed_size=fixed_size)
    real = valid_slots(count, order.shape[1])
    return Proposals(
        boxes=real_or_unit(all_boxes.gather(1, order[..., None].expand(-1, -1, 4)), real),
        scores=torch.where(real, all_scores.gather(1, order), 0.0),
        count=count,
    )


def best_detections(
    outputs: DenseOutputs,
    anchors: Sequence[Tensor],
    sizes: Tensor,
    coding: BoxCoding,
    rule: DetectionRule,
    *,
    score_from: str = "sigmoid",
    candidates_of: str = "level",
    fixed_size: bool = False,
) -> Detections:
    """The best pairs of anchor and class, after NMS over all levels (RetinaNet, section 4, "Inference").

    Args:
        outputs: with K classes, or as `score_from` says.
        anchors: per level [A_l, 4].
        sizes: [N, 2] input sizes; boxes are clipped to them.
        coding: of the deltas.
        score_from: as in `scores.level_scores`.
        candidates_of: whether the rule's `max_candidates` are of each "level" or of the "image".
        fixed_size: no shape depends on data.

    Returns:
        Detections in the input frame with D = max_detections slots; unless `fixed_size` only as many as the fullest
        image needs.
    """
    boxes, scores, labels = [], [], []
    for level, (deltas, level_anchors) in enumerate(zip(outputs.deltas, anchors, strict=True)):
        # Best pairs of the level first, decoded.
        above = None if fixed_size else rule.min_score
        top, anchor, label = best_pairs(outputs, level, rule.max_candidates, score_from, above=above)
        chosen = deltas.gather(1, anchor[..., None].expand(-1, -1, 4))
        boxes.append(coding.decode(full_precision(chosen), level_anchors[anchor]))
        scores.append(top)
        labels.append(label)
    # Candidates of all levels, best first, as suppression wants them: [N, M].
    ranked, order = torch.cat(scores, dim=1).sort(dim=1, descending=True, stable=True)
    if candidates_of == "image":
        ranked, order = ranked[:, : rule.max_candidates], order[:, : rule.max_candidates]
    all_boxes = torch.cat(boxes, dim=1).gather(1, order[..., None].expand(-1, -1, 4))
    all_labels = torch.cat(labels, dim=1).gather(1, order)
    seen = clip_boxes(all_boxes, sizes)
    valid = (ranked > rule.min_score) & have_min_size(seen, rule.min_size)
    # Suppression, and the best of what it leaves: [N, D].
    all_boxes = seen if rule.clip_first else all_boxes
    all_boxes, slots, kept, count = merged(all_boxes, ranked, all_labels, valid, rule, fixed_size=fixed_size)
    real = valid_slots(count, slots.shape[1])
    best = all_boxes.gather(1, slots[..., None].expand(-1, -1, 4))
    return Detections(
        boxes=real_or_unit(best if rule.clip_first else clip_boxes(best, sizes), real),
        scores=torch.where(real, kept, 0.0),
        labels=torch.where(real, all_labels.gather(1, slots), 0),
        count=count,
    )


def _suppress_levels(
    boxes: Tensor, scores: Tensor, valid: Tensor, lengths: Sequence[int], rule: ProposalRule
) -> Tensor:
    """Survivors [N, M] of non-maximum suppression within each level, all levels of all images side by side.

    Args:
        boxes: [N, M, 4], scores, valid: [N, M], level by level, each level best first.
        lengths: slots of each level.
    """
    longest = max(lengths)

    def side_by_side(values: Tensor) -> Tensor:
        """[N, M, ...] -> [N * L, longest, ...], zeros where a level has fewer."""
        padded = values.new_zeros(len(values), len(lengths), longest, *values.shape[2:])
        for level, part in enumerate(values.split(list(lengths), dim=1)):
            padded[:, level, : part.shape[1]] = part
        return padded.flatten(0, 1)

    keep = suppress(
        side_by_side(boxes),
        side_by_side(scores),
        None,
        side_by_side(valid),
        rule.nms_overlap,
        ranked=True,
        max_kept=rule.post_nms,
        fixed_size=True,
    ).unflatten(0, (len(boxes), len(lengths)))
    return torch.cat([keep[:, level, :length] for level, length in enumerate(lengths)], dim=1)
