"""Annotated objects -> `Targets`, with masks as small crops so that no mask of the whole image reaches the device.

Two forms of a crop, told by `mask_size` S:
    S > 0   a grid of S x S cells over the object's tight rectangle, widened by one cell on each side. A cell holds the
            share of its area that the object covers, 0..255. The ring of outer cells is empty, so that bilinear
            sampling falls to zero outside the object.
    S == 0  the pixels of the input frame themselves, resized to nearest as torchvision resizes its masks, in the tight
            rectangle widened by one pixel. Pixels outside the image repeat its edge, and so does the padding to
            a common size: sampling the crop gives what sampling the whole image's mask, clamped to the image, gives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskrcnn_core.data.coco.dataset import CocoImage, CocoObject
from maskrcnn_core.data.segmentation import ObjectMask, Segmentation, object_mask, rasterise
from maskrcnn_core.keypoints import mirror_keypoints
from maskrcnn_core.structures import Targets, real_or_unit, valid_slots


@dataclass(frozen=True)
class TargetRule:
    """What targets hold of each object besides its box and label.

    Attributes:
        mask_size: side of the mask crops, cells; 0 = input resolution; None = no masks.
        keypoints: keypoints too.
        keypoint_offset: see `keypoints.pixel_offset`.
    """

    mask_size: int | None = 112
    keypoints: bool = False
    keypoint_offset: float = 0.5


@dataclass(frozen=True)
class ImageTargets:
    """Ground truth of one image in the input frame: `Targets` without the batch dimension; slots are valid or crowd.

    Attributes:
        boxes: [G, 4] float32.
        labels: [G] int64 in 0 .. K-1.
        crowd: [G] bool.
        masks: [G, Sh, Sw] uint8 coverage 0..255 or None; zeros for a crowd.
        mask_boxes: [G, 4] float32 or None, what each mask's grid covers; the unit box for a crowd.
        keypoints: [G, P, 3] float32 or None: x, y, visibility; zeros where none is annotated.
    """

    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    masks: Tensor | None = None
    mask_boxes: Tensor | None = None
    keypoints: Tensor | None = None

    def __len__(self) -> int:
        return self.boxes.shape[0]


def mask_grid(mask: ObjectMask, size: int) -> tuple[NDArray[np.uint8], tuple[float, float, float, float]]:
    """An object's mask as a grid over its tight rectangle, widened by one cell on each side.

    Args:
        mask: with pixels.
        size: S, cells a side, at least 3.

    Returns:
        [S, S] uint8 coverage 0..255, and the rectangle x1, y1, x2, y2 that it covers, in original pixels.
    """
    inner = size - 2
    height, width = mask.pixels.shape
    coverage = _average_cells(_average_cells(mask.pixels.T.astype(np.float32), inner).T, inner)
    grid = np.zeros((size, size), dtype=np.uint8)
    grid[1:-1, 1:-1] = np.rint(255.0 * coverage)
    dx, dy = width / inner, height / inner
    return grid, (mask.left - dx, mask.top - dy, mask.left + width + dx, mask.top + height + dy)


def _average_cells(values: NDArray[np.float32], cells: int) -> NDArray[np.float32]:
    """[M, length] -> [M, cells]: exact mean over each of the equal cells that span a row of pixels.

    By differences of the running integral at the cells' edges: work in proportion to the pixels, and no matrix product,
    whose threads would fight with those of the network.
    """
    length = values.shape[1]
    edges = np.arange(cells + 1) * (length / cells)
    whole = np.minimum(edges.astype(np.int64), length - 1)
    integral = np.zeros((len(values), length + 1), dtype=np.float32)
    np.cumsum(values, axis=1, out=integral[:, 1:])
    at_edges = integral[:, whole] + values[:, whole] * (edges - whole).astype(np.float32)
    means: NDArray[np.float32] = np.diff(at_edges, axis=1) * np.float32(cells / length)
    return means


def _mask_grids(image: CocoImage, size: int) -> tuple[Tensor, Tensor]:
    """[G, S, S] uint8 and [G, 4] in original pixels; an object with no pixel gets zeros over its box, a crowd zeros."""
    grids = np.zeros((len(image.objects), size, size), dtype=np.uint8)
    rectangles = np.zeros((len(image.objects), 4), dtype=np.float32)
    for slot, item in enumerate(image.objects):
        if item.crowd:
            continue
        mask = object_mask(_segmentation(item), image.height, image.width)
        if mask.pixels.size:
            grids[slot], rectangles[slot] = mask_grid(mask, size)
        else:
            rectangles[slot] = item.box
    return torch.from_numpy(grids), torch.from_numpy(rectangles)


def _segmentation(item: CocoObject) -> Segmentation:
    return [] if item.segmentation is None else item.segmentation


def object_targets(
    image: CocoImage,
    label_of: Mapping[int, int],
    *,
    input_size: tuple[int, int],
    flip: bool = False,
    mask_size: int | None = None,
    keypoint_names: Sequence[str] = (),
    keypoint_offset: float = 0.5,
) -> ImageTargets:
    """The objects of an image, as the network sees it.

    Args:
        image: annotations in the original frame.
        label_of: COCO category id -> label 0 .. K-1.
        input_size: (height, width) of the resized image.
        flip: mirrored left to right: boxes, masks and keypoints together.
        mask_size: S, see the module; None = no masks.
        keypoint_names: names of the P keypoints; empty = no keypoints.
        keypoint_offset: see `keypoints.pixel_offset`.

    Returns:
        [G] in the order of `image.objects`, G may be 0.
    """
    scale_y, scale_x = input_size[0] / image.height, input_size[1] / image.width
    scale = torch.tensor([scale_x, scale_y, scale_x, scale_y], dtype=torch.float32)
    boxes = torch.tensor([item.box for item in image.objects], dtype=torch.float32).reshape(-1, 4)
    masks = mask_boxes = keypoints = None
    if mask_size == 0:
        masks, mask_boxes = _input_masks(image, input_size, flip)
    elif mask_size is not None:
        masks, rectangles = _mask_grids(image, mask_size)
        masks = masks.flip(-1) if flip else masks
        mask_boxes = _placed(rectangles, image.width, flip) * scale
    crowd = torch.tensor([item.crowd for item in image.objects], dtype=torch.bool)
    if mask_boxes is not None:
        mask_boxes = real_or_unit(mask_boxes, ~crowd)  # nothing was cropped there
    if keypoint_names:
        keypoints = _keypoints(image, keypoint_names, flip, keypoint_offset) * torch.tensor([scale_x, scale_y, 1.0])
    return ImageTargets(
        boxes=_placed(boxes, image.width, flip) * scale,
        labels=torch.tensor([label_of[item.category_id] for item in image.objects], dtype=torch.int64),
        crowd=crowd,
        masks=masks,
        mask_boxes=mask_boxes,
        keypoints=keypoints,
    )


def _placed(boxes: Tensor, width: int, flip: bool) -> Tensor:
    if not flip:
        return boxes
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=-1)


def _keypoints(image: CocoImage, names: Sequence[str], flip: bool, offset: float) -> Tensor:
    keypoints = torch.zeros(len(image.objects), len(names), 3)
    for slot, item in enumerate(image.objects):
        if item.keypoints is not None:
            keypoints[slot] = torch.tensor(item.keypoints).reshape(-1, 3)
    if flip:
        keypoints = keypoints[:, list(mirror_keypoints(names))]
        # A COCO keypoint is the index of a pixel, not a place on its edge: column 0 becomes column width - 1.
        keypoints[..., 0] = image.width - 1 - keypoints[..., 0]
    labelled = keypoints[..., 2:] > 0
    keypoints[..., :2] = torch.where(labelled, keypoints[..., :2] + offset, 0.0)
    return keypoints


def _input_masks(image: CocoImage, input_size: tuple[int, int], flip: bool) -> tuple[Tensor, Tensor]:
    height, width = input_size
    rows = np.floor(np.arange(height) * (image.height / height)).astype(np.int64)
    columns = np.floor(np.arange(width) * (image.width / width)).astype(np.int64)
    dense = np.zeros((len(image.objects), height, width), dtype=np.bool_)
    for slot, item in enumerate(image.objects):
        if not item.crowd:
            mask = rasterise(_segmentation(item), image.height, image.width)
            dense[slot] = (mask[:, ::-1] if flip else mask)[rows][:, columns]
    return _pixel_crops(torch.from_numpy(dense))


def targets_from_dense(boxes: Tensor, labels: Tensor, masks: Tensor) -> ImageTargets:
    """Objects that are given with masks of the whole input image (S == 0).

    Args:
        boxes: [G, 4] float32, input frame.
        labels: [G] int64.
        masks: [G, H, W] bool or 0/1, input frame.
    """
    crops, mask_boxes = _pixel_crops(masks.bool())
    return ImageTargets(
        boxes=boxes.to(torch.float32),
        labels=labels.to(torch.int64),
        crowd=torch.zeros(len(boxes), dtype=torch.bool),
        masks=crops,
        mask_boxes=mask_boxes,
    )


def _pixel_crops(masks: Tensor) -> tuple[Tensor, Tensor]:
    """[G, H, W] bool -> [G, Hc, Wc] uint8 0 or 255 and [G, 4]: tight rectangles, one pixel wider, of a common size."""
    if masks.shape[0] == 0:
        return torch.zeros(0, 1, 1, dtype=torch.uint8), torch.zeros(0, 4)
    top, bottom = _extent(masks.any(dim=2))
    left, right = _extent(masks.any(dim=1))
    height, width = int((bottom - top).max()) + 2, int((right - left).max()) + 2
    rows = (top[:, None] - 1 + torch.arange(height)).clamp(0, masks.shape[1] - 1)
    columns = (left[:, None] - 1 + torch.arange(width)).clamp(0, masks.shape[2] - 1)
    index = torch.arange(len(masks))[:, None, None]
    crops = masks[index, rows[:, :, None], columns[:, None, :]].to(torch.uint8) * 255
    return crops, torch.stack([left - 1, top - 1, left - 1 + width, top - 1 + height], dim=1).to(torch.float32)


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """[G, L] bool -> first and last + 1 true position, [G] each; 0 and 0 where none is."""
    positions = torch.arange(occupied.shape[1])
    some = occupied.any(dim=1)
    first = torch.where(occupied, positions, occupied.shape[1]).amin(dim=1)
    last = torch.where(occupied, positions + 1, 0).amax(dim=1)
    return torch.where(some, first, 0), last


def pad_targets(images: Sequence[ImageTargets]) -> Targets:
    """Ground truth of a batch: every list padded to the longest, which may be 0 (see `structures`, "Fillers").

    Masks of different sizes (S == 0) grow to the largest by repeating their last row and column, see the module.
    The images must agree on which of masks and keypoints they have.
    """
    slots = max(len(image) for image in images)
    masks = mask_boxes = None
    if images[0].masks is not None:
        masks, mask_boxes = _pad_masks(images, slots)
    keypoints = None
    if images[0].keypoints is not None:
        keypoints = _pad([image.keypoints for image in images if image.keypoints is not None], slots)
    crowd = _pad([image.crowd for image in images], slots)
    given = valid_slots(torch.tensor([len(image) for image in images]), slots)
    valid = given & ~crowd
    return Targets(
        boxes=real_or_unit(_pad([image.boxes for image in images], slots), given),
        labels=_pad([image.labels for image in images], slots),
        valid=valid,
        crowd=crowd,
        masks=masks,
        mask_boxes=None if mask_boxes is None else real_or_unit(mask_boxes, valid),
        keypoints=keypoints,
    )


def _pad(lists: Sequence[Tensor], slots: int) -> Tensor:
    padded = lists[0].new_zeros(len(lists), slots, *lists[0].shape[1:])
    for slot, values in zip(padded, lists, strict=True):
        slot[: len(values)] = values
    return padded


def _pad_masks(images: Sequence[ImageTargets], slots: int) -> tuple[Tensor, Tensor]:
    masks = [image.masks for image in images if image.masks is not None]
    boxes = [image.mask_boxes for image in images if image.mask_boxes is not None]
    height, width = max(mask.shape[1] for mask in masks), max(mask.shape[2] for mask in masks)
    grown = [_grow(mask, box, height, width) for mask, box in zip(masks, boxes, strict=True)]
    return _pad([mask for mask, _ in grown], slots), _pad([box for _, box in grown], slots)


def _grow(masks: Tensor, boxes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    down, right = height - masks.shape[1], width - masks.shape[2]
    if (down, right) == (0, 0):
        return masks, boxes
    rows = torch.arange(height).clamp(max=masks.shape[1] - 1)
    columns = torch.arange(width).clamp(max=masks.shape[2] - 1)
    return masks[:, rows][:, :, columns], boxes + torch.tensor([0.0, 0.0, right, down])
