"""Single values of COCO files as exporters write them: numbers as text, whole numbers with a point, flags as words."""

import math
import re
from typing import Any

_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_MOST_CHARACTERS = 40
_FLAGS = {"0": 0, "1": 1, "false": 0, "true": 1}


def number(value: object) -> float | None:
    """A finite number, also one that is written as text; None for anything else."""
    if isinstance(value, str) and len(value) <= _MOST_CHARACTERS and _NUMBER.fullmatch(value):
        value = float(value)
    if type(value) not in (int, float):
        return None
    try:
        return float(value) if math.isfinite(value) else None  # type: ignore[arg-type]
    except OverflowError:  # an int beyond all floats
        return None


def whole(value: object) -> int | None:
    """A whole number of 64 bits, also one with a point (1.0); None for anything else, text too."""
    if type(value) is float and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value if type(value) is int and -(2**63) <= value < 2**63 else None


def flag(value: object) -> int | None:
    """0 or 1, also as a truth value, a number with a point, or one of the words 0, 1, true, false; None for others."""
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower())
    return int(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def shown(value: Any, length: int = 60) -> str:
    """A value for a message, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # an int of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= length else text[: length - 3] + "..."
