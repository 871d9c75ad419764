"""Weight files of other frameworks -> state dicts, wherever in a training's file the weights lie.

A training's file holds more than weights: optimizer, arguments, counters, averages. All its tensors get a name by the
keys that lead to them (`model.module.backbone.conv1.weight`), and of all beginnings of these names that is taken, below
which the keys are those of a known network. What else is there is left out, by its name.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.printable import printable
from maskrcnn_core.weights.budget import Budget, FileFault
from maskrcnn_core.weights.pickle_machine import Unbuilt
from maskrcnn_core.weights.pickled_arrays import PickledArray, PickledTensor, Unusable
from maskrcnn_core.weights.source_content import open_content

_MAX_NAME = 1000
_MAX_DEPTH = 64
_MAX_NAMES = 200_000
# A beginning with fewer than this share of all tensors is not looked at: weights, two averages of them and an
# optimizer's two values for each weight are five shares.
_LEAST_SHARE = 16
_MAX_PREFIX_DEPTH = 8
# What scripts call the network inside of their file, for files whose keys are of no known network.
_NETWORKS = (
    *("model", "state_dict", "model_state_dict", "model_state", "weights", "net", "network", "module"),
    *("_orig_mod", "model_ema", "ema", "ema_state_dict", "ema_model"),
)
_AVERAGES = re.compile(r"ema|average|swa|teacher", re.IGNORECASE)

Recognised = Callable[[Mapping[str, Any]], bool]
Value = PickledArray | PickledTensor | Unusable | Tensor


@dataclass(frozen=True)
class SourceFile:
    """What a file of another framework holds.

    Attributes:
        state: weights by the framework's names; never empty.
        class_names: in label order, where the file tells them (mmdetection's `meta`).
        place: the keys that lead to the weights, with dots; empty = they are the file.
        left_out: what else the file holds, with the class where it is an object.
    """

    state: dict[str, Tensor]
    class_names: tuple[str, ...] | None = None
    place: str = ""
    left_out: tuple[str, ...] = ()


def read_source(source: Path | str, recognised: Recognised | None = None) -> SourceFile:
    """Read a file of weights, by what it is and not by its name.

    That is a file of `torch.save` (.pth), a pickle of arrays (.pkl), safetensors, a frozen graph of TensorFlow (.pb) or
    a manifest of TensorFlow.js's weights (.json).

    Objects other than arrays and tensors are never built; a network that was saved whole gives its parameters and
    buffers.

    Args:
        source: the file.
        recognised: whether keys are those of a network that is looked for; None = the usual names only.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, holds no weights, or weights of a kind that
            cannot be used.
    """
    path = Path(source)
    if not path.is_file():
        reason = "is no regular file" if os.path.lexists(path) else "no such file"
        raise CheckpointError(f"{printable(str(source))}: {reason}, expected a .pth or .pkl file")
    budget = Budget.of_file(path.stat().st_size)
    with open_content(path, budget) as content:
        values = dict(_values(content, budget))
        if not values:
            raise CheckpointError(f"{source}: {_instead_of_tensors(content)}")
        place = _place(values, recognised)
        chosen = {name[len(place) :]: value for name, value in values.items() if name.startswith(place)}
        state = {name: _tensor(value, place + name, budget, source) for name, value in chosen.items()}
        return SourceFile(
            state, _class_names(content), place.removesuffix("."), tuple(_left_out(content, place, state))
        )


def read_state(source: Path | str, recognised: Recognised | None = None) -> dict[str, Tensor]:
    """The state dict in a file, unwrapped from a training checkpoint where it is one.

    Raises:
        CheckpointError: see `read_source`.
    """
    return read_source(source, recognised).state


def _entries(value: Any) -> Mapping[Any, Any] | None:
    """What lies below a value, by key; None where nothing can."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, Unbuilt):
        return None
    state = value.state[0] if isinstance(value.state, tuple) and value.state else value.state
    if not isinstance(state, dict):
        return value.entries
    if "_parameters" not in state:
        return {**state, **value.entries}
    return _parts_of_network(state)


def _parts_of_network(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """A pickled `torch.nn.Module`: what its state dict would have."""
    unsaved = state.get("_non_persistent_buffers_set")
    parts: dict[Any, Any] = {}
    for part in ("_parameters", "_buffers", "_modules"):
        entries = _entries(state.get(part)) or {}
        unwanted = unsaved if part == "_buffers" and isinstance(unsaved, list) else []
        parts |= {name: value for name, value in entries.items() if name not in unwanted}
    return parts


def _values(content: Any, budget: Budget) -> Iterator[tuple[str, Value]]:
    """All tensors and arrays by their dotted names, in the file's order."""
    waiting: list[tuple[str, Any, int]] = [("", content, 0)]
    number = 0
    while waiting:
        name, value, depth = waiting.pop()
        if isinstance(value, PickledArray | PickledTensor | Unusable | Tensor):
            if name:
                number += 1
                yield name, value
            continue
        entries = _entries(value)
        if entries is None:
            continue
        below = []
        for key, inner in entries.items():
            budget.spend_step()
            if isinstance(key, str):
                below.append((f"{name}.{key}" if name else key, inner, depth + 1))
        if depth >= _MAX_DEPTH or number + len(waiting) > _MAX_NAMES or any(len(it[0]) > _MAX_NAME for it in below):
            raise FileFault("its dictionaries are nested too deeply, or their keys too long or too many")
        waiting += reversed(below)


def _place(values: Mapping[str, Value], recognised: Recognised | None) -> str:
    """The beginning of the names below which the network's own begin; empty or with a dot behind."""
    if recognised is not None:
        for prefix in _beginnings(values):
            below = {name[len(prefix) :]: value for name, value in values.items() if name.startswith(prefix)}
            if recognised(below):
                return prefix
    return _usual_place(values)


def _beginnings(values: Mapping[str, Value]) -> list[str]:
    """Beginnings of names that many tensors share: weights before averages of them, short ones first."""
    counts: dict[str, int] = {"": len(values)}
    for name in values:
        parts = name.split(".")[:-1][:_MAX_PREFIX_DEPTH]
        prefix = ""
        for part in parts:
            prefix += f"{part}."
            counts[prefix] = counts.get(prefix, 0) + 1
    shared = [prefix for prefix, count in counts.items() if count * _LEAST_SHARE >= len(values)]
    return sorted(shared, key=lambda prefix: (bool(_AVERAGES.search(prefix)), prefix.count(".")))


def _usual_place(values: Mapping[str, Value]) -> str:
    """By the names that scripts give to networks."""
    prefix = ""
    while True:
        first = dict.fromkeys(
            name[len(prefix) :].split(".")[0]
            for name in values
            if name.startswith(prefix) and "." in name[len(prefix) :]
        )
        network = next((name for name in _NETWORKS if name in first), None)
        if network is None:
            return prefix
        prefix += f"{network}."


def _tensor(value: Value, name: str, budget: Budget, source: Path | str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        return value.tensor(budget)
    except FileFault as error:
        raise CheckpointError(f"{source}: {printable(name)}: {printable(str(error))}") from error


def _left_out(content: Any, place: str, state: Mapping[str, Tensor]) -> Iterator[str]:
    """The names beside the weights, with the class where it is an object, down to and among the weights."""
    taken = {name[:end] for name in state for end in (*(dot.start() for dot in re.finditer(r"\.", name)), len(name))}
    prefix = ""
    entries = _entries(content)
    while entries:
        keys = [key for key in entries if isinstance(key, str)]
        inside = next((key for key in keys if place.startswith(f"{prefix}{key}.")), None)
        for key in keys:
            name = prefix + key
            if key != inside and not (name.startswith(place) and name[len(place) :] in taken):
                class_note = f" ({_type_name(entries[key])})" if isinstance(entries[key], Unbuilt) else ""
                yield printable(name)[:_MAX_NAME] + class_note
        if inside is None:
            return
        prefix += f"{inside}."
        entries = _entries(entries[inside])


def _type_name(value: Any) -> str:
    return printable(value.class_name)[:100] if isinstance(value, Unbuilt) else type(value).__name__


def _instead_of_tensors(content: Any) -> str:
    """What is said of a file without tensors by name."""
    held_class = (
        "Tensor" if isinstance(content, PickledArray | PickledTensor | Unusable | Tensor) else _type_name(content)
    )
    named = [key for key in (_entries(content) or {}) if isinstance(key, str)]
    shown = (
        [f"{printable(key)[:40]} ({_type_name(content[key])})" for key in named[:5]]
        if isinstance(content, dict)
        else []
    )
    held = f" (it holds no tensor, only {', '.join(shown)}{' and more' if len(named) > 5 else ''})" if shown else ""
    return f"got {held_class}, expected a state dict of tensors{held}; save one: torch.save(model.state_dict(), FILE)"


def _class_names(content: object) -> tuple[str, ...] | None:
    """mmdetection's `meta.dataset_meta.classes`, before version 3 `meta.CLASSES`."""
    meta = _entries((_entries(content) or {}).get("meta"))
    if not meta:
        return None
    dataset = _entries(meta.get("dataset_meta"))
    entries = dataset if dataset else meta
    names = next((value for key, value in entries.items() if str(key).lower() == "classes"), None)
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)
