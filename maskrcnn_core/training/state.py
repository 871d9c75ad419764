"""What a run needs beside the weights to go on as if it had never stopped: `training/state.pt` in a checkpoint."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.weights.format_1 import renamed_weight

_FILE = Path("training", "state.pt")


@dataclass(frozen=True)
class TrainingState:
    """How far a run has come.

    Order, augmentation and sampling are functions of the seed and the step, so no generator state is part of it.

    Attributes:
        step: optimisation steps done.
        seconds: wall time spent on them.
        best_score: best validation AP so far, 0 to 1; None before the first validation.
        best_step: steps done when it was measured.
        skipped: of the steps done, those that left the weights alone because a gradient was not finite.
        stopped: it ended before its last step, because validation no longer improved.
    """

    step: int = 0
    seconds: float = 0.0
    best_score: float | None = None
    best_step: int | None = None
    skipped: int = 0
    stopped: bool = False


def save_training_state(
    folder: Path,
    state: TrainingState,
    optimizer: torch.optim.Optimizer,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write `training/state.pt` into a checkpoint folder.

    Args:
        weights: those that the optimizer works on, where the checkpoint's own are their moving average.
    """
    path = folder / _FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {"state": asdict(state), "optimizer": optimizer.state_dict()}
    torch.save(stored if weights is None else {**stored, "weights": dict(weights)}, path)


def load_training_state(folder: Path, optimizer: torch.optim.Optimizer) -> TrainingState:
    """Read `training/state.pt` and give the optimizer what it holds (on the devices of its parameters).

    Raises:
        CheckpointError: the file is missing, damaged or belongs to another model.
    """
    path = folder / _FILE
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, so training cannot resume from this checkpoint; use a new output")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        optimizer.load_state_dict(stored["optimizer"])
        return TrainingState(**stored["state"])
    except Exception as error:
        raise CheckpointError(f"{path}: cannot resume from it ({error}); use a new output") from error


def load_learnt_weights(folder: Path) -> dict[str, Tensor] | None:
    """The weights that the optimizer works on; None where they are the checkpoint's own.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = folder / _FILE
    try:
        weights: dict[str, Tensor] | None = torch.load(path, map_location="cpu", weights_only=True).get("weights")
        # A run may have begun when checkpoints had other names.
        return None if weights is None else {renamed_weight(name): value for name, value in weights.items()}
    except Exception as error:
        raise CheckpointError(f"{path}: cannot resume from it ({error}); use a new output") from error
