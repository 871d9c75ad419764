"""Objects to tensors: by eye, against slow references, against torchvision's resized masks."""

from array import array
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from maskrcnn_core.data.coco.dataset import CocoImage, CocoObject, load_coco, rasterise
from maskrcnn_core.data.segmentation import ObjectMask
from maskrcnn_core.data.targets import mask_grid, object_targets, pad_targets, targets_from_dense

masks = hnp.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def rectangle(number: int, x1: float, y1: float, x2: float, y2: float, **changes: object) -> CocoObject:
    values: dict[str, object] = {
        "annotation_id": number,
        "category_id": 5,
        "box": (x1, y1, x2, y2),
        "area": (x2 - x1) * (y2 - y1),
        "crowd": False,
        "segmentation": [array("d", [x1, y1, x2, y1, x2, y2, x1, y2])],
        "keypoints": None,
    }
    return CocoObject(**(values | changes))  # type: ignore[arg-type]


def image_with(*objects: CocoObject) -> CocoImage:
    return CocoImage(image_id=1, file_name="a.png", width=20, height=10, objects=objects)


def crop(mask: np.ndarray, size: int) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """`mask_grid` of the object in a whole image's mask [H, W]."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    tight = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return mask_grid(ObjectMask(tight, left=int(columns[0]), top=int(rows[0])), size)


def slow_coverage(mask: np.ndarray, size: int) -> np.ndarray:
    """Mean of every cell, pixel by pixel."""
    rows, columns = np.nonzero(mask)
    top, left = rows.min(), columns.min()
    dy, dx = (rows.max() + 1 - top) / (size - 2), (columns.max() + 1 - left) / (size - 2)
    grid = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            y, x = top + (i - 1) * dy, left + (j - 1) * dx
            for row, column in zip(rows, columns, strict=True):
                height = max(0.0, min(y + dy, row + 1) - max(y, row))
                width = max(0.0, min(x + dx, column + 1) - max(x, column))
                grid[i, j] += height * width / (dy * dx)
    return grid * 255


def test_crop_by_eye() -> None:
    mask = np.zeros((10, 10), dtype=bool)
    mask[2:6, 4:8] = True
    mask[2, 4] = False  # a quarter of the first of 2 x 2 cells
    grid, box = crop(mask, 4)
    assert grid.tolist() == [[0, 0, 0, 0], [0, 191, 255, 0], [0, 255, 255, 0], [0, 0, 0, 0]]
    assert box == (2.0, 0.0, 10.0, 8.0)  # cells of 2 x 2 pixels, one more on each side


@given(masks.filter(lambda mask: mask.any()), st.integers(3, 9))
@settings(max_examples=60, deadline=None)
def test_crop_as_the_slow_reference(mask: np.ndarray, size: int) -> None:
    grid, _ = crop(mask, size)
    assert np.abs(grid - slow_coverage(mask, size)).max() <= 0.501


@given(masks.filter(lambda mask: mask.any()), st.integers(3, 30))
@settings(max_examples=60, deadline=None)
def test_crop_keeps_the_area(mask: np.ndarray, size: int) -> None:
    grid, (x1, y1, x2, y2) = crop(mask, size)
    cell = (x2 - x1) * (y2 - y1) / size**2
    rounding = 0.5 / 255 * size**2 * cell  # each cell's share of the object to one of 256 steps
    assert abs(grid.astype(float).sum() / 255 * cell - mask.sum()) < rounding + 0.02 * mask.sum()


def test_scaled_and_mirrored() -> None:
    image = image_with(rectangle(1, 2, 1, 6, 5))
    plain = object_targets(image, {5: 3}, input_size=(20, 60), mask_size=4)
    assert plain.boxes.tolist() == [[6.0, 2.0, 18.0, 10.0]]
    assert plain.labels.tolist() == [3]
    assert plain.mask_boxes is not None
    assert plain.mask_boxes.tolist() == [[0.0, -2.0, 24.0, 14.0]]  # x 0..8, y -1..7 in the original
    mirrored = object_targets(image, {5: 3}, input_size=(20, 60), mask_size=4, flip=True)
    assert mirrored.mask_boxes is not None
    assert mirrored.boxes.tolist() == [[42.0, 2.0, 54.0, 10.0]]
    assert mirrored.mask_boxes.tolist() == [[36.0, -2.0, 60.0, 14.0]]


@pytest.mark.parametrize("mask_size", [0, 12])
def test_the_mirrored_mask_is_the_mask_of_the_mirrored_polygon(mask_size: int) -> None:
    polygon = [2.0, 1.0, 11.0, 2.0, 4.0, 8.0]
    mirrored = [20.0 - value if place % 2 == 0 else value for place, value in enumerate(polygon)]
    mask = rasterise([polygon], 10, 20)
    ours, theirs = (
        object_targets(
            image_with(rectangle(1, *box, segmentation=[array("d", points)])),
            {5: 0},
            input_size=(20, 40),
            mask_size=mask_size,
            flip=flip,
        )
        for points, box, flip in ((polygon, (2, 1, 11, 8), True), (mirrored, (9, 1, 18, 8), False))
    )
    assert mask.any()
    assert ours.boxes.tolist() == theirs.boxes.tolist()
    assert ours.masks is not None
    assert theirs.masks is not None
    # pycocotools rounds half pixels up, so that the mirrored polygon may differ by a column.
    assert (ours.masks != theirs.masks).float().mean() < 0.15


def test_crowd_has_a_box_but_no_mask() -> None:
    crowd = rectangle(2, 8, 2, 12, 6, crowd=True, segmentation={"size": [10, 20], "counts": [200]})
    for size in (0, 8):
        targets = object_targets(
            image_with(rectangle(1, 1, 1, 5, 5), crowd), {5: 0}, input_size=(10, 20), mask_size=size, flip=True
        )
        assert targets.crowd.tolist() == [False, True]
        assert targets.boxes[1].tolist() == [8.0, 2.0, 12.0, 6.0]
        assert targets.masks is not None
        assert targets.mask_boxes is not None
        assert targets.masks[0].any()
        assert not targets.masks[1].any()
        assert targets.mask_boxes[1].tolist() == [0.0, 0.0, 1.0, 1.0]  # also mirrored and scaled: never without area
        batch = pad_targets([targets])
        assert batch.mask_boxes is not None
        assert batch.mask_boxes[0, 1].tolist() == [0.0, 0.0, 1.0, 1.0]
        assert batch.valid.tolist() == [[True, False]]
        assert batch.crowd.tolist() == [[False, True]]


def test_an_object_without_a_pixel_has_an_empty_mask_over_its_box() -> None:
    speck = rectangle(1, 3.1, 3.1, 3.3, 3.3)
    targets = object_targets(image_with(speck), {5: 0}, input_size=(10, 20), mask_size=6)
    assert targets.masks is not None
    assert not targets.masks.any()
    torch.testing.assert_close(targets.mask_boxes, targets.boxes)


def test_keypoints_are_scaled_and_mirrored() -> None:
    names = ("nose", "left_eye", "right_eye", "left_fin")
    item = rectangle(1, 0, 0, 9, 9, keypoints=(4, 5, 2, 6, 3, 1, 0, 0, 0, 19, 9, 2))
    plain, mirrored = (
        object_targets(
            image_with(item), {5: 0}, input_size=(20, 20), keypoint_names=names, keypoint_offset=0.0, flip=flip
        ).keypoints
        for flip in (False, True)
    )
    assert plain is not None
    assert mirrored is not None
    assert plain.tolist() == [[[4.0, 10.0, 2.0], [6.0, 6.0, 1.0], [0.0, 0.0, 0.0], [19.0, 18.0, 2.0]]]
    # Pixel column x becomes 19 - x; what is not annotated stays zero, on the other side.
    assert mirrored.tolist() == [[[15.0, 10.0, 2.0], [0.0, 0.0, 0.0], [13.0, 6.0, 1.0], [0.0, 18.0, 2.0]]]


@pytest.mark.parametrize("flip", [False, True])
def test_keypoints_are_middles_of_pixels(flip: bool) -> None:
    """Half a pixel of the original image more, wherever it lands; what is not annotated stays zero."""
    item = rectangle(1, 0, 0, 9, 9, keypoints=(4, 5, 2, 19, 0, 1, 7, 7, 0))
    got = object_targets(
        image_with(item), {5: 0}, input_size=(20, 60), keypoint_names=("a", "b", "c"), flip=flip
    ).keypoints
    assert got is not None
    columns = (15.5, 0.5) if flip else (4.5, 19.5)
    assert got.tolist() == [[[3 * columns[0], 11.0, 2.0], [3 * columns[1], 1.0, 1.0], [0.0, 0.0, 0.0]]]


def test_objects_without_keypoints_have_zeros() -> None:
    people = image_with(rectangle(1, 0, 0, 9, 9), rectangle(2, 0, 0, 9, 9, keypoints=(4, 5, 2)))
    got = object_targets(people, {5: 0}, input_size=(10, 20), keypoint_names=("a",)).keypoints
    assert got is not None
    assert got.tolist() == [[[0.0, 0.0, 0.0]], [[4.5, 5.5, 2.0]]]


def test_a_mirrored_real_person_is_the_person_in_a_mirror(shared_data: Path) -> None:
    dataset = load_coco(str(shared_data / "coco/annotations/person_keypoints_val.json"), require_masks=False)
    firsts = ((image, image.objects[0].keypoints or ()) for image in dataset.images if image.objects)
    image = next(image for image, keypoints in firsts if sum(v == 2 for v in keypoints[2::3]) > 12)
    plain, mirrored = (
        object_targets(
            image,
            dataset.label_of,
            input_size=(image.height, image.width),
            keypoint_names=dataset.keypoint_names,
            flip=flip,
        ).keypoints
        for flip in (False, True)
    )
    assert plain is not None
    assert mirrored is not None
    left, right = (dataset.keypoint_names.index(f"{side}_shoulder") for side in ("left", "right"))
    assert mirrored[0, left, 0] == pytest.approx(image.width - float(plain[0, right, 0]))
    assert mirrored[0, left, 1:].tolist() == plain[0, right, 1:].tolist()


def test_no_objects_at_all() -> None:
    names = ("nose",)
    for size in (None, 0, 8):
        empty = object_targets(image_with(), {}, input_size=(10, 20), mask_size=size, keypoint_names=names)
        alone = pad_targets([empty, empty])
        assert alone.boxes.shape == (2, 0, 4)
        assert alone.valid.shape == (2, 0)
        assert alone.keypoints is not None
        assert alone.keypoints.shape == (2, 0, 1, 3)
        full = object_targets(
            image_with(rectangle(1, 1, 1, 5, 5)), {5: 0}, input_size=(10, 20), mask_size=size, keypoint_names=names
        )
        batch = pad_targets([empty, full])
        assert batch.valid.tolist() == [[False], [True]]
        assert batch.boxes[0].tolist() == [[0.0, 0.0, 1.0, 1.0]]
        assert batch.mask_boxes is None or batch.mask_boxes[0].tolist() == [[0.0, 0.0, 1.0, 1.0]]
        assert (batch.masks is None) == (size is None)
        if full.masks is not None and batch.masks is not None:
            assert torch.equal(batch.masks[1], full.masks)


def paste(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Input-resolution crops back into whole masks."""
    whole = torch.zeros(len(masks), height, width, dtype=torch.uint8)
    for slot, (mask, box) in enumerate(zip(masks, boxes.long(), strict=True)):
        x1, y1 = int(box[0]), int(box[1])
        for i in range(mask.shape[0]):
            for j in range(mask.shape[1]):
                if 0 <= y1 + i < height and 0 <= x1 + j < width:
                    whole[slot, y1 + i, x1 + j] = mask[i, j]
    return whole


dense_masks = hnp.arrays(np.bool_, st.tuples(st.integers(1, 3), st.integers(2, 7), st.integers(2, 7)))


@given(st.lists(dense_masks, min_size=1, max_size=3))
@settings(max_examples=50, deadline=None)
def test_dense_masks_survive_cropping_and_padding(images: list[np.ndarray]) -> None:
    targets = [
        targets_from_dense(torch.zeros(len(m), 4), torch.zeros(len(m), dtype=torch.int64), torch.from_numpy(m))
        for m in images
    ]
    batch = pad_targets(targets)
    assert batch.masks is not None
    assert batch.mask_boxes is not None
    for slot, dense in enumerate(images):
        count = len(dense)
        whole = paste(batch.masks[slot, :count], batch.mask_boxes[slot, :count], *dense.shape[1:])
        assert np.array_equal(whole.numpy() > 0, dense)
        boxes = batch.mask_boxes[slot, :count]
        assert ((boxes[:, 2:] - boxes[:, :2]) == torch.tensor([batch.masks.shape[3], batch.masks.shape[2]])).all()


def test_sampling_at_the_image_border_is_as_in_the_whole_mask() -> None:
    dense = torch.zeros(2, 6, 8, dtype=torch.bool)
    dense[0, 4:, 6:] = True  # touches the bottom and the right edge
    dense[1, :5, 0:5] = True  # touches the top and the left edge, and makes the crops larger
    targets = targets_from_dense(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64), dense)
    assert targets.masks is not None
    assert targets.mask_boxes is not None
    for slot, (x1, y1) in enumerate(targets.mask_boxes[:, :2].long().tolist()):
        for i in range(targets.masks.shape[1]):
            for j in range(targets.masks.shape[2]):
                row, column = min(max(y1 + i, 0), 5), min(max(x1 + j, 0), 7)
                assert bool(targets.masks[slot, i, j]) == bool(dense[slot, row, column])


def test_input_resolution_masks_of_real_objects_are_torchvisions(shared_data: Path) -> None:
    dataset = load_coco(str(shared_data / "coco/annotations/instances_val.json"), require_masks=True)
    for image in [image for image in dataset.images if image.objects][:4]:
        height, width = image.height // 2 + 7, image.width // 2 + 9
        targets = object_targets(image, dataset.label_of, input_size=(height, width), mask_size=0)
        dense = torch.stack(
            [torch.from_numpy(rasterise(item.segmentation or [], image.height, image.width)) for item in image.objects]
        )
        expected = F.interpolate(dense[:, None].float(), size=(height, width))[:, 0].bool()
        expected[targets.crowd] = False
        reference = targets_from_dense(targets.boxes, targets.labels, expected)
        assert torch.equal(targets.masks, reference.masks)  # type: ignore[arg-type]
        real = ~targets.crowd
        assert torch.equal(targets.mask_boxes[real], reference.mask_boxes[real])


def test_crops_of_real_objects_lie_on_them(shared_data: Path) -> None:
    dataset = load_coco(str(shared_data / "nuclei/annotations/instances_val.json"), require_masks=True)
    image = dataset.images[0]
    targets = object_targets(image, dataset.label_of, input_size=(image.height, image.width), mask_size=32)
    assert targets.masks is not None
    assert targets.mask_boxes is not None
    boxes = targets.mask_boxes
    cell = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 32**2
    areas = targets.masks.sum(dim=(1, 2)) / 255 * cell
    torch.testing.assert_close(areas, torch.tensor([item.area for item in image.objects]), rtol=0.02, atol=0.5)
