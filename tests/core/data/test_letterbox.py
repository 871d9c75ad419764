"""An image in the middle of a square: where it lies, what is around it, and the way back to its own frame."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.data.letterbox import letterbox, letterboxes
from maskrcnn_core.data.transform import normalisation, pad_batch, prepare_image, prepare_input
from maskrcnn_core.inference.device_preparation import DevicePreparation, pack_images
from maskrcnn_core.inference.frames import boxes_in_input, boxes_in_original, keypoints_in_original
from maskrcnn_core.inference.views import View, boxes_from_view, boxes_in_view, mirrored
from maskrcnn_core.structures import ImageBatch

RULE = InputConfig(short_side=32, fit="letterbox", mean=(0.0, 0.1, 0.2), std=(1.0, 1.0, 0.5))


def image_of(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_places_by_eye() -> None:
    assert letterbox((375, 500), (416, 416)) == ((312, 416), (52, 0))
    assert letterbox((500, 375), (416, 416)) == ((416, 312), (0, 52))
    assert letterbox((5, 7), (8, 8)) == ((5, 8), (1, 0))  # 5 * 8 / 7 = 5.7; three rows around it, one above
    assert letterbox((9, 9), (416, 416)) == ((416, 416), (0, 0))
    assert letterbox((1, 1000), (32, 32)) == ((1, 32), (15, 0))
    assert letterbox((100, 200), (50, 300)) == ((50, 100), (0, 100))


@given(st.lists(st.tuples(*[st.integers(1, 5000)] * 4), min_size=1, max_size=8))
def test_of_many_images_as_of_one(cases: list[tuple[int, int, int, int]]) -> None:
    found = [letterbox((a, b), (c, d)) for a, b, c, d in cases]
    table = torch.tensor(cases)
    inner, corners = letterboxes(table[:, :2], table[:, 2:])
    assert list(zip(map(tuple, inner.tolist()), map(tuple, corners.tolist()), strict=True)) == found
    for (a, b, c, d), (sides, corner) in zip(cases, found, strict=True):
        assert all(1 <= side + 2 * start <= whole for side, start, whole in zip(sides, corner, (c, d), strict=True))
        assert sides[0] == c or sides[1] == d, (a, b)


def test_grey_lies_around_the_resized_image() -> None:
    image = image_of(20, 40)
    prepared = prepare_input(image, (32, 32), RULE)
    inner = prepare_image(image, size=(16, 32), mean=RULE.mean, std=RULE.std)
    assert torch.equal(prepared[:, 8:24], inner)
    factor, offset = normalisation(RULE.mean, RULE.std)
    margins = torch.cat((prepared[:, :8], prepared[:, 24:]), dim=1)
    assert torch.equal(margins, (127.5 * factor + offset)[:, None, None].expand_as(margins))
    assert margins[0, 0, 0] == pytest.approx(0.5, abs=1e-6)


def batch_of(*sizes: tuple[int, int]) -> ImageBatch:
    images = [prepare_input(image_of(*size), (32, 32), RULE) for size in sizes]
    return pad_batch(images, sizes, 32, letterboxed=True)


def test_a_device_makes_the_same() -> None:
    sizes = [(20, 40), (20, 40), (33, 9), (32, 32)]
    packed = pack_images([image_of(*size) for size in sizes], [((32, 32),)] * 4, pinned=False)
    (found,) = DevicePreparation(RULE, torch.device("cpu")).batches(packed)
    expected = batch_of(*sizes)
    torch.testing.assert_close(found.pixels, expected.pixels, atol=1e-5, rtol=1e-5)
    assert found.letterboxed
    assert found.to("cpu").letterboxed


def test_boxes_and_keypoints_there_and_back() -> None:
    images = batch_of((20, 40), (33, 11))
    boxes = torch.tensor([[[0.0, 0.0, 40.0, 20.0], [10.0, 5.0, 20.0, 10.0]], [[0.0, 0.0, 11.0, 33.0], [0, 0, 1, 1]]])
    seen = boxes_in_input(boxes, images)
    # The whole of the first lies in rows 8 to 24; of the second, 10 columns wide, in columns 11 to 21.
    assert seen[0].tolist() == [[0, 8, 32, 24], [8, 12, 16, 16]]
    assert seen[1, 0].tolist() == [11, 0, 21, 32]
    torch.testing.assert_close(boxes_in_original(seen, images), boxes)
    points = torch.tensor([[[[8.0, 12.0, 0.7]]], [[[11.0, 32.0, 0.5]]]])
    found = keypoints_in_original(points, images)
    torch.testing.assert_close(found, torch.tensor([[[[10.0, 5.0, 0.7]]], [[[0.0, 33.0, 0.5]]]]))


def test_views_of_a_letterbox_there_and_back() -> None:
    images = batch_of((20, 40), (33, 10))  # the second has 11 columns left of it, 12 right
    boxes = torch.tensor([[[10.0, 5.0, 20.0, 10.0]], [[0.0, 3.0, 8.0, 33.0]]])
    for view in (View(images), View(mirrored(images), flipped=True)):
        torch.testing.assert_close(boxes_from_view(boxes_in_view(boxes, view), view), boxes)
    assert View(mirrored(images), flipped=True).images.letterboxed
