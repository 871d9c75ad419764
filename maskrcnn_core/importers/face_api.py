"""Face detectors of face-api (npm @vladmandic/face-api), weights of TensorFlow.js, in our names and conventions.

They are an SSD on MobileNet (`ssd_mobilenetv1_model`) and a tiny YOLOv2 (`tiny_face_detector_model`).

Kernels lie as H, W, in, out, or in, 1 of depthwise ones. Images were put into the upper left corner of a square; here
into its middle.
"""

import re
from collections.abc import Mapping, Sequence

import torch
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

_FACE = (Category(1, "face"),)
_HINT = "Is it a face detector of face-api, and are the files whole?"
# The SSD.
_SIDE, _STRIDES = 512, (16, 32, 64, 128, 256, 512)
_BOXES = (3, 6, 6, 6, 6, 6)
_TAIL = (512, 256, 256, 128)
_NORM_EPS = 0.0010000000474974513
_STRIDED = (2, 4, 6, 12)
_NO_WEIGHTS = re.compile(r"Postprocessor/.*|Preprocessor/.*|concat.*|Prediction/BoxPredictor_\d/(stack|strided).*")
# The tiny one: rows of each anchor x, y, w, h, object; sides of anchors in cells (its const.ts).
_TINY_SIDE, _CELL = 416, 32
_TINY_ANCHORS = (
    *((1.603231, 2.094468), (6.041143, 7.080126), (2.882459, 3.518061)),
    *((4.266906, 5.178857), (9.041765, 10.66308)),
)
_MEAN = (117.001, 114.697, 97.404)


def is_face_api_ssd(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of its SSD."""
    return "Output/extra_dim" in state and "MobilenetV1/Conv2d_0_pointwise/weights" in state


def is_face_api_tiny(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of its tiny YOLOv2."""
    return "conv1/depthwise_filter" in state and "conv8/filters" in state


def import_face_api_ssd(
    state: Mapping[str, Tensor],
    *,
    norm_eps: float | None = None,
    categories: tuple[Category, ...] | None = None,
    source_config: SourceConfig | None = None,
) -> Checkpoint:
    """Translate the weights of `ssd_mobilenetv1_model`.

    Args:
        state: tensors of the manifest.
        norm_eps: epsilon of its batch norms; None = 0.001.
        categories: one; by default a face.
        source_config: of other frameworks.

    Raises:
        CheckpointError: tensors are missing or left over, or have other shapes than this model's.
    """
    _refuse_config(source_config)
    weights = {key: tensor for key, tensor in state.items() if not _NO_WEIGHTS.fullmatch(key)}
    to = start_weights("face-api", weights, r"")
    priors = _priors(to)
    _conv(to, "MobilenetV1/Conv2d_0_pointwise", "trunk.features.0.0.1")
    eps = _NORM_EPS if norm_eps is None else norm_eps
    for pair in range(1, 14):
        pad = ".1" if pair in _STRIDED else ""
        _depthwise(to, f"MobilenetV1/Conv2d_{pair}_depthwise", f"trunk.features.{2 * pair - 1}.0{pad}", eps)
        _conv(to, f"MobilenetV1/Conv2d_{pair}_pointwise", f"trunk.features.{2 * pair}.0")
    for step in range(4):
        for place, ours in enumerate(("reduce", "conv")):
            theirs = f"Prediction/Conv2d_{2 * step + place}_pointwise"
            to.tensor(f"{theirs}/weights", f"pyramid.tail.{step}.{ours}.weight", _kernel)
            to.tensor(f"{theirs}/convolution_bn_offset", f"pyramid.tail.{step}.{ours}.bias")
    for level in range(len(_BOXES)):
        theirs = f"Prediction/BoxPredictor_{level}"
        for part, ours in (("weights", "weight"), ("biases", "bias")):
            to.tensor(f"{theirs}/ClassPredictor/{part}", f"dense.head.logits.{level}.{ours}", _faces)
            to.tensor(f"{theirs}/BoxEncodingPredictor/{part}", f"dense.head.deltas.{level}.{ours}", _x_before_y)
    return finish_one_stage_import(to, _ssd_conventions(priors), 1, categories or _FACE, _HINT)


def import_face_api_tiny(
    state: Mapping[str, Tensor],
    *,
    norm_eps: float | None = None,
    categories: tuple[Category, ...] | None = None,
    source_config: SourceConfig | None = None,
) -> Checkpoint:
    """Translate the weights of `tiny_face_detector_model`; arguments as of `import_face_api_ssd`.

    Raises:
        CheckpointError: tensors are missing or left over, or have other shapes than this model's.
    """
    _refuse_config(source_config)
    to = start_weights("face-api", state, r"")
    to.tensor("conv0/filters", "trunk.features.0.0.weight", _kernel)
    _as_norm(to, "conv0/bias", "trunk.features.0.0")
    for number in range(1, 6):
        ours = f"trunk.features.{2 * number}"
        to.tensor(f"conv{number}/depthwise_filter", f"{ours}.0.weight", _depthwise_kernel)
        to.tensor(f"conv{number}/pointwise_filter", f"{ours}.1.weight", _kernel)
        _as_norm(to, f"conv{number}/bias", f"{ours}.1")
    for part, ours in (("filters", "weight"), ("bias", "bias")):
        tensors = to.take([f"conv8/{part}"])
        if tensors is None:
            continue
        rows = _kernel(tensors[0])
        if len(rows) != 5 * len(_TINY_ANCHORS):
            to.misshapen.append(f"conv8/{part} {list(tensors[0].shape)}")
            continue
        by_anchor = rows.unflatten(0, (-1, 5))
        to.result[f"dense.head.deltas.{ours}"] = by_anchor[:, :4].flatten(0, 1).contiguous()
        to.result[f"dense.head.objectness.{ours}"] = by_anchor[:, 4].contiguous()
        # One class, whose softmax is 1 whatever its number.
        to.result[f"dense.head.logits.{ours}"] = torch.zeros_like(by_anchor[:, 4])
    return finish_one_stage_import(to, _tiny_conventions(), 1, categories or _FACE, _HINT)


def _ssd_conventions(priors: tuple[tuple[tuple[float, float], ...], ...]) -> ModelConfig:
    """Its SsdMobilenetv1.ts and outputLayer.ts."""
    half = (0.5, 0.5, 0.5)
    return ModelConfig(
        input=InputConfig(short_side=_SIDE, long_side=_SIDE, fit="letterbox", mean=half, std=half),
        backbone=BackboneConfig("mobilenet_v1", pretrained=False, frozen_stages=0, padding="tensorflow"),
        pyramid=PyramidConfig(
            "tail", levels=(4, 5), tail_channels=_TAIL, tail_steps=("stride",) * 4, tail_activation="relu6"
        ),
        dense=DenseConfig(
            finds="detections",
            anchors=AnchorConfig(kind="priors", priors=priors, spacing=_STRIDES, offset=0.5),
            head=DenseHeadConfig("levels", kernel=1),
            coding=BoxCodingConfig(weights=(10.0, 10.0, 5.0, 5.0)),
            loss=DenseLossConfig("focal", divisor="batch"),
            detection=DenseDetectionConfig("sigmoid", nms_overlap=0.5),
            positive_overlap=0.5,
            negative_overlap=0.5,
            smooth_l1_beta=1.0,
        ),
        box_head=BoxHeadConfig(enabled=False),
        mask_head=MaskHeadConfig(enabled=False),
    )


def _tiny_conventions() -> ModelConfig:
    """Its TinyYolov2Base.ts, with the constants of its TinyFaceDetector."""
    red, green, blue = (value / 255 for value in _MEAN)
    return ModelConfig(
        input=InputConfig(
            short_side=_TINY_SIDE, long_side=_TINY_SIDE, fit="letterbox", mean=(red, green, blue), std=(1, 1, 1)
        ),
        backbone=BackboneConfig("tiny_face", pretrained=False, frozen_stages=0),
        pyramid=PyramidConfig("last"),
        dense=DenseConfig(
            finds="detections",
            anchors=AnchorConfig(
                kind="priors", priors=(tuple((w * _CELL, h * _CELL) for w, h in _TINY_ANCHORS),), offset=0.5
            ),
            head=DenseHeadConfig("cells"),
            coding=BoxCodingConfig("cells"),
            loss=DenseLossConfig("cells"),
            detection=DenseDetectionConfig("conditional", nms_overlap=0.4),
            negative_overlap=0.6,
            convs=0,
        ),
        box_head=BoxHeadConfig(enabled=False),
        mask_head=MaskHeadConfig(enabled=False),
    )


def _refuse_config(source_config: SourceConfig | None) -> None:
    if source_config is not None:
        raise CheckpointError(
            f"source_config: got {source_config.name!r}, but face-api's names of weights say which model they are of"
        )


def _priors(to: Translation) -> tuple[tuple[tuple[float, float], ...], ...]:
    """Width and height of each level's boxes, pixels, from the tensor of all boxes.

    Raises:
        CheckpointError: they don't stand in the middle of cells, alike in all cells of a level.
    """
    tensors = to.take(["Output/extra_dim"])
    sides = [_SIDE // stride for stride in _STRIDES]
    counts = [side * side * number for side, number in zip(sides, _BOXES, strict=True)]
    if tensors is None or tensors[0].shape != (1, sum(counts), 4):
        raise CheckpointError(f"face-api checkpoint: expected {sum(counts)} default boxes in Output/extra_dim. {_HINT}")
    levels = []
    for side, number, boxes in zip(sides, _BOXES, tensors[0][0].split(counts), strict=True):
        cells = boxes.view(side, side, number, 4)
        sizes = (cells[..., 2:] - cells[..., :2]).flip(-1)
        middles = (cells[..., 2:] + cells[..., :2]) / 2
        places = (torch.arange(side) + 0.5) / side
        grid = torch.stack(torch.meshgrid(places, places, indexing="ij"), dim=-1)[:, :, None]
        if (middles - grid).abs().max() > 1e-4 or (sizes - sizes[0, 0]).abs().max() > 1e-4:
            raise CheckpointError(f"face-api checkpoint: default boxes that differ from cell to cell. {_HINT}")
        levels.append(_pairs((sizes.mean(dim=(0, 1)) * _SIDE).tolist()))
    return tuple(levels)


def _pairs(rows: Sequence[Sequence[float]]) -> tuple[tuple[float, float], ...]:
    return tuple((width, height) for width, height in rows)


def _conv(to: Translation, theirs: str, ours: str) -> None:
    """A convolution whose batch norm lies in its kernel and its offset."""
    to.tensor(f"{theirs}/weights", f"{ours}.weight", _kernel)
    _as_norm(to, f"{theirs}/convolution_bn_offset", ours)


def _as_norm(to: Translation, bias: str, ours: str) -> None:
    """A bias as an affine that only shifts."""
    to.tensor(bias, f"{ours}.shift")
    if f"{ours}.shift" in to.result:
        to.result[f"{ours}.scale"] = torch.ones_like(to.result[f"{ours}.shift"])


def _depthwise(to: Translation, theirs: str, ours: str, eps: float) -> None:
    norm = [f"{theirs}/BatchNorm/{part}" for part in ("gamma", "beta", "moving_mean", "moving_variance")]
    to.tensor(f"{theirs}/depthwise_weights", f"{ours}.weight", _depthwise_kernel)
    tensors = to.take(norm)
    if tensors is None:
        return
    gamma, beta, mean, variance = tensors
    if any(tensor.shape != gamma.shape for tensor in tensors):
        to.misshapen.append(f"{theirs}/BatchNorm/* {list(gamma.shape)}")
        return
    scale = gamma * (variance + eps).rsqrt()
    to.result |= {f"{ours}.scale": scale, f"{ours}.shift": beta - mean * scale}
    to.origins |= {f"{ours}.scale": norm[0], f"{ours}.shift": norm[0]}


def _kernel(tensor: Tensor) -> Tensor:
    """H, W, in, out -> out, in, H, W; a bias as it is."""
    return tensor if tensor.ndim == 1 else tensor.permute(3, 2, 0, 1)


def _depthwise_kernel(tensor: Tensor) -> Tensor:
    """H, W, in, 1 -> in, 1, H, W."""
    return tensor.permute(2, 3, 0, 1)


def _faces(tensor: Tensor) -> Tensor:
    """Of the three numbers of a box, background, face and one that nobody reads, the second."""
    rows: Tensor = _kernel(tensor).unflatten(0, (-1, 3))[:, 1]
    return rows


def _x_before_y(tensor: Tensor) -> Tensor:
    """Rows of each box from y, x, h, w to x, y, w, h."""
    rows: Tensor = _kernel(tensor).unflatten(0, (-1, 4))[:, [1, 0, 3, 2]].flatten(0, 1)
    return rows
