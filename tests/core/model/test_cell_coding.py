"""YOLO's codes of boxes: examples by eye, and there and back."""

import pytest
import torch

from maskrcnn_core.model.cell_coding import CellCoding, RootCoding

# The cell of columns 32 .. 64 and rows 0 .. 32, with a prior of 20 x 10 around its middle (48, 16).
PRIOR = torch.tensor([38.0, 11.0, 58.0, 21.0])


def test_cells_by_eye() -> None:
    coding = CellCoding(32)
    assert coding.decode(torch.zeros(4), PRIOR).tolist() == PRIOR.tolist()
    # sigmoid(log 3) = 3/4: the centre at 32 + 24 = 56; twice as wide: 40.
    moved = coding.decode(torch.tensor([3.0, 1.0, 2.0, 1.0]).log(), PRIOR)
    assert moved.tolist() == pytest.approx([36, 11, 76, 21])
    assert coding.encode(torch.tensor([36.0, 11.0, 76.0, 21.0]), PRIOR).exp().tolist() == pytest.approx([3, 1, 2, 1])


def test_roots_by_eye() -> None:
    coding, whole = RootCoding(32), torch.tensor([48.0 - 32, 16.0 - 32, 48.0 + 32, 16.0 + 32])  # 64 x 64
    # A quarter across, half down; sides 1/4 and 1 of the input.
    box = coding.decode(torch.tensor([0.25, 0.5, 0.5, 1.0]), whole)
    assert box.tolist() == [40 - 8, 16 - 32, 40 + 8, 16 + 32]
    assert coding.encode(box, whole).tolist() == pytest.approx([0.25, 0.5, 0.5, 1.0])


@pytest.mark.parametrize("coding", [CellCoding(32), RootCoding(32)])
def test_there_and_back(coding: CellCoding | RootCoding) -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([32.0, 0.0]) + 32 * torch.rand(50, 2, generator=generator)
    half = 1 + 40 * torch.rand(50, 2, generator=generator)
    boxes = torch.cat((centres - half, centres + half), dim=1)
    assert torch.allclose(coding.decode(coding.encode(boxes, PRIOR), PRIOR), boxes, atol=2e-3)


def test_whatever_comes_out_is_finite() -> None:
    wild = torch.tensor([1e4, -1e4, 1e4, -1e4])
    assert CellCoding(32).decode(wild, PRIOR).isfinite().all()
    degenerate = torch.tensor([50.0, 50.0, 50.0, 50.0])
    for coding in (CellCoding(32), RootCoding(32)):
        assert coding.encode(degenerate, PRIOR).isfinite().all()
