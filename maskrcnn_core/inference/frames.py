"""Boxes and keypoints between the frame that the network sees and that of the image file.

The image fills its input, or it lies in the middle of it (`data.letterbox`).
"""

import torch
from torch import Tensor

from maskrcnn_core.boxes import clip_boxes, scale_boxes
from maskrcnn_core.data.letterbox import letterboxes
from maskrcnn_core.keypoints import scale_keypoints
from maskrcnn_core.structures import ImageBatch


def boxes_in_original(boxes: Tensor, images: ImageBatch) -> Tensor:
    """[N, D, 4] boxes of the input frame in the original one, not clipped."""
    if not images.letterboxed:
        return scale_boxes(boxes, images.input_sizes, images.original_sizes)
    inner, corners = letterboxes(images.original_sizes, images.input_sizes)
    return scale_boxes(boxes - _offsets(corners), inner, images.original_sizes)


def clipped_boxes_in_original(boxes: Tensor, images: ImageBatch) -> Tensor:
    """`boxes_in_original`, clipped to the image."""
    return clip_boxes(boxes_in_original(boxes, images), images.original_sizes)


def boxes_in_input(boxes: Tensor, images: ImageBatch) -> Tensor:
    """[N, D, 4] boxes of the original frame in that of the input."""
    if not images.letterboxed:
        return scale_boxes(boxes, images.original_sizes, images.input_sizes)
    inner, corners = letterboxes(images.original_sizes, images.input_sizes)
    return scale_boxes(boxes, images.original_sizes, inner) + _offsets(corners)


def keypoints_in_original(keypoints: Tensor, images: ImageBatch) -> Tensor:
    """[N, D, P, 3] keypoints of the input frame in the original one."""
    if not images.letterboxed:
        return scale_keypoints(keypoints, images.input_sizes, images.original_sizes)
    inner, corners = letterboxes(images.original_sizes, images.input_sizes)
    offsets = torch.nn.functional.pad(corners.flip(-1).to(keypoints.dtype), (0, 1))
    return scale_keypoints(keypoints - offsets[:, None, None], inner, images.original_sizes)


def _offsets(corners: Tensor) -> Tensor:
    """[N, 2] (top, left) -> [N, 1, 4] x, y, x, y."""
    return corners.flip(-1).repeat(1, 2)[:, None].to(torch.float32)
