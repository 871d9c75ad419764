"""Weight files of other frameworks -> state dicts, without running what may lie in them."""

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.weights.restricted_pickle import load_pickle, tensors_of

# Where training scripts put the weights inside their file.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "model_ema")
_ZIP_START = b"PK"
# torch.save before 1.6: a pickle of its magic number, protocol 2, and several more behind it.
_OLD_TORCH_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_PICKLE_START = b"\x80"


@dataclass(frozen=True)
class SourceFile:
    """What a file of another framework holds.

    Attributes:
        state: weights by the framework's names; never empty.
        class_names: in label order, where the file tells them (mmdetection's `meta`).
    """

    state: dict[str, Tensor]
    class_names: tuple[str, ...] | None = None


def read_source(source: Path | str) -> SourceFile:
    """Read a file of `torch.save` (.pth) or a plain pickle of arrays (.pkl), by what it is rather than by its name.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, or holds more than tensors and plain values.
    """
    path = Path(source)
    if not path.is_file():
        raise CheckpointError(f"{source}: no such file, expected a .pth or .pkl file")
    content = load_pickle(path) if _is_plain_pickle(path) else _load_torch(path)
    weights = content
    if isinstance(content, Mapping):
        weights = next((content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)), content)
    tensors = tensors_of(weights) if isinstance(weights, Mapping) else None
    if tensors is None:
        raise CheckpointError(f"{source}: got {type(weights).__name__}, expected a state dict of tensors")
    state = {name.removeprefix("module."): value for name, value in tensors.items()}
    return SourceFile(state, _class_names(content))


def read_state(source: Path | str) -> dict[str, Tensor]:
    """The state dict in a file, unwrapped from a training checkpoint where it is one.

    Raises:
        CheckpointError: see `read_source`.
    """
    return read_source(source).state


def _is_plain_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(len(_OLD_TORCH_START))
    if start.startswith(_ZIP_START) or start == _OLD_TORCH_START:
        return False
    return start.startswith(_PICKLE_START) or path.suffix.lower() == ".pkl"


def _load_torch(path: Path) -> object:
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, it is no torch file or holds objects other than tensors ({_first_line(error)}); "
            "save the state dict alone: torch.save(model.state_dict(), FILE)"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path}: not readable as a torch file ({_first_line(error)}); it is damaged or cut short: copy it again"
        ) from error
    return content


def _class_names(content: object) -> tuple[str, ...] | None:
    """mmdetection's `meta.dataset_meta.classes`, before version 3 `meta.CLASSES`."""
    meta = content.get("meta") if isinstance(content, Mapping) else None
    if not isinstance(meta, Mapping):
        return None
    dataset = meta.get("dataset_meta")
    found = dataset if isinstance(dataset, Mapping) else meta
    names = next((value for key, value in found.items() if str(key).lower() == "classes"), None)
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
