"""Keypoint head: a heatmap over the region for each keypoint of its object (Mask R-CNN, section 5, "Human Pose
Estimation"). `maskrcnn_core.keypoints` turns heatmaps into positions.

Letters: R regions, P keypoints, S = 4 * resolution the heatmaps' side.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.keypoints import encode_heatmaps
from maskrcnn_core.layers.convolve import convolve
from maskrcnn_core.model.loss_counts import LossSum
from maskrcnn_core.model.losses import full_precision
from maskrcnn_core.structures import Targets


class KeypointHead(nn.Module):
    """3x3 convolutions, a deconvolution to one map for each keypoint, and bilinear enlargement; each of the latter two
    doubles the resolution."""

    def __init__(self, in_channels: int, channels: int, layers: int, num_keypoints: int) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * layers
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.deconv = nn.ConvTranspose2d(widths[-1], num_keypoints, 4, stride=2, padding=1)
        for module in (*self.convs, self.deconv):
            assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)

    def forward(self, features: Tensor) -> Tensor:
        """[R, C, resolution, resolution] -> logits [R, P, S, S]."""
        x = features
        for conv in self.convs:
            x = convolve(conv, x, relu=True)
        return functional.interpolate(self.deconv(x), scale_factor=2.0, mode="bilinear", align_corners=False)


def keypoint_targets(
    targets: Targets, boxes: Tensor, image_index: Tensor, objects: Tensor, learned: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """The heatmap cell that each keypoint of a region's object should light.

    Args:
        targets: with keypoints.
        boxes: [R, 4] regions in the input frame; image_index, objects: [R] whose object each region is to find.
        learned: [R] bool, positive regions of an object whose category has keypoints; the others give no loss.
        size: S.

    Returns:
        cells [R, P] int64 in 0 .. S * S - 1, and counted [R, P] bool: visible keypoints of learned regions that lie in
        their region. An object without annotated keypoints counts for nothing.
    """
    assert targets.keypoints is not None
    cells, counted = encode_heatmaps(targets.keypoints[image_index, objects], boxes, size)
    return cells, counted & learned[:, None]


def keypoint_loss(logits: Tensor, cells: Tensor, counted: Tensor) -> LossSum:
    """Cross-entropy of a softmax over a heatmap's cells, to be averaged over the counted keypoints of the batch (Mask
    R-CNN, section 5; the mean as torchvision's, and detectron2's normalised by visible keypoints).

    Args:
        logits: [R, P, S, S].
        cells, counted: [R, P], of `keypoint_targets`.

    Returns:
        Its total is 0 where nothing counts.
    """
    wanted = torch.where(counted, cells, -1).flatten()
    loss = functional.cross_entropy(
        full_precision(logits).flatten(2).flatten(0, 1), wanted, ignore_index=-1, reduction="sum"
    )
    return LossSum(loss, counted.sum())
