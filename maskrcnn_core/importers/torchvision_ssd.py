"""torchvision's SSD checkpoints, `ssd300_vgg16` and `ssdlite320_mobilenet_v3_large`, in our names and conventions."""

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from maskrcnn_core.config.dense import DenseConfig
from maskrcnn_core.config.dense_anchors import AnchorConfig
from maskrcnn_core.config.dense_detection import DenseDetectionConfig
from maskrcnn_core.config.dense_head import BoxCodingConfig, DenseHeadConfig
from maskrcnn_core.config.dense_loss import DenseLossConfig
from maskrcnn_core.config.heads import BoxHeadConfig, MaskHeadConfig
from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.config.pyramid import PyramidConfig
from maskrcnn_core.config.trunk import BackboneConfig
from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.importers.config_names import SourceConfig
from maskrcnn_core.importers.default_boxes import default_boxes
from maskrcnn_core.importers.finish import Checkpoint, finish_one_stage_import
from maskrcnn_core.importers.translation import Translation, start_weights

_LOGITS, _DELTAS = "head.classification_head.module_list.", "head.regression_head.module_list."
_SSD, _SSDLITE = "ssd300_vgg16", "ssdlite320_mobilenet_v3_large"
_NORM_EPS = 1e-3
# Where the fourth pool, conv5 and the convolutional head lie in our trunk.
_FOURTH_POOL, _FC6, _FC7 = 23, 31, 33
# Layers of the first of SSDLite's two parts of the trunk: up to the expansion.
_FIRST_PART = 14


def is_torchvision_ssd(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of torchvision's SSD models."""
    return any(key.startswith("backbone.extra.") for key in state) and any(key.startswith(_LOGITS) for key in state)


def import_torchvision_ssd(
    state: Mapping[str, Tensor],
    *,
    norm_eps: float | None = None,
    categories: tuple[Category, ...] | None = None,
    source_config: SourceConfig | None = None,
) -> Checkpoint:
    """Translate an SSD300 with VGG-16 or an SSDLite320 with MobileNetV3.

    Args:
        state: torchvision's state dict.
        norm_eps: epsilon of its batch norms (SSDLite); None = 0.001.
        categories: classes in the order of its labels 1 .. ; by default COCO's where it has 91 outputs, else numbered
            names.
        source_config: torchvision's name of the model.

    Raises:
        CheckpointError: keys are missing or left over, or the name is another model's.
    """
    to = start_weights("torchvision", state, r".*\.num_batches_tracked")
    lite = "backbone.scale_weight" not in to.left
    name = _SSDLITE if lite else _SSD
    if source_config is not None and source_config.name != name:
        raise CheckpointError(f"source_config: got {source_config.name!r}, but the keys are those of {name}")
    num_classes = _classes_of(to, lite=lite)
    if lite:
        config = ssdlite_conventions(reduced=_is_reduced(to))
        _translate_lite(to, _NORM_EPS if norm_eps is None else norm_eps, num_classes)
    else:
        config = ssd_conventions()
        _translate_plain(to, num_classes)
    return finish_one_stage_import(to, config, num_classes, categories, f"Is it {name}, and the file whole?")


def ssd_conventions() -> ModelConfig:
    """torchvision's `ssd300_vgg16`."""
    ratios = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
    sizes = [300 * scale for scale in (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)]
    return _conventions(
        InputConfig(
            short_side=300, fit="square", mean=(0.48235, 0.45882, 0.40784), std=(1 / 255, 1 / 255, 1 / 255), divisor=1
        ),
        BackboneConfig("vgg16_reduced", pretrained=False, frozen_stages=1),
        PyramidConfig("tail", levels=(3, 4), l2_scale=20.0),
        AnchorConfig(
            kind="priors",
            priors=default_boxes(sizes, ratios, limit=300),
            spacing=(8, 16, 32, 64, 100, 300),
            offset=0.5,
        ),
        DenseHeadConfig("levels"),
        DenseDetectionConfig(
            "softmax",
            min_score=0.01,
            max_candidates=400,
            candidates_of="class",
            nms_overlap=0.45,
            max_detections=200,
            min_size=0.0,
        ),
    )


def ssdlite_conventions(*, reduced: bool) -> ModelConfig:
    """torchvision's `ssdlite320_mobilenet_v3_large`.

    Args:
        reduced: the trunk's last layers have half their width, as without ImageNet weights.
    """
    sizes = [320 * (0.2 + 0.75 * level / 5) for level in range(6)] + [320.0]
    return _conventions(
        InputConfig(short_side=320, fit="square", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), divisor=1),
        BackboneConfig(
            "mobilenet_v3_large_reduced" if reduced else "mobilenet_v3_large_expanded",
            pretrained=False,
            frozen_stages=0,
        ),
        PyramidConfig(
            "tail",
            norm="frozen_batch",
            levels=(4, 5),
            tail_channels=(512, 256, 256, 128),
            tail_steps=("stride", "stride", "stride", "stride"),
            tail_layers="depthwise",
            tail_activation="relu6",
        ),
        AnchorConfig(
            kind="priors", priors=default_boxes(sizes, [(2, 3)] * 6, limit=320), fitted_strides=True, offset=0.5
        ),
        DenseHeadConfig("levels", norm="frozen_batch", depthwise=True),
        DenseDetectionConfig(
            "softmax",
            min_score=0.001,
            max_candidates=300,
            candidates_of="class",
            nms_overlap=0.55,
            max_detections=300,
            min_size=0.0,
        ),
    )


def _conventions(
    pixels: InputConfig,
    backbone: BackboneConfig,
    pyramid: PyramidConfig,
    anchors: AnchorConfig,
    head: DenseHeadConfig,
    detection: DenseDetectionConfig,
) -> ModelConfig:
    return ModelConfig(
        input=pixels,
        backbone=backbone,
        pyramid=pyramid,
        dense=DenseConfig(
            finds="detections",
            anchors=anchors,
            head=head,
            coding=BoxCodingConfig(weights=(10.0, 10.0, 5.0, 5.0)),
            loss=DenseLossConfig("hard_negatives"),
            detection=detection,
            positive_overlap=0.5,
            negative_overlap=0.5,
            smooth_l1_beta=1.0,
        ),
        box_head=BoxHeadConfig(enabled=False),
        mask_head=MaskHeadConfig(enabled=False),
    )


def _classes_of(to: Translation, *, lite: bool) -> int:
    """Number of classes without background: of the two predictors of a level, one has rows for each class of each
    anchor, one four for each anchor."""
    part = ".1.bias" if lite else ".bias"
    logits, deltas = to.left.get(f"{_LOGITS}0{part}"), to.left.get(f"{_DELTAS}0{part}")
    if logits is None or deltas is None or len(deltas) < 4 or len(logits) % (len(deltas) // 4) != 0:
        raise CheckpointError(
            f"torchvision checkpoint: expected predictors {_LOGITS}0{part} and {_DELTAS}0{part} with as many rows for "
            "each anchor; is the file whole?"
        )
    return len(logits) // (len(deltas) // 4) - 1


def _is_reduced(to: Translation) -> bool:
    last = to.left.get("backbone.features.1.3.0.weight")
    return last is not None and len(last) == 480


def _background_last(num_classes: int) -> Callable[[Tensor], Tensor]:
    """Of each anchor's rows the first one, background's, becomes the last."""
    return lambda rows: rows.unflatten(0, (-1, num_classes + 1)).roll(-1, 1).flatten(0, 1)


def _translate_plain(to: Translation, num_classes: int) -> None:
    to.tensor("backbone.scale_weight", "pyramid.l2_norm.weight")
    for key in _layers(to, "backbone.features."):
        to.part(key, f"trunk.features.{key.removeprefix('backbone.features.')}")
    for layer in (1, 3, 5):
        to.part(f"backbone.extra.0.{layer}", f"trunk.features.{_FOURTH_POOL + layer}")
    to.part("backbone.extra.0.7.1", f"trunk.features.{_FC6}")
    to.part("backbone.extra.0.7.3", f"trunk.features.{_FC7}")
    for step in range(4):
        to.part(f"backbone.extra.{step + 1}.0", f"pyramid.tail.{step}.reduce")
        to.part(f"backbone.extra.{step + 1}.2", f"pyramid.tail.{step}.conv")
    for level in range(6):
        to.part(f"{_LOGITS}{level}", f"dense.head.logits.{level}", _background_last(num_classes))
        to.part(f"{_DELTAS}{level}", f"dense.head.deltas.{level}")


def _translate_lite(to: Translation, norm_eps: float, num_classes: int) -> None:
    norms = [key.removesuffix(".running_mean") for key in to.left if key.endswith(".running_mean")]
    for norm in [norm for norm in norms if norm.startswith("backbone.features.")]:
        conv = f"{norm.removesuffix('.1')}.0"
        to.affine(conv, norm, _trunk_name(conv), norm_eps)
    for key in [key for key in to.left if ".fc" in key]:  # squeeze and excitation
        to.tensor(key, _trunk_name(key))
    for step in range(4):
        for layer, ours in enumerate(("reduce", "conv", "expand")):
            theirs = f"backbone.extra.{step}.{layer}"
            to.affine(f"{theirs}.0", f"{theirs}.1", f"pyramid.tail.{step}.{ours}", norm_eps)
    for level in range(6):
        for theirs, ours, change in (
            (_LOGITS, "dense.head.logits", _background_last(num_classes)),
            (_DELTAS, "dense.head.deltas", None),
        ):
            block = f"{theirs}{level}"
            to.affine(f"{block}.0.0", f"{block}.0.1", f"{ours}.{level}.depthwise", norm_eps)
            to.part(f"{block}.1", f"{ours}.{level}.pointwise", change)


def _trunk_name(key: str) -> str:
    """The two parts of SSDLite's trunk are one chain of ours."""
    part, layer, rest = re.fullmatch(r"backbone\.features\.(\d+)\.(\d+)\.(.*)", key).groups()  # type: ignore[union-attr]
    return f"trunk.features.{int(layer) + _FIRST_PART * int(part)}.{rest}"


def _layers(to: Translation, prefix: str) -> list[str]:
    """Names of the layers below a prefix."""
    return [key.removesuffix(".weight") for key in to.left if key.startswith(prefix) and key.endswith(".weight")]
