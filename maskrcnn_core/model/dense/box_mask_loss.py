"""DetectorNet's loss: squared errors of masks of boxes and of their halves (Szegedy et al., NIPS 2013, section 4)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn_core.model.box_coding import BoxCoding
from maskrcnn_core.model.dense.box_mask_head import PARTS
from maskrcnn_core.model.dense.head import DenseHead
from maskrcnn_core.model.loss_counts import LossSum
from maskrcnn_core.model.losses import full_precision
from maskrcnn_core.structures import ImageFeatures, Targets, real_or_unit


@dataclass(frozen=True)
class BoxMaskLoss:
    """|(diag(m) + lambda I)^(1/2) (output - m)|^2 over all masks m of an image, means over images.

    Attributes:
        empty_weight: lambda, the weight of cells that no object covers; small, since they are many.
    """

    empty_weight: float

    def __call__(
        self,
        head: DenseHead,
        features: ImageFeatures,
        anchors: Sequence[Tensor],
        coding: BoxCoding,
        targets: Targets,
    ) -> dict[str, LossSum]:
        """See `DenseLoss`; one level, of which the masks cover the input.

        Returns:
            `dense_mask`.
        """
        outputs = head(features.maps)
        assert outputs.masks is not None
        masks = full_precision(outputs.masks)
        height, width = features.input_shape
        wanted = box_masks(targets, masks.shape[1], masks.shape[-1], (height, width))
        # Cells that no object covers, but a crowd does, learn nothing.
        crowd = box_masks(targets, 1, masks.shape[-1], (height, width), crowds=True)[:, :, :1]
        weights = torch.where((wanted == 0) & (crowd > 0), 0.0, wanted + self.empty_weight)
        images = torch.ones_like(targets.labels[:, 0]).sum()
        return {"dense_mask": LossSum((weights * (masks - wanted).square()).sum(), images)}


def box_masks(
    targets: Targets, num_classes: int, grid: int, input_shape: tuple[int, int], *, crowds: bool = False
) -> Tensor:
    """How much of each cell the parts of the boxes of each class cover; of several boxes the one that covers most.

    Args:
        targets: needs at least one slot (G >= 1).
        num_classes: K; 1 = whatever the class.
        grid: cells along a side, over the input.
        crowds: of crowd regions rather than of objects.

    Returns:
        [N, K, 5, grid, grid] in [0, 1], in the order of `PARTS`.
    """
    real = targets.crowd if crowds else targets.valid
    boxes = real_or_unit(targets.boxes, real)
    # Edges of the parts in cells, [N, G, 5]; how much of each cell lies between, [N, G, 5, grid].
    cells = torch.arange(grid, dtype=boxes.dtype, device=boxes.device)
    covers = []
    for axis, length in ((0, input_shape[1]), (1, input_shape[0])):
        low, side = boxes[..., axis], boxes[..., axis + 2] - boxes[..., axis]
        begin, end = (
            torch.stack([low + part[axis + far] * side for part in PARTS], dim=2) * (grid / length) for far in (0, 2)
        )
        covers.append((torch.minimum(end[..., None], cells + 1) - torch.maximum(begin[..., None], cells)).clamp(min=0))
    each = covers[1][..., :, None] * covers[0][..., None, :]
    masks = []
    for label in range(num_classes):
        here = real & (targets.labels == label) if num_classes > 1 else real
        masks.append(torch.where(here[..., None, None, None], each, 0.0).amax(dim=1))
    return torch.stack(masks, dim=1)
