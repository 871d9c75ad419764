"""Darknet's networks as trunks: Darknet-19 (YOLOv2, section 3) and the networks of YOLOv1 and of the tiny YOLOs.

Each is a chain of convolutions with batch norm and leaky ReLU, and of 2x2 maxima. What YOLO sets on top of them is not
here, except where it makes another map (YOLOv1's last four convolutions).
"""

import re
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.model.trunks.sequential import SequentialTrunk
from maskrcnn_core.model.trunks.stages import STRIDES
from maskrcnn_core.weights.darknet_weights import read_first_convolutions

LEAK = 0.1
"""Slope of Darknet's leaky ReLU below zero."""

# Stem | C2 | C3 | C4 | C5 | C6. A number is the width of a 3x3 convolution; 64x1 has another side, 64x7/2 a stride too.
# 32s is a depthwise and a 1x1 convolution in its place; 16v leaves out what lies at the border. pool halves; blur is a
# 2x2 maximum at stride 1. YOLOv1, figure 3; the tiny ones are Darknet's configurations, the last one is face-api's.
_CHAINS = {
    "darknet19": (
        "32 pool 64 | pool 128 64x1 128 | pool 256 128x1 256 | pool 512 256x1 512 256x1 512"
        " | pool 1024 512x1 1024 512x1 1024"
    ),
    "darknet_tiny": "16 pool 32 | pool 64 | pool 128 | pool 256 | pool 512 blur 1024",
    "yolov1": (
        "64x7/2 | pool 192 | pool 128x1 256 256x1 512"
        " | pool 256x1 512 256x1 512 256x1 512 256x1 512 512x1 1024"
        " | pool 512x1 1024 512x1 1024 | 1024 1024/2 1024 1024"
    ),
    "tiny_face": "16v pool 32s | pool 64s | pool 128s | pool 256s | pool 512s blur",
    "yolov1_tiny": "16 pool 32 | pool 64 | pool 128 | pool 256 | pool 512 | pool 1024 256",
}
TINY_FACE = "tiny_face"
"""The one that is not Darknet's own, so that no weights of Darknet fit."""
DARKNET_NAMES = tuple(name for name in _CHAINS if name != TINY_FACE)


def chain_words(name: str) -> tuple[str, ...]:
    """The layers of a network in the words of `_CHAINS`, one each."""
    return tuple(_CHAINS[name].replace("|", " ").split())


class Blur(nn.Module):
    """The maximum of each position and its neighbours right of and below it."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        return functional.max_pool2d(x, 2, stride=1, padding=1)[..., 1:, 1:]


class Trim(nn.Module):
    """Takes the cells at the border off, which have not seen a whole window: what a convolution without padding gives.

    Where 4 does not divide a side its last cell is there twice more, so that maps of any stride have
    ceil(size / stride) cells.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H - 2, W - 2], or H, W where 4 does not divide them."""
        height, width = x.shape[-2:]
        inner = x[..., 1:-1, 1:-1]
        return functional.pad(inner, (0, 2 * (width % 4 > 0), 0, 2 * (height % 4 > 0)), mode="replicate")


def darknet_trunk(name: str) -> SequentialTrunk:
    """The trunk of one of `DARKNET_NAMES`, or of `TINY_FACE`, with random weights."""
    layers: list[nn.Module] = []
    ends, width = [], 3
    for stage in _CHAINS[name].split("|"):
        for word in stage.split():
            if word in ("pool", "blur"):
                layers.append(nn.MaxPool2d(2) if word == "pool" else Blur())
                continue
            layers.append(_convolution(width, word))
            width = int(re.findall(r"\d+", word)[0])
        ends.append(len(layers) - 1)
    strides = (*STRIDES, 64)[: len(ends) - 1]
    return SequentialTrunk(nn.Sequential(*layers), ends, strides=strides, levels=tuple(range(2, len(ends) + 1)))


def load_darknet_weights(trunk: SequentialTrunk, path: Path | str) -> None:
    """Load the convolutions of one of Darknet's classifiers, or of the beginning of one, into a trunk, in place.

    Args:
        trunk: as `darknet_trunk` made it, before its batch norms are frozen.
        path: .weights file whose first layers are the trunk's.

    Raises:
        CheckpointError: see `read_first_convolutions`.
    """
    convs = [module for module in trunk.features.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in trunk.features.modules() if isinstance(module, nn.BatchNorm2d)]
    found = read_first_convolutions(path, [tuple(conv.weight.shape) for conv in convs])
    for conv, norm, tensors in zip(convs, norms, found, strict=True):
        conv.load_state_dict({"weight": tensors["weight"]})
        names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "variance"}
        norm.load_state_dict({ours: tensors[theirs] for ours, theirs in names.items()}, strict=False)


def _convolution(width: int, word: str) -> nn.Sequential:
    """The layers of a word such as 64x7/2, without a bias, which the norm has."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?(?:/(\d+))?([sv]?)", word)
    assert match is not None, word
    out, side, stride = int(match[1]), int(match[2] or 3), int(match[3] or 1)
    convs = [nn.Conv2d(width, out, side, stride=stride, padding=side // 2, bias=False)]
    if match[4] == "s":
        convs = [
            nn.Conv2d(width, width, side, padding=side // 2, groups=width, bias=False),
            nn.Conv2d(width, out, 1, bias=False),
        ]
    for conv in convs:
        nn.init.kaiming_normal_(conv.weight, a=LEAK, mode="fan_out", nonlinearity="leaky_relu")
    behind = [Trim()] if match[4] == "v" else []
    return nn.Sequential(*convs, nn.BatchNorm2d(out), nn.LeakyReLU(LEAK, inplace=True), *behind)
