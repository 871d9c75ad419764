"""A dense head as DetectorNet's: masks of boxes and of their halves, and how well each candidate box fits them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.dense.head import at_anchors
from maskrcnn_core.structures import DenseOutputs

PARTS = ((0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0))
"""x1, y1, x2, y2 in parts of a box: all of it, its left, right, upper and lower half; one mask for each."""
_OPPOSITE = (0, 2, 1, 4, 3)
# The ring around a candidate that its whole mask must leave empty, as parts of the box beyond its edges.
_RING = 0.1


class BoxMaskHead(nn.Module):
    """Fully connected layers with ReLU see the whole map and draw the masks (DetectorNet: Szegedy et al., NIPS 2013,
    sections 4 and 5); candidates are scored by them (section 5.2). It has no deltas: a candidate is its box.

    Args:
        channels: of the map.
        map_side: cells along a side of the map.
        grid: cells along a side of the masks, which cover the input.
        sides: width and height of the candidates around the middle of each of the masks' cells, parts of the input.
        num_classes: K.
        widths: of the fully connected layers before the masks.
        dropout: share of what goes into the masks that training drops.
    """

    rows: Tensor
    columns: Tensor

    def __init__(
        self,
        channels: int,
        map_side: int,
        grid: int,
        sides: Sequence[tuple[float, float]],
        num_classes: int,
        *,
        widths: Sequence[int] = (),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.map_side, self.grid, self.num_classes, self.dropout = map_side, grid, num_classes, dropout
        width = channels * map_side**2
        self.layers = nn.ModuleList()
        for out in widths:
            self.layers.append(nn.Linear(width, out))
            width = out
        self.masks = nn.Linear(width, num_classes * len(PARTS) * grid**2)
        nn.init.normal_(self.masks.weight, std=0.01)
        nn.init.zeros_(self.masks.bias)
        columns, rows = (torch.tensor(lengths, dtype=torch.float32) for lengths in zip(*sides, strict=True))
        for name, lengths, axis in (("columns", columns, 0), ("rows", rows, 1)):
            self.register_buffer(name, covered_by_parts(lengths * grid, grid, axis), persistent=False)

    def at(self, maps: Sequence[Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
        """See `DenseHead.at`."""
        return at_anchors(self(maps), index)

    def forward(self, maps: Sequence[Tensor]) -> DenseOutputs:
        """One level [N, C, map_side, map_side] -> outputs of grid * grid * len(sides) candidates, whose logits are
        scores from -1 to 1 where masks are from 0 to 1, and have no gradient; the masks have.

        Raises:
            ConfigError: the map has another size, so that the input has.
        """
        (x,) = maps
        if x.shape[2:] != (self.map_side, self.map_side):
            raise ConfigError(
                f"model.dense.head.kind: got box_masks, which is made for maps of {self.map_side} x {self.map_side} "
                f"cells, and an input whose map has {x.shape[2]} x {x.shape[3]}; set model.input.fit to square or "
                "letterbox, and leave model.input.short_side as it was in training"
            )
        x = x.flatten(1)
        for layer in self.layers:
            x = functional.relu(layer(x))
        x = functional.dropout(x, self.dropout, self.training)
        masks = self.masks(x).unflatten(1, (self.num_classes, len(PARTS), self.grid, self.grid))
        with torch.no_grad():
            # [N, K, P, grid, grid] -> [N, grid * grid * P, K], candidates of a position together.
            scores = self._scores(masks.detach().to(self.rows.dtype)).permute(0, 3, 4, 2, 1).flatten(1, 3)
        return DenseOutputs([scores], [scores.new_zeros(*scores.shape[:2], 4)], masks=masks)

    def _scores(self, masks: Tensor) -> Tensor:
        """[N, K, 5, grid, grid] -> [N, K, P, grid, grid], how well each candidate fits: the mean of each part's mask
        over that part, less that over what is opposite; the mean of the five."""
        total: Tensor | None = None
        for part, opposite in enumerate(_OPPOSITE):
            inside = self._means(masks[:, :, part], part)
            outside = self._ring_means(masks[:, :, part]) if part == 0 else self._means(masks[:, :, part], opposite)
            total = inside - outside if total is None else total + inside - outside
        assert total is not None
        return total / len(PARTS)

    def _means(self, mask: Tensor, part: int) -> Tensor:
        """[N, K, grid, grid] -> [N, K, P, grid, grid], means over a part of each candidate; 0 outside of the input."""
        return self._sums(mask, part) / self._areas(part)

    def _ring_means(self, mask: Tensor) -> Tensor:
        ring = len(PARTS)  # the last of the covers: the box with its ring
        return (self._sums(mask, ring) - self._sums(mask, 0)) / (self._areas(ring) - self._areas(0))

    def _sums(self, mask: Tensor, part: int) -> Tensor:
        """Sums over areas, one axis after the other: what differences of an integral image are."""
        across = torch.einsum("nkij,pxj->nkpix", mask, self.columns[part, ..., :-1])
        return torch.einsum("nkpix,pyi->nkpyx", across, self.rows[part, ..., :-1])

    def _areas(self, part: int) -> Tensor:
        """[P, 1, 1] cells."""
        return (self.rows[part, :, :1, -1] * self.columns[part, :, :1, -1])[..., None]


def covered_by_parts(lengths: Tensor, grid: int, axis: int) -> Tensor:
    """How much of each cell each part of each candidate covers along an axis.

    Args:
        lengths: [P] of the candidates, cells.
        axis: 0 = from left to right, 1 = from top to bottom.

    Returns:
        [6, P, grid, grid + 1]: of the five parts, and of the box with the ring around it; for each position; of each
        cell from 0 to 1, and last the part's own length, cells.
    """
    ends = [(part[axis], part[axis + 2]) for part in PARTS] + [(-_RING, 1.0 + _RING)]
    middles = torch.arange(grid, dtype=torch.float32) + 0.5
    cells = torch.arange(grid, dtype=torch.float32)
    covers = []
    for low, high in ends:
        # [P, grid, 1] against cells [grid].
        begin, end = (middles + (edge - 0.5) * lengths[:, None] for edge in (low, high))
        cover = (torch.minimum(end[..., None], cells + 1) - torch.maximum(begin[..., None], cells)).clamp(min=0)
        length = ((high - low) * lengths)[:, None, None].expand(-1, grid, 1)
        covers.append(torch.cat((cover, length), dim=2))
    return torch.stack(covers)
