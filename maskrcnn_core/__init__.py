"""Mask R-CNN: images, boxes, masks and networks. Imports torch, never ray.

In a notebook: `from maskrcnn_core import load_detector`.
"""

from typing import TYPE_CHECKING, Any

from maskrcnn_core.thread_waiting import limit_spinning

if TYPE_CHECKING:
    from maskrcnn_core.inference.image_result import ImageResult
    from maskrcnn_core.inference.predictor import Predictor, load_detector
    from maskrcnn_core.inference.settings import PredictorSettings

limit_spinning()  # before any module of this package imports torch

__all__ = ["ImageResult", "Predictor", "PredictorSettings", "load_detector"]

_HOMES = {
    "ImageResult": "maskrcnn_core.inference.image_result",
    "Predictor": "maskrcnn_core.inference.predictor",
    "PredictorSettings": "maskrcnn_core.inference.settings",
    "load_detector": "maskrcnn_core.inference.predictor",
}


def __getattr__(name: str) -> Any:
    # Loaded when asked for: a command that only checks its configuration imports this package, but no network.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
