"""Which scored boxes become detections: suppression, hard or soft, and the best of what it leaves."""

from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn_core.boxes import keep_best, soft_suppress, suppress
from maskrcnn_core.errors import ConfigError


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
        if self.nms not in ("hard", "soft_linear", "soft_gaussian"):
            raise ConfigError(
                f"model.box_head.nms: got {self.nms!r}, expected 'hard', 'soft_linear' or 'soft_gaussian'"
            )


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
