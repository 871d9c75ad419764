"""torchvision's detection checkpoints in our names and conventions, so that they give torchvision's own numbers."""

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from maskrcnn_core.config.dense import DenseConfig
from maskrcnn_core.config.dense_anchors import AnchorConfig
from maskrcnn_core.config.heads import KeypointHeadConfig, MaskHeadConfig
from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.config.pyramid import PyramidConfig
from maskrcnn_core.config.regions import RegionsConfig
from maskrcnn_core.config.trunk import BackboneConfig
from maskrcnn_core.importers.architecture import Architecture, read_architecture
from maskrcnn_core.importers.config_names import SourceConfig, check_source_config, likely_name
from maskrcnn_core.importers.finish import Checkpoint, finish_import
from maskrcnn_core.importers.key_names import KeyNames, Numbered
from maskrcnn_core.importers.translation import (
    Translation,
    start_translation,
    translate_heads,
    translate_pyramid,
    translate_resnet,
    translate_rpn,
)

# The weights that torchvision released for its first ResNet detectors were trained with batch norms of this epsilon
# (its overwrite_eps); all of its other models, and a model trained with its references, have the second one.
RELEASED_NORM_EPS = 0.0
NORM_EPS = 1e-5

_BODY = "backbone.body."
_MOBILENET = "mobilenet_v3_large_torchvision"
_MOBILENET_LEVELS = (4, 5)
_RESNET_LEVELS = (2, 3, 4, 5)
_ANCHOR_SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)

NAMES = KeyNames(
    framework="torchvision",
    stem=f"{_BODY}conv1",
    stem_norm=f"{_BODY}bn1",
    stages=(f"{_BODY}layer1", f"{_BODY}layer2", f"{_BODY}layer3", f"{_BODY}layer4"),
    block_conv=Numbered("conv", start=1),
    block_norm=Numbered("bn", start=1),
    shortcut="downsample.0",
    shortcut_norm="downsample.1",
    conv=".0",
    norm=".1",
    laterals=Numbered("backbone.fpn.inner_blocks."),
    outputs=Numbered("backbone.fpn.layer_blocks."),
    rpn_conv=None,
    rpn_convs=Numbered("rpn.head.conv."),
    objectness="rpn.head.cls_logits",
    anchor_deltas="rpn.head.bbox_pred",
    box_convs=Numbered("roi_heads.box_head."),
    box_layers=Numbered("roi_heads.box_head.fc", start=6),
    classes="roi_heads.box_predictor.cls_score",
    box_deltas="roi_heads.box_predictor.bbox_pred",
    mask_convs=Numbered("roi_heads.mask_head."),
    mask_deconv="roi_heads.mask_predictor.conv5_mask",
    mask_predictor="roi_heads.mask_predictor.mask_fcn_logits",
    keypoint_convs=Numbered("roi_heads.keypoint_head.", step=2),
    keypoint_deconv="roi_heads.keypoint_predictor.kps_score_lowres",
    ignored=r".*\.num_batches_tracked",
)
"""torchvision's names; its one-stage detectors have trunk and pyramid in common with the others."""


def is_torchvision(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of torchvision's R-CNN models."""
    return any(key.startswith(_BODY) for key in state) and any(key.startswith("rpn.head.") for key in state)


def import_torchvision(
    state: Mapping[str, Tensor],
    *,
    norm_eps: float | None = None,
    categories: tuple[Category, ...] | None = None,
    source_config: SourceConfig | None = None,
) -> Checkpoint:
    """Translate a Faster, Mask or Keypoint R-CNN with a ResNet or MobileNetV3 and FPN, first or second version.

    Args:
        state: torchvision's state dict, released or trained with its references.
        norm_eps: epsilon of its batch norms; None = what the keys tell: 0 where a ResNet's norms are frozen, as in the
            released weights of the first version, else 1e-5.
        categories: classes in the order of its labels 1 .. ; by default COCO's where it has 91 outputs, person where it
            has keypoints and 2 outputs, else numbered names.
        source_config: torchvision's name of the model.

    Returns:
        Configuration with torchvision's conventions, and our state dict.

    Raises:
        CheckpointError: keys are missing or left over, or the name does not fit them.
    """
    counted = any(key.endswith(".num_batches_tracked") for key in state)
    to = start_translation({current_name(key): value for key, value in state.items()}, NAMES)
    mobile = f"{_BODY}0.0.weight" in to.left
    names = _with_box_layers(to)
    form = read_architecture(to.left, names, _MOBILENET if mobile else None)
    form = replace(form, pyramid="fpn", levels=len(_MOBILENET_LEVELS if mobile else _RESNET_LEVELS))
    check_source_config(source_config, "torchvision", form)
    if norm_eps is None:
        norm_eps = NORM_EPS if counted or mobile else RELEASED_NORM_EPS
    if mobile:
        _translate_mobilenet(to, norm_eps)
    else:
        translate_resnet(to, names, form, norm_eps)
    translate_pyramid(to, names, form, norm_eps)
    translate_rpn(to, names, form, ratio_major_sizes=len(_ANCHOR_SIZES) if mobile else 1)
    config = torchvision_conventions(form)
    translate_heads(
        to, names, form, norm_eps=norm_eps, box_resolution=config.regions.box_resolution, background_first=True
    )
    if source_config is not None and "_320_" in source_config.name:
        config = _small_input(config)
    hint = f"The keys look like {likely_name('torchvision', form)}: is it that model, and the file whole?"
    return finish_import(to, config, form, categories, hint)


def torchvision_conventions(form: Architecture) -> ModelConfig:
    """Our defaults with the settings in which torchvision's R-CNN models differ from them."""
    mobile = form.network == _MOBILENET
    return ModelConfig(
        backbone=BackboneConfig(name=form.network, pretrained=False, frozen_stages=2),
        pyramid=PyramidConfig(levels=_MOBILENET_LEVELS if mobile else _RESNET_LEVELS),
        dense=DenseConfig(
            anchors=AnchorConfig(sizes=_ANCHOR_SIZES, rounded=True, fitted_strides=True, every_level=mobile),
            post_nms_train=2000,
            min_score=0.05 if mobile else 0.0,
        ),
        regions=RegionsConfig(aligned=False),
        mask_head=MaskHeadConfig(paste="torchvision"),
        keypoint_head=KeypointHeadConfig(decode="torchvision"),
    )


def _small_input(config: ModelConfig) -> ModelConfig:
    """`fasterrcnn_mobilenet_v3_large_320_fpn`, whose weights have the same form."""
    return replace(
        config,
        input=InputConfig(short_side=320, long_side=640),
        dense=replace(config.dense, pre_nms_test=150, post_nms_test=150),
    )


def current_name(key: str) -> str:
    """Names before torchvision 0.13 -> names of today."""
    key = re.sub(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$", r"\1.0.\2", key)
    key = re.sub(r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1", key)
    return re.sub(
        r"^roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)$",
        lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0.{m[2]}",
        key,
    )


def _with_box_layers(to: Translation) -> KeyNames:
    """The second version's box head counts its fully connected layers on after the convolutions and a flattening."""
    convs = NAMES.box_convs.count(to.left, NAMES.conv)
    if convs == 0:
        return NAMES
    return replace(NAMES, box_layers=Numbered("roi_heads.box_head.", start=convs + 1, step=2))


def _translate_mobilenet(to: Translation, norm_eps: float) -> None:
    """`features` in the same order and with the same names as ours, each convolution with its norm behind it."""
    for key in [key for key in to.left if key.startswith(_BODY) and key.endswith(".running_mean")]:
        norm = key.removesuffix(".running_mean")
        conv = f"{norm.removesuffix('.1')}.0"
        to.affine(conv, norm, f"trunk.features.{conv.removeprefix(_BODY)}", norm_eps)
    for key in [key for key in to.left if key.startswith(_BODY) and ".fc" in key]:  # squeeze and excitation
        to.tensor(key, f"trunk.features.{key.removeprefix(_BODY)}")
