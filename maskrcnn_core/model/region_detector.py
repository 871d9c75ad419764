"""The detector: image -> trunk -> pyramid -> regions -> RoI transform -> heads.

Training and inference share the parts but no branches: `forward` gives losses, `detect` gives detections. The steps of
`detect` are methods of their own, for those who put several looks at an image together.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.keypoints import decode_heatmaps
from maskrcnn_core.model.anchors import AnchorRule, pyramid_anchors
from maskrcnn_core.model.backbones import Trunk
from maskrcnn_core.model.box_head import BoxHead, DetectionRule, RoISamples, box_losses, detections_and_regions
from maskrcnn_core.model.keypoint_head import KeypointHead, keypoint_loss, keypoint_targets
from maskrcnn_core.model.loss_counts import Normalizer, own_count
from maskrcnn_core.model.losses import full_precision
from maskrcnn_core.model.mask_head import MaskHead, MaskMLP, mask_loss, mask_probabilities, mask_targets
from maskrcnn_core.model.matching import match, sample
from maskrcnn_core.model.pyramids import Pyramid
from maskrcnn_core.model.region_rows import (
    REGIONS_AT_ONCE,
    DelayedCount,
    PositiveRegions,
    image_index_of,
    in_pieces,
    in_slots,
    rows_to_compute,
)
from maskrcnn_core.model.region_stage import RegionStage
from maskrcnn_core.model.roi_transform import RoITransform
from maskrcnn_core.model.rpn import ProposalRule, RPNHead, RPNLossRule, propose, sampled_rpn_losses
from maskrcnn_core.structures import Detections, ImageBatch, Proposals, Targets, map_tensors, real_or_unit

# Shapes of batches whose anchors are kept, a few megabytes each.
_SHAPES_WITH_ANCHORS = 8

_NO_PROPOSALS = (
    "model.rpn.enabled: is false, so this detector makes no proposals, and none are given; expected "
    "data.train.proposals for training, --proposals for jobs.label, or the argument `proposals`"
)


@dataclass(frozen=True)
class RoILossRule:
    """Matching and sampling of proposals, and the losses (attributes as in `RoIConfig` and the heads' sections)."""

    positive_overlap: float
    batch_size: int
    positive_fraction: float
    add_ground_truth: bool
    crowd_overlap: float
    smooth_l1_beta: float
    soft_mask_targets: bool
    box_loss: str = "smooth_l1"
    keypoint_loss_weight: float = 1.0


@dataclass(frozen=True)
class RegionHeads:
    """What is computed for each region. Each head has its own RoI transform.

    Attributes:
        stage: network between the transforms and the heads (C4: res5), or None.
        box_transform, box_head: classes and boxes.
        mask_transform, mask_head: masks, or None.
        masks_on_proposals: predict masks on the proposals of the detections instead of their refined boxes.
        keypoint_transform, keypoint_head: keypoints, or None.
        keypoint_labels: labels whose objects have keypoints.
    """

    box_transform: RoITransform
    box_head: BoxHead
    stage: RegionStage | None = None
    mask_transform: RoITransform | None = None
    mask_head: MaskHead | MaskMLP | None = None
    masks_on_proposals: bool = False
    keypoint_transform: RoITransform | None = None
    keypoint_head: KeypointHead | None = None
    keypoint_labels: tuple[int, ...] = ()


@dataclass(frozen=True)
class ImageFeatures:
    """Per-image computation of a batch, that everything per region starts from.

    Attributes:
        maps: pyramid levels, each [N, C, H_l, W_l].
        input_sizes: [N, 2] (height, width) of the images in the padded batch.
        input_shape: (height, width) of the padded batch.
    """

    maps: list[Tensor]
    input_sizes: Tensor
    input_shape: tuple[int, int]


class RegionDetector(nn.Module):
    """Mask R-CNN (He et al., ICCV 2017) and its parts: without masks Faster R-CNN, without RPN Fast R-CNN, without
    heads an RPN.

    Args:
        trunk: image -> feature maps.
        pyramid: feature maps -> levels that regions are cut from.
        rpn_head: levels -> objectness and deltas; None: proposals are given.
        heads: per-region computation; None: proposals are all there is.
        num_classes: K.
        anchors, train_proposals, test_proposals, rpn_loss, roi_loss, detection: the rules of each step.

    `normalizer` is what losses are divided by: the process's own counts, unless whoever trains sets another.
    `compiled_maps` replaces `maps` where whoever runs the detector sets it.
    `fixed_size`: detect with shapes that do not depend on data; None = on a GPU.
    """

    has_keypoints: Tensor

    def __init__(
        self,
        *,
        trunk: Trunk,
        pyramid: Pyramid,
        rpn_head: RPNHead | None,
        heads: RegionHeads | None,
        num_classes: int,
        anchors: AnchorRule,
        train_proposals: ProposalRule,
        test_proposals: ProposalRule,
        rpn_loss: RPNLossRule,
        roi_loss: RoILossRule,
        detection: DetectionRule,
    ) -> None:
        super().__init__()
        self.trunk, self.pyramid, self.rpn_head = trunk, pyramid, rpn_head
        self.region_stage = heads.stage if heads else None
        self.box_transform = heads.box_transform if heads else None
        self.box_head = heads.box_head if heads else None
        self.mask_transform = heads.mask_transform if heads else None
        self.mask_head = heads.mask_head if heads else None
        self.masks_on_proposals = heads is not None and heads.masks_on_proposals
        self.keypoint_transform = heads.keypoint_transform if heads else None
        self.keypoint_head = heads.keypoint_head if heads else None
        has_keypoints = torch.zeros(num_classes + 1, dtype=torch.bool)
        has_keypoints[list(heads.keypoint_labels if heads else ())] = True
        self.register_buffer("has_keypoints", has_keypoints, persistent=False)
        self.num_classes = num_classes
        self.anchors = anchors
        self.train_proposals, self.test_proposals = train_proposals, test_proposals
        self.rpn_loss, self.roi_loss, self.detection = rpn_loss, roi_loss, detection
        self.normalizer: Normalizer = own_count
        self.fixed_size: bool | None = None
        self.compiled_maps: Callable[[Tensor], list[Tensor]] | None = None
        self.anchor_cache: dict[object, list[Tensor]] = {}

    def forward(self, images: ImageBatch, targets: Targets, proposals: Proposals | None = None) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            images, targets: of one batch.
            proposals: in the input frame; the heads learn on them instead of the RPN's, which, where there is one,
                learns beside them.

        Returns:
            Scalars: `rpn_objectness`, `rpn_box` with an RPN; `roi_class`, `roi_box` with a box head; `roi_mask`,
            `roi_keypoint` with these heads.

        Raises:
            ConfigError: proposals are neither given nor made.
        """
        targets = _with_a_slot(targets)
        features = self.features(images)
        losses: dict[str, Tensor] = {}
        if self.rpn_head is not None:
            anchors, head = self._grid(features), self.rpn_head
            losses |= sampled_rpn_losses(
                lambda index: head.at(features.maps, index), anchors, targets, self.rpn_loss, self.normalizer
            )
            if proposals is None and self.box_head is not None:
                with torch.no_grad():
                    logits, deltas = self.rpn_head(features.maps)
                    proposals = propose(logits, deltas, anchors, images.input_sizes, self.train_proposals)
        if self.box_head is not None:
            losses |= self._region_losses(features.maps, _given(proposals), targets)
        return losses

    @torch.no_grad()
    def propose(self, images: ImageBatch) -> Proposals:
        """The RPN's proposals, by the rule for inference."""
        return self._propose(self.features(images))

    @torch.no_grad()
    def detect(self, images: ImageBatch, proposals: Proposals | None = None) -> Detections:
        """Detections of a batch in the input frame: proposals, box head, NMS, top K, masks and keypoints on those.

        Args:
            images: one batch.
            proposals: in the input frame; used instead of the RPN's.

        Raises:
            ConfigError: proposals are neither given nor made.
        """
        features = self.features(images)
        found = self.boxes(features, proposals)
        masks, heatmaps = self.masks_on(features, found), self.heatmaps_on(features, found)
        keypoints = None if heatmaps is None else self.keypoints_of(heatmaps, found, max(features.input_shape))
        return replace(found, masks=masks, keypoints=keypoints)

    def features(self, images: ImageBatch) -> ImageFeatures:
        """Per-image computation."""
        shape = (images.pixels.shape[-2], images.pixels.shape[-1])
        compute = self.compiled_maps or self.maps
        return ImageFeatures(compute(images.pixels), images.input_sizes, shape)

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """[N, 3, H, W] -> pyramid levels, each [N, C, H_l, W_l]."""
        levels: list[Tensor] = self.pyramid(self.trunk(pixels))
        return levels

    @torch.no_grad()
    def boxes(self, features: ImageFeatures, proposals: Proposals | None = None) -> Detections:
        """Boxes, scores and labels in the input frame, of the RPN's or the given proposals (input frame)."""
        if proposals is None and self.rpn_head is not None:
            proposals = self._propose(features)
        proposals = _given(proposals)
        num_images, num_regions = proposals.scores.shape
        image_index = image_index_of(proposals.scores)

        def compute(boxes: Tensor, images: Tensor) -> tuple[Tensor, ...]:
            assert self.box_head is not None
            outputs: tuple[Tensor, ...] = self.box_head(self._cut(features.maps, boxes, images, self.box_transform))
            return outputs

        boxes = proposals.boxes.flatten(0, 1)
        class_logits, box_deltas = in_pieces(compute, REGIONS_AT_ONCE, boxes, image_index.flatten())
        found, regions = detections_and_regions(
            class_logits.unflatten(0, (num_images, num_regions)),
            box_deltas.unflatten(0, (num_images, num_regions)),
            proposals,
            features.input_sizes,
            self.detection,
            fixed_size=self.fixed_size,
        )
        if not self.masks_on_proposals:
            return found
        refined_from = proposals.boxes.gather(1, regions[..., None].expand(-1, -1, 4))
        return replace(found, mask_boxes=real_or_unit(refined_from, found.valid))

    @torch.no_grad()
    def masks_on(self, features: ImageFeatures, found: Detections) -> Tensor | None:
        """[N, D, S, S] probabilities on the boxes of `found` (tutorial, "Mask R-CNN: Inference", step 2), zero in
        padded slots; None without a mask head."""
        if self.mask_head is None:
            return None
        boxes = found.boxes if found.mask_boxes is None else found.mask_boxes

        def compute(boxes: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
            assert self.mask_head is not None
            cut = self._cut(features.maps, boxes, images, self.mask_transform)
            return (mask_probabilities(self.mask_head(cut, labels)),)

        return in_slots(compute, found.valid, boxes, found.labels, fixed_size=self.fixed_size)

    @torch.no_grad()
    def heatmaps_on(self, features: ImageFeatures, found: Detections) -> Tensor | None:
        """[N, D, P, S, S] keypoint logits on the boxes of `found`, zero where a label has no keypoints; None without a
        keypoint head."""
        if self.keypoint_head is None:
            return None

        def compute(boxes: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
            assert self.keypoint_head is not None
            heatmaps: Tensor = self.keypoint_head(self._cut(features.maps, boxes, images, self.keypoint_transform))
            return (full_precision(heatmaps),)

        wanted = found.valid & self.has_keypoints[found.labels]
        return in_slots(compute, wanted, found.boxes, found.labels, fixed_size=self.fixed_size)

    @torch.no_grad()
    def keypoints_of(self, heatmaps: Tensor, found: Detections, max_side: int) -> Tensor:
        """[N, D, P, 3] keypoints (x, y, score) in the frame of `found`, of `heatmaps_on`; no box is longer than
        `max_side` pixels."""
        wanted = (found.valid & self.has_keypoints[found.labels]).flatten()
        rows = rows_to_compute(wanted, fixed_size=self.fixed_size)
        points, _ = decode_heatmaps(
            heatmaps.flatten(0, 1)[rows],
            found.boxes.flatten(0, 1)[rows],
            max_side=max_side,
            fixed_size=self.fixed_size,
        )
        points = torch.where(wanted[rows, None, None], points, 0.0)
        keypoints = points.new_zeros(len(wanted), *points.shape[1:]).index_copy(0, rows, points)
        return keypoints.view(*found.scores.shape, *points.shape[1:])

    def _cut(self, maps: list[Tensor], boxes: Tensor, image_index: Tensor, transform: RoITransform | None) -> Tensor:
        """Features of regions as the heads see them: [R, 4], [R] -> [R, C, S, S]."""
        assert transform is not None
        cut: Tensor = transform(maps, boxes, image_index)
        if self.region_stage is not None:
            cut = self.region_stage(cut)
        return cut

    def _propose(self, features: ImageFeatures) -> Proposals:
        if self.rpn_head is None:
            raise ConfigError(_NO_PROPOSALS)
        logits, deltas = self.rpn_head(features.maps)
        return propose(
            logits,
            deltas,
            self._grid(features),
            features.input_sizes,
            self.test_proposals,
            fixed_size=self.fixed_size,
        )

    def _grid(self, features: ImageFeatures) -> list[Tensor]:
        """Anchors of the batch, kept for the next one, which mostly has one of a few shapes."""
        shapes = tuple((level.shape[-2], level.shape[-1]) for level in features.maps)
        device = features.maps[0].device
        key = (features.input_shape, shapes, device)
        grid = self.anchor_cache.get(key)
        if grid is None:
            grid = pyramid_anchors(self.anchors, self.pyramid.strides, shapes, features.input_shape, device)
            # Another cache instead of a change of this one, which another thread may be reading.
            newest = list(self.anchor_cache.items())[1 - _SHAPES_WITH_ANCHORS :]
            self.anchor_cache = dict([*newest, (key, grid)])
        return grid

    def _region_losses(self, maps: list[Tensor], proposals: Proposals, targets: Targets) -> dict[str, Tensor]:
        assert self.box_head is not None
        with torch.no_grad():
            samples = self._sample_regions(proposals, targets)
            num_positives = DelayedCount(samples.positive)
        image_index = image_index_of(samples.labels)
        regions = self._cut(maps, samples.boxes.flatten(0, 1), image_index.flatten(), self.box_transform)
        class_logits, box_deltas = self.box_head(regions)
        losses = box_losses(
            class_logits.unflatten(0, samples.labels.shape),
            box_deltas.unflatten(0, samples.labels.shape),
            samples,
            delta_weights=self.detection.delta_weights,
            smooth_l1_beta=self.roi_loss.smooth_l1_beta,
            box_loss=self.roi_loss.box_loss,
            normalizer=self.normalizer,
        )
        if self.rpn_head is None:
            # Levels that no region was cut from, too, have a gradient: 0. Data-parallel training waits for all of them.
            losses["roi_class"] = losses["roi_class"] + 0.0 * torch.stack([level.sum() for level in maps]).sum()
        front = PositiveRegions(samples, image_index, num_positives)
        if self.mask_head is not None:
            assert self.mask_transform is not None
            assert self.box_transform is not None
            # A stage for each region is dear, and box and mask head see the same regions in the same grid (C4).
            shared = self.region_stage is not None and self.mask_transform.resolution == self.box_transform.resolution
            cut = (
                regions.index_select(0, front.slots)
                if shared
                else self._cut(maps, front.boxes, front.images, self.mask_transform)
            )
            losses["roi_mask"] = self._mask_loss(cut, front, targets)
        if self.keypoint_head is not None:
            cut = self._cut(maps, front.boxes, front.images, self.keypoint_transform)
            losses["roi_keypoint"] = self._keypoint_loss(cut, front, targets)
        return losses

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
        seeds = None if targets.seeds is None else ~targets.seeds  # other draws than those of the anchors
        samples = sample(kinds, self.roi_loss.batch_size, self.roi_loss.positive_fraction, seeds)
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

    def _mask_loss(self, regions: Tensor, front: PositiveRegions, targets: Targets) -> Tensor:
        assert self.mask_head is not None
        assert self.mask_transform is not None
        output = self.mask_head(regions, front.labels)
        wanted = mask_targets(
            targets,
            front.boxes,
            front.images,
            front.objects,
            output.shape[-1],
            aligned=self.mask_transform.aligned,
            real=front.positive,
        )
        if not self.roi_loss.soft_mask_targets:
            wanted = (wanted >= 0.5).to(wanted.dtype)
        return mask_loss(output, wanted, front.positive, self.normalizer)

    def _keypoint_loss(self, regions: Tensor, front: PositiveRegions, targets: Targets) -> Tensor:
        assert self.keypoint_head is not None
        heatmaps = self.keypoint_head(regions)
        learned = front.positive & self.has_keypoints[front.labels]
        cells, counted = keypoint_targets(
            targets, front.boxes, front.images, front.objects, learned, heatmaps.shape[-1]
        )
        return self.roi_loss.keypoint_loss_weight * keypoint_loss(heatmaps, cells, counted, self.normalizer)


def _given(proposals: Proposals | None) -> Proposals:
    if proposals is None:
        raise ConfigError(_NO_PROPOSALS)
    return proposals


def _with_a_slot(targets: Targets) -> Targets:
    """The same targets with G >= 1, so that reductions over objects have something to reduce."""
    if targets.boxes.shape[1] > 0:
        return targets

    def pad(tensor: Tensor) -> Tensor:
        return tensor.new_zeros(tensor.shape[0], 1, *tensor.shape[2:])

    # The seeds are of images, not of objects.
    slot = replace(map_tensors(replace(targets, seeds=None), pad), seeds=targets.seeds)
    mask_boxes = None if slot.mask_boxes is None else real_or_unit(slot.mask_boxes, slot.valid)
    return replace(slot, boxes=real_or_unit(slot.boxes, slot.valid), mask_boxes=mask_boxes)
