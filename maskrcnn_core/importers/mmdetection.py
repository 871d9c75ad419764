"""mmdetection's Mask and Faster R-CNN checkpoints in our names and conventions, so that they give its own numbers.

Its usual models ("pytorch style") take RGB pixels and have their strides in the 3x3 convolutions. Those in "caffe
style" descend from the same weights as detectron2's; the keys do not tell, so their configuration must be named.
"""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from maskrcnn_core.config.dense import DenseConfig
from maskrcnn_core.config.dense_anchors import AnchorConfig
from maskrcnn_core.config.heads import BoxHeadConfig, MaskHeadConfig
from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.config.regions import RegionsConfig
from maskrcnn_core.config.trunk import BackboneConfig
from maskrcnn_core.importers.architecture import Architecture, read_architecture
from maskrcnn_core.importers.config_names import SourceConfig, check_source_config, likely_name
from maskrcnn_core.importers.detectron2 import PIXEL_MEAN, PIXEL_STD_CAFFE, PIXEL_STD_RESNEXT
from maskrcnn_core.importers.finish import Checkpoint, finish_import
from maskrcnn_core.importers.key_names import KeyNames, Numbered
from maskrcnn_core.importers.translation import (
    refuse_other_norms,
    start_translation,
    translate_heads,
    translate_pyramid,
    translate_resnet,
    translate_rpn,
)

_PIXEL_MEAN_RGB = (123.675, 116.28, 103.53)
_PIXEL_STD_RGB = (58.395, 57.12, 57.375)
_NORM_EPS = 1e-5
# Its rule is "longer than 0", where ours is "at least".
_MIN_SIZE = 1e-6

_NAMES = KeyNames(
    framework="mmdetection",
    stem="backbone.conv1",
    stem_norm="backbone.bn1",
    stages=("backbone.layer1", "backbone.layer2", "backbone.layer3", "backbone.layer4"),
    block_conv=Numbered("conv", start=1),
    block_norm=Numbered("bn", start=1),
    shortcut="downsample.0",
    shortcut_norm="downsample.1",
    conv=".conv",
    norm=".bn",
    laterals=Numbered("neck.lateral_convs."),
    outputs=Numbered("neck.fpn_convs."),
    rpn_conv="rpn_head.rpn_conv",
    rpn_convs=Numbered("rpn_head.rpn_conv."),
    objectness="rpn_head.rpn_cls",
    anchor_deltas="rpn_head.rpn_reg",
    box_convs=Numbered("roi_head.bbox_head.shared_convs."),
    box_layers=Numbered("roi_head.bbox_head.shared_fcs."),
    classes="roi_head.bbox_head.fc_cls",
    box_deltas="roi_head.bbox_head.fc_reg",
    mask_convs=Numbered("roi_head.mask_head.convs."),
    mask_deconv="roi_head.mask_head.upsample",
    mask_predictor="roi_head.mask_head.conv_logits",
    keypoint_convs=None,
    keypoint_deconv="roi_head.keypoint_head.upsample",
    ignored=r"data_preprocessor\..*|.*\.num_batches_tracked",
)


def is_mmdetection(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of mmdetection's R-CNN models with a ResNet (from its version 2 on)."""
    return any(key.startswith("backbone.") for key in state) and any(
        key.startswith(("neck.", "roi_head.", "rpn_head.rpn_")) for key in state
    )


def import_mmdetection(
    state: Mapping[str, Tensor],
    *,
    norm_eps: float | None = None,
    categories: tuple[Category, ...] | None = None,
    source_config: SourceConfig | None = None,
) -> Checkpoint:
    """Translate a Mask or Faster R-CNN with a ResNet and FPN.

    Args:
        state: mmdetection's state dict.
        norm_eps: epsilon of its batch norms; None = its 1e-5.
        categories: classes in the order of its labels; by default COCO's where there are 80, else numbered names.
        source_config: mmdetection's configuration; says whether the weights are in Caffe style.

    Returns:
        Configuration with mmdetection's conventions, and our state dict.

    Raises:
        CheckpointError: keys are missing or left over, norms are group norms, or the name does not fit the keys.
    """
    to = start_translation(state, _NAMES)
    form = read_architecture(to.left, _NAMES)
    form = replace(form, pyramid="fpn", levels=max(form.levels, 4))
    check_source_config(source_config, "mmdetection", form)
    refuse_other_norms(to.left, _NAMES, form)
    norm_eps = _NORM_EPS if norm_eps is None else norm_eps
    config = mmdetection_conventions(form, caffe=source_config is not None and source_config.caffe)
    translate_resnet(to, _NAMES, form, norm_eps)
    translate_pyramid(to, _NAMES, form, norm_eps)
    translate_rpn(to, _NAMES, form)
    translate_heads(
        to, _NAMES, form, norm_eps=norm_eps, box_resolution=config.regions.box_resolution, background_first=False
    )
    hint = f"The keys look like {likely_name('mmdetection', form)}: is it that model, and the file whole?"
    return finish_import(to, config, form, categories, hint)


def mmdetection_conventions(form: Architecture, *, caffe: bool) -> ModelConfig:
    """Our defaults with the settings in which mmdetection's models differ from them (its
    `_base_/models/mask-rcnn_r50_fpn.py`)."""
    return ModelConfig(
        input=_input(form.network, caffe=caffe),
        backbone=BackboneConfig(name=form.network, pretrained=False, frozen_stages=2, stride_in_1x1=caffe),
        dense=DenseConfig(anchors=AnchorConfig(), min_size=_MIN_SIZE, smooth_l1_beta=0.0),
        regions=RegionsConfig(sampling_ratio=0, aligned=True),
        box_head=BoxHeadConfig(smooth_l1_beta=0.0, min_size=_MIN_SIZE),
        mask_head=MaskHeadConfig(paste="exact", soft_targets=False),
    )


def _input(network: str, *, caffe: bool) -> InputConfig:
    """Its images are resized bilinearly without antialiasing (OpenCV), to sizes rounded to the nearest."""
    if caffe:
        return InputConfig(mean=PIXEL_MEAN, std=PIXEL_STD_CAFFE, channels="bgr", scale="byte", resize="float_nearest")
    if network == "resnext101_32x8d":  # from detectron2's weights
        return InputConfig(mean=PIXEL_MEAN, std=PIXEL_STD_RESNEXT, channels="bgr", scale="byte", resize="float_nearest")
    return InputConfig(mean=_PIXEL_MEAN_RGB, std=_PIXEL_STD_RGB, scale="byte", resize="float_nearest")
