"""Keypoints of detections in the records: frames, half pixels, and categories that have none."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from maskrcnn_core.config.heads import KeypointHeadConfig, MaskHeadConfig
from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.inference.encoding import image_record
from maskrcnn_core.inference.predictor import Predictor
from maskrcnn_core.records.labels import record_from_row, record_schema, records_to_table
from maskrcnn_core.structures import Detections, ImageBatch

CONFIG = ModelConfig(
    mask_head=MaskHeadConfig(enabled=False),
    keypoint_head=KeypointHeadConfig(enabled=True, names=("nose", "tail"), categories=("cat", "dog")),
    categories=(Category(7, "cat"), Category(3, "tree"), Category(4, "dog")),
)


class Finds(nn.Module):
    """A detector that finds the same in every image: a tree and a cat, in a frame twice as wide as the image."""

    def adapted(self, **_: object) -> "Finds":
        return self

    def detect(self, images: ImageBatch, proposals: object = None) -> Detections:
        count = len(images)
        keypoints = torch.tensor([[[9.0, 9, 0.1], [8, 8, 0.2]], [[20, 10, 0.75], [61, 30.5, 0.25]]])
        return Detections(
            boxes=torch.tensor([[2.0, 2, 6, 6], [10, 5, 70, 40]]).repeat(count, 1, 1),
            scores=torch.tensor([[0.9, 0.8]]).repeat(count, 1),
            labels=torch.tensor([[1, 0]]).repeat(count, 1),
            count=torch.full((count,), 2),
            keypoints=keypoints.repeat(count, 1, 1, 1),
        )


def record_of(config: ModelConfig) -> list[tuple[float, ...] | None]:
    images = ImageBatch(torch.zeros(1, 3, 64, 96), torch.tensor([[40, 80]]), torch.tensor([[40, 40]]))
    predictor = Predictor(Finds(), config)  # type: ignore[arg-type]
    record = image_record(predictor.detect(images), 0, (40, 40), config)
    assert [found.category for found in record.detections] == ["tree", "cat"]
    table = records_to_table([1], ["a"], [record], "model", record_schema(config.categories))
    assert record_from_row(table.to_pylist()[0]).detections[1].keypoints == pytest.approx(
        record.detections[1].keypoints
    )
    return [found.keypoints for found in record.detections]


def test_exact_keypoints_count_from_the_middle_of_the_first_pixel() -> None:
    assert record_of(CONFIG) == [None, (9.5, 9.5, 0.75, 30.0, 30.0, 0.25)]


def test_torchvisions_keypoints_are_as_they_come() -> None:
    config = replace(CONFIG, keypoint_head=replace(CONFIG.keypoint_head, decode="torchvision"))
    assert record_of(config) == [None, (10.0, 10.0, 0.75, 30.5, 30.5, 0.25)]


def test_detections_without_keypoints() -> None:
    found = Finds().detect(ImageBatch(torch.zeros(1, 3, 8, 8), torch.zeros(1, 2), torch.zeros(1, 2)))
    record = image_record(replace(found, keypoints=None), 0, (40, 40), CONFIG)
    assert [one.keypoints for one in record.detections] == [None, None]
    none = Detections(torch.zeros(1, 0, 4), torch.zeros(1, 0), torch.zeros(1, 0).long(), torch.tensor([0]))
    assert image_record(replace(none, keypoints=torch.zeros(1, 0, 2, 3)), 0, (40, 40), CONFIG).detections == ()
