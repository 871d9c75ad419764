"""Copy-paste: random objects of one scene onto another (Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation
Method for Instance Segmentation", CVPR 2021, section 3).

What a pasted object hides is taken off the masks and boxes of the objects under it; of whom too little is left goes. A
keypoint under a pasted object is no longer visible: 2 becomes 1. Edges are not blended, which the paper found to make
no difference.
"""

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from maskrcnn_core.data.coco.dataset import CocoObject
from maskrcnn_core.data.scene import Scene
from maskrcnn_core.data.segmentation import ObjectMask, tight_mask


def choose_objects(scene: Scene, rng: np.random.Generator) -> list[int]:
    """Positions of a random subset, at least one, of the objects that can be pasted: those with a mask, no crowds."""
    can = [index for index, item in enumerate(scene.objects) if isinstance(item.segmentation, ObjectMask)]
    if not can:
        return []
    return sorted(rng.permutation(can)[: rng.integers(1, len(can) + 1)].tolist())


def pasted(
    base: Scene, source: Scene, chosen: Collection[int], *, min_visible: float = 0.1, min_pixels: int = 1
) -> Scene:
    """The base with the chosen objects of the source on it.

    Args:
        base, source: of one size, with masks as pixels (`scene.placed`).
        chosen: positions of objects of the source that have masks.
        min_visible: an object of the base goes if less than this share of its mask (without one, of its box) is left.
        min_pixels: or fewer pixels than this.

    Returns:
        The base's objects that are left, then the pasted ones.
    """
    front = np.zeros(base.size, dtype=np.bool_)
    for index in chosen:
        mask = source.objects[index].segmentation
        assert isinstance(mask, ObjectMask)
        _window(front, mask)[...] |= mask.pixels
    pixels = torch.where(torch.from_numpy(front), source.pixels, base.pixels)
    kept = (_under(item, front, min_visible, min_pixels) for item in base.objects)
    on_top = tuple(source.objects[index] for index in chosen)
    return Scene(pixels, (*(item for item in kept if item is not None), *on_top))


def _window(image: NDArray[np.bool_], mask: ObjectMask) -> NDArray[np.bool_]:
    height, width = mask.pixels.shape
    return image[mask.top : mask.top + height, mask.left : mask.left + width]


def _under(item: CocoObject, front: NDArray[np.bool_], min_visible: float, min_pixels: int) -> CocoObject | None:
    """What is left of an object under the pixels of `front`; None where it is too little."""
    mask = item.segmentation
    if not isinstance(mask, ObjectMask):
        x1, y1, x2, y2 = (round(side) for side in item.box)
        hidden = front[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]
        return None if hidden.size and 1.0 - hidden.mean() < min_visible else _with_hidden_keypoints(item, front)
    covered = _window(front, mask)
    if not covered.any():
        return _with_hidden_keypoints(item, front)
    left_over = mask.pixels & ~covered
    before, after = int(mask.pixels.sum()), int(left_over.sum())
    if after < max(min_pixels, 1) or after < min_visible * before:
        return None
    tight = tight_mask(left_over, left=mask.left, top=mask.top)
    return _with_hidden_keypoints(replace(item, segmentation=tight, box=tight.box, area=float(after)), front)


def _with_hidden_keypoints(item: CocoObject, front: NDArray[np.bool_]) -> CocoObject:
    if item.keypoints is None:
        return item
    points = np.array(item.keypoints).reshape(-1, 3)
    # The file holds the index of a pixel; a fraction of one lies nearest to it.
    rows = np.rint(points[:, 1]).astype(np.int64).clip(0, front.shape[0] - 1)
    columns = np.rint(points[:, 0]).astype(np.int64).clip(0, front.shape[1] - 1)
    hidden = front[rows, columns] & (points[:, 2] > 1)
    points[hidden, 2] = 1.0
    return replace(item, keypoints=tuple(points.ravel().tolist()))
