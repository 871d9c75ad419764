"""The trunks of Caffe's SSDs that are known: their layers, and how their weights become ours.

A layer is a word: width, kernel, stride, padding and dilation of a convolution or a pool, the kind of any other; where
it does not take the output of the layer before it, how many layers back its inputs are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.config.model import Category
from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.importers.translation import Translation
from maskrcnn_core.weights.caffe_network import CaffeLayer
from maskrcnn_core.weights.prototxt import TextMessage

_NORM_EPS = 1e-5


@dataclass(frozen=True)
class KnownTrunk:
    """A trunk.

    Attributes:
        name: ours of it.
        words: its layers.
        finest: place of the layer whose output is the finest map that is used.
        mean: of blue, green, red, which its users subtract; descriptions don't say it.
        categories: of its only known weights, by label; none = whatever.
        translate: from (translation, names of the layers, input) all weights under our names; returns the input with
            what the trunk does to pixels.
    """

    name: str
    words: tuple[str, ...]
    finest: int
    mean: tuple[float, float, float]
    categories: tuple[Category, ...]
    translate: Callable[[Translation, Sequence[str], InputConfig], InputConfig]


def layer_word(layers: Sequence[CaffeLayer], order: Sequence[int], index: int) -> str:
    """The word of a layer.

    Args:
        layers: all of the network.
        order: indices of those that count, in their order; how far back an input is counts in these.
        index: of the layer, one of `order`.

    Raises:
        CheckpointError: it has options that nothing here computes.
    """
    layer = layers[index]
    places = {one: place for place, one in enumerate(order)}
    back = [places[index] - places.get(one, -1) for one in layer.inputs]
    where = "" if back == [1] or len(order) == 1 else " " + ",".join(map(str, back))
    if layer.kind == "Convolution":
        said = layer.settings("convolution_param")
        if said.whole("group", 1) != 1:
            raise CheckpointError(f"{layer}: group: {said.whole('group', 1)}, expected 1")
        sides = "/".join(
            str(_side(layer, said, name, default)) for name, default in (("kernel_size", 0), ("stride", 1))
        )
        padding, dilation = _side(layer, said, "pad", 0), _side(layer, said, "dilation", 1)
        return f"{said.whole('num_output', 0)}x{sides}+{padding}*{dilation}{where}"
    if layer.kind == "Pooling":
        said = layer.settings("pooling_param")
        sides = "/".join(
            str(_side(layer, said, name, default)) for name, default in (("kernel_size", 0), ("stride", 1))
        )
        return f"{said.text('pool', 'MAX').lower()}{sides}+{_side(layer, said, 'pad', 0)}{where}"
    if layer.kind == "Eltwise" and layer.settings("eltwise_param").text("operation", "SUM") != "SUM":
        raise CheckpointError(f"{layer}: expected a sum")
    return layer.kind + where


def _side(layer: CaffeLayer, said: TextMessage, name: str, default: int) -> int:
    """An option for height and width.

    Raises:
        CheckpointError: they have different ones.
    """
    stem = name.removesuffix("_size")
    values = {int(value) for value in said.numbers(name)} | {
        int(value) for direction in "hw" for value in said.numbers(f"{stem}_{direction}")
    }
    if len(values) > 1:
        raise CheckpointError(f"{layer}: {name}: expected the same for height and width")
    return values.pop() if values else default


def _vgg_words() -> tuple[tuple[str, ...], int]:
    """VGG-16 with fc6 and fc7 as convolutions; and the place of conv4_3's ReLU."""
    words: list[str] = []
    finest = 0
    for number, (width, convs) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        words += [f"{width}x3/1+1*1", "ReLU"] * convs
        finest = len(words) - 1 if number == 3 else finest
        words.append("max2/2+0" if number < 4 else "max3/1+1")
    return (*words, "1024x3/1+6*6", "ReLU", "1024x1/1+0*1", "ReLU"), finest


def _translate_vgg(to: Translation, names: Sequence[str], pixels: InputConfig) -> InputConfig:
    words, _ = _vgg_words()
    # Our layers are the same in the same order.
    for place, (name, word) in enumerate(zip(names, words, strict=True)):
        if word[0].isdigit():
            to.tensor(f"{name}.0", f"trunk.features.{place}.weight")
            to.tensor(f"{name}.1", f"trunk.features.{place}.bias", torch.flatten)
    return pixels


def _residual_words() -> tuple[str, ...]:
    """OpenCV's face detector, `res10_300x300_ssd`: the norm of pixels, stem, a block, three with norms before them."""
    norm = ("BatchNorm", "Scale")
    words = [*norm, "32x7/2+3*1", *norm, "ReLU", "max3/2+0"]
    words += ["32x3/1+1*1", *norm, "ReLU", "32x3/1+1*1", "Eltwise 1,6"]
    for middle, out, stride, dilation in ((128, 128, 2, 1), (256, 256, 2, 1), (128, 256, 1, 2)):
        words += [*norm, "ReLU", f"{middle}x3/{stride}+1*1", *norm, "ReLU", f"{out}x3/1+{dilation}*{dilation}"]
        words += [f"{out}x1/{stride}+0*1 6", "Eltwise 2,1"]
    return (*words, *norm, "ReLU")


_FINEST_RESIDUAL = 25
"""Place of the ReLU before the first convolution of stride 16."""


def _translate_residual(to: Translation, names: Sequence[str], pixels: InputConfig) -> InputConfig:
    _normed_conv(to, names[2:5], "trunk.features.0.0")
    _normed_conv(to, names[7:10], "trunk.features.2.conv1")
    to.tensor(f"{names[11]}.0", "trunk.features.2.conv2.weight")
    for block in range(3):
        layers, ours = names[13 + 10 * block :], 3 + 2 * block
        _norm(to, layers[:2], f"trunk.features.{ours}.0")
        _normed_conv(to, layers[3:6], f"trunk.features.{ours + 1}.conv1")
        to.tensor(f"{layers[7]}.0", f"trunk.features.{ours + 1}.conv2.weight")
        to.tensor(f"{layers[8]}.0", f"trunk.features.{ours + 1}.shortcut.weight")
    _norm(to, names[43:45], "trunk.features.9.0")
    found = _affine(to, names[:2])
    kernel = to.result.get("trunk.features.0.0.weight")
    if found is None or kernel is None:
        return pixels
    scale, shift = found
    if scale.shape != (3,) or kernel.shape[1:2] != (3,) or not bool((scale != 0).all()):
        raise CheckpointError(f"{names[0]}: expected a norm of three channels, none of which is multiplied by 0")
    # The pixels' norm a x + b of x = pixel - mean is (pixel - (mean - b / a)) / (1 / a); where a is negative, its sign
    # goes into the first kernel.
    to.result["trunk.features.0.0.weight"] = kernel * scale.sign()[:, None, None]
    mean = torch.tensor(pixels.mean) - shift / scale
    return replace(pixels, mean=_three(mean), std=_three(1 / scale.abs()))


def _three(values: Tensor) -> tuple[float, float, float]:
    first, second, third = values.tolist()
    return first, second, third


def _affine(to: Translation, names: Sequence[str]) -> tuple[Tensor, Tensor] | None:
    """Scale and shift of the layers BatchNorm (sums of mean and variance, and their divisor) and Scale; None, and a
    note, where one is missing or misshapen."""
    norm, affine = names
    tensors = to.take([f"{norm}.0", f"{norm}.1", f"{norm}.2", f"{affine}.0", f"{affine}.1"])
    if tensors is None:
        return None
    mean, variance, number, gamma, beta = (tensor.flatten() for tensor in tensors)
    if len({tensor.shape for tensor in (mean, variance, gamma, beta)}) > 1 or len(number) != 1:
        to.misshapen.append(f"{norm}.0 {list(mean.shape)} with {affine}.0 {list(gamma.shape)}")
        return None
    share = torch.where(number == 0, torch.zeros(()), 1 / number)
    scale = gamma * (variance * share + _NORM_EPS).rsqrt()
    return scale, beta - mean * share * scale


def _norm(to: Translation, names: Sequence[str], ours: str) -> None:
    """A norm that no convolution precedes."""
    found = _affine(to, names)
    for part, tensor in zip(("scale", "shift"), found or (), strict=False):
        to.result[f"{ours}.{part}"] = tensor
        to.origins[f"{ours}.{part}"] = names[0]


def _normed_conv(to: Translation, names: Sequence[str], ours: str) -> None:
    """A convolution, its bias if it has one, and the norm behind it."""
    conv, *norm = names
    to.tensor(f"{conv}.0", f"{ours}.weight")
    bias = to.left.pop(f"{conv}.1", None)
    found = _affine(to, norm)
    if found is None:
        return
    scale, shift = found
    if bias is not None:
        if bias.numel() != len(scale):
            to.misshapen.append(f"{conv}.1 {list(bias.shape)}")
            return
        shift = shift + scale * bias.flatten()
    for part, tensor in (("scale", scale), ("shift", shift)):
        to.result[f"{ours}.{part}"] = tensor
        to.origins[f"{ours}.{part}"] = norm[0]


_VGG_WORDS, _FINEST_VGG = _vgg_words()

TRUNKS = (
    KnownTrunk("vgg16_reduced", _VGG_WORDS, _FINEST_VGG, (104, 117, 123), (), _translate_vgg),
    KnownTrunk(
        "resnet10_preactivated",
        _residual_words(),
        _FINEST_RESIDUAL,
        (104, 177, 123),
        (Category(1, "face"),),
        _translate_residual,
    ),
)
