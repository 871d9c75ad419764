"""An image file in, a record of its region proposals out, without a network."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskrcnn_core.data.decode import decode_image
from maskrcnn_core.errors import ImageError
from maskrcnn_core.records.proposals import ProposalRecord, failed_proposals
from maskrcnn_core.region_proposals.edge_boxes import EdgeBoxes, require_model
from maskrcnn_core.region_proposals.opencv_contrib import opencv_contrib
from maskrcnn_core.region_proposals.selective_search import SelectiveSearch
from maskrcnn_core.region_proposals.settings import ProposeConfig, deciding_values
from maskrcnn_core.region_proposals.windows import grid_boxes, sliding_windows

Found = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64] | None]
"""Boxes [R, 4] (x, y, width, height), best first, and their scores [R]; None = only their order is known."""

_OF_OPENCV = ("selective_search", "edge_boxes")

# A box thinner than this is none: float32 has places of 0.002 pixels in an image of 30,000.
_LEAST_SIDE = 0.01


class Proposer:
    """Region proposals of images.

    Args:
        config: the method and its settings.
        max_pixels: larger images fail as `too_large`.
        apply_exif: turn images by their EXIF orientation.

    Raises:
        ConfigError: what the method needs is not installed, or cannot be used.
    """

    def __init__(self, config: ProposeConfig, *, max_pixels: int, apply_exif: bool) -> None:
        self._config, self._max_pixels, self._apply_exif = config, max_pixels, apply_exif
        self._find = _finder(config)
        if config.method in _OF_OPENCV:
            opencv_contrib(config.method).setNumThreads(torch.get_num_threads())

    def propose(self, content: bytes | Tensor | ImageError) -> ProposalRecord:
        """The record of one image; one that fails has a record that says why.

        Args:
            content: an image file, or a decoded image [3, H, W] uint8 RGB; an error in place of one becomes the record.
        """
        if isinstance(content, ImageError):
            return failed_proposals(content.status, str(content))
        try:
            decoded = content
            if isinstance(decoded, bytes):
                decoded = decode_image(decoded, max_pixels=self._max_pixels, apply_exif=self._apply_exif)
        except ImageError as error:
            return failed_proposals(error.status, str(error))
        pixels = decoded.permute(1, 2, 0).contiguous().numpy()
        height, width = pixels.shape[:2]
        try:
            boxes, scores = kept_boxes(self._find(pixels), (height, width), self._config)
        except Exception as error:  # of OpenCV, on this image; the others go on
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return failed_proposals("failed", reason, width, height)
        return ProposalRecord("ok", None, width, height, boxes, scores)


def kept_boxes(
    found: Found, size: tuple[int, int], config: ProposeConfig
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """What a record holds of the boxes found: within the image, none twice, large and few enough.

    Args:
        found: boxes and scores.
        size: (height, width) of the image.
        config: `min_side` and `max_proposals`.

    Returns:
        Boxes [R, 4] and scores [R]; where boxes have none, 1 - rank / R: their order.
    """
    boxes, scores = found
    height, width = size
    # cut off what lies outside of the image
    least = np.clip(boxes[:, :2], 0.0, [width, height])
    most = np.clip(boxes[:, :2] + boxes[:, 2:], 0.0, [width, height])
    kept = np.concatenate([least, most - least], axis=1).astype(np.float32)
    # what is left of each has to be large enough, and there only once
    is_large = (kept[:, 2:] >= max(config.min_side, _LEAST_SIDE)).all(axis=1)
    _, first = np.unique(kept, axis=0, return_index=True)
    is_first = np.zeros(len(kept), np.bool_)
    is_first[first] = True
    # the best of these, in their order
    index = np.flatnonzero(is_large & is_first)[: config.max_proposals]
    if scores is None:
        return kept[index], (1.0 - np.arange(len(index)) / max(1, len(index))).astype(np.float32)
    return kept[index], scores[index].astype(np.float32)


def fingerprint(config: ProposeConfig) -> str:
    """32 hexadecimal digits over all that decides about proposals, besides the code.

    Raises:
        ConfigError: what the method needs is not installed, or cannot be read.
    """
    values = {name: _as_floats(value) for name, value in deciding_values(config).items()}
    document = json.dumps(values | versions(config), sort_keys=True)
    return hashlib.sha256(document.encode()).hexdigest()[:32]


def versions(config: ProposeConfig) -> dict[str, str]:
    """OpenCV's version and the model file's SHA-256, where the method has them; errors as `fingerprint`."""
    found = {}
    if config.method in _OF_OPENCV:
        found["opencv"] = str(opencv_contrib(config.method).__version__)
    if config.method == "edge_boxes":
        found["propose.edge_boxes.model"] = hashlib.sha256(require_model(config.edge_boxes)).hexdigest()[:32]
    return found


def _as_floats(value: Any) -> Any:
    """Numbers alone and in lists: 16 and 16.0 are one setting, wherever it was written."""
    if isinstance(value, list):
        return [_as_floats(one) for one in value]
    return float(value) if isinstance(value, int) else value


def _finder(config: ProposeConfig) -> Callable[[npt.NDArray[np.uint8]], Found]:
    """What finds the boxes of an image [H, W, 3] RGB."""
    match config.method:
        case "selective_search":
            search = SelectiveSearch(config.selective_search)
            return lambda pixels: (search(pixels), None)
        case "edge_boxes":
            return EdgeBoxes(config.edge_boxes, config.max_proposals)
        case "grid":
            grid = config.grid
            return lambda pixels: (grid_boxes(_size(pixels), grid.cells, grid.overlaps), None)
        case "sliding_windows":
            windows, most = config.sliding_windows, config.max_proposals
            return lambda pixels: (
                sliding_windows(_size(pixels), windows.sides, windows.ratios, windows.step, most),
                None,
            )


def _size(pixels: npt.NDArray[np.uint8]) -> tuple[int, int]:
    return pixels.shape[0], pixels.shape[1]
