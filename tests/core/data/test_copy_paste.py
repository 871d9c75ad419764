from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn_core.data.coco.dataset import CocoObject
from maskrcnn_core.data.copy_paste import choose_objects, pasted
from maskrcnn_core.data.scene import Scene, on_canvas
from maskrcnn_core.data.segmentation import rasterise, tight_mask


def an_object(mask: np.ndarray, identity: int, **others: Any) -> CocoObject:
    tight = tight_mask(mask, left=0, top=0)
    given: dict[str, Any] = {"category_id": 1, "crowd": False, "keypoints": None, "area": float(mask.sum())} | others
    return CocoObject(annotation_id=identity, box=tight.box, segmentation=tight, **given)


def dense(item: CocoObject, size: tuple[int, int]) -> np.ndarray:
    assert item.segmentation is not None
    return rasterise(item.segmentation, *size)


def rectangle(size: tuple[int, int], top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


def filled(size: tuple[int, int], value: int, objects: tuple[CocoObject, ...]) -> Scene:
    return Scene(torch.full((3, *size), value, dtype=torch.uint8), objects)


SIZE = (6, 10)


def test_half_hidden_object_by_eye() -> None:
    # The base's object fills columns 2-5 of rows 1-4; the pasted one columns 4-7 of rows 0-5.
    points = (2.0, 2.0, 2.0, 5.0, 3.0, 2.0, 4.0, 4.0, 1.0)
    base = filled(SIZE, 10, (an_object(rectangle(SIZE, 1, 2, 4, 4), 1, keypoints=points),))
    source = filled(SIZE, 99, (an_object(rectangle(SIZE, 0, 4, 6, 4), 2),))
    found = pasted(base, source, [0])
    under, over = found.objects
    assert under.box == (2.0, 1.0, 4.0, 5.0)
    assert under.area == 8.0
    assert under.keypoints == (2.0, 2.0, 2.0, 5.0, 3.0, 1.0, 4.0, 4.0, 1.0)  # the second one is hidden now
    assert over == source.objects[0]
    assert (found.pixels[0].numpy() == np.where(rectangle(SIZE, 0, 4, 6, 4), 99, 10)).all()


def test_who_is_hidden_goes() -> None:
    small = an_object(rectangle(SIZE, 1, 1, 1, 10 - 1), 1)  # 9 pixels; the pasted one leaves one of them
    source = filled(SIZE, 99, (an_object(rectangle(SIZE, 0, 2, 6, 8), 2),))
    base = filled(SIZE, 10, (small,))
    assert [item.annotation_id for item in pasted(base, source, [0], min_visible=0.1).objects] == [1, 2]
    assert [item.annotation_id for item in pasted(base, source, [0], min_visible=0.2).objects] == [2]
    assert [item.annotation_id for item in pasted(base, source, [0], min_pixels=2).objects] == [2]
    assert [item.annotation_id for item in pasted(base, source, []).objects] == [1]


def test_a_crowd_goes_where_its_box_is_hidden_and_is_never_pasted() -> None:
    crowd = CocoObject(1, 1, (2.0, 1.0, 6.0, 3.0), 8.0, True, None, None)
    source = filled(SIZE, 99, (an_object(rectangle(SIZE, 0, 0, 6, 5), 2), crowd))
    assert choose_objects(source, np.random.default_rng(0)) == [0]
    assert choose_objects(filled(SIZE, 9, (crowd,)), np.random.default_rng(0)) == []
    found = pasted(filled(SIZE, 10, (crowd,)), source, [0], min_visible=0.2)
    assert [item.annotation_id for item in found.objects] == [1, 2]
    assert [
        item.annotation_id for item in pasted(filled(SIZE, 10, (crowd,)), source, [0], min_visible=0.3).objects
    ] == [2]


def test_a_canvas_keeps_the_scene_at_its_upper_left() -> None:
    scene = filled((2, 3), 7, (an_object(rectangle((2, 3), 0, 0, 1, 2), 1),))
    found = on_canvas(scene, (4, 5), (1, 2, 3))
    assert found.size == (4, 5)
    assert found.objects == scene.objects
    assert (found.pixels[:, :2, :3] == 7).all()
    assert found.pixels[:, 3, 4].tolist() == [1, 2, 3]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 4))
def test_visible_masks_are_the_old_ones_without_the_pasted(seed: int, under: int, over: int) -> None:
    rng = np.random.default_rng(seed)
    size = (12, 16)

    def random_scene(count: int, value: int, first: int) -> Scene:
        masks = [
            rectangle(size, *rng.integers((0, 0, 1, 1), (10, 14, 8, 10)).tolist()) & (rng.random(size) < 0.8)
            for _ in range(count)
        ]
        kept = [mask for mask in masks if mask.any()]
        return filled(size, value, tuple(an_object(mask, first + place) for place, mask in enumerate(kept)))

    base, source = random_scene(under, 10, 0), random_scene(over, 99, 100)
    chosen = choose_objects(source, rng)
    found = pasted(base, source, chosen, min_visible=0.0)
    front = np.zeros(size, dtype=bool)
    for place in chosen:
        front |= dense(source.objects[place], size)
    assert ((found.pixels[0].numpy() == 99) == front).all()
    before = {item.annotation_id: dense(item, size) for item in base.objects}
    assert [item for item in found.objects if item.annotation_id >= 100] == [source.objects[place] for place in chosen]
    left = {item.annotation_id: item for item in found.objects if item.annotation_id < 100}
    assert set(left) == {identity for identity, mask in before.items() if (mask & ~front).any()}
    for identity, item in left.items():
        visible = before[identity] & ~front
        assert (dense(item, size) == visible).all()
        ys, xs = np.nonzero(visible)
        assert item.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert item.area == visible.sum()
