"""Darknet's YOLO networks (.cfg and .weights) in our names and conventions: YOLOv2 and YOLOv1, full and tiny.

A description is compared layer by layer with the networks that are known, so that nothing of it is passed over. Batch
norms become scale and shift, divided by Darknet's rule: the root of the variance plus 1e-6.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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
from maskrcnn_core.importers.finish import Checkpoint, check_shapes, default_categories
from maskrcnn_core.importers.translation import Translation
from maskrcnn_core.model.trunks.darknet import DARKNET_NAMES, chain_words
from maskrcnn_core.weights.darknet_config import (
    DarknetLayer,
    DarknetSection,
    darknet_layers,
    pool_window,
    read_darknet_config,
    window,
)
from maskrcnn_core.weights.darknet_weights import read_darknet_weights
from maskrcnn_core.weights.soundness import check_finite

_NORM_EPSILON = 1e-6
_MIN_SCORE, _NMS_OVERLAP = 0.005, 0.45  # of Darknet's `detector valid`
_VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_EXPECTED = (
    "expected YOLOv2 (Darknet-19 with reorg), tiny YOLOv2, YOLOv1 or tiny YOLOv1, as Darknet's yolov2.cfg, "
    "yolov2-tiny.cfg, yolov1.cfg and yolov1-tiny.cfg have them"
)


def import_darknet(
    config_path: Path | str, weights_path: Path | str, *, categories: tuple[Category, ...] | None = None
) -> Checkpoint:
    """Translate a network of Darknet.

    Args:
        config_path, weights_path: the .cfg and the .weights file.
        categories: classes in the order of its labels; by default COCO's where it has 80, Pascal VOC's where it has
            20, else numbered names.

    Returns:
        Configuration with Darknet's conventions, and our state dict.

    Raises:
        CheckpointError: a file is missing or damaged, they do not belong to each other, or it is another network.
    """
    sections = read_darknet_config(config_path)
    try:
        layers = darknet_layers(sections)
        network = _Network.of(sections[0], layers)
    except CheckpointError as error:
        raise CheckpointError(f"{config_path}: {error}") from error
    tensors = read_darknet_weights(weights_path, layers)
    check_finite(tensors, str(weights_path))
    try:
        names = _categories(network.num_classes, categories)
        to = Translation("Darknet", dict(tensors))
        config = _translate(to, network, names)
        check_finite(to.result, "Darknet checkpoint")
        check_shapes(to, config, f"The layers look like those of {network.trunk}: is the description as it was?")
    except CheckpointError as error:
        raise CheckpointError(f"{weights_path}: {error}") from error
    return config, to.result


@dataclass(frozen=True)
class _Network:
    """A description that was recognised.

    Attributes:
        net, last: its first and its last section.
        trunk: one of `DARKNET_NAMES`.
        layers: all of its layers.
        chain: indices of the trunk's layers in their order, pools too.
        head: indices of the layers behind that have weights, in their order.
    """

    net: DarknetSection
    last: DarknetSection
    trunk: str
    layers: Sequence[DarknetLayer]
    chain: Sequence[int]
    head: Sequence[int]

    @classmethod
    def of(cls, net: DarknetSection, layers: Sequence[DarknetLayer]) -> "_Network":
        """The network of these layers.

        Raises:
            CheckpointError: none that is known.
        """
        last = layers[-1].section
        if last.kind not in ("region", "detection"):
            raise CheckpointError(f"it ends with {last}, which is no detector's; {_EXPECTED}")
        plain = [index for index, layer in enumerate(layers) if layer.kind != "dropout"]
        words = [_word(layers[index]) for index in plain]
        known = {name: chain_words(name) for name in DARKNET_NAMES}
        fitting = [name for name in known if words[: len(known[name])] == list(known[name])]
        trunk = max(fitting, key=lambda name: len(known[name]), default="")
        rest = words[len(known[trunk]) :] if trunk else []
        if not _is_known_head(trunk, rest):
            raise CheckpointError(f"it is no network that is known here; {_EXPECTED}")
        length = len(known[trunk])
        head = [index for index in plain[length:] if layers[index].kind in ("convolutional", "connected", "local")]
        found = cls(net, last, trunk, layers, plain[:length], head)
        found._check_options()
        return found

    @property
    def num_classes(self) -> int:
        return self.last.number("classes", 20)

    @property
    def side(self) -> int:
        """Of the input, pixels."""
        return self.net.number("width", 0)

    def _check_options(self) -> None:
        """Options that would change what is computed.

        Raises:
            CheckpointError: one has another value than is computed here.
        """
        if self.net.number("width", 0) != self.net.number("height", 0) or self.side % 32:
            raise CheckpointError(f"{self.net}: expected a square input whose side 32 divides")
        for index in (*self.chain, *self.head):
            section = self.layers[index].section
            if section.kind == "maxpool":
                continue
            wanted = "linear" if index == self.head[-1] else "leaky"
            activation = section.options.get("activation", "logistic")
            if activation != wanted:
                raise CheckpointError(f"{section}: activation = {activation[:40]}, expected {wanted}")
            for name in ("dilation", "groups"):
                if section.number(name, 1) != 1:
                    raise CheckpointError(f"{section}: {name} = {section.number(name, 1)}, expected 1")
        per_anchor = 5 + self.num_classes
        out = self.layers[self.head[-1]].output_size[0]
        boxes = self.last.number("num", 1)
        if self.last.kind == "region":
            if self.last.number("softmax", 0) != 1 or self.last.number("coords", 4) != 4 or "tree" in self.last.options:
                raise CheckpointError(f"{self.last}: expected softmax = 1, coords = 4 and no tree of classes")
            if out != boxes * per_anchor or len(self.last.fractions("anchors")) != 2 * boxes:
                raise CheckpointError(f"{self.last}: {boxes} boxes of {self.num_classes} classes do not fit {out}")
            return
        grid = self.last.number("side", 7)
        if self.last.number("softmax", 0) != 0 or self.last.number("sqrt", 0) != 1:
            raise CheckpointError(f"{self.last}: expected softmax = 0 and sqrt = 1")
        if out != grid**2 * (self.num_classes + 5 * boxes) or grid * 64 != self.side:
            raise CheckpointError(f"{self.last}: {boxes} boxes in {grid} x {grid} cells do not fit {out} outputs")


def _word(layer: DarknetLayer) -> str:
    """A layer in the words of `chain_words`; of what has none its kind and sizes."""
    section = layer.section
    if section.kind == "convolutional":
        filters, side, stride, padding = window(section)
        if padding == side // 2:
            return f"{filters}" + (f"x{side}" if side != 3 else "") + (f"/{stride}" if stride != 1 else "")
    if section.kind == "maxpool":
        side, stride, padding = pool_window(section)
        if (side, padding) == (2, 1) and stride in (1, 2):
            return "pool" if stride == 2 else "blur"
    if section.kind == "route":
        return "route " + section.options.get("layers", "")
    if section.kind == "reorg":
        return f"reorg {section.number('stride', 1)}"
    if section.kind == "local":
        return f"local {window(section)[1:]}"
    return section.kind


def _is_known_head(trunk: str, words: Sequence[str]) -> bool:
    """Whether what follows a trunk is what YOLO sets on it."""
    if trunk == "darknet19":
        first, second, *rest = [*words, "", ""]
        middle = ["route -9", "64x1", "reorg 2", "route -1,-4"]
        return first == second == "1024" and rest[:4] == middle and _is_predictor(rest[4:-2])
    if trunk == "darknet_tiny":
        return _is_predictor(words)
    layers = list(words)
    if layers[:1] == ["local (3, 1, 1)"]:
        layers = layers[1:]
    return len(layers) > 1 and layers[-1] == "detection" and set(layers[:-1]) == {"connected"}


def _is_predictor(words: Sequence[str]) -> bool:
    """A 3x3 convolution, a 1x1 convolution and the region layer."""
    return len(words) == 3 and words[0].isdigit() and words[1].endswith("x1") and words[2] == "region"


def _categories(number: int, given: tuple[Category, ...] | None) -> tuple[Category, ...]:
    if given is None:
        if number == len(_VOC):
            return tuple(Category(identity, name) for identity, name in enumerate(_VOC, start=1))
        return default_categories(number, with_keypoints=False)
    if len(given) != number:
        raise CheckpointError(f"it has {number} classes, got {len(given)} categories")
    return given


def _translate(to: Translation, network: _Network, categories: tuple[Category, ...]) -> ModelConfig:
    for place, index in enumerate(network.chain):
        if network.layers[index].kind == "convolutional":
            _conv(to, index, f"trunk.features.{place}.0")
    config = replace(_conventions(network), categories=categories)
    if network.last.kind == "detection":
        return _translate_grid(to, network, config)
    *convs, width_conv, predictor = network.head
    for index, ours in zip(convs, ("pyramid.convs.0", "pyramid.convs.1", "pyramid.lateral"), strict=False):
        _conv(to, index, ours)
    _conv(to, width_conv, "dense.head.convs.0")
    # Anchor by anchor x, y, w, h, object, classes.
    rows = {part: to.left.pop(f"{predictor}.{part}") for part in ("weight", "bias")}
    for part, tensor in rows.items():
        by_anchor = tensor.unflatten(0, (-1, 5 + network.num_classes))
        for name, chosen in (("deltas", slice(0, 4)), ("objectness", slice(4, 5)), ("logits", slice(5, None))):
            _put(to, f"dense.head.{name}.{part}", by_anchor[:, chosen].flatten(0, 1), predictor)
    sizes = torch.tensor(network.last.fractions("anchors")).view(-1, 2)
    stride = network.side // network.layers[predictor].output_size[1]
    priors = tuple((float(width), float(height)) for width, height in (sizes.double() * stride).tolist())
    width = network.layers[width_conv].output_size[0]
    dense = replace(
        config.dense,
        anchors=AnchorConfig(kind="priors", priors=(priors,), offset=0.5),
        head=replace(config.dense.head, width=width),
    )
    return replace(config, dense=dense)


def _translate_grid(to: Translation, network: _Network, config: ModelConfig) -> ModelConfig:
    """YOLOv1's head: class values of all cells, then confidences, then boxes."""
    first = network.layers[network.head[0]]
    local = first.output_size[0] if first.kind == "local" else 0
    *hidden, predictor = network.head[1:] if local else network.head
    if local:
        for part in ("weight", "bias"):
            _put(to, f"dense.head.local.{part}", to.left.pop(f"{network.head[0]}.{part}"), network.head[0])
    for place, index in enumerate(hidden):
        _connected(to, index, f"dense.head.layers.{place}")
    cells, boxes = network.last.number("side", 7) ** 2, network.last.number("num", 1)
    sizes = (cells * network.num_classes, cells * boxes, cells * boxes * 4)
    for part in ("weight", "bias"):
        rows = to.left.pop(f"{predictor}.{part}").split(sizes)
        for name, tensor in zip(("logits", "objectness", "deltas"), rows, strict=True):
            _put(to, f"dense.head.{name}.{part}", tensor, predictor)
    whole = (float(network.side), float(network.side))
    dense = replace(
        config.dense,
        anchors=AnchorConfig(kind="priors", priors=((whole,) * boxes,), offset=0.5),
        head=replace(
            config.dense.head,
            local=local,
            layers=tuple(network.layers[index].output_size[0] for index in hidden),
        ),
    )
    return replace(config, dense=dense)


def _conventions(network: _Network) -> ModelConfig:
    """Our defaults with what Darknet's networks have otherwise."""
    is_region = network.last.kind == "region"
    if is_region:
        head = DenseHeadConfig(kind="cells", norm="frozen_batch")
        pyramid = PyramidConfig(
            kind="passthrough" if network.trunk == "darknet19" else "last",
            channels=1024,
            norm="frozen_batch" if network.trunk == "darknet19" else "none",
        )
    else:
        head, pyramid = DenseHeadConfig(kind="whole_map"), PyramidConfig(kind="last")
    last = network.last
    return ModelConfig(
        input=InputConfig(
            short_side=network.side, long_side=network.side, fit="letterbox", mean=(0, 0, 0), std=(1, 1, 1)
        ),
        backbone=BackboneConfig(name=network.trunk, pretrained=False, frozen_stages=0),
        pyramid=pyramid,
        dense=DenseConfig(
            finds="detections",
            anchors=AnchorConfig(kind="priors", priors=(((1.0, 1.0),),), offset=0.5),
            head=head,
            coding=BoxCodingConfig(kind="cells" if is_region else "roots"),
            loss=DenseLossConfig(
                kind="cells" if is_region else "grid",
                object_weight=last.fraction("object_scale", 1),
                empty_weight=last.fraction("noobject_scale", 1),
                box_weight=last.fraction("coord_scale", 1),
                class_weight=last.fraction("class_scale", 1),
            ),
            detection=DenseDetectionConfig(
                score_from="conditional" if is_region else "product", min_score=_MIN_SCORE, nms_overlap=_NMS_OVERLAP
            ),
            negative_overlap=0.6,
        ),
        box_head=BoxHeadConfig(enabled=False),
        mask_head=MaskHeadConfig(enabled=False),
    )


def _conv(to: Translation, index: int, ours: str) -> None:
    """A convolution, with its batch norm or its bias, as `weight`, `scale` and `shift`."""
    scale, shift = _affine(to, index)
    _put(to, f"{ours}.weight", to.left.pop(f"{index}.weight"), index)
    _put(to, f"{ours}.scale", scale, index)
    _put(to, f"{ours}.shift", shift, index)


def _connected(to: Translation, index: int, ours: str) -> None:
    """A fully connected layer, its batch norm folded in."""
    scale, shift = _affine(to, index)
    _put(to, f"{ours}.weight", to.left.pop(f"{index}.weight") * scale[:, None], index)
    _put(to, f"{ours}.bias", shift, index)


def _affine(to: Translation, index: int) -> tuple[Tensor, Tensor]:
    bias = to.left.pop(f"{index}.bias")
    if f"{index}.scale" not in to.left:
        return torch.ones_like(bias), bias
    gamma, mean, variance = (to.left.pop(f"{index}.{part}") for part in ("scale", "mean", "variance"))
    scale = gamma / (variance.sqrt() + _NORM_EPSILON)
    return scale, bias - mean * scale


def _put(to: Translation, ours: str, tensor: Tensor, index: int) -> None:
    to.result[ours] = tensor.contiguous()
    to.origins[ours] = f"layer {index}"
