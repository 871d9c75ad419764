"""Another framework's checkpoint file -> our checkpoint folder."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from maskrcnn_core.config import Category, ModelConfig
from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.weights.checkpoint import save_checkpoint
from maskrcnn_core.weights.torchvision_models import import_torchvision, is_torchvision_mask_rcnn

# Where training scripts put the weights inside their file.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "model_ema")


def convert_checkpoint(
    source: Path | str, output: Path | str, *, categories: tuple[Category, ...] | None = None, norm_eps: float = 0.0
) -> ModelConfig:
    """Read a torchvision `.pth` file and write a checkpoint folder.

    Args:
        source: file of `torch.save`; only tensors and plain containers are unpickled.
        output: checkpoint folder to write.
        categories: names of labels 1, 2, ...; None = COCO's where the model has 91 outputs.
        norm_eps: epsilon of the source's batch norms.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, or of an unknown kind.
    """
    state = read_state(source)
    if not is_torchvision_mask_rcnn(state):
        shown = ", ".join(sorted(state)[:3])
        raise CheckpointError(
            f"{source}: keys such as {shown} are of no known kind; expected the state dict of torchvision's "
            "maskrcnn_resnet50_fpn"
        )
    try:
        config, translated = import_torchvision(state, norm_eps=norm_eps, categories=categories)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    save_checkpoint(output, translated, config)
    return config


def read_state(source: Path | str) -> dict[str, Tensor]:
    """The state dict in a file of `torch.save`, unwrapped from a training checkpoint where it is one.

    Raises:
        CheckpointError: the file is missing, damaged, not a torch file, or holds more than tensors and plain values.
    """
    path = Path(source)
    if not path.is_file():
        raise CheckpointError(f"{source}: no such file, expected a .pth file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{source}: refused, it is no torch file or holds objects other than tensors ({_first_line(error)}); "
            "save the state dict alone: torch.save(model.state_dict(), FILE)"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{source}: not readable as a torch file ({_first_line(error)}); it is damaged or cut short: copy it again"
        ) from error
    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{source}: got {type(content).__name__}, expected a state dict of tensors")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
