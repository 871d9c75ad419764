"""The detector: image -> trunk -> pyramid -> regions -> RoI transform -> heads.

Training and inference share the parts but no branches: `forward` gives losses, `detect` gives detections.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.model.anchors import AnchorRule, pyramid_anchors
from maskrcnn_core.model.backbones import Trunk
from maskrcnn_core.model.box_head import BoxHead, DetectionRule, RoISamples, box_losses, detections_from_boxes
from maskrcnn_core.model.fpn import FPN
from maskrcnn_core.model.losses import full_precision
from maskrcnn_core.model.mask_head import MaskHead, mask_loss, mask_targets
from maskrcnn_core.model.matching import match, sample
from maskrcnn_core.model.roi_transform import PyramidRoIAlign
from maskrcnn_core.model.rpn import ProposalRule, RPNHead, RPNLossRule, propose, rpn_losses
from maskrcnn_core.structures import Detections, ImageBatch, Proposals, Targets

PYRAMID_STRIDES = (4, 8, 16, 32, 64)


@dataclass(frozen=True)
class RoILossRule:
    """Matching and sampling of proposals, and the box loss (attributes as in `RoIConfig` and `BoxHeadConfig`)."""

    positive_overlap: float
    batch_size: int
    positive_fraction: float
    add_ground_truth: bool
    crowd_overlap: float
    smooth_l1_beta: float
    soft_mask_targets: bool


class RegionDetector(nn.Module):
    """Mask R-CNN (He et al., ICCV 2017) or, without a mask head, Faster R-CNN with FPN.

    Args:
        trunk: image -> C2 to C5.
        fpn: C2 to C5 -> P2 to P6.
        rpn_head: P2 to P6 -> objectness and deltas.
        box_transform, box_head: region features and head for classes and boxes.
        mask_transform, mask_head: the same for masks, or None.
        num_classes: K.
        anchors, train_proposals, test_proposals, rpn_loss, roi_loss, detection: the rules of each step.
    """

    def __init__(
        self,
        *,
        trunk: Trunk,
        fpn: FPN,
        rpn_head: RPNHead,
        box_transform: PyramidRoIAlign,
        box_head: BoxHead,
        mask_transform: PyramidRoIAlign | None,
        mask_head: MaskHead | None,
        num_classes: int,
        anchors: AnchorRule,
        train_proposals: ProposalRule,
        test_proposals: ProposalRule,
        rpn_loss: RPNLossRule,
        roi_loss: RoILossRule,
        detection: DetectionRule,
    ) -> None:
        super().__init__()
        self.trunk, self.fpn, self.rpn_head = trunk, fpn, rpn_head
        self.box_transform, self.box_head = box_transform, box_head
        self.mask_transform, self.mask_head = mask_transform, mask_head
        self.num_classes = num_classes
        self.anchors = anchors
        self.train_proposals, self.test_proposals = train_proposals, test_proposals
        self.rpn_loss, self.roi_loss, self.detection = rpn_loss, roi_loss, detection
        self._anchor_cache: tuple[object, list[Tensor]] | None = None

    def forward(self, images: ImageBatch, targets: Targets) -> dict[str, Tensor]:
        """Losses of a batch.

        Returns:
            Scalars `rpn_objectness`, `rpn_box`, `roi_class`, `roi_box` and, with a mask head, `roi_mask`.
        """
        targets = _with_a_slot(targets)
        pyramid, logits, deltas, anchors = self._dense(images)
        losses = rpn_losses(logits, deltas, anchors, targets, self.rpn_loss)
        with torch.no_grad():
            proposals = propose(logits, deltas, anchors, images.input_sizes, self.train_proposals)
            samples = self._sample_regions(proposals, targets)
        num_images, num_sampled = samples.labels.shape
        image_index = torch.arange(num_images, device=samples.labels.device)[:, None].expand(-1, num_sampled)
        features = self.box_transform(pyramid, samples.boxes.flatten(0, 1), image_index.flatten())
        class_logits, box_deltas = self.box_head(features)
        losses |= box_losses(
            class_logits.unflatten(0, (num_images, num_sampled)),
            box_deltas.unflatten(0, (num_images, num_sampled)),
            samples,
            delta_weights=self.detection.delta_weights,
            smooth_l1_beta=self.roi_loss.smooth_l1_beta,
        )
        if self.mask_head is not None:
            losses["roi_mask"] = self._mask_loss(pyramid, samples, image_index, targets)
        return losses

    @torch.no_grad()
    def propose(self, images: ImageBatch) -> Proposals:
        """The RPN's proposals, by the rule for inference."""
        _, logits, deltas, anchors = self._dense(images)
        return propose(logits, deltas, anchors, images.input_sizes, self.test_proposals)

    @torch.no_grad()
    def detect(self, images: ImageBatch) -> Detections:
        """Detections of a batch in the input frame: proposals, box head, NMS, top K, masks on the refined boxes."""
        pyramid, logits, deltas, anchors = self._dense(images)
        proposals = propose(logits, deltas, anchors, images.input_sizes, self.test_proposals)
        num_images, num_regions = proposals.scores.shape
        image_index = torch.arange(num_images, device=proposals.boxes.device)[:, None].expand(-1, num_regions)
        features = self.box_transform(pyramid, proposals.boxes.flatten(0, 1), image_index.flatten())
        class_logits, box_deltas = self.box_head(features)
        detections = detections_from_boxes(
            class_logits.unflatten(0, (num_images, num_regions)),
            box_deltas.unflatten(0, (num_images, num_regions)),
            proposals,
            images.input_sizes,
            self.detection,
        )
        return detections if self.mask_head is None else self._with_masks(pyramid, detections)

    def _dense(self, images: ImageBatch) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Per-image computation: the pyramid; per level objectness [N, A_l], deltas [N, A_l, 4], anchors [A_l, 4]."""
        pyramid = self.fpn(self.trunk(images.pixels))
        logits, deltas = self.rpn_head(pyramid)
        return pyramid, logits, deltas, self._grid(pyramid, images.pixels)

    def _grid(self, pyramid: list[Tensor], pixels: Tensor) -> list[Tensor]:
        """Anchors of the batch, kept for the next one, which mostly has the same shape."""
        shapes = tuple((features.shape[-2], features.shape[-1]) for features in pyramid)
        input_shape = (pixels.shape[-2], pixels.shape[-1])
        key = (input_shape, pixels.device)
        if self._anchor_cache is None or self._anchor_cache[0] != key:
            grid = pyramid_anchors(self.anchors, PYRAMID_STRIDES, shapes, input_shape, pixels.device)
            self._anchor_cache = (key, grid)
        return self._anchor_cache[1]

    def _sample_regions(self, proposals: Proposals, targets: Targets) -> RoISamples:
        """Regions for the losses: proposals and the objects themselves, matched and drawn (Fast R-CNN, section 2.3)."""
        candidates, real = proposals.boxes, proposals.valid
        if self.roi_loss.add_ground_truth:
            candidates = torch.cat((candidates, targets.boxes), dim=1)
            real = torch.cat((real, targets.valid), dim=1)
        matches = match(
            candidates,
            targets,
            positive_overlap=self.roi_loss.positive_overlap,
            negative_overlap=self.roi_loss.positive_overlap,
            rescue_best=False,
            crowd_overlap=self.roi_loss.crowd_overlap,
        )
        kinds = torch.where(real, matches.kinds, -1)
        samples = sample(kinds, self.roi_loss.batch_size, self.roi_loss.positive_fraction)
        corners = samples.index[..., None].expand(-1, -1, 4)
        objects = matches.objects.gather(1, samples.index)
        labels = torch.where(samples.positive, targets.labels.gather(1, objects), self.num_classes)
        return RoISamples(
            boxes=candidates.gather(1, corners),
            labels=labels,
            object_boxes=targets.boxes.gather(1, objects[..., None].expand(-1, -1, 4)),
            objects=objects,
            positive=samples.positive,
            valid=samples.valid,
            max_positives=samples.max_positives,
        )

    def _mask_loss(self, pyramid: list[Tensor], samples: RoISamples, image_index: Tensor, targets: Targets) -> Tensor:
        assert self.mask_head is not None
        assert self.mask_transform is not None
        front = slice(0, max(samples.max_positives, 1))
        positive = samples.positive[:, front].flatten()
        rows = _rows_to_compute(positive)
        boxes = samples.boxes[:, front].flatten(0, 1)[rows]
        labels = torch.where(positive, samples.labels[:, front].flatten(), 0)[rows]
        images = image_index[:, front].flatten()[rows]
        logits = self.mask_head(self.mask_transform(pyramid, boxes, images), labels)
        wanted = mask_targets(
            targets,
            boxes,
            images,
            samples.objects[:, front].flatten()[rows],
            logits.shape[-1],
            aligned=self.mask_transform.aligned,
        )
        if not self.roi_loss.soft_mask_targets:
            wanted = (wanted >= 0.5).to(wanted.dtype)
        return mask_loss(logits, wanted, positive[rows])

    def _with_masks(self, pyramid: list[Tensor], detections: Detections) -> Detections:
        """Mask probabilities on the refined boxes (tutorial, "Mask R-CNN: Inference", step 2)."""
        assert self.mask_head is not None
        assert self.mask_transform is not None
        num_images, num_slots = detections.scores.shape
        rows = _rows_to_compute(detections.valid.flatten())
        image_index = torch.arange(num_images, device=rows.device).repeat_interleave(num_slots)[rows]
        features = self.mask_transform(pyramid, detections.boxes.flatten(0, 1)[rows], image_index)
        probabilities = self.mask_head(features, detections.labels.flatten()[rows])
        probabilities = full_precision(probabilities).sigmoid()
        side = 2 * self.mask_transform.resolution
        masks = probabilities.new_zeros(num_images * num_slots, side, side).index_copy(0, rows, probabilities)
        return Detections(
            boxes=detections.boxes,
            scores=detections.scores,
            labels=detections.labels,
            count=detections.count,
            masks=masks.unflatten(0, (num_images, num_slots)),
        )


def _with_a_slot(targets: Targets) -> Targets:
    """The same targets with G >= 1, so that reductions over objects have something to reduce."""
    if targets.boxes.shape[1] > 0:
        return targets

    def pad(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        return tensor.new_zeros(tensor.shape[0], 1, *tensor.shape[2:])

    padded = {name: pad(getattr(targets, name)) for name in ("masks", "mask_boxes", "keypoints")}
    return Targets(
        boxes=functional.pad(targets.boxes, (0, 0, 0, 1)),
        labels=functional.pad(targets.labels, (0, 1)),
        valid=functional.pad(targets.valid, (0, 1)),
        crowd=functional.pad(targets.crowd, (0, 1)),
        **padded,
    )


def _rows_to_compute(wanted: Tensor) -> Tensor:
    """Rows that a head computes: all on a GPU, where asking for a count would stall it; else the wanted."""
    if wanted.is_cuda:
        return torch.arange(len(wanted), device=wanted.device)
    return wanted.nonzero()[:, 0]
