"""OverFeat's windows at every cell are the paper's pooling at all offsets, interleaved, in a slow loop."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.model.dense.window_head import WindowHead


def head_of(pool: int, cells: int, channels: int = 4) -> WindowHead:
    torch.manual_seed(0)
    head = WindowHead(channels, pool, cells, 3, widths=(6, 5), box_widths=(7,), dropout=0.0)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    return head


def at_all_offsets(head: WindowHead, layers: nn.ModuleList, predictor: nn.Conv2d, x: Tensor, pool: int) -> Tensor:
    """Non-overlapping pooling at each offset, the layers without gaps on the result, their outputs interleaved."""
    height, width = x.shape[2:]
    seen = functional.pad(x, (head.reach[0], head.reach[1], head.reach[0], head.reach[1]))
    output = x.new_full((len(x), predictor.out_channels, height, width), torch.nan)
    for down in range(pool):
        for across in range(pool):
            y = functional.max_pool2d(seen[:, :, down:, across:], pool, stride=pool)
            for layer in layers:
                assert isinstance(layer, nn.Conv2d)
                y = functional.conv2d(y, layer.weight, layer.bias).relu()
            y = functional.conv2d(y, predictor.weight, predictor.bias)
            place = output[:, :, down::pool, across::pool]
            place.copy_(y[:, :, : place.shape[2], : place.shape[3]])
    return output


@pytest.mark.parametrize(("pool", "cells"), [(3, 5), (2, 3), (1, 3), (3, 1)])
def test_offsets_interleaved(pool: int, cells: int) -> None:
    head = head_of(pool, cells)
    x = torch.randn(2, 4, 11, 8, generator=torch.Generator().manual_seed(1))
    outputs = head([x, x[:, :, :4, :3]])
    for got, level in zip(outputs.logits, (x, x[:, :, :4, :3]), strict=True):
        expected = at_all_offsets(head, head.class_layers, head.logits, level, pool)
        torch.testing.assert_close(got, expected.permute(0, 2, 3, 1).flatten(1, 2), atol=1e-4, rtol=1e-4)
    expected = at_all_offsets(head, head.box_layers, head.deltas, x, pool)
    torch.testing.assert_close(outputs.deltas[0], expected.permute(0, 2, 3, 1).flatten(1, 2), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("pool", "cells", "seen"), [(3, 3, range(2, 11)), (2, 2, range(5, 9))])
def test_a_window_sees_its_cells_and_no_others(pool: int, cells: int, seen: range) -> None:
    """By eye: at cell 6 of 13, nine cells are 2 to 10; four are 5 to 8, which is why such a window ends at its cell."""
    head = head_of(pool, cells, channels=1)
    x = torch.rand(1, 1, 13, 13, generator=torch.Generator().manual_seed(2), requires_grad=True)
    index = torch.tensor([[6 * 13 + 6]])
    logits, deltas = head.at([x], index)
    assert (logits.shape, deltas.shape) == ((1, 1, 3), (1, 1, 4))
    cells_with_influence = set()
    base = logits.detach()
    with torch.no_grad():
        for row in range(13):
            for column in range(13):
                changed = x.clone()
                changed[0, 0, row, column] += 100
                if not torch.equal(head.at([changed], index)[0], base):
                    cells_with_influence.add((row, column))
    assert cells_with_influence == {(row, column) for row in seen for column in seen}
    head([x]).logits[0].sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
