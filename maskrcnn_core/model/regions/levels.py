"""Which level of a pyramid each region is cut from (FPN, Eq. 1), and running a cut level by level."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from maskrcnn_core.boxes import box_areas
from maskrcnn_core.errors import ConfigError

# features [N, C, H, W], regions [r, 5] as (image, x1, y1, x2, y2) in input pixels, stride -> [r, C, S, S]. A region
# that lies far outside its map gives zeros.
Cut = Callable[[Tensor, Tensor, float], Tensor]

# Where a region is put that another level has to cut; outside of every map.
_ELSEWHERE = -1e6


@dataclass(frozen=True)
class LevelRule:
    """Which map a region of which size is cut from.

    Attributes:
        strides: strides of the maps, finest first, each twice the one before; of two maps with one stride the first is
            used, as torchvision does it.
        canonical_size, canonical_level: a region of this size, input pixels, is cut from this level (stride 2^level).
    """

    strides: tuple[int, ...]
    canonical_size: float
    canonical_level: int

    def __post_init__(self) -> None:
        powers = all(stride > 0 and stride.bit_count() == 1 for stride in self.strides)
        if not self.strides or not powers or any(b not in (a, 2 * a) for a, b in pairwise(self.strides)):
            raise ConfigError(
                f"strides of the RoI transform's maps: got {self.strides}, expected powers of two, finest first, none "
                "left out; use neighbouring levels in model.pyramid.levels"
            )

    def choose(self, boxes: Tensor) -> Tensor:
        """Index of each region's map: [R, 4] input pixels -> [R] int64."""
        return assign_levels(
            boxes,
            canonical_size=self.canonical_size,
            canonical_level=self.canonical_level,
            lowest=self.strides[0].bit_length() - 1,
            highest=self.strides[-1].bit_length() - 1,
        )


def assign_levels(boxes: Tensor, *, canonical_size: float, canonical_level: int, lowest: int, highest: int) -> Tensor:
    """Pyramid level of each box, as an index from `lowest`: [..., 4] -> [...] int64 (FPN, Eq. 1).

    The epsilon of torchvision keeps sizes that are powers of two on the upper level.
    """
    sizes = box_areas(boxes).clamp(min=0).sqrt()
    levels = torch.floor(canonical_level + torch.log2(sizes / canonical_size) + 1e-6)
    return levels.clamp(min=lowest, max=highest).to(torch.int64) - lowest


def cut_by_level(
    maps: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    levels: Tensor,
    strides: Sequence[float],
    cut: Cut,
    *,
    fixed_size: bool = False,
) -> Tensor:
    """Each region cut from its own level.

    Args:
        maps: one [N, C, H_l, W_l] for each stride.
        boxes: [R, 4] input pixels, R > 0; image_index, levels: [R] int64.
        fixed_size: no shape depends on data.

    Returns:
        [R, C, S, S], the regions in the order given.
    """
    regions = torch.cat((image_index[:, None].to(boxes.dtype), boxes), dim=1)
    if len(maps) == 1:
        return cut(maps[0], regions, strides[0])
    if fixed_size:
        return _cut_masked(maps, regions, levels, strides, cut)
    pieces, members = [], []
    for level, (features, stride) in enumerate(zip(maps, strides, strict=True)):
        chosen = (levels == level).nonzero()[:, 0]
        if len(chosen) > 0:
            pieces.append(cut(features, regions[chosen], stride))
            members.append(chosen)
    return in_order(pieces, members)


def _cut_masked(maps: Sequence[Tensor], regions: Tensor, levels: Tensor, strides: Sequence[float], cut: Cut) -> Tensor:
    """`cut_by_level` with no shape that depends on data: every level cuts every region, those of other levels outside
    of its map, which costs a kernel next to nothing and adds zero."""
    pieces = []
    for level, (features, stride) in enumerate(zip(maps, strides, strict=True)):
        corners = torch.where((levels == level)[:, None], regions[:, 1:], _ELSEWHERE)
        pieces.append(cut(features, torch.cat((regions[:, :1], corners), dim=1), stride))
    output = pieces[0]
    for piece in pieces[1:]:
        output = output + piece
    return output


def in_order(pieces: Sequence[Tensor], members: Sequence[Tensor]) -> Tensor:
    """The rows of all pieces, piece i holding rows `members[i]` of the whole, brought into the whole's order."""
    if len(pieces) == 1:  # all rows, and `nonzero` gives them in order
        return pieces[0]
    # index_select, whose gradient is a fast scatter; that of indexing sums one by one on a CPU.
    return torch.cat(list(pieces)).index_select(0, torch.argsort(torch.cat(list(members))))
