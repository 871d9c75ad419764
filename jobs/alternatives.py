"""Settings that stand for each other, such as epochs for steps: the one that was given last counts.

A field of a run's dataclass says so by its metadata (`IN_PLACE_OF`), and takes the place of the other one wherever it
is not at its default. A later file or argument that names the other one puts the field back to its default.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_type_hints

from maskrcnn_core.config.checks import IN_PLACE_OF
from maskrcnn_core.errors import ConfigError


def withdrawn(run_type: type[Any], given: Sequence[Collection[str]]) -> list[str]:
    """Arguments that withdraw what a later source replaces.

    Args:
        run_type: dataclass tree of the settings.
        given: the settings that each source names, from the first file to the command line.

    Raises:
        ConfigError: the command line names both. (A file may: `--print_config` writes all settings.)
    """
    arguments = []
    for name, replaced, default in _alternatives(run_type):
        mine, other = (_last(given, setting) for setting in (name, replaced))
        if mine == other == len(given) - 1:
            raise ConfigError(f"{name}: given beside {replaced}, whose place it takes; expected one of them")
        if 0 <= mine < other:
            arguments.append(f"--{name}={json.dumps(default)}")
    return arguments


def _last(given: Sequence[Collection[str]], setting: str) -> int:
    """The last source that names a setting; -1 for none."""
    return max((place for place, names in enumerate(given) if setting in names), default=-1)


def _alternatives(run_type: type[Any], prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Setting, what it takes the place of, and its default."""
    hints = get_type_hints(run_type)
    for field in fields(run_type):
        if is_dataclass(hint := hints[field.name]) and isinstance(hint, type):
            yield from _alternatives(hint, f"{prefix}{field.name}.")
        elif IN_PLACE_OF in field.metadata:
            yield f"{prefix}{field.name}", f"{prefix}{field.metadata[IN_PLACE_OF]}", _default(field)


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
