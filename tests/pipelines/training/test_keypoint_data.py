"""Keypoints of the training data: what must agree with the model before training starts, and what reaches a batch."""

from dataclasses import replace

import pytest
import torch

from maskrcnn_core.config.heads import KeypointHeadConfig
from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.config.person import COCO_KEYPOINTS
from maskrcnn_core.data.coco.dataset import load_coco
from maskrcnn_core.data.dataset import CocoTrainingData, Sample, collate
from maskrcnn_core.data.files import Folder
from maskrcnn_core.data.generated.pictures import generate_dataset
from maskrcnn_core.data.targets import TargetRule
from maskrcnn_core.errors import ConfigError
from pipelines.training.config import TrainRun
from pipelines.training.data_checks import check_data
from pipelines.training.data_config import DataConfig, DatasetConfig


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> DatasetConfig:
    folder = generate_dataset(tmp_path_factory.mktemp("people") / "set", num_images=8, seed=1, image_size=(96, 128))
    root = folder if folder.is_dir() else folder.parent
    return DatasetConfig(images=str(root / "images"), annotations=str(root / "annotations.json"))


def run_with(source: DatasetConfig, **settings: object) -> TrainRun:
    head = KeypointHeadConfig(enabled=True, **settings)  # type: ignore[arg-type]
    return TrainRun(output="nowhere", model=ModelConfig(keypoint_head=head), data=DataConfig(train=source))


def test_data_with_the_models_keypoints_pass(people: DatasetConfig) -> None:
    assert "person" in [category.name for category in check_data(run_with(people))["data.train"].dataset.categories]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"names": ("nose", "tail")}, r"keypoint_head.names: 2 names \(nose, tail\), but .* has 17"),
        ({"names": COCO_KEYPOINTS[::-1]}, "expected the same in one order, or model.keypoint_head.enabled false"),
        ({"categories": ("person", "star")}, "keypoint_head.categories: 'star' has no keypoints in .*some of person"),
    ],
)
def test_other_keypoints_are_named(people: DatasetConfig, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_data(run_with(people, **settings))
    run = run_with(people, **settings)
    off = replace(run.model, keypoint_head=replace(run.model.keypoint_head, enabled=False))
    check_data(replace(run, model=off))


def test_a_batch_holds_keypoints_that_lie_on_their_objects(people: DatasetConfig) -> None:
    rule = InputConfig(short_side=128, long_side=256)
    dataset = load_coco(people.annotations, require_masks=True)
    data = CocoTrainingData(dataset, Folder(people.images), rule, TargetRule(mask_size=16, keypoints=True))
    person = dataset.label_of[1]
    for flip in (False, True):
        items = [data[Sample(index, flip, 128)] for index in range(len(dataset.images))]
        _, targets, _ = collate(items, rule)
        assert targets.keypoints is not None
        assert targets.keypoints.shape == (*targets.boxes.shape[:2], 17, 3)
        visible = targets.keypoints[..., 2] > 0
        assert visible.any(dim=-1)[targets.labels != person].sum() == 0
        seen = targets.keypoints[..., 2] == 2
        assert seen.sum() > 20
        places, boxes = targets.keypoints[..., :2], targets.boxes[:, :, None]
        inside = ((places >= boxes[..., :2] - 1) & (places <= boxes[..., 2:] + 1)).all(dim=-1)
        assert inside[seen].float().mean() > 0.97
        # Seen from the front, the person's left is on the right of the picture; a mirror changes that and the names.
        left, right = (COCO_KEYPOINTS.index(f"{side}_shoulder") for side in ("left", "right"))
        both = seen[..., left] & seen[..., right]
        assert torch.all((places[..., left, 0] > places[..., right, 0])[both])
