"""Runs found by tensor operations against `masks.encode_mask`, which works mask by mask in numpy."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from maskrcnn_core.inference import device_masks
from maskrcnn_core.inference.device_masks import encode_on_device, mask_runs
from maskrcnn_core.masks import PasteRule, decode_mask, encode_mask, paste_mask, pixel_spans

RULES: tuple[PasteRule, ...] = ("exact", "bicubic", "torchvision")


def random_boxes(generator: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Tiny to huge, inside, over the borders and outside."""
    sides = generator.uniform(0, 1, (count, 2)) ** 2 * generator.choice([0.0, 0.5, 6.0, 60.0, 500.0], (count, 1))
    corners = generator.uniform(-0.3, 1.2, (count, 2)) * (width, height)
    return np.concatenate((corners, corners + sides), axis=1).astype(np.float32)


def decided_alike(counts: str, mask: np.ndarray, box: np.ndarray, size: tuple[int, int], rule: PasteRule) -> bool:
    """Equal to numpy's, or different only where its value is within 1e-6 of the threshold."""
    height, width = size
    expected = encode_mask(mask, box, height, width, rule=rule)
    if counts == expected:
        return True
    low, high = (
        decode_mask(encode_mask(mask, box, height, width, rule=rule, threshold=0.5 + shift), height, width)
        for shift in (1e-6, -1e-6)
    )
    got = decode_mask(counts, height, width)
    return bool((got >= low).all() and (got <= high).all())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("pixels_at_once", [1, 3_000, device_masks.PIXELS_AT_ONCE])
def test_random_masks(rule: PasteRule, pixels_at_once: int) -> None:
    generator = np.random.default_rng(7)
    for side in (7, 28):
        sizes = generator.integers(1, 90, (60, 2))
        boxes = np.concatenate([random_boxes(generator, 1, *size) for size in sizes.tolist()])
        masks = generator.random((80, side, side), dtype=np.float32)
        places = generator.permutation(80)[:60]
        encoded = encode_on_device(
            torch.from_numpy(masks), places, boxes, sizes, rule=rule, pixels_at_once=pixels_at_once
        )
        assert len(encoded) == 60
        equal = 0
        for place, counts in enumerate(encoded):
            mask, size = masks[places[place]], tuple(sizes[place].tolist())
            equal += counts == encode_mask(mask, boxes[place], *size, rule=rule)
            assert decided_alike(counts, mask, boxes[place], size, rule), (place, boxes[place], size)
        assert equal >= 58  # a value at the threshold to the last bit is rare


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_empty_and_full_masks(rule: PasteRule, value: float) -> None:
    boxes = np.array([[0, 0, 9, 12], [-20, -20, 40, 40], [3.3, 2.2, 5.1, 9.9], [50, 50, 60, 60]], dtype=np.float32)
    masks, sizes = np.full((4, 14, 14), value, dtype=np.float32), np.array([[12, 9]] * 4)
    encoded = encode_on_device(torch.from_numpy(masks), np.arange(4), boxes, sizes, rule=rule)
    assert encoded == [encode_mask(mask, box, 12, 9, rule=rule) for mask, box in zip(masks, boxes, strict=True)]
    assert decode_mask(encoded[1], 12, 9).all() == (value > 0)  # runs that go on over the ends of columns
    assert not decode_mask(encoded[3], 12, 9).any()


def test_by_eye() -> None:
    # Cells of one pixel each: the mask is the picture.      . # .
    #                                                        # # .
    mask = torch.tensor([[[0.0, 1.0], [1.0, 1.0]]])
    runs = mask_runs(mask, np.array([0]), np.array([[0, 0, 2, 2]], dtype=np.float32), np.array([[2, 3]]))
    # Down the columns: pixel 1 alone, then 2 and 3.
    assert runs.of(0).tolist() == [1, 2, 2, 4]


def test_no_masks() -> None:
    nothing = np.zeros((0, 4), dtype=np.float32), np.zeros((0, 2), dtype=np.int64)
    assert encode_on_device(torch.rand(3, 28, 28), np.zeros(0, dtype=np.int64), *nothing) == []


def test_a_box_that_is_not_finite() -> None:
    box = np.array([[0, 0, np.nan, 5]], dtype=np.float32)
    with pytest.raises(ValueError, match="expected finite"):
        encode_on_device(torch.rand(1, 28, 28), np.array([0]), box, np.array([[10, 10]]))


class Watch(TorchDispatchMode):
    """Counts operations and the elements of the largest result."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: dict[str, int] = {}
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.calls[name] = self.calls.get(name, 0) + 1
        if isinstance(result, torch.Tensor) and result.untyped_storage().nbytes() > 0:
            self.largest = max(self.largest, result.untyped_storage().nbytes() // result.element_size())
        return result


def watched(count: int, box: tuple[float, ...], size: tuple[int, int], pixels_at_once: int) -> Watch:
    masks, boxes = torch.ones(count, 28, 28), np.tile(np.array(box, dtype=np.float32), (count, 1))
    with Watch() as watch:
        mask_runs(masks, np.arange(count), boxes, np.array([size] * count), pixels_at_once=pixels_at_once)
    return watch


def test_tables_are_bounded_whatever_the_boxes() -> None:
    budget = 40_000
    for count, box in ((300, (0, 0, 20, 30)), (40, (0, 0, 120, 90)), (2, (0, 0, 900, 700))):
        assert watched(count, box, (700, 900), budget).largest <= budget * 1.1  # changes have a row more than pixels


def test_more_masks_need_no_more_operations() -> None:
    few, many = (watched(count, (0, 0, 20, 30), (100, 100), 1 << 24) for count in (2, 200))
    assert sum(many.calls.values()) == sum(few.calls.values()) < 180
    # One question to the device, one copy.
    assert many.calls.get("nonzero", 0) == 1
    assert "_local_scalar_dense" not in many.calls


def test_windows_of_every_height_make_few_tables() -> None:
    boxes = np.array([[0, 0, 40, height] for height in range(2, 800, 4)], dtype=np.float32)
    masks, sizes = torch.rand(len(boxes), 28, 28), np.array([[800, 800]] * len(boxes))
    with Watch() as watch:
        mask_runs(masks, np.arange(len(boxes)), boxes, sizes)
    assert watch.calls["nonzero"] <= 5


def test_masks_that_are_not_drawn_come_last() -> None:
    # The second box lies beside the image; the third's window is taller than the first's.
    boxes = np.array([[0, 0, 4, 4], [50, 50, 60, 60], [0, 0, 3, 9]], dtype=np.float32)
    runs = mask_runs(torch.ones(3, 7, 7), np.arange(3), boxes, np.array([[10, 10]] * 3))
    assert runs.masks.tolist() == [2, 0, 1]
    assert runs.lengths.tolist() == [2 * 3, 2 * 4, 0]
    assert runs.of(0).tolist() == [0, 4, 10, 14, 20, 24, 30, 34]
    assert runs.of(1).tolist() == []


@pytest.mark.parametrize("pixels_at_once", [1, 50, 3_000, 100_000])
def test_every_column_of_every_window_is_in_one_piece(pixels_at_once: int) -> None:
    generator, side = np.random.default_rng(3), 7
    for count in (0, 1, 5, 60):
        sizes = generator.integers(1, 300, (count, 2))
        boxes = np.concatenate([np.zeros((0, 4)), *(random_boxes(generator, 1, *size) for size in sizes.tolist())])
        spans = pixel_spans(boxes.astype(np.float32), sizes, side, "exact")
        pieces, owners, tables = device_masks._pieces(np.arange(count), spans, sizes, side, pixels_at_once)
        assert [piece for table in tables for piece in table] == list(range(len(pieces)))
        seen: dict[int, list[int]] = {}
        for owner, piece in zip(owners.tolist(), pieces.astype(np.int64), strict=True):
            first = int(piece[device_masks._LEFT])
            seen.setdefault(owner, []).extend(range(first, first + int(piece[device_masks._COLUMNS])))
        (left, _), (widths, heights) = spans.first.T, spans.count.T
        assert seen == {
            owner: [*range(left[owner], left[owner] + widths[owner])]
            for owner in np.flatnonzero(widths * heights).tolist()
        }
        for table in tables:
            part = pieces[table.start : table.stop]
            columns = part[:, device_masks._COLUMNS].sum() + side * len(part)
            assert columns == side + 1 or columns * part[:, device_masks._ROWS].max() <= pixels_at_once


def test_the_window_of_a_piece_ends_where_the_image_does() -> None:
    # Two images of different heights in one table: the shorter one's columns are followed by nothing.
    boxes, sizes = np.array([[0, 0, 8, 8]] * 2, dtype=np.float32), np.array([[5, 8], [8, 8]])
    full = np.ones((2, 7, 7), dtype=np.float32)
    for counts, mask, box, (height, width) in zip(
        encode_on_device(torch.from_numpy(full), np.arange(2), boxes, sizes), full, boxes, sizes.tolist(), strict=True
    ):
        assert counts == encode_mask(mask, box, height, width)
        assert paste_mask(mask, box, height, width).columns.shape == (width, height)
