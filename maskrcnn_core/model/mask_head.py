"""Mask head: a small fully convolutional network that draws each region's object (Mask R-CNN, section 3, figure 4
right).

Letters: R regions, M = 2 * resolution the mask's side, K classes.
"""

from itertools import pairwise

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.model.losses import full_precision
from maskrcnn_core.structures import Targets


class MaskHead(nn.Module):
    """3x3 convolutions, a deconvolution that doubles the resolution, and a 1x1 predictor for each class."""

    def __init__(self, in_channels: int, channels: int, layers: int, num_classes: int, *, class_agnostic: bool) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * layers
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.deconv = nn.ConvTranspose2d(widths[-1], channels, 2, stride=2)
        self.predictor = nn.Conv2d(channels, 1 if class_agnostic else num_classes, 1)
        for module in (*self.convs, self.deconv):
            assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
        nn.init.normal_(self.predictor.weight, std=0.001)
        assert self.predictor.bias is not None
        nn.init.zeros_(self.predictor.bias)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mask logits of each region's own class.

        Only the wanted class is computed: its row of the 1x1 predictor is applied to the region's features.

        Args:
            features: [R, C, resolution, resolution].
            labels: [R] int64 in 0 .. K-1; ignored where masks are class-agnostic.

        Returns:
            [R, M, M] logits.
        """
        x = features
        for conv in self.convs:
            x = functional.relu(conv(x), inplace=True)
        cells = self._enlarged(x)
        weight, bias = self.predictor.weight.flatten(1), self.predictor.bias
        assert bias is not None
        if len(weight) == 1:
            labels = torch.zeros_like(labels)
        own_weight, own_bias = weight.index_select(0, labels), bias.index_select(0, labels)
        logits = torch.bmm(cells.flatten(1, -2), own_weight[:, :, None])[:, :, 0] + own_bias[:, None]
        height, width = x.shape[-2:]
        # From (row, column, row within, column within) to rows and columns of the doubled grid.
        grid = logits.view(len(x), height, width, 2, 2).transpose(2, 3)
        return grid.reshape(len(x), 2 * height, 2 * width)

    def _enlarged(self, x: Tensor) -> Tensor:
        """[R, C, h, w] -> [R, h, w, 2, 2, C'], the deconvolution and its ReLU.

        With kernel and stride 2 each cell becomes 2 x 2 cells by itself, so it is a 1x1 convolution to 4 C' channels,
        and the cells need not be brought in order before the predictor has reduced their channels to one number.
        """
        weight, bias = self.deconv.weight, self.deconv.bias
        assert bias is not None
        out_channels = weight.shape[1]
        kernel = weight.permute(2, 3, 1, 0).reshape(4 * out_channels, -1, 1, 1)
        cells = functional.relu(functional.conv2d(x, kernel, bias.repeat(4)), inplace=True)
        return cells.permute(0, 2, 3, 1).reshape(len(x), *x.shape[-2:], 2, 2, out_channels)


def mask_targets(
    targets: Targets, boxes: Tensor, image_index: Tensor, objects: Tensor, size: int, *, aligned: bool
) -> Tensor:
    """What the mask head should draw: each object's mask resampled on its region's grid.

    RoIAlign with adaptive sampling on the mask (as torchvision's and detectron2's bitmask targets), computed on the
    small crop that `Targets.masks` holds.

    Args:
        targets: with masks and mask boxes.
        boxes: [R, 4] regions in the input frame; image_index, objects: [R] whose object each region is to draw.
        size: M.
        aligned: sample at pixel centres; false = torchvision's half-pixel shift, for its checkpoints.

    Returns:
        [R, M, M] float32 in [0, 1].
    """
    assert targets.masks is not None
    assert targets.mask_boxes is not None
    side_y, side_x = targets.masks.shape[-2:]
    crops = targets.masks[image_index, objects].to(boxes.dtype) / 255.0
    frames = targets.mask_boxes[image_index, objects]
    if not aligned:
        sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1.0)
        boxes = torch.cat((boxes[:, :2], boxes[:, :2] + sides), dim=1) + 0.5
    origins = frames[:, :2].repeat(1, 2)
    ratios = boxes.new_tensor([side_x, side_y, side_x, side_y]) / (frames[:, 2:] - frames[:, :2]).repeat(1, 2).clamp(
        min=1e-6
    )
    regions = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)[:, None]
    rois = torch.cat((regions, (boxes - origins) * ratios), dim=1)
    wanted: Tensor = torchvision.ops.roi_align(crops[:, None], rois, size, 1.0, -1, True)[:, 0]
    return wanted


def mask_loss(logits: Tensor, wanted: Tensor, counted: Tensor) -> Tensor:
    """Mean binary cross-entropy over the pixels of the counted regions (Mask R-CNN, section 3).

    Args:
        logits, wanted: [R, M, M].
        counted: [R] bool.

    Returns:
        Scalar, 0 where nothing counts.
    """
    loss = functional.binary_cross_entropy_with_logits(full_precision(logits), wanted, reduction="none").mean(
        dim=(1, 2)
    )
    return torch.where(counted, loss, 0.0).sum() / counted.sum().clamp(min=1)
