"""Losses of box regression, and their precision, shared by the RPN and the box head."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from maskrcnn_core.boxes import box_areas
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.box_coding import BoxCoding
from maskrcnn_core.structures import real_or_unit

_EPSILON = 1e-7


def full_precision(x: Tensor) -> Tensor:
    """Half-precision values as float32, for coordinates, scores and losses; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def smooth_l1_sum(predicted: Tensor, wanted: Tensor, counted: Tensor, beta: float) -> Tensor:
    """Sum of the smooth L1 loss over the counted boxes (Fast R-CNN, Eq. 3; beta as in Detectron).

    Args:
        predicted, wanted: [..., 4] deltas.
        counted: [...] bool; the other boxes add nothing, whatever they hold.
        beta: where the loss turns from square to linear; 0 = L1.
    """
    # Selected before the loss: an uncounted slot may hold anything, and 0 * inf would be nan.
    wanted = torch.where(counted[..., None], wanted, predicted.detach())
    if beta == 0:
        return (predicted - wanted).abs().sum()
    return functional.smooth_l1_loss(predicted, wanted, beta=beta, reduction="sum")


def box_regression_loss(
    deltas: Tensor,
    references: Tensor,
    wanted: Tensor,
    counted: Tensor,
    *,
    coding: BoxCoding,
    loss_type: str,
    beta: float,
) -> Tensor:
    """Sum of a box loss over the counted boxes: of `box_regression_losses`, whose arguments it has.

    Returns:
        Scalar.

    Raises:
        ConfigError: an unknown type.
    """
    if loss_type == "smooth_l1":
        return smooth_l1_sum(deltas, coding.encode(wanted, references), counted, beta)
    losses = box_regression_losses(deltas, references, wanted, counted, coding=coding, loss_type=loss_type, beta=beta)
    return losses.sum()


def box_regression_losses(
    deltas: Tensor,
    references: Tensor,
    wanted: Tensor,
    counted: Tensor,
    *,
    coding: BoxCoding,
    loss_type: str,
    beta: float,
) -> Tensor:
    """The box loss of each counted box, 0 for the others.

    Args:
        deltas: [..., 4] regression output.
        references: [..., 4] what the deltas move: anchors or proposals.
        wanted: [..., 4] the objects' boxes.
        counted: [...] bool; the other boxes add nothing, whatever they hold.
        coding: of the outputs.
        loss_type: "smooth_l1" compares deltas; "giou" and "ciou" compare boxes.
        beta: of smooth L1; 0 = L1.

    Returns:
        [...].

    Raises:
        ConfigError: an unknown type.
    """
    if loss_type == "smooth_l1":
        # Selected before the loss, as in `smooth_l1_sum`.
        code = torch.where(counted[..., None], coding.encode(wanted, references), deltas.detach())
        each = functional.smooth_l1_loss(deltas, code, beta=beta, reduction="none")
        return each.sum(dim=-1)
    if loss_type not in ("giou", "ciou"):
        raise ConfigError(f"box_loss: got {loss_type!r}, expected 'smooth_l1', 'giou' or 'ciou'")
    # Selected before the loss, as in `smooth_l1_sum`: an uncounted slot becomes a box that is right.
    moves = torch.where(counted[..., None], deltas, 0.0)
    predicted = coding.decode(moves, real_or_unit(references, counted))
    losses = (giou_losses if loss_type == "giou" else ciou_losses)(predicted, real_or_unit(wanted, counted))
    return torch.where(counted, losses, 0.0)


def giou_losses(predicted: Tensor, wanted: Tensor) -> Tensor:
    """1 - generalised IoU of each pair of boxes: [..., 4], [..., 4] -> [...] in [0, 2].

    Rezatofighi et al., CVPR 2019, algorithm 2.
    """
    iou, union = _paired_iou(predicted, wanted)
    hull = _enclosing_sides(predicted, wanted).prod(dim=-1)
    return 1.0 - iou + (hull - union) / (hull + _EPSILON)


def ciou_losses(predicted: Tensor, wanted: Tensor) -> Tensor:
    """1 - complete IoU of each pair of boxes: [..., 4], [..., 4] -> [...].

    Zheng et al., AAAI 2020, Eq. 10 and 11: besides the overlap, the distance of the centres and the difference of the
    aspect ratios. The weight of the latter has no gradient.
    """
    iou, _ = _paired_iou(predicted, wanted)
    # Squares of the enclosing diagonal and of the distance between the centres: [...].
    diagonal = _enclosing_sides(predicted, wanted).square().sum(dim=-1)
    between = 0.5 * (predicted[..., :2] + predicted[..., 2:] - wanted[..., :2] - wanted[..., 2:])
    distance = between.square().sum(dim=-1)
    # How far the aspect ratios differ, and the weight of that.
    ratio = (4.0 / math.pi**2) * (_aspect_angle(wanted) - _aspect_angle(predicted)).square()
    with torch.no_grad():
        share = ratio / (1.0 - iou + ratio + _EPSILON)
    return 1.0 - iou + distance / (diagonal + _EPSILON) + share * ratio


def _paired_iou(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and union [...] of each first box with its own second box."""
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    intersection = (high - low).clamp(min=0).prod(dim=-1)
    union = box_areas(first) + box_areas(second) - intersection
    return intersection / (union + _EPSILON), union


def _enclosing_sides(first: Tensor, second: Tensor) -> Tensor:
    """[..., 2] sides of the smallest box around both."""
    return torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])


def _aspect_angle(boxes: Tensor) -> Tensor:
    """[..., 4] -> [...] arctan(width / height)."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=_EPSILON)
    return torch.atan(sides[..., 0] / sides[..., 1])
