"""A dense head's outputs at a few hundred sampled anchors, with gradients, and nowhere else.

A loss over 256 anchors of an image has a gradient at 256 of some 200,000. Computed as convolutions, its backward
pass multiplies zeros for almost all of its time, a sixth of a training step's arithmetic. So the dense outputs, which
proposals need, are made without gradients, and those of the sampled anchors again from the 3x3 neighbourhoods that they
see: the same numbers and the same gradients.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.model.regions.levels import in_order


def outputs_at(
    conv: nn.Conv2d,
    logits: nn.Conv2d,
    deltas: nn.Conv2d,
    num_anchors: int,
    maps: Sequence[Tensor],
    index: Tensor,
    *,
    fixed_size: bool = False,
) -> tuple[Tensor, Tensor]:
    """Logits [N, S, K] and deltas [N, S, 4] of sampled anchors.

    Args:
        conv: 3x3, stride 1, padding 1, followed by a ReLU; logits, deltas: 1x1 predictors.
        num_anchors: at each position.
        maps: levels [N, C, H_l, W_l].
        index: [N, S] int64 into the anchors of all levels, position-major as in `anchors.pyramid_anchors`.
        fixed_size: no shape depends on data.
    """
    position, anchor = index.flatten() // num_anchors, index.flatten() % num_anchors
    image = torch.arange(len(index), device=index.device)[:, None].expand_as(index).flatten()
    # The convolution as a product of each anchor's neighbourhood: [M, 9 C] -> [M, C].
    weight = conv.weight.permute(0, 2, 3, 1).flatten(1)
    cells = _neighbourhoods(maps, image, position, fixed_size=fixed_size)
    hidden = functional.relu(functional.linear(cells, weight, conv.bias))
    # All anchors of the position, of which one is wanted: [M, A, ...] -> [M, ...].
    scores = functional.linear(hidden, logits.weight.flatten(1), logits.bias).unflatten(1, (num_anchors, -1))
    moves = functional.linear(hidden, deltas.weight.flatten(1), deltas.bias).unflatten(1, (num_anchors, 4))
    rows = torch.arange(len(anchor), device=index.device)
    return scores[rows, anchor].view(*index.shape, -1), moves[rows, anchor].view(*index.shape, 4)


def _neighbourhoods(maps: Sequence[Tensor], image: Tensor, position: Tensor, *, fixed_size: bool) -> Tensor:
    """[M, 9 C]: the cells around each position, row by row, zero outside of the map.

    Args:
        image: [M]; position: [M] counted through the cells of all levels, finest first.
    """
    pieces, members, start = [], [], 0
    for level in maps:
        height, width = level.shape[-2:]
        here = (position >= start) & (position < start + height * width)
        # A GPU looks at every position on every level, rather than have the host wait for how many there are. A level
        # without any stays in the graph: data-parallel training waits for all gradients.
        rows = torch.arange(len(position), device=position.device) if fixed_size else here.nonzero()[:, 0]
        cells = _cells_around(level, image[rows], position[rows] - start, here[rows])
        pieces.append(cells)
        members.append(rows)
        start += height * width
    if fixed_size:
        return torch.stack(pieces).sum(dim=0)
    return in_order(pieces, members)


def _cells_around(level: Tensor, image: Tensor, cell: Tensor, real: Tensor) -> Tensor:
    """[m, 9 C] of one level; zeros where not `real`."""
    channels, height, width = level.shape[1:]
    # The 3 x 3 cells around each: [m, 9].
    row, column = cell // width, cell % width
    steps = torch.arange(9, device=cell.device)
    rows, columns = row[:, None] + steps // 3 - 1, column[:, None] + steps % 3 - 1
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width) & real[:, None]
    flat_index = (image[:, None] * height + rows) * width + columns
    # Their channels, out of all cells of the batch: [N * H * W, C] -> [m * 9, C].
    table = level.permute(0, 2, 3, 1).reshape(-1, channels)
    # What stands in for a cell outside is spread over the map: the gradients of all, zeros, would queue up at one.
    cells = table.index_select(0, torch.where(inside, flat_index, flat_index.remainder(len(table))).flatten())
    # Selected rather than multiplied: what stands in for a cell outside may be infinite.
    return torch.where(inside.flatten()[:, None], cells, 0.0).view(len(cell), 9 * channels)
