"""Which scored boxes become detections: suppression, hard or soft, or averaging, and the best of what they leave."""

from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn_core.boxes import keep_best, soft_suppress, suppress
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.averaging import average_pairs, summed_score


@dataclass(frozen=True)
class DetectionRule:
    """Which scored boxes become detections (attributes as in `BoxHeadConfig`).

    Attributes:
        clip_first: boxes are cut at the image's border before suppression; else after it.
    """

    min_score: float
    max_candidates: int
    nms_overlap: float
    max_detections: int
    min_size: float
    nms: str = "hard"
    soft_sigma: float = 0.5
    nms_per_class: bool = True
    clip_first: bool = True

    def __post_init__(self) -> None:
        if self.nms not in ("hard", "soft_linear", "soft_gaussian", "average"):
            raise ConfigError(
                f"model.box_head.nms: got {self.nms!r}, expected 'hard', 'soft_linear' or 'soft_gaussian'; of "
                "model.dense.detection.nms also 'average'"
            )


def merged(
    boxes: Tensor, scores: Tensor, labels: Tensor, valid: Tensor, rule: DetectionRule, *, fixed_size: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`survivors`, or the boxes that averaging makes of all: the boxes [N, M, 4] that slots point to, and slot, score
    and count as there."""
    if rule.nms != "average":
        return boxes, *survivors(boxes, scores, labels, valid, rule, fixed_size=fixed_size)
    groups = labels if rule.nms_per_class else torch.zeros_like(labels)
    boxes, sums, left = average_pairs(boxes, scores, groups, valid, rule.nms_overlap, fixed_size=fixed_size)
    scores = summed_score(sums)
    order, count = keep_best(left & (scores > rule.min_score), scores, rule.max_detections, fixed_size=fixed_size)
    return boxes, order, scores.gather(1, order), count


def survivors(
    boxes: Tensor, scores: Tensor, labels: Tensor, valid: Tensor, rule: DetectionRule, *, fixed_size: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The boxes that NMS leaves, best first: slot [N, D] among the candidates, score [N, D] and count [N]."""
    if rule.nms != "hard":
        order, kept = soft_suppress(
            boxes,
            scores,
            labels if rule.nms_per_class else torch.zeros_like(labels),
            valid,
            gaussian=rule.nms == "soft_gaussian",
            max_overlap=rule.nms_overlap,
            sigma=rule.soft_sigma,
            min_score=rule.min_score,
            max_kept=rule.max_detections,
            fixed_size=fixed_size,
        )
        return order, kept, (kept > rule.min_score).sum(dim=1)
    keep = suppress(
        boxes,
        scores,
        labels if rule.nms_per_class else None,
        valid,
        rule.nms_overlap,
        ranked=True,
        max_kept=rule.max_detections,
        fixed_size=fixed_size,
    )
    order, count = keep_best(keep, scores, rule.max_detections, fixed_size=fixed_size)
    return order, scores.gather(1, order), count
