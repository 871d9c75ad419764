"""Codes of corners: there and back, by eye, and what crossed edges become."""

import torch

from maskrcnn_core.model.box_coding import BoxCoding
from maskrcnn_core.model.corner_coding import CornerCoding, WindowCoding

WINDOW = torch.tensor([20.0, 40.0, 60.0, 120.0])
BOX = torch.tensor([30.0, 20.0, 60.0, 80.0])


def test_by_eye() -> None:
    assert CornerCoding(200.0).encode(BOX, WINDOW).tolist() == torch.tensor([0.05, -0.1, 0.0, -0.2]).tolist()
    assert WindowCoding().encode(BOX, WINDOW).tolist() == [0.25, -0.25, 0.0, -0.5]


def test_there_and_back_and_no_output_is_the_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = 100 * torch.rand(2, 7, 2, 2, generator=generator)
    boxes, references = (torch.cat((corner, corner + 30), dim=-1) for corner in corners.unbind(dim=2))
    codings: tuple[BoxCoding, ...] = (CornerCoding(96.0), WindowCoding())
    for coding in codings:
        torch.testing.assert_close(coding.decode(coding.encode(boxes, references), references), boxes)
        assert torch.equal(coding.decode(torch.zeros_like(boxes), references), references)
        assert coding.encode(boxes[:0], references[:0]).shape == (0, 7, 4)


def test_crossed_edges_become_a_box_without_extent() -> None:
    crossed = torch.tensor([0.9, 0.0, -0.9, 0.0], requires_grad=True)
    box = WindowCoding().decode(crossed, WINDOW)
    assert box.tolist() == [40.0, 40.0, 40.0, 120.0]
    box.sum().backward()
    assert crossed.grad is not None
    assert bool(crossed.grad.isfinite().all())
