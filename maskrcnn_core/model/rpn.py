"""Region Proposal Network: a sliding-window object / not-object classifier and box regressor (Faster R-CNN, section 3).

It is a dense head with one class: per anchor one objectness logit and four deltas. Levels are concatenated right
after the head; from there on everything is vectorised over images and anchors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.boxes import clip_boxes, decode_deltas, have_min_size, keep_best, suppress
from maskrcnn_core.kernels.availability import use_kernels
from maskrcnn_core.model.fused_conv import convolve
from maskrcnn_core.model.loss_counts import Normalizer, own_count
from maskrcnn_core.model.losses import box_regression_loss, full_precision
from maskrcnn_core.model.matching import match, sample
from maskrcnn_core.model.rpn_samples import outputs_at
from maskrcnn_core.structures import Proposals, Targets, is_fixed_size, real_or_unit, valid_slots

_DELTA_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


class RPNHead(nn.Module):
    """3x3 convolutions shared by all levels, then 1x1 predictors of objectness and deltas."""

    def __init__(self, channels: int, num_anchors: int, num_convs: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(num_convs))
        self.objectness = nn.Conv2d(channels, num_anchors, 1)
        self.deltas = nn.Conv2d(channels, num_anchors * 4, 1)
        for module in (*self.convs, self.objectness, self.deltas):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)

    def at(self, pyramid: Sequence[Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward` of some anchors only: index [N, S] into those of all levels -> logits [N, S], deltas
        [N, S, 4]; with gradients at little cost where there is one convolution."""
        conv = self.convs[0]
        if len(self.convs) == 1 and isinstance(conv, nn.Conv2d):
            return outputs_at(conv, self.objectness, self.deltas, pyramid, index)
        logits, deltas = self(pyramid)
        return _at(logits, deltas, index)

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """P2 to P6, each [N, C, H, W] -> for each level objectness logits [N, A_l] and deltas [N, A_l, 4].

        A_l = H * W * num_anchors, position-major as `anchors.pyramid_anchors`.
        """
        logits, deltas = [], []
        joined = self._joined_predictors() if use_kernels(pyramid[0], "convolution") else None
        for features in pyramid:
            for conv in self.convs:
                features = convolve(conv, features, relu=True)
            if joined is not None:
                both = functional.linear(features.permute(0, 2, 3, 1), *joined)
                per_position = self.objectness.out_channels
                logits.append(both[..., :per_position].flatten(1))
                deltas.append(both[..., per_position : 5 * per_position].reshape(len(features), -1, 4))
                continue
            logits.append(self.objectness(features).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.deltas(features).permute(0, 2, 3, 1).reshape(len(features), -1, 4))
        return logits, deltas

    def _joined_predictors(self) -> tuple[Tensor, Tensor]:
        """Weights and bias of both predictors as one linear layer: a GPU's matrix units take no fewer than 8 outputs,
        or 16 at full rate, so that each alone would waste most of its time."""
        outputs = 5 * self.objectness.out_channels
        weights = [layer.weight.flatten(1) for layer in (self.objectness, self.deltas)]
        biases = [cast(Tensor, layer.bias) for layer in (self.objectness, self.deltas)]
        padding = -outputs % 16
        weight = torch.cat((*weights, weights[0].new_zeros(padding, weights[0].shape[1])))
        return weight, torch.cat((*biases, biases[0].new_zeros(padding)))


def _at(logits: Sequence[Tensor], deltas: Sequence[Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
    """Of the outputs of all anchors those at `index` [N, S]."""
    every = torch.cat(list(deltas), dim=1)
    return torch.cat(list(logits), dim=1).gather(1, index), every.gather(1, index[..., None].expand(-1, -1, 4))


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


def propose(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    sizes: Tensor,
    rule: ProposalRule,
    *,
    fixed_size: bool | None = None,
) -> Proposals:
    """The best boxes of all levels after NMS within each level (FPN, section 4.1).

    Args:
        logits: per level [N, A_l].
        deltas: per level [N, A_l, 4].
        anchors: per level [A_l, 4].
        sizes: [N, 2] input sizes; boxes are clipped to them.
        fixed_size: no shape depends on data; None = on a GPU.

    Returns:
        Proposals with R = min(post_nms, candidates) slots; unless `fixed_size` only as many as the fullest image needs.
    """
    boxes, scores, levels = [], [], []
    for level, (level_logits, level_deltas, level_anchors) in enumerate(zip(logits, deltas, anchors, strict=True)):
        top, index = level_logits.detach().topk(min(rule.pre_nms, level_logits.shape[1]), dim=1)
        chosen_deltas = level_deltas.detach().gather(1, index[..., None].expand(-1, -1, 4))
        boxes.append(decode_deltas(full_precision(chosen_deltas), level_anchors[index], _DELTA_WEIGHTS))
        scores.append(full_precision(top).sigmoid())
        levels.append(torch.full_like(index, level))
    all_boxes = clip_boxes(torch.cat(boxes, dim=1), sizes)
    all_scores, all_levels = torch.cat(scores, dim=1), torch.cat(levels, dim=1)
    valid = have_min_size(all_boxes, rule.min_size)
    if rule.min_score > 0:
        valid &= all_scores >= rule.min_score
    if is_fixed_size(all_boxes, fixed_size):
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


@dataclass(frozen=True)
class RPNLossRule:
    """Matching and sampling of anchors (Faster R-CNN, section 3.1.2-3.1.3) and the box loss (`box_regression_loss`)."""

    positive_overlap: float
    negative_overlap: float
    batch_size: int
    positive_fraction: float
    crowd_overlap: float
    smooth_l1_beta: float
    box_loss: str = "smooth_l1"


Outputs = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Anchors [N, S] -> their objectness logits [N, S] and deltas [N, S, 4]."""


def sampled_rpn_losses(
    outputs: Outputs,
    anchors: Sequence[Tensor],
    targets: Targets,
    rule: RPNLossRule,
    normalizer: Normalizer = own_count,
) -> dict[str, Tensor]:
    """Objectness loss (mean over the sampled anchors) and box loss (sum over positives / sampled anchors).

    Args:
        outputs: of the sampled anchors.
        anchors: per level [A_l, 4].

    Returns:
        `rpn_objectness` and `rpn_box`, scalars.
    """
    all_anchors = torch.cat(list(anchors))
    matches = match(
        all_anchors[None],
        targets,
        positive_overlap=rule.positive_overlap,
        negative_overlap=rule.negative_overlap,
        rescue_best=True,
        crowd_overlap=rule.crowd_overlap,
    )
    samples = sample(matches.kinds, rule.batch_size, rule.positive_fraction, targets.seeds)
    num_sampled = normalizer(samples.valid.sum())
    sampled_logits, sampled_deltas = (full_precision(output) for output in outputs(samples.index))
    objectness = functional.binary_cross_entropy_with_logits(
        sampled_logits, samples.positive.to(sampled_logits.dtype), reduction="none"
    )
    front = slice(0, max(samples.max_positives, 1))
    index, positive = samples.index[:, front], samples.positive[:, front]
    objects = matches.objects.gather(1, index)
    object_boxes = targets.boxes.gather(1, objects[..., None].expand(-1, -1, 4))
    box_loss = box_regression_loss(
        sampled_deltas[:, front],
        all_anchors[index],
        object_boxes,
        positive,
        weights=_DELTA_WEIGHTS,
        kind=rule.box_loss,
        beta=rule.smooth_l1_beta,
    )
    return {
        "rpn_objectness": (objectness * samples.valid).sum() / num_sampled,
        "rpn_box": box_loss / num_sampled,
    }
