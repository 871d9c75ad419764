"""Starting from the weights of other checkpoints: what fits is taken, everything else stays as it was built."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.errors import CheckpointError, ConfigError
from maskrcnn_core.weights.checkpoint import check_weights, load_checkpoint
from maskrcnn_core.weights.checkpoint_config import load_config
from maskrcnn_core.weights.class_rows import are_same_categories, class_layouts, common_categories, copied_rows

_TRUNK = "trunk."


@dataclass(frozen=True)
class InitialWeights:
    """Which weights of a detector came from checkpoints; names as in its state dict.

    Attributes:
        taken: name and shape fit; of predictors, also the categories.
        by_category: predictors of which only the rows of common categories were taken.
        common, new: names of this run's categories that the checkpoint knows and doesn't, where it has others.
        fresh: in no checkpoint, or only with another shape.
        unused: of the checkpoints, without a place in the detector.
    """

    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    by_category: tuple[str, ...] = ()
    common: tuple[str, ...] = ()
    new: tuple[str, ...] = ()

    @property
    def fresh_parts(self) -> tuple[str, ...]:
        """Modules that hold the fresh weights, such as `regions.box.head.classes`."""
        return tuple(dict.fromkeys(_module(name) for name in self.fresh))


def _module(name: str) -> str:
    """Of a head the layer (`dense.head.logits`), of everything else the part (`trunk.stages`)."""
    names = name.split(".")
    return ".".join(names[: names.index("head") + 2 if "head" in names else 2])


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

    Where a checkpoint has other categories, its predictors give the rows of those with the same name (`class_rows`).

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
    by_category: dict[str, None] = {}
    common: set[int] | None = None
    unused: dict[str, None] = {}
    for checkpoint in checkpoints:
        other, state = load_checkpoint(checkpoint)
        own_meaning = set(_named_otherwise(config, other))
        fitting = {
            name: value
            for name, value in state.items()
            if name in own and own[name].shape == value.shape and name.rpartition(".")[0] not in own_meaning
        }
        if not are_same_categories(config, other):
            rows = copied_rows(own, state, config, other)
            rows = {name: value for name, value in rows.items() if name not in taken and name not in by_category}
            detector.load_state_dict(rows, strict=False)
            by_category |= dict.fromkeys(rows)
            common = (common or set()) | (set(common_categories(config, other)) if rows else set())
        unused |= dict.fromkeys(name for name in state if name not in fitting and name not in by_category)
        fitting = {name: value for name, value in fitting.items() if name not in taken and name not in by_category}
        detector.load_state_dict(fitting, strict=False)
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
        fresh=tuple(name for name in own if name not in taken and name not in by_category),
        unused=tuple(name for name in unused if name not in taken and name not in by_category),
        by_category=tuple(name for name in own if name in by_category),
        common=() if common is None else tuple(config.categories[label].name for label in sorted(common)),
        new=()
        if common is None
        else tuple(category.name for label, category in enumerate(config.categories) if label not in common),
    )


def _named_otherwise(ours: ModelConfig, theirs: ModelConfig) -> list[str]:
    """Modules whose outputs stand for other things in the two models, though they may be equally many."""
    modules = [] if are_same_categories(ours, theirs) else list(class_layouts(ours))
    if ours.keypoint_head.names != theirs.keypoint_head.names:
        modules.append("regions.keypoints.head.deconv")
    return modules


def _conventions(config: ModelConfig) -> dict[str, object]:
    """Settings under which a trunk's weights mean what they have learned, by name."""
    return {
        "model.backbone.name": config.backbone.name,
        "model.backbone.norm": config.backbone.norm,
        "model.backbone.stride_in_1x1": config.backbone.stride_in_1x1,
        "model.input.mean": config.input.mean,
        "model.input.std": config.input.std,
        "model.input.channels": config.input.channels,
        "model.input.scale": config.input.scale,
    }
