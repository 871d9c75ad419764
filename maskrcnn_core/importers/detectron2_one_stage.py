"""detectron2's RetinaNet in our names and conventions, so that it gives detectron2's own numbers."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from maskrcnn_core.config.dense import DenseConfig
from maskrcnn_core.config.dense_anchors import AnchorConfig
from maskrcnn_core.config.dense_detection import DenseDetectionConfig
from maskrcnn_core.config.dense_head import DenseHeadConfig
from maskrcnn_core.config.dense_loss import DenseLossConfig
from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.config.pyramid import PyramidConfig
from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.importers.architecture import Architecture, read_architecture
from maskrcnn_core.importers.config_names import SourceConfig, check_source_config, likely_name
from maskrcnn_core.importers.detectron2 import NAMES, NORM_EPS, detectron2_conventions, with_stored_pixels
from maskrcnn_core.importers.finish import Checkpoint, finish_one_stage_import
from maskrcnn_core.importers.key_names import Numbered
from maskrcnn_core.importers.translation import (
    refuse_other_norms,
    start_translation,
    translate_pyramid,
    translate_resnet,
    translate_tower,
)
from maskrcnn_core.model.dense.focal_loss import FIRST_AVERAGE

_NAMES = replace(
    NAMES, laterals=Numbered("backbone.fpn_lateral", start=3), outputs=Numbered("backbone.fpn_output", start=3)
)
_LEVELS = (3, 4, 5)
_RATIOS, _OCTAVE_STEPS = (0.5, 1.0, 2.0), 3
_NUM_ANCHORS = len(_RATIOS) * _OCTAVE_STEPS
# Its rule is "longer than 0", where ours is "at least".
_MIN_SIZE = 1e-6


def is_detectron2_one_stage(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of detectron2's RetinaNet."""
    return any(key.startswith(("head.cls_subnet.", "head.bbox_subnet.")) for key in state)


def import_detectron2_one_stage(
    state: Mapping[str, Tensor],
    *,
    norm_eps: float | None = None,
    categories: tuple[Category, ...] | None = None,
    source_config: SourceConfig | None = None,
) -> Checkpoint:
    """Translate a RetinaNet with a ResNet.

    Args:
        state: detectron2's state dict.
        norm_eps: epsilon of its batch norms; None = detectron2's 1e-5.
        categories: classes in the order of its labels; by default COCO's where there are 80, else numbered names.
        source_config: detectron2's configuration, which is checked.

    Returns:
        Configuration with detectron2's conventions, and our state dict.

    Raises:
        CheckpointError: keys are missing or left over, norms are group norms, or the name does not fit the keys.
    """
    to = start_translation(state, _NAMES)
    form = replace(read_architecture(to.left, _NAMES), pyramid="fpn", levels=len(_LEVELS), one_stage="retinanet")
    check_source_config(source_config, "detectron2", form)
    refuse_other_norms(to.left, _NAMES, form)
    norm_eps = NORM_EPS if norm_eps is None else norm_eps
    classes = to.left.get("head.cls_score.bias")
    num_classes = 0 if classes is None else len(classes) // _NUM_ANCHORS
    num_convs = Numbered("head.cls_subnet.", step=2).count(to.left)
    config = with_stored_pixels(retinanet_conventions(form, num_convs), state)
    translate_resnet(to, _NAMES, form, norm_eps)
    translate_pyramid(to, _NAMES, form, norm_eps)
    for i, name in enumerate(("p6", "p7")):
        to.part(f"backbone.top_block.{name}", f"pyramid.coarse.{i}")
    for theirs, ours in (("cls_subnet", "class_convs"), ("bbox_subnet", "box_convs")):
        translate_tower(to, Numbered(f"head.{theirs}.", step=2), None, f"dense.head.{ours}")
    to.part("head.cls_score", "dense.head.logits")
    to.part("head.bbox_pred", "dense.head.deltas")
    hint = f"The keys look like {likely_name('detectron2', form)}: is it that model, and the file whole?"
    if num_classes < 1:
        raise CheckpointError(f"detectron2 checkpoint: head.cls_score has no class. {hint}")
    # The moving averages that its losses are divided by are in no file: they begin anew.
    to.result["dense.loss.averages"] = torch.full((2,), FIRST_AVERAGE)
    return finish_one_stage_import(to, config, num_classes, categories, hint)


def retinanet_conventions(form: Architecture, num_convs: int) -> ModelConfig:
    """Our defaults with the settings of detectron2's RetinaNet (its Base-RetinaNet.yaml and config/defaults.py).

    Args:
        num_convs: of each tower.
    """
    config = detectron2_conventions(form)
    return replace(
        config,
        pyramid=PyramidConfig(levels=_LEVELS, extra="p6p7_on_c5"),
        dense=DenseConfig(
            finds="detections",
            anchors=AnchorConfig(kind="octaves", ratios=_RATIOS, octave_steps=_OCTAVE_STEPS),
            head=DenseHeadConfig(kind="towers"),
            loss=DenseLossConfig(kind="focal", divisor="average"),
            detection=DenseDetectionConfig(min_size=_MIN_SIZE),
            convs=max(num_convs, 1),
            positive_overlap=0.5,
            negative_overlap=0.4,
            smooth_l1_beta=0.1,
        ),
        box_head=replace(config.box_head, enabled=False),
        mask_head=replace(config.mask_head, enabled=False),
    )
