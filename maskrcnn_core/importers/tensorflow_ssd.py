"""TensorFlow's SSD with MobileNetV2 (Object Detection API, `ssd_mobilenet_v2_coco`) in our names and conventions.

Of the frozen graph its constants are read: weights by their path, and the epsilon of each batch norm. Background has
row 0 of each anchor's classes; each class has a sigmoid, so that this row is left out. Boxes are written y, x, h, w.
"""

import math
import re
from collections.abc import Mapping
from itertools import pairwise

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
from maskrcnn_core.importers.finish import Checkpoint, finish_one_stage_import
from maskrcnn_core.importers.translation import Translation, start_weights

_TRUNK = "FeatureExtractor/MobilenetV2/"
_EPSILON = "BatchNorm/batchnorm/add/y"
_NORM_PARTS = ("gamma", "beta", "moving_mean", "moving_variance")
_IGNORED = re.compile(r"(?!FeatureExtractor/MobilenetV2/|BoxPredictor_\d+/).*")
_WEIGHTS = re.compile(r".*/(weights|depthwise_weights|biases|gamma|beta|moving_mean|moving_variance)|.*/add/y")
_SIDE, _LEVELS = 300, 6
# Blocks of the trunk whose 3x3 convolution has stride 2, where TensorFlow's padding goes before it.
_STRIDED = (0, 1, 3, 6, 13)
_CUT = 13
"""The block whose expansion is the first level."""


def is_tensorflow_ssd(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of an SSD of the Object Detection API with MobileNetV2."""
    return "BoxPredictor_0/ClassPredictor/weights" in state and f"{_TRUNK}Conv/weights" in state


def import_tensorflow_ssd(
    state: Mapping[str, Tensor],
    *,
    norm_eps: float | None = None,
    categories: tuple[Category, ...] | None = None,
    source_config: SourceConfig | None = None,
) -> Checkpoint:
    """Translate the constants of a frozen graph.

    Args:
        state: all constants by the names of their nodes.
        norm_eps: epsilon of its batch norms; None = the graph's own.
        categories: classes in the order of its labels 1 .. ; by default COCO's 90 ids where it has so many, else
            numbered names.
        source_config: of other frameworks.

    Raises:
        CheckpointError: constants are missing, or have other shapes than this model's.
    """
    if source_config is not None:
        raise CheckpointError(
            f"source_config: got {source_config.name!r}, but a frozen graph of TensorFlow says what it is itself"
        )
    weights = {key: tensor for key, tensor in state.items() if not _IGNORED.fullmatch(key) and _WEIGHTS.fullmatch(key)}
    to = start_weights("TensorFlow", weights, r"")
    num_classes = _num_classes(to)
    # Convolution by convolution: our name of each, and its path in the graph.
    _conv(to, f"{_TRUNK}Conv", "trunk.features.0.0.1", norm_eps)
    for block in range(17):
        _block(to, block, norm_eps)
    _conv(to, f"{_TRUNK}Conv_1", "trunk.features.19.0", norm_eps)
    for step, width in enumerate((512, 256, 256, 128)):
        narrow = f"{_TRUNK}layer_19_1_Conv2d_{step + 2}_1x1_{width // 2}"
        wide = f"{_TRUNK}layer_19_2_Conv2d_{step + 2}_3x3_s2_{width}"
        _conv(to, narrow, f"pyramid.tail.{step}.reduce", norm_eps)
        _conv(to, f"{wide}_depthwise", f"pyramid.tail.{step}.conv", norm_eps, depthwise=True)
        _conv(to, wide, f"pyramid.tail.{step}.expand", norm_eps)
    for level in range(_LEVELS):
        _predictors(to, level, num_classes)
    hint = "Is it ssd_mobilenet_v2 of the Object Detection API, and the file whole?"
    return finish_one_stage_import(to, tensorflow_ssd_conventions(), num_classes, categories, hint)


def tensorflow_ssd_conventions() -> ModelConfig:
    """`ssd_mobilenet_v2_coco_2018_03_29`."""
    return ModelConfig(
        input=InputConfig(
            short_side=_SIDE, long_side=_SIDE, fit="square", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), divisor=1
        ),
        backbone=BackboneConfig("mobilenet_v2_expanded", pretrained=False, frozen_stages=0, padding="tensorflow"),
        pyramid=PyramidConfig(
            "tail",
            norm="frozen_batch",
            levels=(4, 5),
            tail_channels=(512, 256, 256, 128),
            tail_steps=("stride",) * 4,
            tail_layers="depthwise",
            tail_activation="relu6",
        ),
        dense=DenseConfig(
            finds="detections",
            anchors=AnchorConfig(kind="priors", priors=_priors(), fitted_strides=True, offset=0.5),
            head=DenseHeadConfig("levels"),
            coding=BoxCodingConfig(weights=(10.0, 10.0, 5.0, 5.0)),
            loss=DenseLossConfig("focal", divisor="batch"),
            detection=DenseDetectionConfig(
                "sigmoid",
                min_score=0.001,
                max_candidates=100,
                candidates_of="class",
                nms_overlap=0.6,
                max_detections=100,
                min_size=0.0,
            ),
            positive_overlap=0.5,
            negative_overlap=0.5,
            smooth_l1_beta=1.0,
        ),
        box_head=BoxHeadConfig(enabled=False),
        mask_head=MaskHeadConfig(enabled=False),
    )


def _priors() -> tuple[tuple[tuple[float, float], ...], ...]:
    """Three boxes of the lowest level, six of the others: scales .2 to .95, then the mean with the next one's."""
    scales = [0.2 + 0.15 * level for level in range(_LEVELS)] + [1.0]
    levels: list[tuple[tuple[float, float], ...]] = [((0.1, 1.0), (0.2, 2.0), (0.2, 0.5))]
    for scale, following in pairwise(scales[1:]):
        ratios = ((scale, ratio) for ratio in (1.0, 2.0, 0.5, 3.0, 0.3333))
        levels.append((*ratios, (math.sqrt(scale * following), 1.0)))
    return tuple(
        tuple((_SIDE * scale * math.sqrt(ratio), _SIDE * scale / math.sqrt(ratio)) for scale, ratio in level)
        for level in levels
    )


def _num_classes(to: Translation) -> int:
    """Without background: of the two predictors of the lowest level, one has 91 rows for each anchor, one four."""
    names = ("ClassPredictor", "BoxEncodingPredictor")
    logits, deltas = (to.left.get(f"BoxPredictor_0/{name}/biases") for name in names)
    if logits is None or deltas is None or len(deltas) != 12 or len(logits) % 3 or len(logits) < 6:
        raise CheckpointError(
            "TensorFlow checkpoint: expected predictors of three anchors in BoxPredictor_0; is it ssd_mobilenet_v2?"
        )
    return len(logits) // 3 - 1


def _block(to: Translation, block: int, norm_eps: float | None) -> None:
    """An inverted residual; that whose expansion is a level of its own is cut behind it."""
    theirs = f"{_TRUNK}expanded_conv" + (f"_{block}" if block else "")
    pad = ".1" if block in _STRIDED[1:] else ""
    if block == 0:
        names = ("", "trunk.features.1.conv.0.0", "trunk.features.1.conv.1")
    elif block == _CUT:
        names = ("trunk.features.14.0", f"trunk.features.15.1.0{pad}", "trunk.features.15.2")
    else:
        ours = f"trunk.features.{block + 1 + (block > _CUT)}.conv"
        names = (f"{ours}.0.0", f"{ours}.1.0{pad}", f"{ours}.2")
    for part, name in zip(("expand", "depthwise", "project"), names, strict=True):
        if name:
            _conv(to, f"{theirs}/{part}", name, norm_eps, depthwise=part == "depthwise")


def _conv(to: Translation, theirs: str, ours: str, norm_eps: float | None, *, depthwise: bool = False) -> None:
    """A convolution and its batch norm as `weight`, `scale` and `shift`; the graph has kernels as H, W, in, out."""
    kernel = f"{theirs}/{'depthwise_weights' if depthwise else 'weights'}"
    tensors = to.take([kernel, *(f"{theirs}/BatchNorm/{part}" for part in _NORM_PARTS), f"{theirs}/{_EPSILON}"])
    if tensors is None:
        return
    weight, gamma, beta, mean, variance, epsilon = tensors
    if weight.dim() != 4 or epsilon.numel() != 1:
        to.misshapen.append(f"{kernel} {list(weight.shape)}")
        return
    weight = weight.permute(2, 3, 0, 1) if depthwise else weight.permute(3, 2, 0, 1)
    if any(part.shape != weight.shape[:1] for part in (gamma, beta, mean, variance)):
        to.misshapen.append(f"{theirs}/BatchNorm/* {list(gamma.shape)} behind {list(weight.shape)}")
        return
    scale = gamma * (variance + (float(epsilon) if norm_eps is None else norm_eps)).rsqrt()
    parts = {"weight": weight.contiguous(), "scale": scale, "shift": beta - mean * scale}
    to.result |= {f"{ours}.{part}": tensor for part, tensor in parts.items()}
    to.origins |= {f"{ours}.{part}": kernel for part in parts}


def _predictors(to: Translation, level: int, num_classes: int) -> None:
    """Both predictors of a level: classes without background, boxes as x, y, w, h."""
    for theirs, ours, width, order in (
        ("ClassPredictor", "logits", num_classes + 1, list(range(1, num_classes + 1))),
        ("BoxEncodingPredictor", "deltas", 4, [1, 0, 3, 2]),
    ):
        path, name = f"BoxPredictor_{level}/{theirs}", f"dense.head.{ours}.{level}"
        to.tensor(
            f"{path}/weights",
            f"{name}.weight",
            lambda x, width=width, order=order: _rows(x.permute(3, 2, 0, 1), width, order),  # type: ignore[misc]
        )
        to.tensor(
            f"{path}/biases",
            f"{name}.bias",
            lambda x, width=width, order=order: _rows(x, width, order),  # type: ignore[misc]
        )


def _rows(tensor: Tensor, width: int, order: list[int]) -> Tensor:
    """Of each anchor's `width` rows those in this order."""
    rows: Tensor = tensor.unflatten(0, (-1, width))[:, order].flatten(0, 1)
    return rows
