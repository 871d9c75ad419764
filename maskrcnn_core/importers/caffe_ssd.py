"""SSD as its authors' Caffe has it (.prototxt and .caffemodel; Liu et al., ECCV 2016) in our names and conventions.

A description is compared layer by layer with the trunks that are known, VGG-16 and that of OpenCV's face detector; the
tail, the default boxes, their code and the selection are taken from it, whatever they are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

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
from maskrcnn_core.importers.caffe_trunks import TRUNKS, KnownTrunk, layer_word
from maskrcnn_core.importers.finish import Checkpoint, finish_one_stage_import
from maskrcnn_core.importers.translation import Translation, start_weights
from maskrcnn_core.printable import printable
from maskrcnn_core.weights.caffe_network import CaffeLayer, CaffeNetwork, read_caffe_network, read_caffe_weights

# Layers between a predictor and the one that gathers the detections, which only put its numbers in another order.
_ORDERING = ("Permute", "Flatten", "Reshape", "Softmax")
_VOC_CLASSES = 20
_VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
# Kernel, stride and padding of the second convolution of each step of a tail.
_STEPS: dict[str, Literal["stride", "valid", "even", "keep"]] = {
    "3/2+1*1": "stride",
    "3/1+0*1": "valid",
    "4/1+1*1": "even",
    "3/1+1*1": "keep",
}


def import_caffe_ssd(
    described: Path | str, weights: Path | str, *, categories: tuple[Category, ...] | None = None
) -> Checkpoint:
    """Translate an SSD.

    Args:
        described, weights: the .prototxt of the network in use ("deploy"), and its .caffemodel.
        categories: classes in the order of its labels 1 .. ; by default COCO's where it has 80, Pascal VOC's where it
            has 20, a face where it is the face detector, else numbered names.

    Returns:
        Configuration with Caffe's conventions, and our state dict.

    Raises:
        CheckpointError: a file is missing or damaged, they do not belong to each other, or it is another network.
    """
    network = read_caffe_network(described)
    try:
        ssd = _Ssd.of(network)
        config = _conventions(ssd)
    except CheckpointError as error:
        raise CheckpointError(f"{described}: {error}") from error
    tensors = read_caffe_weights(weights)
    try:
        used = {f"{layer.name}." for layer in network.layers}
        to = start_weights(
            "Caffe", {key: value for key, value in tensors.items() if key[: key.rfind(".") + 1] in used}, ""
        )
        config = _translate(to, ssd, config)
        given = _categories(ssd, categories)
        hint = "Do description and weights belong together, and is the file whole?"
        return finish_one_stage_import(to, config, ssd.num_classes, given, hint)
    except CheckpointError as error:
        raise CheckpointError(f"{weights}: {error}") from error


@dataclass(frozen=True)
class _Level:
    """What is predicted on one map: the two predictors, and its default boxes."""

    deltas: CaffeLayer
    logits: CaffeLayer
    priors: CaffeLayer

    @property
    def source(self) -> int:
        """Index of the layer whose output it is."""
        return self.deltas.inputs[0]


@dataclass(frozen=True)
class _Ssd:
    """A description that was recognised.

    Attributes:
        side: of the input, pixels.
        trunk: of those that are known.
        body: the trunk's layers, in their order.
        l2_norm: the layer that norms the finest map, if there is one.
        tail: its convolutions, two a step.
        levels: finest first.
        gathering: the layer `DetectionOutput`.
    """

    side: int
    trunk: KnownTrunk
    body: Sequence[CaffeLayer]
    l2_norm: CaffeLayer | None
    tail: Sequence[tuple[CaffeLayer, CaffeLayer]]
    levels: Sequence[_Level]
    gathering: CaffeLayer

    @property
    def num_classes(self) -> int:
        """Without background."""
        return self.gathering.settings("detection_output_param").whole("num_classes", 0) - 1

    @classmethod
    def of(cls, network: CaffeNetwork) -> "_Ssd":
        """The SSD of a description.

        Raises:
            CheckpointError: it is none, or one with a trunk that is not known here.
        """
        layers = network.layers
        last = layers[-1]
        if last.kind != "DetectionOutput" or len(last.inputs) < 3:
            raise CheckpointError(f"it ends with {last}, expected an SSD, whose last layer is a DetectionOutput")
        channels, height, width = network.input_size
        if channels != 3 or height != width:
            raise CheckpointError(f"its input is {channels} x {height} x {width}, expected three channels in a square")
        deltas, logits, priors = (_gathered(layers, index) for index in last.inputs[:3])
        if not len(deltas) == len(logits) == len(priors) > 1:
            raise CheckpointError(f"{last}: expected as many predictors of boxes and classes as PriorBox layers")
        levels = [_Level(*parts) for parts in zip(deltas, logits, priors, strict=True)]
        for level in levels:
            _check_level(level)
        below = _layers_below(layers, [level.source for level in levels])
        norms = [index for index in below if layers[index].kind == "Normalize"]
        plain = [index for index in below if index not in norms]
        trunk = _known_trunk([layer_word(layers, plain, index) for index in plain])
        body, rest = plain[: len(trunk.words)], plain[len(trunk.words) :]
        tail, ends = _tail(layers, rest, body[-1])
        l2_norm = layers[norms[0]] if norms else None
        finest = norms[0] if norms else body[trunk.finest]
        if len(norms) > 1 or (l2_norm is not None and l2_norm.inputs != (body[trunk.finest],)):
            raise CheckpointError(f"{layers[norms[-1]]}: expected one Normalize layer, on the trunk's finest map")
        if [level.source for level in levels] != [finest, body[-1], *ends]:
            raise CheckpointError("its predictors lie on other maps than SSD's: two of the trunk, and each of the tail")
        return cls(height, trunk, [layers[index] for index in body], l2_norm, tail, levels, last)


def _gathered(layers: Sequence[CaffeLayer], index: int) -> list[CaffeLayer]:
    """The predictors, or PriorBox layers, whose numbers a layer gathers, through those that only order them."""
    while index >= 0 and layers[index].kind in _ORDERING:
        index = layers[index].inputs[0]
    if index < 0 or layers[index].kind not in ("Concat", "Convolution", "PriorBox"):
        return []
    if layers[index].kind == "Concat":
        return [found for inner in layers[index].inputs for found in _gathered(layers, inner)]
    return [layers[index]]


def _check_level(level: _Level) -> None:
    """A level's parts belong to one map, and are computed as here.

    Raises:
        CheckpointError: they do not, or are not.
    """
    if not level.deltas.inputs == level.logits.inputs == level.priors.inputs[:1] or level.source < 0:
        raise CheckpointError(f"{level.deltas}: it, {level.logits} and {level.priors} do not work on one map")
    for layer in (level.deltas, level.logits):
        if layer_word([layer], [0], 0).split(" ")[0].partition("x")[2] != "3/1+1*1":
            raise CheckpointError(f"{layer}: expected a 3x3 convolution that keeps the map's size")


def _layers_below(layers: Sequence[CaffeLayer], sources: Sequence[int]) -> list[int]:
    """Indices of all layers that these are computed from, and of these, in their order."""
    found: set[int] = set()
    waiting = list(sources)
    while waiting:
        index = waiting.pop()
        if index >= 0 and index not in found:
            found.add(index)
            waiting += layers[index].inputs
    return sorted(found)


def _known_trunk(words: Sequence[str]) -> KnownTrunk:
    for trunk in TRUNKS:
        if tuple(words[: len(trunk.words)]) == trunk.words:
            return trunk
    names = " and ".join(trunk.name for trunk in TRUNKS)
    best = max(TRUNKS, key=lambda trunk: _common(trunk.words, words))
    place = _common(best.words, words)
    found = printable(words[place])[:40] if place < len(words) else "the end"
    raise CheckpointError(
        f"its trunk is none that is known here ({names}): after {place} layers like those of {best.name} it has "
        f"{found}, expected {best.words[place]}"
    )


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many words two lists begin with in common."""
    return next((place for place, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))  # noqa: B905


def _tail(
    layers: Sequence[CaffeLayer], indices: Sequence[int], below: int
) -> tuple[list[tuple[CaffeLayer, CaffeLayer]], list[int]]:
    """The pairs of convolutions behind the trunk, each with a ReLU behind it; and the indices of the ends of steps.

    Raises:
        CheckpointError: they are no such chain.
    """
    steps, ends = [], []
    for start in range(0, len(indices), 4):
        part = [layers[index] for index in indices[start : start + 4]]
        chain = [below, *indices[start : start + 3]]
        kinds = [layer.kind for layer in part]
        if kinds != ["Convolution", "ReLU"] * 2 or any(
            layer.inputs != (one,) for layer, one in zip(part, chain, strict=True)
        ):
            raise CheckpointError(
                f"{part[0]}: expected a chain of two convolutions with ReLU for each level behind the trunk"
            )
        narrow, wide = (layer.settings("convolution_param").whole("num_output", 0) for layer in part[::2])
        step = _word_of(part[2]).partition("x")[2]
        if _word_of(part[0]).partition("x")[2] != "1/1+0*1" or step not in _STEPS or wide != 2 * narrow:
            raise CheckpointError(
                f"{part[2]}: expected a 1x1 convolution to half the width, then one of 3x3, or of 4x4"
            )
        steps.append((part[0], part[2]))
        below = indices[start + 3]
        ends.append(below)
    return steps, ends


def _word_of(layer: CaffeLayer) -> str:
    """The word of a layer without where its inputs are."""
    return layer_word([layer], [0], 0).split(" ")[0]


def _conventions(ssd: _Ssd) -> ModelConfig:
    """Our settings for what the description says.

    Raises:
        CheckpointError: it says something that is not computed here.
    """
    rule = ssd.gathering.settings("detection_output_param")
    suppression = rule.message("nms_param")
    said = (
        rule.text("share_location", "true"),
        rule.text("background_label_id", "0"),
        rule.text("code_type", "CORNER"),
    )
    if said != ("true", "0", "CENTER_SIZE") or rule.text("variance_encoded_in_target", "false") != "false":
        raise CheckpointError(f"{ssd.gathering}: expected shared locations, background 0 and code CENTER_SIZE")
    if ssd.num_classes < 1:
        raise CheckpointError(f"{ssd.gathering}: num_classes: expected background and at least one class")
    variances = {_variances(level.priors) for level in ssd.levels}
    offsets = {level.priors.settings("prior_box_param").number("offset", 0.5) for level in ssd.levels}
    if len(variances) > 1 or len(offsets) > 1:
        raise CheckpointError("its PriorBox layers have different variances or offsets, expected the same")
    x, y, w, h = variances.pop()
    if ssd.l2_norm is not None:
        norm = ssd.l2_norm.settings("norm_param")
        if (norm.text("across_spatial", "true"), norm.text("channel_shared", "true")) != ("false", "false"):
            raise CheckpointError(f"{ssd.l2_norm}: expected across_spatial: false and channel_shared: false")
    return ModelConfig(
        input=InputConfig(
            short_side=ssd.side,
            long_side=max(ssd.side, 1333),
            fit="square",
            mean=ssd.trunk.mean,
            std=(1, 1, 1),
            channels="bgr",
            scale="byte",
            divisor=1,
        ),
        backbone=BackboneConfig(ssd.trunk.name, pretrained=False, frozen_stages=1),
        pyramid=PyramidConfig(
            "tail",
            levels=(3, 4),
            l2_scale=0.0 if ssd.l2_norm is None else 20.0,
            tail_channels=tuple(wide.settings("convolution_param").whole("num_output", 0) for _, wide in ssd.tail),
            tail_steps=tuple(_STEPS[_word_of(wide).partition("x")[2]] for _, wide in ssd.tail),
        ),
        dense=DenseConfig(
            finds="detections",
            anchors=AnchorConfig(
                kind="priors",
                priors=tuple(_priors(level.priors) for level in ssd.levels),
                spacing=tuple(_step(level.priors) for level in ssd.levels),
                offset=offsets.pop(),
            ),
            head=DenseHeadConfig("levels"),
            coding=BoxCodingConfig(weights=(1 / x, 1 / y, 1 / w, 1 / h)),
            loss=DenseLossConfig("hard_negatives"),
            detection=DenseDetectionConfig(
                "softmax",
                min_score=rule.number("confidence_threshold", 0.0),
                max_candidates=suppression.whole("top_k", 400),
                candidates_of="class",
                nms_overlap=suppression.number("nms_threshold", 0.3),
                clip="after_nms",
                max_detections=rule.whole("keep_top_k", 200),
            ),
            positive_overlap=0.5,
            negative_overlap=0.5,
            smooth_l1_beta=1.0,
        ),
        box_head=BoxHeadConfig(enabled=False),
        mask_head=MaskHeadConfig(enabled=False),
    )


def _variances(layer: CaffeLayer) -> tuple[float, float, float, float]:
    numbers = layer.settings("prior_box_param").numbers("variance")
    if len(numbers) != 4 or min(numbers) < 1e-6:
        raise CheckpointError(f"{layer}: expected four variances above 0")
    return (numbers[0], numbers[1], numbers[2], numbers[3])


def _step(layer: CaffeLayer) -> float:
    step = layer.settings("prior_box_param").number("step", 0.0)
    if step <= 0:
        raise CheckpointError(f"{layer}: expected a step above 0, pixels from one default box to the next")
    return step


def _priors(layer: CaffeLayer) -> tuple[tuple[float, float], ...]:
    """Width and height of a level's default boxes: the square, that with the geometric mean of the two sizes as its
    side, then for each ratio the wide and the high one (Caffe's prior_box_layer.cpp)."""
    said = layer.settings("prior_box_param")
    smallest, largest = said.numbers("min_size"), said.numbers("max_size")
    if len(smallest) != 1 or len(largest) > 1 or min(*smallest, *largest) <= 0 or said.text("clip", "false") != "false":
        raise CheckpointError(f"{layer}: expected one min_size, at most one max_size, both above 0, and clip: false")
    size = smallest[0]
    boxes = [(size, size)]
    boxes += [(math.sqrt(size * other), math.sqrt(size * other)) for other in largest]
    for ratio in dict.fromkeys(said.numbers("aspect_ratio")):
        if ratio <= 0:
            raise CheckpointError(f"{layer}: aspect_ratio: {ratio:g}, expected a number above 0")
        if abs(ratio - 1) < 1e-6:
            continue
        both = (ratio, 1 / ratio) if said.text("flip", "true") == "true" else (ratio,)
        boxes += [(size * math.sqrt(one), size / math.sqrt(one)) for one in both]
    return tuple(boxes)


def _categories(ssd: _Ssd, given: tuple[Category, ...] | None) -> tuple[Category, ...] | None:
    if given is not None:
        return given
    if ssd.num_classes == _VOC_CLASSES:
        return tuple(Category(number, name) for number, name in enumerate(_VOC, start=1))
    return ssd.trunk.categories if ssd.num_classes == len(ssd.trunk.categories) else None


def _translate(to: Translation, ssd: _Ssd, config: ModelConfig) -> ModelConfig:
    """All layers in our names; the configuration, with a norm of the pixels, if there is one, in its mean."""
    config = replace(config, input=ssd.trunk.translate(to, [layer.name for layer in ssd.body], config.input))
    if ssd.l2_norm is not None:
        to.tensor(f"{ssd.l2_norm.name}.0", "pyramid.l2_norm.weight", torch.flatten)
    for step, pair in enumerate(ssd.tail):
        for layer, ours in zip(pair, ("reduce", "conv"), strict=True):
            conv_with_bias(to, layer.name, f"pyramid.tail.{step}.{ours}")
    for number, level in enumerate(ssd.levels):
        conv_with_bias(to, level.deltas.name, f"dense.head.deltas.{number}")
        conv_with_bias(to, level.logits.name, f"dense.head.logits.{number}")
        for part in ("weight", "bias"):
            name = f"dense.head.logits.{number}.{part}"
            rows = to.result.get(name)
            if rows is not None and len(rows) % (ssd.num_classes + 1) == 0:
                to.result[name] = _background_last(rows, ssd.num_classes)
    return config


def conv_with_bias(to: Translation, theirs: str, ours: str) -> None:
    """Kernel and bias of a convolution; old files have the bias in four dimensions."""
    to.tensor(f"{theirs}.0", f"{ours}.weight")
    to.tensor(f"{theirs}.1", f"{ours}.bias", torch.flatten)


def _background_last(rows: Tensor, num_classes: int) -> Tensor:
    """Of each anchor's rows the first one, background's, becomes the last."""
    rolled: Tensor = rows.unflatten(0, (-1, num_classes + 1)).roll(-1, 1).flatten(0, 1)
    return rolled
