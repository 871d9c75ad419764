"""Which regions the heads learn on: drawn at random, or those that the box head finds hardest."""

from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn_core.boxes import suppress
from maskrcnn_core.model.heads.box import RoISamples
from maskrcnn_core.model.matching import IGNORED, POSITIVE, Matches, Samples, match, sample
from maskrcnn_core.structures import Proposals, Targets


@dataclass(frozen=True)
class SamplingRule:
    """Matching and drawing of proposals (attributes as in `RegionsConfig`; `hardest` where `sampling` is "hardest")."""

    positive_overlap: float
    batch_size: int
    positive_fraction: float
    add_ground_truth: bool
    crowd_overlap: float
    hardest: bool = False
    hardest_nms_overlap: float = 1.0


@torch.no_grad()
def sample_regions(
    proposals: Proposals, targets: Targets, num_classes: int, rule: SamplingRule, *, fixed_size: bool
) -> RoISamples:
    """Proposals and the objects themselves, matched and drawn (Fast R-CNN, section 2.3).

    Args:
        proposals, targets: of one batch, in the input frame.
        num_classes: K, the label of background.
        fixed_size: no shape depends on data.
    """
    candidates, matches = _matched(proposals, targets, rule, fixed_size=fixed_size)
    seeds = None if targets.seeds is None else ~targets.seeds  # other draws than those of the anchors
    samples = sample(matches.kinds, rule.batch_size, rule.positive_fraction, seeds)
    return _samples(candidates, matches, samples, targets, num_classes)


@torch.no_grad()
def every_region(
    proposals: Proposals, targets: Targets, num_classes: int, rule: SamplingRule, *, fixed_size: bool
) -> RoISamples:
    """All that `sample_regions` draws from, in its order: positives are not in front."""
    candidates, matches = _matched(proposals, targets, rule, fixed_size=fixed_size)
    index = torch.arange(candidates.shape[1], device=candidates.device).expand(matches.kinds.shape)
    everything = Samples(index, matches.kinds == POSITIVE, matches.kinds != IGNORED, candidates.shape[1])
    return _samples(candidates, matches, everything, targets, num_classes)


@torch.no_grad()
def hardest_regions(every: RoISamples, losses: Tensor, rule: SamplingRule, *, fixed_size: bool) -> RoISamples:
    """The regions of highest loss of each image (Shrivastava et al., OHEM, CVPR 2016, sections 4 and 5).

    Args:
        every: of `every_region`.
        losses: [N, R + G], of each of them, 0 or more.

    Returns:
        `batch_size` regions an image, or as many as there are; positives first.
    """
    # Regions that lie on a harder one have nothing new to say: [N, R + G].
    kept = every.valid
    if rule.hardest_nms_overlap < 1:
        kept = suppress(every.boxes, losses, None, kept, rule.hardest_nms_overlap, fixed_size=fixed_size)
    # The hardest of what is left: [N, S].
    most = min(rule.batch_size, losses.shape[1])
    index = torch.where(kept, losses, -1.0).topk(most, dim=1).indices
    valid, positive = kept.gather(1, index), (kept & every.positive).gather(1, index)
    # Positives first, empty slots last.
    order = torch.argsort((~positive).to(torch.uint8) + (~valid).to(torch.uint8), dim=1, stable=True)
    index = index.gather(1, order)
    corners = index[..., None].expand(-1, -1, 4)
    return RoISamples(
        boxes=every.boxes.gather(1, corners),
        labels=every.labels.gather(1, index),
        object_boxes=every.object_boxes.gather(1, corners),
        objects=every.objects.gather(1, index),
        positive=positive.gather(1, order),
        valid=valid.gather(1, order),
        max_positives=most,
    )


def _matched(proposals: Proposals, targets: Targets, rule: SamplingRule, *, fixed_size: bool) -> tuple[Tensor, Matches]:
    """Proposals and the objects themselves, [N, R + G, 4], and which object each stands for."""
    # Candidates: [N, R + G].
    candidates, real = proposals.boxes, proposals.valid
    if rule.add_ground_truth:
        candidates = torch.cat((candidates, targets.boxes), dim=1)
        real = torch.cat((real, targets.valid), dim=1)
    # Positive from one overlap on, everything else is background.
    matches = match(
        candidates,
        targets,
        positive_overlap=rule.positive_overlap,
        negative_overlap=rule.positive_overlap,
        rescue_best=False,
        crowd_overlap=rule.crowd_overlap,
        fixed_size=fixed_size,
    )
    return candidates, Matches(torch.where(real, matches.kinds, IGNORED), matches.objects)


def _samples(candidates: Tensor, matches: Matches, samples: Samples, targets: Targets, num_classes: int) -> RoISamples:
    # What was drawn, and the object of each: [N, S].
    objects = matches.objects.gather(1, samples.index)
    labels = torch.where(samples.positive, targets.labels.gather(1, objects), num_classes)
    return RoISamples(
        boxes=candidates.gather(1, samples.index[..., None].expand(-1, -1, 4)),
        labels=labels,
        object_boxes=targets.boxes.gather(1, objects[..., None].expand(-1, -1, 4)),
        objects=objects,
        positive=samples.positive,
        valid=samples.valid,
        max_positives=samples.max_positives,
    )
