"""torchvision's detection checkpoints in our names and conventions, so that they give torchvision's own numbers."""

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from maskrcnn_core.config import (
    AnchorConfig,
    BackboneConfig,
    Category,
    MaskHeadConfig,
    ModelConfig,
    RoIConfig,
    RPNConfig,
)
from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.weights.coco_categories import COCO_CATEGORIES

# Released COCO weights were trained with batch norms of this epsilon (torchvision's overwrite_eps); the
# models' own constructor default is 1e-5, which only randomly initialised ones keep.
RELEASED_NORM_EPS = 0.0

_BODY = "backbone.body."
_STEM = {"conv1": "0", "bn1": "1"}
_BOX_RESOLUTION = 7


def is_torchvision_mask_rcnn(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of torchvision's Mask R-CNN with a ResNet-FPN trunk."""
    return f"{_BODY}conv1.weight" in state and "roi_heads.mask_predictor.mask_fcn_logits.weight" in state


def import_torchvision(
    state: Mapping[str, Tensor], *, norm_eps: float = RELEASED_NORM_EPS, categories: tuple[Category, ...] | None = None
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Translate a `maskrcnn_resnet50_fpn` state dict (or the same with another ResNet).

    Args:
        state: torchvision's state dict, released or trained with its references.
        norm_eps: epsilon of its frozen batch norms.
        categories: classes in the order of its labels 1 .. ; by default COCO's where it has 91 outputs, else
            numbered names.

    Returns:
        Configuration with torchvision's conventions, and our state dict.

    Raises:
        CheckpointError: keys are missing or left over.
    """
    remaining = {_current_name(key): value.float() for key, value in state.items() if "num_batches_tracked" not in key}
    source = _Source(remaining)
    name, result = _trunk(source, norm_eps)
    for i in range(4):
        source.move(f"backbone.fpn.inner_blocks.{i}.0", f"fpn.laterals.{i}", result)
        source.move(f"backbone.fpn.layer_blocks.{i}.0", f"fpn.outputs.{i}", result)
    source.move("rpn.head.conv.0.0", "rpn_head.convs.0", result)
    source.move("rpn.head.cls_logits", "rpn_head.objectness", result)
    source.move("rpn.head.bbox_pred", "rpn_head.deltas", result)
    source.move("roi_heads.box_head.fc6", "box_head.layers.0", result)
    source.move("roi_heads.box_head.fc7", "box_head.layers.1", result)
    result["box_head.layers.0.weight"] = _channels_last_columns(result["box_head.layers.0.weight"], _BOX_RESOLUTION)
    for i in range(4):
        source.move(f"roi_heads.mask_head.{i}.0", f"mask_head.convs.{i}", result)
    source.move("roi_heads.mask_predictor.conv5_mask", "mask_head.deconv", result)
    _move_predictors(source, result)
    source.finish()
    num_classes = len(result["box_head.classes.bias"]) - 1
    if categories is None:
        categories = _default_categories(num_classes)
    if len(categories) != num_classes:
        raise CheckpointError(f"torchvision checkpoint: it has {num_classes} classes, got {len(categories)} categories")
    backbone = BackboneConfig(name=name, pretrained=False, frozen_stages=2)
    return torchvision_conventions(ModelConfig(backbone=backbone, categories=categories)), result


def torchvision_conventions(config: ModelConfig) -> ModelConfig:
    """The configuration with the settings in which torchvision's R-CNN models differ from our defaults."""
    return replace(
        config,
        anchors=AnchorConfig(rounded=True, fitted_strides=True),
        rpn=RPNConfig(post_nms_train=2000),
        roi=RoIConfig(aligned=False),
        mask_head=MaskHeadConfig(paste="torchvision"),
    )


class _Source:
    """The keys that are still to be translated."""

    def __init__(self, remaining: dict[str, Tensor]) -> None:
        self.remaining = remaining

    def take(self, key: str) -> Tensor:
        if key not in self.remaining:
            raise CheckpointError(
                f"torchvision checkpoint: {key} is missing, expected the state dict of maskrcnn_resnet50_fpn"
            )
        return self.remaining.pop(key)

    def move(self, old: str, new: str, result: dict[str, Tensor]) -> None:
        for part in ("weight", "bias"):
            result[f"{new}.{part}"] = self.take(f"{old}.{part}")

    def finish(self) -> None:
        if self.remaining:
            names = ", ".join(sorted(self.remaining)[:5])
            raise CheckpointError(
                f"torchvision checkpoint: {len(self.remaining)} keys are left over ({names}); "
                "expected the state dict of maskrcnn_resnet50_fpn"
            )


def _current_name(key: str) -> str:
    """Names before torchvision 0.13 -> names of today."""
    key = re.sub(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$", r"\1.0.\2", key)
    key = re.sub(r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1", key)
    return re.sub(
        r"^roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)$",
        lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0.{m[2]}",
        key,
    )


def _trunk(source: _Source, norm_eps: float) -> tuple[str, dict[str, Tensor]]:
    """Pairs of convolution and batch norm -> weight with scale and shift; also which ResNet it is."""
    result: dict[str, Tensor] = {}
    convs = [key for key, value in source.remaining.items() if key.startswith(_BODY) and value.dim() == 4]
    for key in convs:
        path = key.removeprefix(_BODY).removesuffix(".weight")
        norm = _norm_of(path)
        gamma, beta, mean, variance = (
            source.take(f"{_BODY}{norm}.{part}") for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma * (variance + norm_eps).rsqrt()
        ours = _trunk_path(path)
        result[f"{ours}.weight"] = source.take(key)
        result[f"{ours}.scale"] = scale
        result[f"{ours}.shift"] = beta - mean * scale
    return _resnet_name(result), result


def _norm_of(conv: str) -> str:
    if conv.endswith("downsample.0"):
        return conv.removesuffix("0") + "1"
    head, _, name = conv.rpartition(".")
    norm = name.replace("conv", "bn")
    return f"{head}.{norm}" if head else norm


def _trunk_path(path: str) -> str:
    if path in _STEM:
        return f"trunk.stem.{_STEM[path]}"
    return re.sub(r"^layer(\d)", lambda m: f"trunk.stages.{int(m[1]) - 1}", path)


def _resnet_name(trunk: Mapping[str, Tensor]) -> str:
    blocks = len({key.split(".")[3] for key in trunk if key.startswith("trunk.stages.2.")})
    bottleneck = "trunk.stages.0.0.conv3.weight" in trunk
    grouped = (
        bottleneck
        and trunk["trunk.stages.0.0.conv2.weight"].shape[1] != trunk["trunk.stages.0.0.conv2.weight"].shape[0]
    )
    name = {
        (2, False, False): "resnet18",
        (6, False, False): "resnet34",
        (6, True, False): "resnet50",
        (23, True, False): "resnet101",
        (6, True, True): "resnext50_32x4d",
        (23, True, True): "resnext101_32x8d",
    }.get((blocks, bottleneck, grouped))
    if name is None:
        raise CheckpointError(f"torchvision checkpoint: no ResNet is known with {blocks} blocks in layer3")
    return name


def _channels_last_columns(weight: Tensor, resolution: int) -> Tensor:
    """Columns from (channel, row, column) to (row, column, channel) order."""
    return weight.view(len(weight), -1, resolution, resolution).permute(0, 2, 3, 1).flatten(1).contiguous()


def _default_categories(num_classes: int) -> tuple[Category, ...]:
    """Names for labels 1 .. num_classes, whose numbers are the category ids.

    torchvision's COCO models count to 90 although ten of these ids are unused; the outputs stay, since they take
    part in the softmax, under torchvision's own name for them.
    """
    if num_classes == COCO_CATEGORIES[-1].id:
        names = {category.id: category.name for category in COCO_CATEGORIES}
        return tuple(Category(number, names.get(number, "N/A")) for number in range(1, num_classes + 1))
    return tuple(Category(number, f"class {number}") for number in range(1, num_classes + 1))


def _move_predictors(source: _Source, result: dict[str, Tensor]) -> None:
    """Background, torchvision's row 0: to the end among the classes, dropped from boxes and masks."""
    for part in ("weight", "bias"):
        result[f"box_head.classes.{part}"] = source.take(f"roi_heads.box_predictor.cls_score.{part}").roll(-1, 0)
        result[f"box_head.deltas.{part}"] = source.take(f"roi_heads.box_predictor.bbox_pred.{part}")[4:]
        result[f"mask_head.predictor.{part}"] = source.take(f"roi_heads.mask_predictor.mask_fcn_logits.{part}")[1:]
