from array import array
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from maskrcnn_core.data.coco.dataset import CocoObject
from maskrcnn_core.data.scene import Placement, Scene, mirrored, placed
from maskrcnn_core.data.segmentation import rasterise
from maskrcnn_core.data.transform import ResizeRule, resized_part


def an_object(segmentation: Any, box: tuple[float, float, float, float], **others: Any) -> CocoObject:
    given: dict[str, Any] = {"annotation_id": 1, "category_id": 1, "area": 1.0, "crowd": False, "keypoints": None}
    return CocoObject(box=box, segmentation=segmentation, **given | others)


def rle(mask: np.ndarray) -> dict:
    flat = mask.T.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate(([0], changes, [flat.size]))).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def scene_of(mask: np.ndarray, segmentation: Any = None, **others: Any) -> Scene:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    pixels = torch.from_numpy(mask).to(torch.uint8).expand(3, *mask.shape) * 200
    return Scene(pixels, (an_object(rle(mask) if segmentation is None else segmentation, box, **others),))


def dense(item: CocoObject, size: tuple[int, int]) -> np.ndarray:
    assert item.segmentation is not None
    return rasterise(item.segmentation, *size)


def test_mirrored_by_eye() -> None:
    # .XX.....      .....XX.
    # .X......  ->  ......X.
    mask = np.zeros((2, 8), dtype=bool)
    mask[0, 1:3] = mask[1, 1] = True
    found = mirrored(scene_of(mask, keypoints=(1.0, 1.0, 2.0, 0.0, 0.0, 0.0)), keypoint_sources=(1, 0))
    assert found.objects[0].box == (5.0, 0.0, 7.0, 2.0)
    assert (dense(found.objects[0], (2, 8)) == mask[:, ::-1]).all()
    assert (found.pixels[0].numpy() > 0).tolist() == mask[:, ::-1].tolist()
    # The left keypoint is the right one now, in column 8 - 1 - 1; one that is not annotated stays at zero.
    assert found.objects[0].keypoints == (0.0, 0.0, 0.0, 6.0, 1.0, 2.0)
    polygons = scene_of(mask, [[1.0, 0.0, 3.0, 0.0, 3.0, 1.0, 1.0, 1.0]])
    turned: Any = mirrored(polygons).objects[0].segmentation
    (polygon,) = turned
    assert list(polygon) == [7.0, 0.0, 5.0, 0.0, 5.0, 1.0, 7.0, 1.0]


@pytest.mark.parametrize("times", [0.5, 1, 3, 8])
def test_a_mirrored_polygon_is_drawn_as_sharp_as_any(times: float) -> None:
    """Large-scale jitter enlarges: the mask of a mirrored object is no coarser than that of the object as it was."""
    rng = np.random.default_rng(0)
    where = Placement((int(80 * times), int(100 * times)), 0, 0, (int(80 * times), int(100 * times)))
    for _ in range(5):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
        radius = rng.uniform(15, 35, 12)
        first = np.column_stack((50 + radius * np.cos(angles), 40 + radius * np.sin(angles)))
        second = np.array([[2.3, 3.1], [9.7, 4.2], [5.2, 11.9]])  # an object in two parts
        polygons = [array("d", part.ravel().tolist()) for part in (first, second)]
        scene = scene_of(rasterise(polygons, 80, 100), polygons)
        plain, turned = (placed(found, where).objects[0] for found in (scene, mirrored(scene)))
        here, there = dense(plain, where.size), dense(turned, where.size)[:, ::-1]
        # pycocotools rounds half pixels up, so that a border of a mirrored polygon may differ by a pixel's fraction.
        edge = 0.06 / times
        assert (here & there).sum() / (here | there).sum() > 1 - edge
        assert turned.box == pytest.approx(
            (where.size[1] - plain.box[2], plain.box[1], where.size[1] - plain.box[0], plain.box[3]), abs=1
        )
        # Run lengths have no more detail than their pixels, mirrored or not: the same pixels.
        runs = scene_of(rasterise(polygons, 80, 100))
        plain, turned = (placed(found, where).objects[0] for found in (runs, mirrored(runs)))
        if times >= 1:
            assert (dense(plain, where.size) == dense(turned, where.size)[:, ::-1]).all()


def test_cut_out_of_the_doubled_picture_by_eye() -> None:
    # 4 x 4, object in rows 1-2, columns 1-3; doubled, rows 2-5 and columns 2-7; the part starts at row 3, column 4.
    mask = np.zeros((4, 4), dtype=bool)
    mask[1:3, 1:4] = True
    square = [[1.0, 1.0, 4.0, 1.0, 4.0, 3.0, 1.0, 3.0]]
    where = Placement((8, 8), top=3, left=4, part=(4, 3))
    for segmentation in (None, square):
        found = placed(scene_of(mask, segmentation, keypoints=(2.0, 2.0, 2.0, 1.0, 1.0, 2.0)), where).objects[0]
        assert found.box == (0.0, 0.0, 3.0, 3.0)
        assert found.area == 9.0
        assert dense(found, (4, 3)).tolist() == [[True] * 3] * 3 + [[False] * 3]
        # Pixel 2 has its centre at 2.5, doubled 5.0, in the part 1.0 and 2.0: pixel index 0.5, 1.5. The other is out.
        assert found.keypoints == (0.5, 1.5, 2.0, 0.0, 0.0, 0.0)


def test_what_is_out_of_the_part_or_too_small_is_gone() -> None:
    mask = np.zeros((4, 4), dtype=bool)
    mask[0, 0:2] = True
    where = Placement((4, 4), top=0, left=0, part=(4, 4))
    assert len(placed(scene_of(mask), where, min_pixels=2).objects) == 1
    assert placed(scene_of(mask), where, min_pixels=3).objects == ()
    assert placed(scene_of(mask), Placement((4, 4), 1, 0, (3, 4))).objects == ()
    assert placed(scene_of(mask), Placement((4, 4), 0, 2, (4, 2))).objects == ()


def test_a_crowd_and_a_box_without_mask_keep_their_clipped_boxes() -> None:
    box = (1.0, 1.0, 3.0, 2.0)
    plain = Scene(torch.zeros(3, 4, 4, dtype=torch.uint8), (an_object(None, box), an_object({}, box, crowd=True)))
    found = placed(plain, Placement((8, 8), top=3, left=0, part=(5, 8))).objects
    assert [item.box for item in found] == [(2.0, 0.0, 6.0, 1.0)] * 2
    assert [item.segmentation for item in found] == [None, None]
    assert [item.crowd for item in found] == [False, True]


@st.composite
def placements(draw: st.DrawFn) -> tuple[np.ndarray, Placement]:
    height, width = draw(st.integers(2, 20)), draw(st.integers(2, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    mask = rng.random((height, width)) < draw(st.floats(0.05, 0.9))
    mask[rng.integers(height), rng.integers(width)] = True
    whole = (draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    part = (draw(st.integers(1, whole[0])), draw(st.integers(1, whole[1])))
    top, left = draw(st.integers(0, whole[0] - part[0])), draw(st.integers(0, whole[1] - part[1]))
    return mask, Placement(whole, top, left, part)


@settings(max_examples=100, deadline=None)
@given(placements())
def test_masks_are_those_of_resizing_and_cutting_and_boxes_are_tight(given: tuple[np.ndarray, Placement]) -> None:
    mask, where = given
    rows, columns = (
        [int(Fraction(2 * place + 1, 2) * before / after) for place in range(after)]
        for before, after in zip(mask.shape, where.size, strict=True)
    )
    expected = mask[rows][:, columns][where.top : where.top + where.part[0], where.left : where.left + where.part[1]]
    found = placed(scene_of(mask), where).objects
    assert len(found) == bool(expected.any())
    for item in found:
        assert (dense(item, where.part) == expected).all()
        ys, xs = np.nonzero(expected)
        assert item.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert item.area == expected.sum()


@settings(max_examples=60, deadline=None)
@given(placements(), st.integers(0, 2**32))
def test_mirroring_twice_is_nothing(given: tuple[np.ndarray, Placement], seed: int) -> None:
    mask, _ = given
    rng = np.random.default_rng(seed)
    height, width = mask.shape
    points = np.column_stack((rng.integers(0, width, 3), rng.integers(0, height, 3), [2, 1, 2])).astype(float)
    before = scene_of(mask, keypoints=tuple(points.ravel().tolist()))
    after = mirrored(mirrored(before, (0, 2, 1)), (0, 2, 1))
    assert torch.equal(after.pixels, before.pixels)
    assert after.objects[0].box == before.objects[0].box
    assert after.objects[0].keypoints == before.objects[0].keypoints
    assert (dense(after.objects[0], mask.shape) == mask).all()


def test_polygons_beyond_the_part_are_those_drawn_on_the_whole_and_cut() -> None:
    rng, inside = np.random.default_rng(0), 0
    for _ in range(50):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
        radius = rng.uniform(5, 14, 7)
        polygon = np.column_stack((16 + radius * np.cos(angles), 16 + radius * np.sin(angles))).ravel().tolist()
        whole = rasterise([polygon], 32, 32)
        where = Placement((32, 32), top=int(rng.integers(12)), left=int(rng.integers(12)), part=(20, 20))
        expected = whole[where.top : where.top + 20, where.left : where.left + 20]
        found = placed(scene_of(whole, [polygon]), where).objects
        drawn = dense(found[0], (20, 20)) if found else np.zeros((20, 20), dtype=bool)
        # pycocotools clamps at the image's border before it rounds, so that a border pixel may differ.
        assert (drawn != expected).sum() <= 2
        inside += bool(found)
    assert inside > 30


@pytest.mark.parametrize("rule", ["float", "antialias"])
@pytest.mark.parametrize("size", [(9, 14), (40, 33), (17, 23)])
def test_a_part_of_the_resized_image(rule: ResizeRule, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 17, 23), generator=generator, dtype=torch.uint8)
    found = resized_part(image, size, 2, 3, (6, 8), rule)
    if rule == "float":
        whole = functional.interpolate(image[None].float(), size=size, mode="bilinear", align_corners=False)[0]
        difference = (found.float() - whole[:, 2:8, 3:11]).abs()
        assert difference.max() <= 0.501
    else:
        whole = resized_part(image, size, 0, 0, size, rule)
        difference = (found.float() - whole[:, 2:8, 3:11].float()).abs()
        assert difference[:, 2:-2, 2:-2].max() <= 1.0
    assert torch.equal(resized_part(image, (17, 23), 1, 2, (5, 5), rule), image[:, 1:6, 2:7])
