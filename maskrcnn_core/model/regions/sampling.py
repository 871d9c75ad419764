"""Which regions the heads learn on."""

from dataclasses import dataclass

import torch

from maskrcnn_core.model.heads.box import RoISamples
from maskrcnn_core.model.matching import match, sample
from maskrcnn_core.structures import Proposals, Targets


@dataclass(frozen=True)
class SamplingRule:
    """Matching and drawing of proposals (attributes as in `RegionsConfig`)."""

    positive_overlap: float
    batch_size: int
    positive_fraction: float
    add_ground_truth: bool
    crowd_overlap: float


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
    kinds = torch.where(real, matches.kinds, -1)
    seeds = None if targets.seeds is None else ~targets.seeds  # other draws than those of the anchors
    samples = sample(kinds, rule.batch_size, rule.positive_fraction, seeds)
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
