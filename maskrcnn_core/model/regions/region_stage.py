"""The region stage: what is computed for each region (tutorial, "the number of stages"; "Per-region computation").

A box part, and on the boxes that it finds a mask and a keypoint part, each with a RoI transform of its own. Without a
box part the boxes are those of a dense stage that finds detections.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from maskrcnn_core.model.heads.box import RoISamples, detections_and_regions
from maskrcnn_core.model.heads.mask import mask_probabilities
from maskrcnn_core.model.loss_counts import LossSum
from maskrcnn_core.model.losses import full_precision
from maskrcnn_core.model.regions.parts import BoxPart, KeypointPart, MaskPart
from maskrcnn_core.model.regions.region_trunk import RegionNetwork, RegionTrunk
from maskrcnn_core.model.regions.rows import (
    DelayedCount,
    PositiveRegions,
    image_index_of,
    in_pieces,
    in_slots,
    regions_at_once,
)
from maskrcnn_core.model.regions.sampling import SamplingRule, every_region, hardest_regions, sample_regions
from maskrcnn_core.model.survivors import DetectionRule
from maskrcnn_core.structures import Detections, ImageFeatures, Proposals, Targets, real_or_unit


class RegionStage(nn.Module):
    """Heads on regions.

    Args:
        box: classes and boxes, or None.
        mask, keypoints: what is predicted on the boxes found, or None.
        trunk: network between the transforms and the heads (C4: res5; R-CNN: a whole one), or None.
        sampling: which regions are learnt on.
        num_classes: K.
    """

    def __init__(
        self,
        box: BoxPart | None,
        mask: MaskPart | None,
        keypoints: KeypointPart | None,
        *,
        trunk: RegionTrunk | RegionNetwork | None,
        sampling: SamplingRule,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.trunk, self.box, self.mask, self.keypoints = trunk, box, mask, keypoints
        self.sampling, self.num_classes = sampling, num_classes

    def losses(self, features: ImageFeatures, proposals: Proposals, targets: Targets) -> dict[str, LossSum]:
        """Losses of a batch.

        Args:
            proposals, targets: in the input frame; targets with at least one slot (G >= 1).

        Returns:
            `roi_class`, `roi_box` with a box part; `roi_mask`, `roi_keypoint` with these parts.
        """
        fixed = features.fixed_size
        # What the box head's regions are cut from, once for the batch.
        maps = None if self.box is None else self.box.transform.maps(features)
        # Regions drawn for the batch: [N, S]. How many are positive is asked for now, and read when the box head runs.
        samples = self._samples(maps, proposals, targets, fixed_size=fixed)
        num_positives = DelayedCount(samples.positive)
        image_index = image_index_of(samples.labels)
        # Classes and boxes of all of them.
        losses: dict[str, LossSum] = {}
        if self.box is not None and maps is not None:
            regions = self._cut(self.box, maps, samples.boxes.flatten(0, 1), image_index.flatten())
            losses |= self.box.losses(regions, samples)
        # Masks and keypoints of the positives.
        front = PositiveRegions(samples, image_index, num_positives, fixed_size=fixed)
        if self.mask is not None:
            # A trunk for each region is dear, and box and mask head see the same regions in the same grid (C4).
            box_bins = None if self.trunk is None or self.box is None else self.box.transform.bins
            shared = self.mask.transform.bins == box_bins
            cut = regions.index_select(0, front.slots) if shared else self._cut_front(self.mask, features, front)
            losses |= self.mask.losses(cut, front, targets, fixed_size=fixed)
        if self.keypoints is not None:
            cut = self._cut_front(self.keypoints, features, front)
            losses |= self.keypoints.losses(cut, front, targets)
        return losses

    @torch.no_grad()
    def boxes(self, features: ImageFeatures, proposals: Proposals) -> Detections:
        """Boxes, scores and labels in the input frame, of proposals in the input frame; needs a box part."""
        part = self.box
        assert part is not None
        num_images, num_regions = proposals.scores.shape
        # Every region: [N * R, ...].
        class_logits, box_deltas = self._box_outputs(part, part.transform.maps(features), proposals.boxes)
        # The best of each image: [N, D].
        detections, regions = detections_and_regions(
            class_logits.unflatten(0, (num_images, num_regions)),
            box_deltas.unflatten(0, (num_images, num_regions)),
            proposals,
            features.input_sizes,
            part.coding,
            part.detection,
            fixed_size=features.fixed_size,
        )
        if self.mask is None or not self.mask.on_proposals:
            return detections
        refined_from = proposals.boxes.gather(1, regions[..., None].expand(-1, -1, 4))
        return replace(detections, mask_boxes=real_or_unit(refined_from, detections.valid))

    @torch.no_grad()
    def masks(self, features: ImageFeatures, detections: Detections) -> Tensor | None:
        """[N, D, S, S] probabilities on the boxes of the detections (tutorial, "Mask R-CNN: Inference", step 2), zero
        in padded slots; None without a mask part."""
        part = self.mask
        if part is None:
            return None
        boxes = detections.boxes if detections.mask_boxes is None else detections.mask_boxes
        maps = part.transform.maps(features)

        def compute(boxes: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
            return (mask_probabilities(part.head(self._cut(part, maps, boxes, images), labels)),)

        return in_slots(compute, detections.valid, boxes, detections.labels, fixed_size=features.fixed_size)

    @torch.no_grad()
    def heatmaps(self, features: ImageFeatures, detections: Detections) -> Tensor | None:
        """[N, D, P, S, S] keypoint logits on the boxes of the detections, zero where a label has no keypoints; None
        without a keypoint part."""
        part = self.keypoints
        if part is None:
            return None
        maps = part.transform.maps(features)

        def compute(boxes: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
            return (full_precision(part.head(self._cut(part, maps, boxes, images))),)

        wanted = part.wanted(detections)
        return in_slots(compute, wanted, detections.boxes, detections.labels, fixed_size=features.fixed_size)

    def with_detection(self, detection: DetectionRule) -> "RegionStage":
        """The same stage (its weights are shared) with another rule for its detections."""
        return RegionStage(
            None if self.box is None else self.box.with_detection(detection),
            self.mask,
            self.keypoints,
            trunk=self.trunk,
            sampling=self.sampling,
            num_classes=self.num_classes,
        )

    def _samples(
        self, maps: Sequence[Tensor] | None, proposals: Proposals, targets: Targets, *, fixed_size: bool
    ) -> RoISamples:
        """The regions that are learnt on; `maps` are those of the box part."""
        if self.box is None or maps is None or not self.sampling.hardest:
            return sample_regions(proposals, targets, self.num_classes, self.sampling, fixed_size=fixed_size)
        # Every region forward, only to see how hard it is.
        every = every_region(proposals, targets, self.num_classes, self.sampling, fixed_size=fixed_size)
        with torch.no_grad():
            logits, deltas = self._box_outputs(self.box, maps, every.boxes)
            losses = self.box.losses_of_each(logits, deltas, every)
        return hardest_regions(every, losses, self.sampling, fixed_size=fixed_size)

    def _box_outputs(self, part: BoxPart, maps: Sequence[Tensor], boxes: Tensor) -> tuple[Tensor, ...]:
        """Class logits and deltas of regions [N, R, 4], in pieces: each [N * R, ...]."""

        def compute(boxes: Tensor, images: Tensor) -> tuple[Tensor, ...]:
            outputs: tuple[Tensor, ...] = part.head(self._cut(part, maps, boxes, images))
            return outputs

        flat, at_once = boxes.flatten(0, 1), regions_at_once(boxes.flatten(0, 1), part.transform.bins)
        return in_pieces(compute, at_once, flat, image_index_of(boxes[..., 0]).flatten())

    def _cut(
        self,
        part: BoxPart | MaskPart | KeypointPart,
        maps: Sequence[Tensor],
        boxes: Tensor,
        image_index: Tensor,
    ) -> Tensor:
        """Features of regions as a part's head sees them, out of its transform's maps: [R, 4], [R] -> [R, C, S, S]."""
        cut = part.transform(maps, boxes, image_index)
        return cut if self.trunk is None else self.trunk(cut)

    def _cut_front(self, part: MaskPart | KeypointPart, features: ImageFeatures, front: PositiveRegions) -> Tensor:
        return self._cut(part, part.transform.maps(features), front.boxes, front.images)
