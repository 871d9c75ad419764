"""A box coding and back; the numbers themselves are tested with `boxes`."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxLinearCoder

from maskrcnn_core.boxes import decode_deltas, encode_deltas
from maskrcnn_core.model.box_coding import DeltaCoding, EdgeCoding

CODINGS = [DeltaCoding(), DeltaCoding((10.0, 10.0, 5.0, 5.0)), DeltaCoding((1.0, 2.0, 3.0, 4.0))]

coordinate = st.floats(-500, 500, width=32)
side = st.floats(8, 400, width=32)  # a box may be 62 times as long as its reference, then it is cut
corners = st.tuples(coordinate, coordinate, side, side)


@settings(deadline=None, max_examples=60)
@given(corners, corners, st.sampled_from(CODINGS))
def test_what_is_encoded_is_decoded(one: tuple[float, ...], other: tuple[float, ...], coding: DeltaCoding) -> None:
    box, reference = (torch.tensor([[x, y, x + w, y + h]], dtype=torch.float64) for x, y, w, h in (one, other))
    back = coding.decode(coding.encode(box, reference), reference)
    torch.testing.assert_close(back, box, atol=1e-3, rtol=1e-4)


@settings(deadline=None, max_examples=60)
@given(st.tuples(*[st.floats(-3, 3, width=32)] * 4), corners, st.sampled_from(CODINGS))
def test_what_is_decoded_is_encoded(outputs: tuple[float, ...], other: tuple[float, ...], coding: DeltaCoding) -> None:
    x, y, w, h = other
    reference = torch.tensor([[x, y, x + w, y + h]], dtype=torch.float64)
    wanted = torch.tensor([outputs], dtype=torch.float64)
    torch.testing.assert_close(coding.encode(coding.decode(wanted, reference), reference), wanted, atol=1e-3, rtol=1e-4)


def test_weights_by_eye() -> None:
    # From centre (5, 5) side 10 to centre (7, 5), 20 wide and 5 high: dx 0.2, dw log 2, dh log 1/2.
    reference, box = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[-3.0, 2.5, 17, 7.5]])
    plain = torch.tensor([[0.2, 0, math.log(2), -math.log(2)]])
    torch.testing.assert_close(DeltaCoding().encode(box, reference), plain)
    weighted = plain * torch.tensor([1.0, 2, 3, 4])
    torch.testing.assert_close(DeltaCoding((1.0, 2.0, 3.0, 4.0)).encode(box, reference), weighted)


@pytest.mark.parametrize("coding", CODINGS)
def test_any_shape_and_nothing(coding: DeltaCoding) -> None:
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(2, 3, 5, 2, generator=generator) * 50
    boxes = torch.cat((low, low + 1 + torch.rand(2, 3, 5, 2, generator=generator) * 40), dim=-1)
    references = boxes.roll(1, dims=2)
    outputs = coding.encode(boxes, references)
    assert outputs.equal(encode_deltas(boxes, references, coding.weights))
    assert coding.decode(outputs, references).equal(decode_deltas(outputs, references, coding.weights))
    torch.testing.assert_close(coding.decode(outputs, references), boxes, atol=1e-4, rtol=1e-4)
    nothing = torch.zeros(0, 4)
    assert coding.encode(nothing, nothing).shape == coding.decode(nothing, nothing).shape == (0, 4)


def test_edges_by_eye() -> None:
    # From the centre (20, 20) of an anchor of 10 x 20 pixels: 15 to the left, 10 up, 5 to the right, 40 down.
    reference, box = torch.tensor([[15.0, 10, 25, 30]]), torch.tensor([[5.0, 10, 25, 60]])
    outputs = torch.tensor([[1.5, 0.5, 0.5, 2.0]])
    assert EdgeCoding().encode(box, reference).equal(outputs)
    assert EdgeCoding().decode(outputs, reference).equal(box)
    assert EdgeCoding().decode(-outputs, reference).tolist() == [[20, 20, 20, 20]]


@settings(deadline=None, max_examples=60)
@given(st.tuples(*[st.floats(0, 30, width=32)] * 4), corners)
def test_edges_and_back(outputs: tuple[float, ...], other: tuple[float, ...]) -> None:
    x, y, w, h = other
    reference = torch.tensor([[x, y, x + w, y + h]], dtype=torch.float64)
    wanted = torch.tensor([outputs], dtype=torch.float64)
    back = EdgeCoding().encode(EdgeCoding().decode(wanted, reference), reference)
    torch.testing.assert_close(back, wanted, atol=1e-3, rtol=1e-4)


def test_edges_are_torchvisions() -> None:
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(20, 2, generator=generator) * 50
    boxes, references = torch.cat((low, low + 20), dim=1), torch.cat((low + 5, low + 13), dim=1)
    coder = BoxLinearCoder(normalize_by_size=True)
    outputs = EdgeCoding().encode(boxes, references)
    torch.testing.assert_close(outputs, coder.encode(references, boxes))
    torch.testing.assert_close(EdgeCoding().decode(outputs, references), coder.decode(outputs, references))
