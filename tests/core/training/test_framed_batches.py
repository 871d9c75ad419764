"""SSD's augmentation and changing sizes: the same batches for a run that is resumed, and for any number of ranks."""

from functools import partial

import pytest
import torch

from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.data.augment import ColorJitter
from maskrcnn_core.data.coco.dataset import load_coco
from maskrcnn_core.data.dataset import CocoTrainingData, collate
from maskrcnn_core.data.files import Folder
from maskrcnn_core.data.framing import Framing
from maskrcnn_core.data.generated.pictures import generate_dataset
from maskrcnn_core.data.targets import TargetRule
from maskrcnn_core.structures import ImageBatch, Targets
from maskrcnn_core.training.loader import load_batches
from maskrcnn_core.training.sampler import BatchPlan

STEPS = 7


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoTrainingData:
    folder = tmp_path_factory.mktemp("generated")
    generate_dataset(folder, num_images=6, seed=3, image_size=(90, 120))
    return CocoTrainingData(
        load_coco(str(folder / "annotations.json"), require_masks=True),
        Folder(str(folder / "images")),
        InputConfig(short_side=64, fit="square", divisor=1),
        TargetRule(28, keypoints=True),
        framing=Framing(zoom_out=4.0, overlaps=(0.0, 0.3, 0.7, 1.0)),
        colors=ColorJitter(0.125, 0.5, 0.5, 0.05, probability=0.5),
    )


def batches(
    data: CocoTrainingData, *, start: int = 0, rank: int = 0, ranks: int = 1
) -> list[tuple[ImageBatch, Targets]]:
    plan = BatchPlan(data.sizes, batch_size=4, seed=5, world_size=ranks, short_sides=(48, 64, 80, 96), steps_per_size=2)
    together = partial(collate, rule=InputConfig(divisor=1))
    made = load_batches(data, together, plan, rank=rank, start=start, stop=STEPS)
    return [(packed.to("cpu"), targets) for packed, targets, _ in made]


def test_a_resumed_run_sees_the_same(data: CocoTrainingData) -> None:
    whole = batches(data)
    sides = [images.pixels.shape[2] for images, _ in whole]
    assert sides[0::2][:3] == sides[1::2][:3]  # two steps each
    assert len(set(sides)) > 1
    for (images, targets), (again, targets_again) in zip(whole[3:], batches(data, start=3), strict=True):
        assert torch.equal(images.pixels, again.pixels)
        assert torch.equal(targets.boxes, targets_again.boxes)
        assert targets.masks is not None
        assert targets_again.masks is not None
        assert torch.equal(targets.masks, targets_again.masks)


def test_ranks_see_their_parts(data: CocoTrainingData) -> None:
    parts = [batches(data, rank=rank, ranks=2) for rank in range(2)]
    for (images, targets), *shares in zip(batches(data), *parts, strict=True):
        assert torch.equal(images.pixels, torch.cat([part.pixels for part, _ in shares]))
        assert int(targets.valid.sum()) == sum(int(part.valid.sum()) for _, part in shares)
