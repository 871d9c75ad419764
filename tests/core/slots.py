"""Padded structures without the slots that no image fills: all that a CPU leaves, and what is real of a GPU's."""

from dataclasses import fields, replace
from typing import TypeVar

from maskrcnn_core.structures import Detections, Proposals

_Padded = TypeVar("_Padded", Detections, Proposals)


def trimmed(found: _Padded) -> _Padded:
    """The same with as many slots as the fullest image needs."""
    slots = max([0, *found.count.tolist()])
    values = {field.name: getattr(found, field.name) for field in fields(found) if field.name != "count"}
    return replace(found, **{name: None if value is None else value[:, :slots] for name, value in values.items()})
