"""The end of every import: a configuration with the parts that were found, checked against the detector it builds."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.config.person import COCO_KEYPOINTS
from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.importers.architecture import Architecture
from maskrcnn_core.importers.translation import Translation
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.printable import listed
from maskrcnn_core.weights.coco_categories import COCO_CATEGORIES
from maskrcnn_core.weights.soundness import check_finite

Checkpoint = tuple[ModelConfig, dict[str, Tensor]]

_PERSON = COCO_CATEGORIES[:1]


def finish_import(
    to: Translation, config: ModelConfig, form: Architecture, categories: tuple[Category, ...] | None, hint: str
) -> Checkpoint:
    """The configuration with the parts, widths and depths of the weights, and the weights, which fit it.

    Args:
        to: with everything translated.
        config: the source's conventions, with its input, anchors and rules.
        form: the source's architecture.
        categories: in label order; None = by the number of classes, see `default_categories`.
        hint: what the file may be, for messages.

    Raises:
        CheckpointError: keys are missing, left over or misshapen, or there are more or fewer categories than classes.
    """
    to.finish(hint)
    check_finite(to.result, f"{to.framework} checkpoint")  # a norm whose variance is negative has no scale
    num_classes = len(to.result["regions.box.head.classes.bias"]) - 1 if form.box else 0
    if categories is None:
        categories = default_categories(num_classes, with_keypoints=form.keypoint)
    if form.box and len(categories) != num_classes:
        raise CheckpointError(
            f"{to.framework} checkpoint: it has {num_classes} classes, got {len(categories)} categories"
        )
    config = _with_parts(replace(config, categories=categories), form, to.result)
    check_shapes(to, config, hint)
    return config, to.result


def finish_one_stage_import(
    to: Translation, config: ModelConfig, num_classes: int, categories: tuple[Category, ...] | None, hint: str
) -> Checkpoint:
    """The configuration with its categories, and the weights, which fit it.

    Args:
        to: with everything translated.
        config: all but the categories.
        num_classes: K, without a background.
        categories: in label order; None = by the number of classes, see `default_categories`.
        hint: what the file may be, for messages.

    Raises:
        CheckpointError: keys are missing, left over or misshapen, or there are more or fewer categories than classes.
    """
    to.finish(hint)
    check_finite(to.result, f"{to.framework} checkpoint")
    if categories is None:
        categories = default_categories(num_classes, with_keypoints=False)
    if len(categories) != num_classes:
        raise CheckpointError(
            f"{to.framework} checkpoint: it has {num_classes} classes, got {len(categories)} categories"
        )
    config = replace(config, categories=categories)
    check_shapes(to, config, hint)
    return config, to.result


def default_categories(num_classes: int, *, with_keypoints: bool) -> tuple[Category, ...]:
    """Categories where nobody names them: COCO's where their number says so, else numbered ones.

    torchvision's COCO models count to 90 although ten of these ids are unused; the outputs stay, since they take
    part in the softmax, under torchvision's own name for them.
    """
    if num_classes == COCO_CATEGORIES[-1].id:
        names = {category.id: category.name for category in COCO_CATEGORIES}
        return tuple(Category(number, names.get(number, "N/A")) for number in range(1, num_classes + 1))
    if num_classes == len(COCO_CATEGORIES):
        return COCO_CATEGORIES
    if num_classes == 1 and with_keypoints:
        return _PERSON
    if num_classes == 0:
        return (Category(1, "object"),)  # an RPN alone knows of no classes
    return tuple(Category(number, f"class {number}") for number in range(1, num_classes + 1))


def _with_parts(config: ModelConfig, form: Architecture, result: Mapping[str, Tensor]) -> ModelConfig:
    """Which parts there are, and their sizes."""

    def width(key: str, otherwise: int) -> int:
        return len(result[key]) if key in result else otherwise

    norms: dict[bool, Literal["frozen_batch", "none"]] = {True: "frozen_batch", False: "none"}
    num_classes = len(config.categories)
    box, mask, keypoint = config.box_head, config.mask_head, config.keypoint_head
    pyramid = replace(config.pyramid, kind=form.pyramid, norm=norms[form.pyramid_norm])
    if form.pyramid == "fpn":
        pyramid = replace(pyramid, channels=width("pyramid.laterals.0.weight", pyramid.channels))
    rpn = replace(config.dense, enabled=form.rpn_convs > 0, convs=max(form.rpn_convs, 1))
    if form.box:
        box = replace(
            box,
            channels=width("regions.box.head.layers.0.bias", box.channels),
            layers=form.box_layers,
            convs=form.box_convs,
            conv_channels=width("regions.box.head.convs.0.weight", box.conv_channels),
            conv_norm=norms[form.box_norm],
            class_agnostic=len(result["regions.box.head.deltas.bias"]) == 4 and num_classes > 1,
        )
    if form.mask:
        mask = replace(
            mask,
            channels=result["regions.mask.head.predictor.weight"].shape[1],
            layers=form.mask_convs,
            class_agnostic=len(result["regions.mask.head.predictor.bias"]) == 1 and num_classes > 1,
        )
    if form.keypoint:
        count = len(result["regions.keypoints.head.deconv.bias"])
        named = config.keypoint_head.names if count == len(COCO_KEYPOINTS) else _numbered_keypoints(count)
        keypoint = replace(
            keypoint,
            channels=width("regions.keypoints.head.convs.0.weight", keypoint.channels),
            layers=form.keypoint_convs,
            names=named,
            categories=tuple(c.name for c in config.categories) if num_classes == 1 else keypoint.categories,
        )
    return replace(
        config,
        pyramid=pyramid,
        dense=rpn,
        box_head=replace(box, enabled=form.box),
        mask_head=replace(mask, enabled=form.mask),
        keypoint_head=replace(keypoint, enabled=form.keypoint),
    )


def _numbered_keypoints(count: int) -> tuple[str, ...]:
    return tuple(f"keypoint_{number}" for number in range(1, count + 1))


def check_shapes(to: Translation, config: ModelConfig, hint: str) -> None:
    """Compare with the detector that the configuration builds (on no device: only names and shapes count).

    Raises:
        CheckpointError: with the names of what is missing, left over or misshapen, and the hint.
    """
    with torch.device("meta"):
        expected = build_detector(config, load_pretrained=False).state_dict()
    names = {key: f"{to.origins.get(key, key)} {list(to.result[key].shape)}" for key in to.result}
    wrong = [
        f"{names[key]} (expected {list(value.shape)})"
        for key, value in expected.items()
        if key in to.result and to.result[key].shape != value.shape
    ]
    absent = [key for key in expected if key not in to.result]
    unknown = [names[key] for key in to.result if key not in expected]
    faults = [
        f"{len(items)} {what} ({listed(items)})"
        for items, what in (
            (wrong, "have another shape"),
            (absent, "of our parameters have no counterpart"),
            (unknown, "have no place in our detector"),
        )
        if items
    ]
    if faults:
        raise CheckpointError(f"{to.framework} checkpoint: {'; '.join(faults)}. {hint}")
