"""Starting from the weights of other checkpoints: what fits is taken, everything else stays as it was built."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from maskrcnn_core.config import ModelConfig
from maskrcnn_core.errors import CheckpointError, ConfigError
from maskrcnn_core.weights.checkpoint import check_weights, load_checkpoint, load_config

_TRUNK = "trunk."


@dataclass(frozen=True)
class InitialWeights:
    """Which weights of a detector came from checkpoints; names as in its state dict.

    Attributes:
        taken: name and shape fit.
        fresh: in no checkpoint, or only with another shape.
        unused: of the checkpoints, without a place in the detector.
    """

    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    @property
    def fresh_parts(self) -> tuple[str, ...]:
        """Modules that hold the fresh weights, such as `box_head.classes`."""
        return tuple(dict.fromkeys(".".join(name.split(".")[:2]) for name in self.fresh))


def check_initial(config: ModelConfig, checkpoints: Sequence[Path | str]) -> None:
    """Make sure, without reading weights, that a detector can start from checkpoints.

    Raises:
        CheckpointError: one is missing or damaged.
        ConfigError: one has another trunk, or expects its input in another form, so that its weights would see what
            they have never learned.
    """
    for checkpoint in checkpoints:
        other = load_config(checkpoint)
        check_weights(checkpoint)
        ours, theirs = _conventions(config), _conventions(other)
        for name, value in ours.items():
            if theirs[name] != value:
                raise ConfigError(
                    f"init: {checkpoint} has {name} {theirs[name]!r}, this run {value!r}; expected the same: set "
                    f"--{name}, or start from another checkpoint"
                )


def load_initial_weights(detector: nn.Module, config: ModelConfig, checkpoints: Sequence[Path | str]) -> InitialWeights:
    """Copy weights whose name and shape fit into a detector; the first checkpoint that has one gives it.

    Args:
        detector: as built; changed in place.
        config: its configuration.
        checkpoints: folders.

    Raises:
        CheckpointError: one is missing or damaged, or none has the whole trunk.
        ConfigError: as `check_initial`.
    """
    check_initial(config, checkpoints)
    own = detector.state_dict()
    taken: set[str] = set()
    unused: dict[str, None] = {}
    for checkpoint in checkpoints:
        _, state = load_checkpoint(checkpoint)
        fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
        unused |= dict.fromkeys(name for name in state if name not in fitting)
        detector.load_state_dict({name: fitting[name] for name in fitting if name not in taken}, strict=False)
        taken |= set(fitting)
    missing = [name for name in own if name.startswith(_TRUNK) and name not in taken]
    if missing:
        raise CheckpointError(
            f"init: {', '.join(map(str, checkpoints))}: {len(missing)} weights of the trunk are not in it with the "
            f"expected shape, the first: {missing[0]} {list(own[missing[0]].shape)}; expected a checkpoint with the "
            f"trunk {config.backbone.name}"
        )
    return InitialWeights(
        taken=tuple(name for name in own if name in taken),
        fresh=tuple(name for name in own if name not in taken),
        unused=tuple(name for name in unused if name not in taken),
    )


def _conventions(config: ModelConfig) -> dict[str, object]:
    """Settings under which a trunk's weights mean what they have learned, by name."""
    return {
        "model.backbone.name": config.backbone.name,
        "model.backbone.stride_in_1x1": config.backbone.stride_in_1x1,
        "model.input.mean": config.input.mean,
        "model.input.std": config.input.std,
        "model.input.channels": config.input.channels,
        "model.input.scale": config.input.scale,
    }
