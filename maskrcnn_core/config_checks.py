"""Checks of single settings, each ending in one clear line."""

from maskrcnn_core.errors import ConfigError


def require(holds: bool, name: str, got: object, expected: str) -> None:
    """Raise `ConfigError` unless a setting holds: its name, what was given, what is expected."""
    if not holds:
        raise ConfigError(f"{name}: got {got!r}, expected {expected}")


def require_fraction(name: str, value: float) -> None:
    """A number from 0 to 1."""
    require(0.0 <= value <= 1.0, name, value, "a number from 0 to 1")


def require_positive(name: str, value: float) -> None:
    """A number above 0."""
    require(value > 0, name, value, "a number above 0")


def require_not_negative(name: str, value: float) -> None:
    """A number of 0 or more."""
    require(value >= 0, name, value, "0 or more")
