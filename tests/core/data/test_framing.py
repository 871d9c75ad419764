"""Zooming out and cuts: by eye, against a literal rule, without objects, and as a part of training items."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.data.augment import ColorJitter, ScaleJitter, seeded
from maskrcnn_core.data.coco.dataset import CocoDataset, CocoObject, load_coco
from maskrcnn_core.data.dataset import CocoTrainingData, Sample
from maskrcnn_core.data.files import Folder
from maskrcnn_core.data.framing import Framing, Window, draw_window, framed
from maskrcnn_core.data.generated.pictures import generate_dataset
from maskrcnn_core.data.scene import Scene
from maskrcnn_core.data.segmentation import ObjectMask
from maskrcnn_core.data.targets import TargetRule
from maskrcnn_core.data.transform import pad_batch, prepare_input
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.inference.frames import boxes_in_input

SSD = Framing(zoom_out=4.0, overlaps=(0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0), min_pixels=1, canvas_color=(9, 8, 7))


def an_object(box: tuple[float, float, float, float], **others: Any) -> CocoObject:
    given: dict[str, Any] = {"annotation_id": 1, "category_id": 1, "area": 1.0, "crowd": False, "keypoints": None}
    return CocoObject(box=box, **{"segmentation": None} | given | others)


def picture(*objects: CocoObject, size: tuple[int, int] = (4, 6)) -> Scene:
    """Every pixel has its own value: ten times the row, and the column."""
    values = torch.arange(size[0])[:, None] * 10 + torch.arange(size[1])
    return Scene(values.to(torch.uint8).expand(3, *size), objects)


def test_a_cut_by_eye() -> None:
    # Rows 1 and 2, columns 2 to 5 of 4 x 6, twice as large.
    inside = an_object((3, 1, 5, 2), keypoints=(3.0, 1.0, 2.0, 0.0, 0.0, 2.0))
    over_the_edge = an_object((4, 0, 5, 3))  # its centre, row 1.5, is in: the rest is cut off
    outside = an_object((0, 0, 4, 2))  # centre in column 2, on the edge
    crowd = an_object((0, 0, 3, 4), crowd=True)
    scene = picture(inside, over_the_edge, outside, crowd)
    made = framed(scene, Window(1.0, 2.0, 2.0, 4.0), (4, 8), SSD)
    assert made.size == (4, 8)
    assert [item.box for item in made.objects] == [(2, 0, 6, 2), (4, 0, 6, 4), (0, 0, 2, 4)]
    # The keypoint's pixel has its centre at 3.5, 1.5: 1.5 and 0.5 within the cut, 3 and 1 twice as large.
    assert made.objects[0].keypoints == (2.5, 0.5, 2.0, 0.0, 0.0, 0.0)
    plain = framed(scene, Window(1.0, 2.0, 2.0, 4.0), (2, 4), SSD)
    assert plain.pixels[0].tolist() == [[12, 13, 14, 15], [22, 23, 24, 25]]


def test_a_canvas_by_eye() -> None:
    # 4 x 6 on a canvas of 8 x 12, three rows from its top and two columns from its left.
    scene = picture(an_object((1, 1, 3, 3)), an_object((0, 0, 6, 4), crowd=True))
    window = Window(-3.0, -2.0, 8.0, 12.0)
    made = framed(scene, window, (8, 12), SSD, recolor=lambda pixels: 255 - pixels)
    assert (255 - made.pixels[0, 3:7, 2:8]).tolist() == scene.pixels[0].tolist()
    around = torch.ones(8, 12, dtype=torch.bool)
    around[3:7, 2:8] = False
    assert made.pixels[:, around].unique(dim=1).tolist() == [[9], [8], [7]]  # which nobody recolours
    assert [item.box for item in made.objects] == [(3, 4, 5, 6), (2, 3, 8, 7)]
    small = framed(scene, window, (4, 6), SSD)
    # One and a half rows of canvas become two whole ones, of picture and objects alike.
    assert small.objects[0].box == (1.5, 2.5, 2.5, 3.5)


def test_masks_and_polygons_follow_alike() -> None:
    mask = np.zeros((4, 6), dtype=bool)
    mask[1:3, 2:5] = True
    polygon = [[2.0, 1.0, 5.0, 1.0, 5.0, 3.0, 2.0, 3.0]]
    runs = {"size": [4, 6], "counts": [9, 2, 2, 2, 2, 2, 5]}
    for outline in (polygon, runs, ObjectMask(mask[1:3, 2:5], left=2, top=1)):
        scene = picture(an_object((2, 1, 5, 3), segmentation=outline))
        (zoomed,) = framed(scene, Window(-3.0, -2.0, 8.0, 12.0), (8, 12), SSD).objects
        assert zoomed.box == (4.0, 4.0, 7.0, 6.0)
        assert zoomed.area == 6.0
        (cut,) = framed(scene, Window(0.0, 3.0, 3.0, 3.0), (3, 3), replace(SSD, min_pixels=4)).objects
        assert cut.box == (0.0, 1.0, 2.0, 3.0)  # what is seen of it
        assert framed(scene, Window(0.0, 3.0, 3.0, 3.0), (3, 3), replace(SSD, min_pixels=5)).objects == ()


def test_what_lies_outside_of_the_picture_is_canvas() -> None:
    made = framed(picture(), Window(-10.0, 20.0, 4.0, 4.0), (3, 5), SSD)
    assert made.objects == ()
    assert made.pixels.flatten(1).unique(dim=1).tolist() == [[9], [8], [7]]


def iou(box: tuple[float, ...], window: Window) -> float:
    x1, y1, x2, y2 = box
    width = min(x2, window.left + window.width) - max(x1, window.left)
    height = min(y2, window.top + window.height) - max(y1, window.top)
    common = max(width, 0.0) * max(height, 0.0)
    return common / ((x2 - x1) * (y2 - y1) + window.width * window.height - common)


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.5, 0.9])
def test_a_cut_keeps_an_object(overlap: float) -> None:
    objects = [an_object((10, 20, 60, 90)), an_object((70, 5, 95, 30)), an_object((0, 0, 100, 100), crowd=True)]
    cut = 0
    for seed in range(150):
        window = draw_window((100, 120), objects, Framing(overlaps=(overlap,)), seeded(seed))
        if (window.height, window.width) == (100.0, 120.0):
            continue  # none of the rectangles tried was good
        cut += 1
        assert 30 <= window.height <= 100
        assert 36 <= window.width <= 120
        assert 0.5 <= window.width / window.height <= 2
        assert 0 <= window.top <= 100 - window.height
        assert 0 <= window.left <= 120 - window.width
        good = [
            window.left < (x1 + x2) / 2 < window.left + window.width
            and window.top < (y1 + y2) / 2 < window.top + window.height
            and iou((x1, y1, x2, y2), window) >= overlap
            for x1, y1, x2, y2 in (item.box for item in objects if not item.crowd)
        ]
        assert any(good)
        assert window == draw_window((100, 120), objects, Framing(overlaps=(overlap,)), seeded(seed))
    assert cut > (1 if overlap == 0.9 else 100)


def test_whole_pictures_and_canvases_have_their_share() -> None:
    whole = Window(0.0, 0.0, 40.0, 60.0)
    objects = [an_object((5, 5, 55, 35))]
    windows = [draw_window((40, 60), objects, Framing(overlaps=(0.0, 1.0)), seeded(seed)) for seed in range(400)]
    assert 0.4 < np.mean([window == whole for window in windows]) < 0.6
    zoomed = [draw_window((40, 60), objects, Framing(zoom_out=4.0), seeded(seed)) for seed in range(400)]
    assert 0.4 < np.mean([window == whole for window in zoomed]) < 0.6
    factors = [window.height / 40 for window in zoomed if window != whole]
    assert min(factors) < 1.1
    assert max(factors) > 3.9
    for window in zoomed:
        assert window.width / window.height == pytest.approx(1.5)
        assert window.top <= 0 <= window.top + window.height - 40 + 1e-9
        assert window.left <= 0 <= window.left + window.width - 60 + 1e-9


def test_a_picture_without_objects_is_cut_as_well() -> None:
    windows = [draw_window((40, 60), [], replace(SSD, overlaps=(0.9,)), seeded(seed)) for seed in range(60)]
    assert all(framed(picture(size=(40, 60)), window, (20, 20), SSD).size == (20, 20) for window in windows)
    assert len({window.height for window in windows}) > 50


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> tuple[CocoDataset, str]:
    folder = tmp_path_factory.mktemp("generated")
    generate_dataset(folder, num_images=4, seed=3, image_size=(90, 120))
    return load_coco(str(folder / "annotations.json"), require_masks=True), str(folder / "images")


SQUARE = InputConfig(short_side=64, fit="square", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), divisor=1)


def data_of(generated: tuple[CocoDataset, str], mask_size: int | None = 28, **others: Any) -> CocoTrainingData:
    dataset, images = generated
    return CocoTrainingData(dataset, Folder(images), SQUARE, TargetRule(mask_size, keypoints=True), **others)


def test_items_are_functions_of_their_samples(generated: tuple[CocoDataset, str]) -> None:
    colors = ColorJitter(0.125, 0.5, 0.5, 0.05, probability=0.5)
    data, again = (data_of(generated, framing=SSD, colors=colors) for _ in range(2))
    lost = 0
    for seed in reversed(range(24)):
        sample = Sample(seed % 4, bool(seed % 2), 64 if seed % 3 else 48, seed=seed)
        item, same = data[sample], again[sample]
        assert item.image.size == (sample.short_side, sample.short_side)
        assert item.image.pixels.dtype == torch.uint8
        assert torch.equal(item.image.pixels, same.image.pixels)
        assert torch.equal(item.targets.boxes, same.targets.boxes)
        boxes, side = item.targets.boxes, sample.short_side
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes >= 0).all()
        assert (boxes <= side).all()
        assert item.targets.masks is not None
        assert len(item.targets.masks) == len(boxes)
        lost += len(generated[0].images[sample.index].objects) - len(boxes)
    assert lost > 10  # cuts cost objects


def test_boxes_without_masks_are_cut_as_boxes(generated: tuple[CocoDataset, str]) -> None:
    """Off, but for being there: what is read without it, to the pixel that a box is rounded by."""
    whole = Framing(overlaps=(1.0,))
    plain, ours = data_of(generated, mask_size=None), data_of(generated, mask_size=None, framing=whole)
    for flip in (False, True):
        one, other = plain[Sample(1, flip, 64)], ours[Sample(1, flip, 64)]
        torch.testing.assert_close(one.targets.boxes, other.targets.boxes, atol=1e-4, rtol=0)
        torch.testing.assert_close(one.targets.keypoints, other.targets.keypoints, atol=1e-3, rtol=0)
        normalised = (other.image.pixels.float() / 255 - 0.5) / 0.5
        assert (one.image.pixels - normalised).abs().max() < 0.5 / 127 + 1e-4  # rounded to 8 bits


def test_images_without_objects(tmp_path: Path, generated: tuple[CocoDataset, str]) -> None:
    dataset, images = generated
    document = {"annotations": [], "categories": [{"id": 1, "name": "disc"}]}
    document["images"] = [
        {"id": i.image_id, "file_name": i.file_name, "width": i.width, "height": i.height} for i in dataset.images
    ]
    (tmp_path / "empty.json").write_text(json.dumps(document))
    empty = load_coco(str(tmp_path / "empty.json"), require_masks=True)
    for seed in range(8):
        item = data_of((empty, images), framing=SSD)[Sample(seed % 4, bool(seed % 2), 64, seed=seed)]
        assert len(item.targets) == 0
        assert item.image.size == (64, 64)


def test_a_letterbox_is_that_of_inference(generated: tuple[CocoDataset, str]) -> None:
    """The whole picture where nothing else is asked for, and the middle of the square for a cut."""
    rule = replace(SQUARE, fit="letterbox")
    dataset, images = generated
    data = CocoTrainingData(dataset, Folder(images), rule, TargetRule(None))
    item = data[Sample(0, False, 64)]
    entry = dataset.images[0]
    size = (entry.height, entry.width)
    assert size[0] != size[1]
    expected = prepare_input(data._decode(entry), (64, 64), rule)
    ours = prepare_input(item.image.pixels, (64, 64), rule)
    assert (ours - expected).abs().max() < 0.5 / 127 + 1e-4  # rounded to 8 bits
    original = torch.tensor([item.box for item in entry.objects])
    moved = boxes_in_input(original[None], pad_batch([expected], [size], 1, letterboxed=True))
    torch.testing.assert_close(item.targets.boxes, moved[0])
    cut = framed(picture(an_object((2, 1, 4, 3))), Window(1.0, 0.0, 2.0, 6.0), (6, 6), SSD, letterboxed=True)
    assert cut.pixels[0].tolist() == [[9] * 6] * 2 + [list(range(10, 16)), list(range(20, 26))] + [[9] * 6] * 2
    assert cut.objects[0].box == (2, 2, 4, 4)


def test_not_with_proposals_of_a_file(generated: tuple[CocoDataset, str]) -> None:
    with pytest.raises(ConfigError, match=r"zoom_out, cut_overlaps: got one together with proposals"):
        data_of(generated, framing=SSD, proposals=object())
    with pytest.raises(AssertionError):
        data_of(generated, framing=SSD, jitter=ScaleJitter(scale=(1.0, 1.0), crop=(8, 8)))
