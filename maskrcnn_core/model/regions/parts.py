"""The parts of a region stage: a RoI transform, a head, and what the head learns by."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from maskrcnn_core.keypoints import decode_heatmaps
from maskrcnn_core.model.box_coding import BoxCoding
from maskrcnn_core.model.heads.box import BoxHead, RoISamples, box_losses, losses_of_regions
from maskrcnn_core.model.heads.keypoint import KeypointHead, keypoint_loss, keypoint_targets
from maskrcnn_core.model.heads.mask import MaskHead, MaskMLP, mask_loss, mask_targets
from maskrcnn_core.model.heads.voting import VotingHead
from maskrcnn_core.model.loss_counts import LossSum
from maskrcnn_core.model.regions.rows import PositiveRegions, rows_to_compute
from maskrcnn_core.model.regions.transform import RoITransform
from maskrcnn_core.model.survivors import DetectionRule
from maskrcnn_core.structures import Detections, Targets


@dataclass(frozen=True)
class BoxLossRule:
    """What the box head learns by: beta and type of `box_regression_loss`."""

    smooth_l1_beta: float
    box_loss: str = "smooth_l1"


class BoxPart(nn.Module):
    """Classes and boxes (Fast R-CNN, R-FCN).

    Args:
        transform, head: of it.
        coding: of the head's deltas.
        loss: what it learns by.
        detection: which of its boxes become detections.
    """

    def __init__(
        self,
        transform: RoITransform,
        head: BoxHead | VotingHead,
        coding: BoxCoding,
        loss: BoxLossRule,
        detection: DetectionRule,
    ) -> None:
        super().__init__()
        self.transform, self.head = transform, head
        self.coding, self.loss, self.detection = coding, loss, detection

    def losses(self, regions: Tensor, samples: RoISamples) -> dict[str, LossSum]:
        """`roi_class` and `roi_box` of region features [N * S, C, bins, bins]."""
        class_logits, box_deltas = self.head(regions)
        return box_losses(
            class_logits.unflatten(0, samples.labels.shape),
            box_deltas.unflatten(0, samples.labels.shape),
            samples,
            coding=self.coding,
            smooth_l1_beta=self.loss.smooth_l1_beta,
            box_loss=self.loss.box_loss,
        )

    def losses_of_each(self, logits: Tensor, deltas: Tensor, samples: RoISamples) -> Tensor:
        """[N, S], what each region adds to the sums of `losses`, of the head's outputs [N * S, ...]."""
        return losses_of_regions(
            logits.unflatten(0, samples.labels.shape),
            deltas.unflatten(0, samples.labels.shape),
            samples,
            coding=self.coding,
            smooth_l1_beta=self.loss.smooth_l1_beta,
            box_loss=self.loss.box_loss,
        )

    def with_detection(self, detection: DetectionRule) -> "BoxPart":
        """The same part (its weights are shared) with another rule."""
        return BoxPart(self.transform, self.head, self.coding, self.loss, detection)


class MaskPart(nn.Module):
    """Masks (Mask R-CNN).

    Args:
        transform, head: of it.
        on_proposals: predict on the proposals of the detections instead of their refined boxes.
        soft_targets: learn fractional coverage; false = rounded at one half.
    """

    def __init__(
        self, transform: RoITransform, head: MaskHead | MaskMLP, *, on_proposals: bool, soft_targets: bool
    ) -> None:
        super().__init__()
        self.transform, self.head = transform, head
        self.on_proposals, self.soft_targets = on_proposals, soft_targets

    def losses(
        self, regions: Tensor, front: PositiveRegions, targets: Targets, *, fixed_size: bool
    ) -> dict[str, LossSum]:
        """`roi_mask` of region features [R, C, bins, bins]."""
        output = self.head(regions, front.labels)
        wanted = mask_targets(
            targets,
            front.boxes,
            front.images,
            front.objects,
            output.shape[-1],
            aligned=self.transform.aligned,
            real=front.positive,
            fixed_size=fixed_size,
        )
        if not self.soft_targets:
            wanted = (wanted >= 0.5).to(wanted.dtype)
        return {"roi_mask": mask_loss(output, wanted, front.positive)}


class KeypointPart(nn.Module):
    """Keypoints (Mask R-CNN, section 5).

    Args:
        transform, head: of it.
        labels: whose objects have keypoints.
        num_classes: K.
        loss_weight: factor of the loss.
    """

    has_keypoints: Tensor

    def __init__(
        self, transform: RoITransform, head: KeypointHead, labels: Sequence[int], num_classes: int, loss_weight: float
    ) -> None:
        super().__init__()
        self.transform, self.head, self.loss_weight = transform, head, loss_weight
        has_keypoints = torch.zeros(num_classes + 1, dtype=torch.bool)
        has_keypoints[list(labels)] = True
        self.register_buffer("has_keypoints", has_keypoints, persistent=False)

    def losses(self, regions: Tensor, front: PositiveRegions, targets: Targets) -> dict[str, LossSum]:
        """`roi_keypoint` of region features [R, C, bins, bins]."""
        heatmaps = self.head(regions)
        learned = front.positive & self.has_keypoints[front.labels]
        cells, counted = keypoint_targets(
            targets, front.boxes, front.images, front.objects, learned, heatmaps.shape[-1]
        )
        return {"roi_keypoint": replace(keypoint_loss(heatmaps, cells, counted), weight=self.loss_weight)}

    def wanted(self, detections: Detections) -> Tensor:
        """[N, D] bool: real detections of a category with keypoints."""
        return detections.valid & self.has_keypoints[detections.labels]

    def decode(self, heatmaps: Tensor, detections: Detections, max_side: int, *, fixed_size: bool) -> Tensor:
        """[N, D, P, 3] keypoints (x, y, score) in the frame of the detections, of heatmaps [N, D, P, S, S]; zeros where
        a label has none. No box is longer than `max_side` pixels."""
        # Points of the rows that are computed: [R, P, 3].
        wanted = self.wanted(detections).flatten()
        rows = rows_to_compute(wanted, fixed_size=fixed_size)
        points, _ = decode_heatmaps(
            heatmaps.flatten(0, 1)[rows],
            detections.boxes.flatten(0, 1)[rows],
            max_side=max_side,
            fixed_size=fixed_size,
        )
        # Back into their slots.
        points = torch.where(wanted[rows, None, None], points, 0.0)
        keypoints = points.new_zeros(len(wanted), *points.shape[1:]).index_copy(0, rows, points)
        return keypoints.view(*detections.scores.shape, *points.shape[1:])
