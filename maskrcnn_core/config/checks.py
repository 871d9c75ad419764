"""Checks of settings, each ending in one clear line."""

import functools
import math
import types
import typing
from collections.abc import Hashable
from typing import Any, cast

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.printable import printable

_MAX_SHOWN = 200
_LARGEST_WHOLE = (1 << 63) - 1


def require(holds: bool, name: str, got: object, expected: str) -> None:
    """Raise `ConfigError` unless a setting holds: its name, what was given, what is expected."""
    if not holds:
        raise ConfigError(f"{name}: got {_shown(got)}, expected {expected}")


def require_fraction(name: str, value: float) -> None:
    """A number from 0 to 1."""
    require(0.0 <= value <= 1.0, name, value, "a number from 0 to 1")


def require_positive(name: str, value: float) -> None:
    """A finite number above 0."""
    require(0 < value < math.inf, name, value, "a number above 0")


def require_not_negative(name: str, value: float) -> None:
    """A finite number of 0 or more."""
    require(0 <= value < math.inf, name, value, "0 or more")


def require_between(name: str, value: float, least: float, most: float) -> None:
    """A number between two others, which it may equal."""
    require(least <= value <= most, name, value, f"{least:,} to {most:,}")


def require_typed(where: str, config: Any) -> None:
    """Every field of a dataclass is of its type, whoever made it: no NaN, no infinity, no word that is no choice.

    Whole numbers are at most 2^63 - 1, what files and tensors can hold. Fields that are dataclasses check themselves.

    Args:
        where: the dataclass's place, in front of its fields' names; empty = none.
        config: an instance.
    """
    for name, hint in _hints(cast(Hashable, type(config))).items():
        _require_type(f"{where}.{name}" if where else name, getattr(config, name), hint)


@functools.cache
def _hints(config_class: Any) -> dict[str, Any]:
    return typing.get_type_hints(config_class)


def _require_type(name: str, value: Any, hint: Any) -> None:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        words = [
            word
            for argument in arguments
            if typing.get_origin(argument) is typing.Literal
            for word in typing.get_args(argument)
        ]
        if (value is None and type(None) in arguments) or (isinstance(value, str) and value in words):
            return
        try:
            _require_type(name, value, next(argument for argument in arguments if argument is not type(None)))
        except ConfigError as error:
            raise ConfigError(" or ".join([str(error), *words])) from None
    elif origin is typing.Literal:
        known = isinstance(value, str) and value in arguments
        require(known, name, value, f"one of {', '.join(map(str, arguments))}")
    elif origin is tuple:
        require(isinstance(value, tuple | list), name, value, "a list")
        endless = len(arguments) == 2 and arguments[1] is Ellipsis
        require(endless or len(value) == len(arguments), name, value, f"{len(arguments)} values")
        for item, item_hint in zip(value, [arguments[0]] * len(value) if endless else arguments, strict=True):
            _require_type(name, item, item_hint)
    elif hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        require(number and abs(value) <= _LARGEST_FLOAT, name, value, "a finite number")
    elif hint is int:
        number = isinstance(value, int) and not isinstance(value, bool)
        require(number and abs(value) <= _LARGEST_WHOLE, name, value, "a whole number of at most 2^63 - 1")
    elif hint in (bool, str):
        require(isinstance(value, hint), name, value, "true or false" if hint is bool else "text")


_LARGEST_FLOAT = 1.7976931348623157e308


def _shown(value: object) -> str:
    """A value, however long, in some words."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    try:
        shown = repr(value)
    except (ValueError, RecursionError):  # a list of endless numbers, or of endless lists
        shown = f"a {type(value).__name__}"
    return printable(shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}...")
