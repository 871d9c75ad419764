"""Padded structures without the slots that no image fills: all that a CPU leaves, and what is real of a GPU's."""

from dataclasses import fields, replace
from typing import Any, TypeVar

from maskrcnn_core.structures import Detections, Proposals

_Padded = TypeVar("_Padded", Detections, Proposals)


def trimmed(found: _Padded) -> _Padded:
    """The same with as many slots as the fullest image needs."""
    slots = max([0, *found.count.tolist()])
    values: dict[str, Any] = {one.name: getattr(found, one.name) for one in fields(found) if one.name != "count"}
    cut: dict[str, Any] = {name: None if value is None else value[:, :slots] for name, value in values.items()}
    return replace(found, **cut)
