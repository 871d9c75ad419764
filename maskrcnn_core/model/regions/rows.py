"""Which rows of padded regions a head computes, in what pieces, and how its results come back to their slots.

On a GPU every slot is computed, since asking how many are real would stall it; on a CPU only the real ones, in pieces.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from maskrcnn_core.model.heads.box import RoISamples

# Regions and masks that a head computes at once on a CPU: no intermediate result then is larger than what the
# allocator keeps for reuse (`buffers.py`).
REGIONS_AT_ONCE = 250
_MASKS_AT_ONCE = 25
# The same for regions as large as images (R-CNN), which a whole network computes: places, and crops on a GPU.
_PLACES_AT_ONCE = 1 << 20
_LARGEST_GRID = 64
_CROPS_AT_ONCE = 250

# On a GPU the numbers of positive regions are rounded up to multiples of this.
_POSITIVES_STEP = 64


class DelayedCount:
    """How many of some flags are set, on its way to the host while the device goes on with what is asked of it next.

    Args:
        flags: any shape, bool.
    """

    def __init__(self, flags: Tensor) -> None:
        self._count = flags.sum()
        self._event: torch.cuda.Event | None = None
        if self._count.is_cuda:
            self._count = torch.empty_like(self._count, device="cpu", pin_memory=True).copy_(
                self._count, non_blocking=True
            )
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> int:
        """The number; waits until the device has come to where it was asked for."""
        if self._event is not None:
            self._event.synchronize()
        return int(self._count)


class PositiveRegions:
    """The sampled regions that masks and keypoints learn on: on a CPU the positives, on a GPU the positives and some
    more, so that few sizes occur.

    Args:
        samples: the sampled regions, positives first.
        image_index: [N, S], image of each.
        count: of the positives. Asked for when they were drawn and read when the box head has been launched, it costs
            a GPU no time: it has the box head to do. Heads on all slots that positives may fill would cost several
            times as much as those on the positives of a usual batch.
        fixed_size: only few sizes may occur.

    Attributes:
        slots: [R] int64, index among the N * S sampled regions.
        boxes: [R, 4]; images, labels, objects: [R] int64, of each; the label of a negative is 0.
        positive: [R] bool.
    """

    def __init__(self, samples: RoISamples, image_index: Tensor, count: DelayedCount, *, fixed_size: bool) -> None:
        # The slots that positives may fill: [N * max_positives].
        front = slice(0, max(samples.max_positives, 1))
        positive = samples.positive[:, front].flatten()
        # Rows among them, the positives first: [R].
        if fixed_size:
            rounded = -(-max(count.read(), 1) // _POSITIVES_STEP) * _POSITIVES_STEP
            rows = torch.argsort((~positive).to(torch.uint8), stable=True)[:rounded]
        else:
            rows = positive.nonzero()[:, 0]
        # What stands in these rows: [R, ...].
        all_slots = torch.arange(samples.labels.numel(), device=rows.device).view(samples.labels.shape)
        self.slots = all_slots[:, front].flatten()[rows]
        self.boxes = samples.boxes[:, front].flatten(0, 1)[rows]
        self.images = image_index[:, front].flatten()[rows]
        self.labels = torch.where(positive, samples.labels[:, front].flatten(), 0)[rows]
        self.objects = samples.objects[:, front].flatten()[rows]
        self.positive = positive[rows]


def image_index_of(slots: Tensor) -> Tensor:
    """[N, S] any -> [N, S] int64, the image of each slot."""
    return torch.arange(len(slots), device=slots.device)[:, None].expand(slots.shape)


def regions_at_once(regions: Tensor, bins: int) -> int:
    """How many of the regions [R, 4], each cut into bins x bins places, a head computes at once: on a GPU all, unless
    they are as large as images."""
    if regions.is_cuda:
        return max(1, len(regions)) if bins <= _LARGEST_GRID else _CROPS_AT_ONCE
    return min(REGIONS_AT_ONCE, max(1, _PLACES_AT_ONCE // bins**2))


def in_pieces(compute: Callable[..., tuple[Tensor, ...]], at_once: int, *regions: Tensor) -> tuple[Tensor, ...]:
    """`compute` on all regions, in pieces of `at_once`, put together again.

    Args:
        compute: [R', ...] of each of `regions` -> some tensors [R', ...].
        regions: each [R, ...].

    Returns:
        The same tensors for all R.
    """
    if len(regions[0]) <= at_once:
        return compute(*regions)
    pieces = [compute(*piece) for piece in zip(*(part.split(at_once) for part in regions), strict=True)]
    return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))


def in_slots(
    compute: Callable[..., tuple[Tensor, ...]],
    wanted: Tensor,
    boxes: Tensor,
    labels: Tensor,
    *,
    fixed_size: bool = False,
) -> Tensor:
    """What a head computes for the wanted detections, [N, D, ...], zero in the other slots.

    Args:
        compute: boxes [R, 4], images [R], labels [R] -> ([R, ...],).
        wanted: [N, D] bool; boxes: [N, D, 4]; labels: [N, D].
        fixed_size: as in `rows_to_compute`.
    """
    # The rows that are computed: [R, ...].
    rows = rows_to_compute(wanted.flatten(), fixed_size=fixed_size)
    images = image_index_of(wanted).flatten()[rows]
    at_once = max(1, len(rows)) if boxes.is_cuda else _MASKS_AT_ONCE
    (drawn,) = in_pieces(compute, at_once, boxes.flatten(0, 1)[rows], images, labels.flatten()[rows])
    # Back in their slots: [N * D, ...].
    if fixed_size:
        kept = wanted.flatten().view(-1, *[1] * (drawn.ndim - 1))
        drawn = torch.where(kept, drawn, 0.0)
    else:
        drawn = drawn.new_zeros(wanted.numel(), *drawn.shape[1:]).index_copy(0, rows, drawn)
    return drawn.view(*wanted.shape, *drawn.shape[1:])


def rows_to_compute(wanted: Tensor, *, fixed_size: bool = False) -> Tensor:
    """Rows that a head computes: all with `fixed_size`, else
    the wanted."""
    if fixed_size:
        return torch.arange(len(wanted), device=wanted.device)
    return wanted.nonzero()[:, 0]
