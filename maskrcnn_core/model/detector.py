"""The detector: image -> trunk -> pyramid -> dense stage -> region stage.

Training and inference share the parts but no branches: `forward` gives losses, `detect` gives detections. The steps of
`detect` are methods of their own, for those who put several looks at an image together.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.dense.dense_stage import DenseStage
from maskrcnn_core.model.loss_counts import LossSum, Normalizer, divided, own_count
from maskrcnn_core.model.pyramids.image_pyramid import ImagePyramid
from maskrcnn_core.model.pyramids.pyramid import Pyramid
from maskrcnn_core.model.regions.region_stage import RegionStage
from maskrcnn_core.model.trunks.trunk import Trunk
from maskrcnn_core.structures import Detections, ImageBatch, ImageFeatures, Proposals, Targets, with_a_slot

_NO_PROPOSALS = (
    "model.dense.enabled: is false, so this detector makes no proposals, and none are given; expected "
    "data.train.proposals for training, --proposals for jobs.label, or the argument `proposals`"
)


class Detector(nn.Module):
    """Mask R-CNN (He et al., ICCV 2017) and its relatives: without masks Faster R-CNN, without a dense stage Fast
    R-CNN, without a region stage an RPN or, with K classes, a one-stage detector, such as RetinaNet. A region stage
    without a box part adds masks and keypoints to that.

    Args:
        trunk: image -> feature maps.
        pyramid: feature maps -> levels that everything else is computed from.
        dense: levels -> proposals or detections; None: proposals are given.
        regions: proposals -> detections, or, without a box part, detections -> masks and keypoints; None: the dense
            stage is all there is.
        fixed_size_on: types of devices on which no shape may depend on data (`structures`, "Fixed sizes").
        maps: [N, 3, H, W] -> levels, in place of pyramid after trunk, where they have been compiled.
    """

    def __init__(
        self,
        trunk: Trunk,
        pyramid: Pyramid,
        dense: DenseStage | None,
        regions: RegionStage | None,
        *,
        fixed_size_on: Sequence[str] = ("cuda",),
        maps: Callable[[Tensor], list[Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self.trunk, self.pyramid, self.dense, self.regions = trunk, pyramid, dense, regions
        self._fixed_size_on = tuple(fixed_size_on)
        self._compiled_maps = maps

    def forward(
        self,
        images: ImageBatch,
        targets: Targets,
        proposals: Proposals | None = None,
        *,
        count: Normalizer = own_count,
    ) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            images, targets: of one batch.
            proposals: in the input frame; the region stage learns on them instead of the dense stage's, which, where
                there is one, learns beside them.
            count: what sums of losses are divided by: this process's own counts, or those of all processes.

        Returns:
            Scalars: those of `DenseStage.losses` and of `RegionStage.losses`.

        Raises:
            ConfigError: proposals are neither given nor made.
        """
        targets = with_a_slot(targets)
        features = self.features(images)
        sums: dict[str, LossSum] = {}
        if self.dense is not None and self.regions is not None and proposals is None:
            sums, proposals = self.dense.losses_and_proposals(features, targets)
        elif self.dense is not None:
            sums = self.dense.losses(features, targets)
        if self.regions is not None:
            sums |= self.regions.losses(features, _given(proposals), targets)
        losses = divided(sums, count)
        if self.dense is None:
            # Levels that no region was cut from, too, have a gradient: 0. Data-parallel training waits for all.
            every_level = 0.0 * torch.stack([level.sum() for level in features.maps]).sum()
            losses["roi_class"] = losses["roi_class"] + every_level
        return losses

    @torch.no_grad()
    def detect(self, images: ImageBatch, proposals: Proposals | None = None) -> Detections:
        """Detections of a batch in the input frame: boxes of the last stage, then masks and keypoints on the top K.

        Args:
            images: one batch.
            proposals: in the input frame; used instead of the dense stage's.

        Raises:
            ConfigError: proposals are neither given nor made.
        """
        features = self.features(images)
        detections = self.boxes(features, proposals)
        masks, heatmaps = self.masks(features, detections), self.heatmaps(features, detections)
        keypoints = None if heatmaps is None else self.keypoints(features, heatmaps, detections)
        return replace(detections, masks=masks, keypoints=keypoints)

    @torch.no_grad()
    def propose(self, images: ImageBatch) -> Proposals:
        """The dense stage's proposals, by the rule for inference."""
        return self._proposals(self.features(images))

    def features(self, images: ImageBatch) -> ImageFeatures:
        """Per-image computation. Here, once, the device decides whether shapes may depend on data."""
        compute = self._compiled_maps or self.maps
        return ImageFeatures(
            compute(images.pixels),
            tuple(self.pyramid.strides),
            images.input_sizes,
            images.pixels,
            fixed_size=images.pixels.device.type in self._fixed_size_on,
        )

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """[N, 3, H, W] -> pyramid levels, each [N, C, H_l, W_l]."""
        if isinstance(self.pyramid, ImagePyramid):
            return [self.trunk(image)[-1] for image in self.pyramid(pixels)]
        levels: list[Tensor] = self.pyramid(self.trunk(pixels))
        return levels

    @torch.no_grad()
    def boxes(self, features: ImageFeatures, proposals: Proposals | None = None) -> Detections:
        """Boxes, scores and labels in the input frame, of the last stage that makes boxes; proposals in the input
        frame."""
        if self.regions is None or self.regions.box is None:
            if self.dense is None:
                raise ConfigError(_NO_PROPOSALS)
            return self.dense.detections(features)
        return self.regions.boxes(features, self._proposals(features) if proposals is None else proposals)

    def masks(self, features: ImageFeatures, detections: Detections) -> Tensor | None:
        """See `RegionStage.masks`."""
        return None if self.regions is None else self.regions.masks(features, detections)

    def heatmaps(self, features: ImageFeatures, detections: Detections) -> Tensor | None:
        """See `RegionStage.heatmaps`."""
        return None if self.regions is None else self.regions.heatmaps(features, detections)

    @torch.no_grad()
    def keypoints(self, features: ImageFeatures, heatmaps: Tensor, detections: Detections) -> Tensor:
        """[N, D, P, 3] keypoints (x, y, score) in the frame of the detections, of `heatmaps`."""
        if self.regions is None or self.regions.keypoints is None:
            return heatmaps.new_zeros(*heatmaps.shape[:3], 3)
        fixed, longest = features.fixed_size, max(features.input_shape)
        return self.regions.keypoints.decode(heatmaps, detections, longest, fixed_size=fixed)

    def adapted(
        self,
        *,
        min_score: float,
        max_detections: int,
        max_proposals: int,
        maps: Callable[[Tensor], list[Tensor]] | None = None,
    ) -> "Detector":
        """The same detector (its weights are shared) that gives other numbers of results at inference.

        Args:
            min_score, max_detections: of the detections.
            max_proposals: of the dense stage, an image.
            maps: as of the constructor.
        """
        dense, regions = self.dense, self.regions
        if dense is not None:
            test = replace(dense.rules.test, post_nms=max_proposals)
            detection = replace(dense.rules.detection, min_score=min_score, max_detections=max_detections)
            dense = dense.with_rules(replace(dense.rules, test=test, detection=detection))
        if regions is not None and regions.box is not None:
            detection = replace(regions.box.detection, min_score=min_score, max_detections=max_detections)
            regions = regions.with_detection(detection)
        return Detector(self.trunk, self.pyramid, dense, regions, fixed_size_on=self._fixed_size_on, maps=maps)

    def kept_grids(self) -> list[list[Tensor]]:
        """See `DenseStage.kept_grids`."""
        return [] if self.dense is None else self.dense.kept_grids()

    def _proposals(self, features: ImageFeatures) -> Proposals:
        if self.dense is None:
            raise ConfigError(_NO_PROPOSALS)
        return self.dense.proposals(features, self.dense.rules.test)


def _given(proposals: Proposals | None) -> Proposals:
    if proposals is None:
        raise ConfigError(_NO_PROPOSALS)
    return proposals
