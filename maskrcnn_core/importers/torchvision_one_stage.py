"""torchvision's RetinaNet and FCOS in our names and conventions, so that they give torchvision's own numbers.

Of its class outputs number 0 stands for nothing, and is never right: it is left out.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from torch import Tensor

from maskrcnn_core.config.dense import DenseConfig
from maskrcnn_core.config.dense_anchors import AnchorConfig
from maskrcnn_core.config.dense_detection import DenseDetectionConfig
from maskrcnn_core.config.dense_head import BoxCodingConfig, DenseHeadConfig
from maskrcnn_core.config.dense_loss import DenseLossConfig
from maskrcnn_core.config.heads import BoxHeadConfig, MaskHeadConfig
from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.config.pyramid import PyramidConfig
from maskrcnn_core.config.trunk import BackboneConfig
from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.importers.architecture import read_architecture
from maskrcnn_core.importers.config_names import SourceConfig, check_source_config, likely_name
from maskrcnn_core.importers.finish import Checkpoint, finish_one_stage_import
from maskrcnn_core.importers.key_names import Numbered
from maskrcnn_core.importers.torchvision import NAMES, NORM_EPS, RELEASED_NORM_EPS, current_name
from maskrcnn_core.importers.translation import (
    Translation,
    start_translation,
    translate_pyramid,
    translate_resnet,
    translate_tower,
)

_CLASSES, _BOXES = "head.classification_head", "head.regression_head"
_LEVELS = (3, 4, 5)
_SIZES, _RATIOS, _OCTAVE_STEPS = (32.0, 64.0, 128.0, 256.0, 512.0), (0.5, 1.0, 2.0), 3
_POINT_SIDES = (8.0, 16.0, 32.0, 64.0, 128.0)


def is_torchvision_one_stage(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of torchvision's RetinaNet or FCOS."""
    return f"{_CLASSES}.cls_logits.weight" in state or f"{_BOXES}.bbox_reg.weight" in state


def import_torchvision_one_stage(
    state: Mapping[str, Tensor],
    *,
    norm_eps: float | None = None,
    categories: tuple[Category, ...] | None = None,
    source_config: SourceConfig | None = None,
) -> Checkpoint:
    """Translate a RetinaNet, first or second version, or an FCOS, with a ResNet.

    Args:
        state: torchvision's state dict, released or trained with its references.
        norm_eps: epsilon of its batch norms; None = what the keys tell: 0 where the norms of a RetinaNet are frozen, as
            in the released weights of the first version, else 1e-5.
        categories: classes in the order of its labels 1 .. ; by default COCO's where it has 91 outputs, else numbered
            names.
        source_config: torchvision's name of the model.

    Returns:
        Configuration with torchvision's conventions, and our state dict.

    Raises:
        CheckpointError: keys are missing or left over, or the name does not fit them.
    """
    counted = any(key.endswith(".num_batches_tracked") for key in state)
    fcos = f"{_BOXES}.bbox_ctrness.weight" in state
    current = (key if fcos else _current_tower_name(key) for key in map(current_name, state))
    to = start_translation(dict(zip(current, state.values(), strict=True)), NAMES)
    form = read_architecture(to.left, NAMES)
    form = replace(form, pyramid="fpn", levels=len(_LEVELS), one_stage="fcos" if fcos else "retinanet")
    check_source_config(source_config, "torchvision", form)
    if norm_eps is None:
        norm_eps = NORM_EPS if counted or fcos else RELEASED_NORM_EPS
    grouped = f"{_CLASSES}.conv.0.1.weight" in to.left
    classes = to.left.get(f"{_CLASSES}.cls_logits.bias")
    num_anchors = 1 if fcos else len(_RATIOS) * _OCTAVE_STEPS
    num_classes = 0 if classes is None else len(classes) // num_anchors - 1
    config = replace(
        fcos_conventions() if fcos else retinanet_conventions(grouped=grouped),
        backbone=BackboneConfig(name=form.network, pretrained=False, frozen_stages=2),
        pyramid=_pyramid(to),
    )
    translate_resnet(to, NAMES, form, norm_eps)
    translate_pyramid(to, NAMES, form, norm_eps)
    for i, name in enumerate(("p6", "p7")):
        to.part(f"backbone.fpn.extra_blocks.{name}", f"pyramid.coarse.{i}")
    _translate_head(to, num_classes, fcos=fcos, grouped=grouped)
    hint = f"The keys look like {likely_name('torchvision', form)}: is it that model, and the file whole?"
    if num_classes < 1:
        raise CheckpointError(f"torchvision checkpoint: {_CLASSES}.cls_logits has no class besides number 0. {hint}")
    return finish_one_stage_import(to, config, num_classes, categories, hint)


def retinanet_conventions(*, grouped: bool) -> ModelConfig:
    """Our defaults with the settings of torchvision's RetinaNet; `grouped`: its second version, with group norms."""
    return ModelConfig(
        pyramid=PyramidConfig(levels=_LEVELS, extra="p6p7_on_c5" if grouped else "p6p7_on_p5"),
        dense=DenseConfig(
            finds="detections",
            anchors=AnchorConfig(
                kind="octaves",
                sizes=_SIZES,
                ratios=_RATIOS,
                octave_steps=_OCTAVE_STEPS,
                whole_sizes=True,
                rounded=True,
                fitted_strides=True,
            ),
            head=DenseHeadConfig(kind="towers", norm="group" if grouped else "none"),
            loss=DenseLossConfig(kind="focal", divisor="image"),
            detection=DenseDetectionConfig(max_detections=300),
            convs=4,
            positive_overlap=0.5,
            negative_overlap=0.4,
            box_loss="giou" if grouped else "smooth_l1",
            smooth_l1_beta=0.0,
        ),
        box_head=BoxHeadConfig(enabled=False),
        mask_head=MaskHeadConfig(enabled=False),
    )


def fcos_conventions() -> ModelConfig:
    """Our defaults with the settings of torchvision's FCOS."""
    return ModelConfig(
        pyramid=PyramidConfig(levels=_LEVELS, extra="p6p7_on_p5"),
        dense=DenseConfig(
            finds="detections",
            anchors=AnchorConfig(sizes=_POINT_SIDES, ratios=(1.0,), rounded=True, fitted_strides=True),
            head=DenseHeadConfig(kind="towers", norm="group", norm_bias=True, objectness=True),
            coding=BoxCodingConfig(kind="edges"),
            loss=DenseLossConfig(kind="points"),
            detection=DenseDetectionConfig(score_from="centreness", min_score=0.2, nms_overlap=0.6),
            convs=4,
            box_loss="giou",
        ),
        box_head=BoxHeadConfig(enabled=False),
        mask_head=MaskHeadConfig(enabled=False),
    )


def _translate_head(to: Translation, num_classes: int, *, fcos: bool, grouped: bool) -> None:
    """Towers and predictors, without the class that stands for nothing."""
    for theirs, ours in ((_CLASSES, "class"), (_BOXES, "box")):
        convs = Numbered(f"{theirs}.conv.", step=3) if fcos else Numbered(f"{theirs}.conv.", ".0")
        norms = Numbered(f"{theirs}.conv.", start=1, step=3) if fcos else Numbered(f"{theirs}.conv.", ".1")
        translate_tower(to, convs, norms if fcos or grouped else None, f"dense.head.{ours}_convs")
    sizes = 1 if fcos else _OCTAVE_STEPS

    def classes(x: Tensor) -> Tensor:
        return _by_size(x, sizes, num_classes + 1)[:, 1:].flatten(0, 1)

    to.part(f"{_CLASSES}.cls_logits", "dense.head.logits", classes)
    to.part(f"{_BOXES}.bbox_reg", "dense.head.deltas", lambda x: _by_size(x, sizes, 4).flatten(0, 1))
    if fcos:
        to.part(f"{_BOXES}.bbox_ctrness", "dense.head.objectness")


def _current_tower_name(key: str) -> str:
    """Names of RetinaNet's towers before torchvision 0.13 -> names of today."""
    return re.sub(
        r"^(head\.(?:classification|regression)_head\.conv)\.(\d)\.(weight|bias)$",
        lambda m: f"{m[1]}.{int(m[2]) // 2}.0.{m[3]}",
        key,
    )


def _pyramid(to: Translation) -> PyramidConfig:
    """P6 has the width of what it is made from: of a level, or of the trunk's map."""
    lateral = to.left.get(f"{NAMES.laterals(0)}{NAMES.conv}.weight")
    p6 = to.left.get("backbone.fpn.extra_blocks.p6.weight")
    channels = 256 if lateral is None else len(lateral)
    on_p5 = p6 is None or p6.ndim < 2 or p6.shape[1] == channels
    extra: Literal["p6p7_on_p5", "p6p7_on_c5"] = "p6p7_on_p5" if on_p5 else "p6p7_on_c5"
    return PyramidConfig(channels=channels, levels=_LEVELS, extra=extra)


def _by_size(x: Tensor, sizes: int, width: int) -> Tensor:
    """Rows [A * width, ...] of anchors by ratio, then by size -> [A, width, ...] by size, then by ratio."""
    rows: Tensor = x.unflatten(0, (-1, sizes, width)).transpose(0, 1)
    return rows.flatten(0, 1)
