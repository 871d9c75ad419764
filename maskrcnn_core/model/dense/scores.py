"""From a dense head's outputs to scores, and the best of a level by them."""

import math

import torch
from torch import Tensor

from maskrcnn_core.model.losses import full_precision
from maskrcnn_core.structures import DenseOutputs

# So far below the lowest score of a detection candidates are still taken, lest rounding decide.
_MARGIN = 1e-4


def level_scores(outputs: DenseOutputs, level: int, score_from: str) -> Tensor:
    """[N, A_l, K] in [0, 1], how probable each class is at each anchor of a level.

    Args:
        score_from: "sigmoid"; "softmax" over K + 1 logits, of which the last is the background's; "centreness": the
            geometric mean of class score and centreness, which is the head's objectness (FCOS, section 3.3);
            "conditional": the sigmoid of the objectness times the softmax of K logits (YOLOv2, section 2); "product":
            objectness times logit as they are, at least 0 and at most 1 (YOLOv1, equation 1); "linear": the logit as
            it is, likewise (DetectorNet).
    """
    logits = full_precision(outputs.logits[level])
    if score_from == "softmax":
        return logits.softmax(dim=-1)[..., :-1]
    if score_from == "linear":
        return logits.clamp(0, 1)
    if score_from in ("conditional", "product"):
        assert outputs.objectness is not None
        objectness = full_precision(outputs.objectness[level])[..., None]
        if score_from == "product":
            return (objectness * logits).clamp(0, 1)
        return objectness.sigmoid() * logits.softmax(dim=-1)
    if score_from == "centreness":
        assert outputs.objectness is not None
        return (logits.sigmoid() * full_precision(outputs.objectness[level])[..., None].sigmoid()).sqrt()
    return logits.sigmoid()


def best_pairs(
    outputs: DenseOutputs, level: int, most: int, score_from: str, *, above: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The best pairs of anchor and class of a level, best first.

    Args:
        above: pairs whose score is not above this are of no use, and may be left out or not; None: the shapes of the
            results must not depend on data.

    Returns:
        Scores, anchors and classes, each [N, M]; M is `most` or as many pairs as there are.
    """
    sigmoid = score_from == "sigmoid"
    # A sigmoid keeps the order, so that only the best need one.
    every = full_precision(outputs.logits[level]) if sigmoid else level_scores(outputs, level, score_from)
    num_anchors, num_classes = every.shape[1:]
    flat = every.flatten(1)
    if above is not None and 0 < above < 1:
        limit = math.log(above / (1 - above)) - _MARGIN if sigmoid else above - _MARGIN
        top, index = _best_above(flat, limit, most)
    else:
        top, index = flat.topk(min(most, num_anchors * num_classes), dim=1)
    # Of a flat index the class runs fastest.
    return top.sigmoid() if sigmoid else top, index // num_classes, index % num_classes


def _best_above(values: Tensor, limit: float, most: int) -> tuple[Tensor, Tensor]:
    """`topk` of [N, P] among what is above a limit: a hundredth of all where most anchors see nothing. -inf stands in
    slots that are left over."""
    image, place = (values > limit).nonzero(as_tuple=True)
    counts = torch.bincount(image, minlength=len(values))
    # Those of each image in a row of its own: [N, C].
    slots = torch.arange(len(image), device=image.device) - (counts.cumsum(0) - counts)[image]
    widest = max([1, *counts.tolist()])
    few = values.new_full((len(values), widest), -torch.inf)
    few[image, slots] = values[image, place]
    places = torch.zeros(len(values), widest, dtype=torch.int64, device=values.device)
    places[image, slots] = place
    top, index = few.topk(min(most, widest), dim=1)
    return top, places.gather(1, index)


def best_anchors(outputs: DenseOutputs, level: int, most: int, score_from: str) -> tuple[Tensor, Tensor]:
    """The best anchors of a level whatever their class, best first: scores and anchors, each [N, M]."""
    logits = outputs.logits[level].detach()
    most = min(most, logits.shape[1])
    if score_from == "sigmoid":
        top, index = (logits[..., 0] if logits.shape[2] == 1 else logits.amax(dim=2)).topk(most, dim=1)
        return full_precision(top).sigmoid(), index
    scores, index = level_scores(outputs, level, score_from).amax(dim=2).topk(most, dim=1)
    return scores, index
