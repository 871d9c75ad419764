"""A checkpoint folder -> the detector that it holds, built only once its weights are known to fit."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.printable import printable
from maskrcnn_core.weights.checkpoint import load_checkpoint, weight_shapes
from maskrcnn_core.weights.checkpoint_config import WEIGHTS_NAME, load_config
from maskrcnn_core.weights.soundness import check_floating


def check_fits(folder: Path | str, config: ModelConfig) -> None:
    """Make sure, from the weights' header alone, that they are those of the detector that a configuration describes.

    The detector is built without memory (on torch's meta device), so that sizes that no file of weights bears out cost
    nothing.

    Raises:
        CheckpointError: weights are missing, left over or of another shape; the first is named.
        ConfigError: the configuration's parts do not fit together.
    """
    with torch.device("meta"):
        detector = build_detector(config, load_pretrained=False)
    require_weights_of(detector, weight_shapes(folder), folder)


def require_weights_of(detector: nn.Module, shapes: Mapping[str, tuple[int, ...]], folder: Path | str) -> None:
    """Make sure that weights are those of a detector.

    Args:
        shapes: their shapes by name.
        folder: the checkpoint that they come from.

    Raises:
        CheckpointError: weights are missing, left over or of another shape; the first is named.
    """
    expected = {name: tuple(value.shape) for name, value in detector.state_dict().items()}
    faults = [f"Missing key {name}" for name in expected if name not in shapes]
    faults += [f"Unexpected key {printable(name)[:200]}" for name in shapes if name not in expected]
    faults += [
        f"{name} has the shape {list(shapes[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if shapes.get(name, shape) != shape
    ]
    if faults:
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise CheckpointError(
            f"{folder}: the weights do not fit config.json ({faults[0]}{more}); both must come from the same run"
        )


def load_trained(folder: Path | str) -> tuple[ModelConfig, Detector]:
    """The detector of a checkpoint folder, with its weights, on the CPU.

    Raises:
        CheckpointError: the folder is missing, damaged, or its weights do not fit its configuration.
        ConfigError: the configuration's parts do not fit together.
    """
    check_fits(folder, load_config(folder))
    config, state = load_checkpoint(folder)
    detector = build_detector(config, load_pretrained=False)
    own = detector.state_dict()
    weights = {name: value for name, value in state.items() if own[name].is_floating_point()}
    check_floating(weights, str(Path(folder) / WEIGHTS_NAME))
    detector.load_state_dict(state)
    return config, detector
