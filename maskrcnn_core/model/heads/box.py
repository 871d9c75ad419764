"""Box head: classifies each region and refines its box (Fast R-CNN, sections 2.1-2.3).

Letters: N images, R regions an image, S sampled regions, K classes, D detections. Background is class K.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.boxes import clip_boxes, have_min_size
from maskrcnn_core.layers.convolve import convolve
from maskrcnn_core.layers.normed_conv import normed_conv
from maskrcnn_core.model.box_coding import BoxCoding
from maskrcnn_core.model.loss_counts import LossSum
from maskrcnn_core.model.losses import box_regression_loss, box_regression_losses, full_precision
from maskrcnn_core.model.survivors import DetectionRule, survivors
from maskrcnn_core.structures import Detections, Proposals, real_or_unit, valid_slots


class BoxHead(nn.Module):
    """3x3 convolutions, fully connected layers, then class logits and box deltas.

    Two layers: Fast R-CNN with FPN. Four convolutions and one layer: "4conv1fc" (Wu and He, Group Normalization, ECCV
    2018, section 4.2). No layer: the mean over the region's grid, for features that a whole stage has made (C4: He et
    al., Mask R-CNN, figure 4 left).

    The features are flattened channels last (row, column, channel), the order in which RoIAlign delivers them.

    Args:
        in_channels, resolution: of the region features; resolution is a side, or (height, width).
        channels, layers: width and number of the fully connected layers.
        num_classes: K.
        class_agnostic: one box per region instead of one per class.
        convs, conv_channels: number and width of the convolutions.
        conv_norm: "none", "frozen_batch" or "group", after each of them.
    """

    def __init__(
        self,
        in_channels: int,
        resolution: int | tuple[int, int],
        channels: int,
        layers: int,
        num_classes: int,
        *,
        class_agnostic: bool,
        convs: int = 0,
        conv_channels: int = 256,
        conv_norm: str = "none",
    ) -> None:
        super().__init__()
        conv_widths = [in_channels] + [conv_channels] * convs
        self.convs = nn.ModuleList(normed_conv(a, b, 3, conv_norm) for a, b in pairwise(conv_widths))
        height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
        widths = [conv_widths[-1] * (height * width if layers else 1)] + [channels] * layers
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.classes = nn.Linear(widths[-1], num_classes + 1)
        self.deltas = nn.Linear(widths[-1], 4 if class_agnostic else 4 * num_classes)
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
        for layer, std in ((self.classes, 0.01), (self.deltas, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[R, C, height, width] -> class logits [R, K + 1], deltas [R, 1 or K, 4]."""
        for conv in self.convs:
            features = convolve(conv, features, relu=True)
        # One row a region: channels last, or the grid's mean.
        x = features.permute(0, 2, 3, 1).flatten(1) if len(self.layers) > 0 else features.mean(dim=(2, 3))
        for layer in self.layers:
            x = functional.relu(_linear(x, layer), inplace=True)
        return self.classes(x), self.deltas(x).unflatten(1, (-1, 4))


def _linear(x: Tensor, layer: nn.Module) -> Tensor:
    """The layer on [R, C] rows. On a CPU a plain one as a 1x1 convolution over a column of R pixels: oneDNN's
    convolution is about twice as fast as the matrix product (1000 regions x 12544 -> 1024: 94 against 191 ms on 2
    cores)."""
    if not isinstance(layer, nn.Linear) or x.is_cuda or x.dtype != torch.float32 or len(x) == 0:
        output: Tensor = layer(x)
        return output
    column = x[None, :, None, :].permute(0, 3, 1, 2)
    return functional.conv2d(column, layer.weight[:, :, None, None], layer.bias)[0, :, :, 0].t()


@dataclass(frozen=True)
class RoISamples:
    """Regions drawn for the loss, padded; positives come first.

    Attributes:
        boxes: [N, S, 4] input frame.
        labels: [N, S] int64, K where negative.
        object_boxes: [N, S, 4], the object of each positive.
        objects: [N, S] int64, its slot in the targets.
        positive, valid: [N, S] bool.
        max_positives: positives lie in the first `max_positives` slots.
    """

    boxes: Tensor
    labels: Tensor
    object_boxes: Tensor
    objects: Tensor
    positive: Tensor
    valid: Tensor
    max_positives: int


def box_losses(
    logits: Tensor,
    deltas: Tensor,
    samples: RoISamples,
    *,
    coding: BoxCoding,
    smooth_l1_beta: float,
    box_loss: str = "smooth_l1",
) -> dict[str, LossSum]:
    """Class loss over the sampled regions, and box loss over the positives, counted by the sampled regions too.

    Args:
        logits: [N, S, K + 1]; deltas: [N, S, 1 or K, 4].
        coding: of the deltas.
        smooth_l1_beta, box_loss: beta and type of `box_regression_loss`.

    Returns:
        `roi_class` and `roi_box`.
    """
    # Classes of all regions: [N * S].
    num_sampled = samples.valid.sum()
    class_loss = functional.cross_entropy(
        full_precision(logits.flatten(0, 1)), samples.labels.flatten(), reduction="none"
    )
    class_sum = torch.where(samples.valid.flatten(), class_loss, 0.0).sum()
    # Deltas of the positives, which stand in front, each for its own class: [N, max_positives, 1, 4].
    front = slice(0, max(samples.max_positives, 1))
    positive, labels = samples.positive[:, front], samples.labels[:, front]
    deltas = full_precision(deltas[:, front])
    if deltas.shape[2] > 1:
        choice = torch.where(positive, labels, 0)[..., None, None].expand(-1, -1, 1, 4)
        deltas = deltas.gather(2, choice)
    box_sum = box_regression_loss(
        deltas[:, :, 0],
        samples.boxes[:, front],
        samples.object_boxes[:, front],
        positive,
        coding=coding,
        loss_type=box_loss,
        beta=smooth_l1_beta,
    )
    return {"roi_class": LossSum(class_sum, num_sampled), "roi_box": LossSum(box_sum, num_sampled)}


def losses_of_regions(
    logits: Tensor,
    deltas: Tensor,
    samples: RoISamples,
    *,
    coding: BoxCoding,
    smooth_l1_beta: float,
    box_loss: str = "smooth_l1",
) -> Tensor:
    """What each region adds to the sums of `box_losses`, whose arguments it has: [N, S], 0 where not valid."""
    # Of the class: [N, S].
    flat = functional.cross_entropy(full_precision(logits.flatten(0, 1)), samples.labels.flatten(), reduction="none")
    # Of the box, for a positive's own class: [N, S].
    if deltas.shape[2] > 1:
        choice = torch.where(samples.positive, samples.labels, 0)[..., None, None].expand(-1, -1, 1, 4)
        deltas = deltas.gather(2, choice)
    box_loss_of_each = box_regression_losses(
        full_precision(deltas[:, :, 0]),
        samples.boxes,
        samples.object_boxes,
        samples.positive,
        coding=coding,
        loss_type=box_loss,
        beta=smooth_l1_beta,
    )
    return torch.where(samples.valid, flat.view(samples.labels.shape) + box_loss_of_each, 0.0)


def detections_and_regions(
    logits: Tensor,
    deltas: Tensor,
    proposals: Proposals,
    sizes: Tensor,
    coding: BoxCoding,
    rule: DetectionRule,
    *,
    fixed_size: bool = False,
) -> tuple[Detections, Tensor]:
    """Refined boxes after NMS, best first, top K (Fast R-CNN, section 3), and where they came from.

    Args:
        logits: [N, R, K + 1]; deltas: [N, R, 1 or K, 4].
        sizes: [N, 2] input sizes; boxes are clipped to them.
        coding: of the deltas.
        fixed_size: no shape depends on data.

    Returns:
        Detections in the input frame with D = max_detections slots, unless `fixed_size` only as many as the fullest
        image needs; and [N, D] int64, the slot of the proposal that each came from.
    """
    num_images, num_classes = len(logits), logits.shape[2] - 1
    # Pairs of region and class: of a flat index the class runs fastest.
    scores = full_precision(logits).softmax(dim=-1)[..., :-1]
    scores = torch.where(proposals.valid[..., None], scores, 0.0).flatten(1)
    num_candidates = min(rule.max_candidates, scores.shape[1])
    if not fixed_size:
        num_candidates = min(num_candidates, max([1, *(scores > rule.min_score).sum(dim=1).tolist()]))
    # The best pairs, and their refined boxes: [N, M].
    top, index = scores.topk(num_candidates, dim=1)
    region, label = index // num_classes, index % num_classes
    image = torch.arange(num_images, device=logits.device)[:, None]
    chosen = deltas[image, region, 0 if deltas.shape[2] == 1 else label]
    boxes = clip_boxes(coding.decode(full_precision(chosen), proposals.boxes[image, region]), sizes)
    # Suppression, and the best of what it leaves: [N, D].
    valid = (top > rule.min_score) & have_min_size(boxes, rule.min_size)
    order, kept, count = survivors(boxes, top, label, valid, rule, fixed_size=fixed_size)
    real = valid_slots(count, order.shape[1])
    detections = Detections(
        boxes=real_or_unit(boxes[image, order], real),
        scores=torch.where(real, kept, 0.0),
        labels=torch.where(real, label[image, order], 0),
        count=count,
    )
    return detections, torch.where(real, region[image, order], 0)
