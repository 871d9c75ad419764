"""ImageNet classifiers of torchvision as the beginning of a trunk: `model.backbone.weights`."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.printable import listed
from maskrcnn_core.weights.soundness import check_finite, check_floating
from maskrcnn_core.weights.source_files import read_state

# The classification head, and Inception's second one.
_HEAD = re.compile(r"(fc|classifier|AuxLogits)\..*|.*\.num_batches_tracked")
_STAGE = re.compile(r"^layer(\d)\.")


def is_classifier(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a torchvision classifier: a ResNet or a chain of `features`."""
    begins = "conv1.weight" in state or any(key.startswith("features.") for key in state)
    return begins and any(_HEAD.fullmatch(key) for key in state)


def load_backbone_weights(trunk: nn.Module, path: Path | str, name: str) -> None:
    """Load a classifier's weights into a trunk, in place; its classification head is left out.

    Args:
        trunk: as made from torchvision's network, before its batch norms are frozen.
        path: .pth file with the state dict of torchvision's classifier.
        name: of the network, for messages.

    Raises:
        CheckpointError: the file cannot be read, keys are missing, left over or of another shape, or values are no
            finite numbers.
    """
    state = read_state(path, is_classifier)
    entries = {_trunk_key(key): (key, value) for key, value in state.items() if not _HEAD.fullmatch(key)}
    wanted = {key: value for key, value in trunk.state_dict().items() if not key.endswith(".num_batches_tracked")}
    missing = [key for key in wanted if key not in entries]
    left = [key for ours, (key, _) in entries.items() if ours not in wanted]
    misshapen = [
        f"{entries[key][0]} {list(entries[key][1].shape)} (expected {list(value.shape)})"
        for key, value in wanted.items()
        if key in entries and entries[key][1].shape != value.shape
    ]
    faults = [
        f"{len(items)} keys {what} ({listed(items)})"
        for items, what in ((missing, "are missing"), (left, "are left over"), (misshapen, "have another shape"))
        if items
    ]
    if faults:
        raise CheckpointError(
            f"model.backbone.weights: {path} does not fit model.backbone.name {name}: {'; '.join(faults)}; expected "
            f"the state dict of torchvision's {name}"
        )
    weights = {entries[key][0]: entries[key][1] for key in wanted}
    check_floating(weights, f"model.backbone.weights: {path}")
    check_finite(weights, f"model.backbone.weights: {path}")
    trunk.load_state_dict({key: entries[key][1] for key in wanted}, strict=False)


def _trunk_key(key: str) -> str:
    """torchvision's name -> the trunk's: the ResNet's parts are stem and stages, chains keep their names."""
    key = _STAGE.sub(lambda match: f"stages.{int(match[1]) - 1}.", key)
    return re.sub(r"^(conv1|bn1)\.", lambda match: {"conv1": "stem.0.", "bn1": "stem.1."}[match[1]], key)
