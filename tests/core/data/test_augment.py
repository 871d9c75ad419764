import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.data.augment import ColorJitter, ScaleJitter, draw_placement, recolored, seeded
from maskrcnn_core.data.coco.dataset import CocoDataset, load_coco
from maskrcnn_core.data.dataset import CocoTrainingData, Sample, TrainingItem, collate
from maskrcnn_core.data.files import Folder
from maskrcnn_core.data.generated.pictures import generate_dataset
from maskrcnn_core.data.targets import TargetRule
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.heads.mask import mask_targets

RULE = ScaleJitter(scale=(0.3, 1.8), crop=(96, 128))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 2**63 - 1))
def test_a_placement_lies_in_the_picture_and_the_crop(height: int, width: int, seed: int) -> None:
    where = draw_placement((height, width), RULE, seeded(seed))
    assert where == draw_placement((height, width), RULE, seeded(seed))
    for axis, start in enumerate((where.top, where.left)):
        assert 1 <= where.part[axis] <= RULE.crop[axis]
        assert 0 <= start <= where.size[axis] - where.part[axis]
        assert where.part[axis] == min(where.size[axis], RULE.crop[axis])
    fit = min(96 / height, 128 / width)
    assert 0.3 * fit * height - 1 <= where.size[0] <= max(1.0, 1.8 * fit * height + 1)


def test_scales_fill_their_range() -> None:
    sizes = [draw_placement((96, 128), RULE, seeded(seed)).size[0] / 96 for seed in range(400)]
    assert min(sizes) < 0.35
    assert max(sizes) > 1.75
    assert np.mean(sizes) == pytest.approx(1.05, abs=0.07)


def test_colors_stay_in_their_range_and_follow_the_seed() -> None:
    grey = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    rule = ColorJitter(brightness=0.4)
    found = [int(recolored(grey, rule, seeded(seed))[0, 0, 0]) for seed in range(200)]
    assert 60 <= min(found) < 64
    assert 136 < max(found) <= 140
    assert found == [int(recolored(grey, rule, seeded(seed))[0, 0, 0]) for seed in range(200)]
    assert torch.equal(recolored(grey, ColorJitter(), seeded(0)), grey)
    # Of a grey image neither saturation nor hue can change anything, and its contrast is none.
    assert (recolored(grey, ColorJitter(contrast=0.5, saturation=0.9, hue=0.5), seeded(3)).int() - 100).abs().max() <= 2


def test_each_change_has_its_share_of_images() -> None:
    grey = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    half = ColorJitter(brightness=0.4, probability=0.5)
    changed = [not torch.equal(recolored(grey, half, seeded(seed)), grey) for seed in range(200)]
    assert 0.4 < np.mean(changed) < 0.6
    # The factor of an image is the same, whatever the share.
    always = replace(half, probability=1.0)
    for seed in np.flatnonzero(changed)[:20].tolist():
        assert torch.equal(recolored(grey, half, seeded(seed)), recolored(grey, always, seeded(seed)))
    assert torch.equal(recolored(grey, replace(half, probability=0.0), seeded(0)), grey)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> tuple[CocoDataset, str]:
    folder = tmp_path_factory.mktemp("generated")
    generate_dataset(folder, num_images=6, seed=3, image_size=(90, 120))
    return load_coco(str(folder / "annotations.json"), require_masks=True), str(folder / "images")


def data_of(
    generated: tuple[CocoDataset, str], mask_size: int | None = TargetRule.mask_size, **others: Any
) -> CocoTrainingData:
    size = InputConfig(short_side=90, long_side=200, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    dataset, images = generated
    return CocoTrainingData(dataset, Folder(images), size, TargetRule(mask_size, keypoints=True), **others)


def part(field: Tensor | None) -> Tensor:
    """A part of targets that is there."""
    assert field is not None
    return field


def samples(count: int) -> list[Sample]:
    return [Sample(seed % 6, bool(seed % 2), 90, seed=seed, partner=(seed * 5 + 1) % 6) for seed in range(count)]


def items(data: CocoTrainingData, count: int = 12) -> list[TrainingItem]:
    return [data[sample] for sample in samples(count)]


def test_items_are_functions_of_their_samples(generated: tuple[CocoDataset, str]) -> None:
    colors = ColorJitter(0.3, 0.3, 0.3, 0.1)
    data, again = (data_of(generated, jitter=RULE, colors=colors) for _ in range(2))
    for sample in reversed(samples(3)):
        first, second = data[sample], again[sample]
        assert torch.equal(first.image.pixels, second.image.pixels)
        assert torch.equal(first.targets.boxes, second.targets.boxes)
        assert torch.equal(part(first.targets.masks), part(second.targets.masks))
        assert torch.equal(part(first.targets.keypoints), part(second.targets.keypoints))
        assert not torch.equal(first.image.pixels, data[replace(sample, seed=sample.seed + 1000)].image.pixels)


def test_masks_lie_in_tight_boxes_and_keypoints_in_the_image(generated: tuple[CocoDataset, str]) -> None:
    seen = 0
    for item in items(data_of(generated, jitter=RULE), 16):
        height, width = item.image.size
        assert (height, width) == RULE.crop  # the canvas of copy-paste
        found = item.targets
        assert (found.boxes[:, :2] >= 0).all()
        assert (found.boxes[:, 2:] <= torch.tensor([width, height])).all()
        for box, mask, mask_box in zip(found.boxes, part(found.masks), part(found.mask_boxes), strict=True):
            inner = mask[1:-1, 1:-1]  # the grid is one cell wider on each side, and tight inside
            assert all(edge.any() for edge in (inner[0], inner[-1], inner[:, 0], inner[:, -1]))
            cells = (mask_box[2:] - mask_box[:2]) / mask.shape[0]
            torch.testing.assert_close(torch.cat((mask_box[:2] + cells, mask_box[2:] - cells)), box)
            seen += 1
        keypoints = part(found.keypoints)
        annotated = keypoints[keypoints[..., 2] > 0]
        assert (annotated[:, :2] >= 0).all()
        assert (annotated[:, :2] <= torch.tensor([width, height])).all()
    assert seen > 25


def test_mask_targets_draw_the_objects_that_are_seen(generated: tuple[CocoDataset, str]) -> None:
    """From the pixels: a picture painted by its masks is found again in the mask head's targets."""
    data = data_of(generated, jitter=replace(RULE, scale=(0.9, 1.2)), mask_size=0)
    item = data[replace(samples(1)[0], partner=None)]
    targets = collate([item], InputConfig())[1]
    count = len(item.targets)
    regions = targets.boxes[0, :count]
    drawn = mask_targets(targets, regions, torch.zeros(count, dtype=torch.int64), torch.arange(count), 28, aligned=True)
    areas = drawn.mean(dim=(1, 2)) * (regions[:, 2:] - regions[:, :2]).prod(dim=1)
    exact = torch.stack([(m > 0)[1:-1, 1:-1].sum() for m in part(item.targets.masks)]).float()
    big = exact > 60
    assert big.any()
    torch.testing.assert_close(areas[big], exact[big], rtol=0.12, atol=3.0)


def test_jitter_of_one_is_the_image_itself(generated: tuple[CocoDataset, str]) -> None:
    """Scale 1 and a crop of the image's size: what is read without jitter, boxes up to the pixels of their masks."""
    plain = data_of(generated)
    size = plain.sizes[2]
    data = data_of(generated, jitter=ScaleJitter(scale=(1.0, 1.0), crop=size, min_pixels=1))
    for flip in (False, True):
        sample = Sample(2, flip, min(size), seed=5)
        ours, theirs = data[sample], plain[sample]
        torch.testing.assert_close(ours.image, theirs.image, atol=1e-6, rtol=0)
        assert ours.targets.labels.tolist() == theirs.targets.labels.tolist()
        assert (ours.targets.boxes - theirs.targets.boxes).abs().max() <= 1.0
        assert (part(ours.targets.masks).float() - part(theirs.targets.masks).float()).abs().mean() < 3.0
        torch.testing.assert_close(ours.targets.keypoints, theirs.targets.keypoints, atol=1e-4, rtol=0)


def test_no_jitter_with_proposals_of_a_file(generated: tuple[CocoDataset, str]) -> None:
    with pytest.raises(ConfigError, match=r"jitter_scale: got one together with proposals"):
        data_of(generated, jitter=RULE, proposals=object())


def test_images_without_objects(tmp_path: Path, generated: tuple[CocoDataset, str]) -> None:
    dataset, images = generated
    document = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "disc"}]}
    document["images"] = [
        {"id": i.image_id, "file_name": i.file_name, "width": i.width, "height": i.height} for i in dataset.images
    ]
    (tmp_path / "empty.json").write_text(json.dumps(document))
    empty = load_coco(str(tmp_path / "empty.json"), require_masks=True)
    item = data_of((empty, images), jitter=RULE)[samples(1)[0]]
    assert len(item.targets) == 0
    assert part(item.targets.masks).shape[0] == 0


def test_the_part_may_begin_at_every_place() -> None:
    # 10 x 20 becomes 11 x 22, of which 10 x 20 are kept: rows from 0 or 1, columns from 0 to 2.
    rule = ScaleJitter(scale=(1.1, 1.1), crop=(10, 20))
    found = {(where.top, where.left) for where in (draw_placement((10, 20), rule, seeded(s)) for s in range(100))}
    assert found == {(top, left) for top in range(2) for left in range(3)}
