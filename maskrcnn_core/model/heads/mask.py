"""Mask heads: small networks that draw each region's object (Mask R-CNN, section 3, figure 4 right, and the variants of
tables 2b and 2e).

Letters: R regions, M = 2 * resolution the mask's side, K classes. What a head returns, its *output*, is one of

    [R, M, M]     sigmoid: logits of each region's own class (Mask R-CNN, section 3: no class competes with another)
    [R, 2, M, M]  softmax: log-probabilities of its own class and of background, after a softmax over the K classes and
                  background at each pixel (table 2b, "per-pixel softmax and a multinomial loss")

and `mask_probabilities` and `mask_loss` take either.
"""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.layers.convolve import POINTWISE, convolve, convolve_with
from maskrcnn_core.model.heads.mask_sampling import sampled_crops
from maskrcnn_core.model.loss_counts import LossSum
from maskrcnn_core.model.losses import full_precision
from maskrcnn_core.structures import Targets, real_or_unit

MaskActivation = Literal["sigmoid", "softmax"]


def _outputs(num_classes: int, *, class_agnostic: bool, activation: MaskActivation) -> int:
    """Values of a pixel: the classes, or the object as such; and after them, for the softmax, background."""
    return (1 if class_agnostic else num_classes) + (activation == "softmax")


class MaskHead(nn.Module):
    """3x3 convolutions, a deconvolution that doubles the resolution, and a 1x1 predictor for each class.

    With `layers` = 0 the deconvolution follows at once: the head of a C4 network, on the features of its fifth stage.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        layers: int,
        num_classes: int,
        *,
        class_agnostic: bool,
        activation: MaskActivation = "sigmoid",
    ) -> None:
        super().__init__()
        self.class_agnostic, self.activation = class_agnostic, activation
        widths = [in_channels] + [channels] * layers
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.deconv = nn.ConvTranspose2d(widths[-1], channels, 2, stride=2)
        outputs = _outputs(num_classes, class_agnostic=class_agnostic, activation=activation)
        self.predictor = nn.Conv2d(channels, outputs, 1)
        for module in (*self.convs, self.deconv):
            assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
        nn.init.normal_(self.predictor.weight, std=0.001)
        assert self.predictor.bias is not None
        nn.init.zeros_(self.predictor.bias)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Output for each region's own class.

        With the sigmoid only the wanted class is computed: its row of the 1x1 predictor is applied to the region's
        features.

        Args:
            features: [R, C, resolution, resolution].
            labels: [R] int64 in 0 .. K-1; ignored where masks are class-agnostic.

        Returns:
            [R, M, M] or [R, 2, M, M], see the module.
        """
        # Features of each pixel of the masks, not yet in order: [R, h, w, 2, 2, C'].
        x = features
        for conv in self.convs:
            x = convolve(conv, x, relu=True)
        cells = self._enlarged(x)
        weight, bias = self.predictor.weight.flatten(1), self.predictor.bias
        assert bias is not None
        if self.class_agnostic:
            labels = torch.zeros_like(labels)
        if self.activation == "softmax":
            # Softmax: all classes at each pixel, then the own one and background.
            every = full_precision(functional.linear(cells, weight, bias)).log_softmax(dim=-1)
            own = every.gather(-1, labels.view(-1, 1, 1, 1, 1, 1).expand(*every.shape[:-1], 1))
            return torch.stack((_in_order(own[..., 0]), _in_order(every[..., -1])), dim=1)
        # Sigmoid: the row of the own class alone, [R, C'].
        own_weight, own_bias = weight.index_select(0, labels), bias.index_select(0, labels)
        logits = torch.bmm(cells.flatten(1, -2), own_weight[:, :, None])[:, :, 0] + own_bias[:, None]
        return _in_order(logits.view(cells.shape[:-1]))

    def _enlarged(self, x: Tensor) -> Tensor:
        """[R, C, h, w] -> [R, h, w, 2, 2, C'], the deconvolution and its ReLU.

        With kernel and stride 2 each cell becomes 2 x 2 cells by itself, so it is a 1x1 convolution to 4 C' channels,
        and the cells need not be brought in order before the predictor has reduced their channels to one number.
        """
        weight, bias = self.deconv.weight, self.deconv.bias
        assert bias is not None
        out_channels = weight.shape[1]
        kernel = weight.permute(2, 3, 1, 0).reshape(4 * out_channels, -1, 1, 1)
        cells = convolve_with(x, kernel, bias.repeat(4), POINTWISE, relu=True)
        return cells.permute(0, 2, 3, 1).reshape(len(x), *x.shape[-2:], 2, 2, out_channels)


def _in_order(cells: Tensor) -> Tensor:
    """[R, h, w, 2, 2] (row, column, row within, column within) -> [R, 2 h, 2 w]."""
    regions, height, width = cells.shape[:3]
    return cells.transpose(2, 3).reshape(regions, 2 * height, 2 * width)


class MaskMLP(nn.Module):
    """Fully connected layers, then the whole mask of each class at once (Mask R-CNN, table 2e: 1024, 1024, K * 28^2).

    The features are flattened channels last, as in the box head. Unlike a convolution it can draw a pixel from all of
    the region, and has to learn every place for itself.
    """

    def __init__(
        self,
        in_channels: int,
        resolution: int,
        channels: int,
        layers: int,
        num_classes: int,
        *,
        class_agnostic: bool,
        activation: MaskActivation = "sigmoid",
    ) -> None:
        super().__init__()
        self.class_agnostic, self.activation = class_agnostic, activation
        self.side = 2 * resolution
        widths = [in_channels * resolution**2] + [channels] * layers
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        outputs = _outputs(num_classes, class_agnostic=class_agnostic, activation=activation)
        self.predictor = nn.Linear(widths[-1], outputs * self.side**2)
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """As `MaskHead.forward`."""
        x = features.permute(0, 2, 3, 1).flatten(1)
        for layer in self.layers:
            x = functional.relu(layer(x), inplace=True)
        # The mask of every class: [R, K, M, M], and background behind.
        every = self.predictor(x).unflatten(1, (-1, self.side, self.side))
        if self.class_agnostic:
            labels = torch.zeros_like(labels)
        if self.activation == "softmax":
            every = full_precision(every).log_softmax(dim=1)
        own = every.gather(1, labels.view(-1, 1, 1, 1).expand(-1, 1, self.side, self.side))
        return own[:, 0] if self.activation == "sigmoid" else torch.cat((own, every[:, -1:]), dim=1)


def mask_probabilities(output: Tensor) -> Tensor:
    """Output of a mask head -> [R, M, M] float32, the probability that a pixel belongs to the region's object."""
    output = full_precision(output)
    return output.sigmoid() if output.ndim == 3 else output[:, 0].exp()


def mask_targets(
    targets: Targets,
    boxes: Tensor,
    image_index: Tensor,
    objects: Tensor,
    size: int,
    *,
    aligned: bool,
    real: Tensor | None = None,
    fixed_size: bool = False,
) -> Tensor:
    """What the mask head should draw: each object's mask resampled on its region's grid.

    RoIAlign with adaptive sampling on the mask (as torchvision's and detectron2's bitmask targets), computed on the
    small crop that `Targets.masks` holds.

    Args:
        targets: with masks and mask boxes.
        boxes: [R, 4] regions in the input frame; image_index, objects: [R] whose object each region is to draw.
        size: M.
        aligned: sample at pixel centres; false = torchvision's half-pixel shift, for its checkpoints.
        real: [R] bool, false for a region that only fills up and has nothing to draw; None = all have.
        fixed_size: no shape depends on data.

    Returns:
        [R, M, M] float32 in [0, 1]; of a region that is not real anything.
    """
    assert targets.masks is not None
    assert targets.mask_boxes is not None
    # The crop of each region's object [R, Sy, Sx], and the frame that it covers [R, 4].
    side_y, side_x = targets.masks.shape[-2:]
    crops = targets.masks[image_index, objects].to(boxes.dtype) / 255.0
    frames = targets.mask_boxes[image_index, objects]
    if real is not None:
        boxes, frames = real_or_unit(boxes, real), real_or_unit(frames, real)
    if not aligned:
        sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1.0)
        boxes = torch.cat((boxes[:, :2], boxes[:, :2] + sides), dim=1) + 0.5
    # The regions in cells of their crops: [R, 4].
    origins = frames[:, :2].repeat(1, 2)
    cells = boxes.new_full((4,), side_x)
    cells[1::2] = side_y
    ratios = cells / (frames[:, 2:] - frames[:, :2]).repeat(1, 2).clamp(min=1e-6)
    return sampled_crops(crops, (boxes - origins) * ratios, size, fixed_size=fixed_size)


def mask_loss(output: Tensor, wanted: Tensor, counted: Tensor) -> LossSum:
    """The binary cross-entropy (Mask R-CNN, section 3) or, of a softmax head, the multinomial one: the mean over a
    region's pixels, to be averaged over the counted regions. A pixel's class is the region's, or background where the
    object isn't; a fractional target is a share of each.

    Args:
        output: of a mask head, [R, M, M] or [R, 2, M, M].
        wanted: [R, M, M] in [0, 1].
        counted: [R] bool.

    Returns:
        Its total is 0 where nothing counts.
    """
    output = full_precision(output)
    if output.ndim == 3:
        loss = functional.binary_cross_entropy_with_logits(output, wanted, reduction="none")
    else:
        loss = -(wanted * output[:, 0] + (1.0 - wanted) * output[:, 1])
    return LossSum(torch.where(counted, loss.mean(dim=(1, 2)), 0.0).sum(), counted.sum())
