"""From the detector's padded tensors to the record of one image, by eye."""

from dataclasses import replace

import pyarrow as pa
import pytest
import torch

from maskrcnn_core.config.heads import KeypointHeadConfig, MaskHeadConfig
from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.inference.encoding import image_record, proposal_record, records_with_device_masks
from maskrcnn_core.masks import decode_mask, encode_masks
from maskrcnn_core.records.labels import ImageRecord, record_schema, records_to_table
from maskrcnn_core.structures import Detections, Proposals

CONFIG = ModelConfig(
    keypoint_head=KeypointHeadConfig(enabled=True, names=("a", "b"), categories=("person",), decode="torchvision"),
    categories=(Category(18, "dog"), Category(1, "person")),
)
FOUND = Detections(
    boxes=torch.tensor([[[0.0, 0, 0, 0], [0, 0, 0, 0]], [[2.0, 3, 12, 7], [0, 0, 4, 4]]]),
    scores=torch.tensor([[0.0, 0], [0.75, 0.5]]),
    labels=torch.tensor([[0, 0], [1, 0]]),
    count=torch.tensor([0, 2]),
    masks=torch.ones(2, 2, 30, 30),
    keypoints=torch.arange(24, dtype=torch.float32).view(2, 2, 2, 3),
)


def test_one_image_of_a_batch() -> None:
    record = image_record(FOUND, 1, (10, 20), CONFIG)
    assert (record.status, record.error, record.width, record.height) == ("ok", None, 20, 10)
    person, dog = record.detections
    assert (person.category_id, person.category, person.score) == (1, "person", 0.75)
    assert (dog.category_id, dog.category, dog.score) == (18, "dog", 0.5)
    assert person.bbox == (2, 3, 10, 4)
    assert person.rle_counts is not None
    mask = decode_mask(person.rle_counts, 10, 20)
    assert mask[3:7, 2:12].all()
    assert mask.sum() == 4 * 10
    assert person.keypoints is not None
    assert len(person.keypoints) == 6
    assert dog.keypoints is None


def test_an_image_with_nothing_in_it() -> None:
    assert image_record(FOUND, 0, (10, 20), CONFIG) == ImageRecord("ok", None, 20, 10)


def test_without_masks_and_keypoints() -> None:
    record = image_record(replace(FOUND, masks=None, keypoints=None), 1, (10, 20), CONFIG)
    assert all(found.rle_counts is None and found.keypoints is None for found in record.detections)


@pytest.mark.parametrize("keypoints", [True, False])
def test_a_batch_with_its_masks_on_a_device(keypoints: bool) -> None:
    # The images again, the other way round: the counts are 0, 2, 2, 0.
    boxes, scores, labels, count = (
        torch.cat((values, values.flip(0))) for values in (FOUND.boxes, FOUND.scores, FOUND.labels, FOUND.count)
    )
    batch = Detections(
        boxes,
        scores,
        labels,
        count,
        masks=torch.rand(4, 2, 30, 30, generator=torch.Generator().manual_seed(0)),
        keypoints=torch.rand(4, 2, 2, 3) if keypoints else None,
    )
    sizes = [(10, 20), (10, 20), (9, 9), (5, 5)]
    records = records_with_device_masks(batch, sizes, CONFIG)
    assert records == [image_record(batch, index, size, CONFIG) for index, size in enumerate(sizes)]
    assert [len(record.detections) for record in records] == [0, 2, 2, 0]
    assert records_with_device_masks(batch, sizes, CONFIG) == records  # nothing was changed in place


def test_every_bit_of_a_batch_is_in_its_rows() -> None:
    """Beside rows made of the tensors number by number; the category in the middle has no keypoints."""
    generator = torch.Generator().manual_seed(0)
    categories = (Category(18, "dög"), Category(7, "tree"), Category(1, "person"))
    head = KeypointHeadConfig(enabled=True, names=("a", "b"), categories=("person", "dög"))
    config = replace(CONFIG, categories=categories, keypoint_head=head)
    corners = 20 * torch.rand(4, 3, 2, generator=generator)
    batch = Detections(
        boxes=torch.cat((corners, corners + 10 * torch.rand(4, 3, 2, generator=generator)), dim=2),
        scores=torch.rand(4, 3, generator=generator),
        labels=torch.tensor([[0, 1, 2], [1, 1, 0], [2, 0, 0], [1, 2, 1]]),
        count=torch.tensor([3, 0, 1, 2]),
        masks=torch.rand(4, 3, 28, 28, generator=generator),
        keypoints=torch.rand(4, 3, 2, 3, generator=generator),
    )
    sizes = [(30, 40), (10, 20), (25, 25), (40, 31)]
    rows = [_row(batch, index, size, config) for index, size in enumerate(sizes)]
    expected = pa.Table.from_pylist(rows, schema=record_schema(categories))
    for records in (
        [image_record(batch, index, size, config) for index, size in enumerate(sizes)],
        records_with_device_masks(batch, sizes, config),
    ):
        table = records_to_table(range(4), [*"abcd"], records, "model", record_schema(categories))
        assert table.equals(expected, check_metadata=True)


def _row(batch: Detections, index: int, size: tuple[int, int], config: ModelConfig) -> dict[str, object]:
    assert batch.masks is not None
    assert batch.keypoints is not None
    detections = []
    for slot in range(int(batch.count[index])):
        category = config.categories[int(batch.labels[index, slot])]
        x1, y1, x2, y2 = batch.boxes[index, slot]
        (counts,) = encode_masks(batch.masks[index, slot][None].numpy(), batch.boxes[index, slot][None].numpy(), *size)
        half = torch.tensor([0.5, 0.5, 0])
        points = (batch.keypoints[index, slot] - half).flatten().tolist()
        detections.append(
            {
                "category_id": category.id,
                "category": category.name,
                "score": float(batch.scores[index, slot]),
                "bbox": [float(side) for side in (x1, y1, x2 - x1, y2 - y1)],
                "segmentation": {"size": [*size], "counts": counts},
                "keypoints": None if category.name == "tree" else points,
            }
        )
    height, width = size
    row = {"image_id": index, "uri": "abcd"[index], "width": width, "height": height, "status": "ok", "error": None}
    return row | {"detections": detections, "model": "model"}


@pytest.mark.parametrize(("threshold", "pixels"), [(0.9, 0), (0.4, 40)])
def test_the_threshold_of_the_configuration(threshold: float, pixels: int) -> None:
    config = replace(CONFIG, mask_head=MaskHeadConfig(threshold=threshold))
    assert FOUND.masks is not None
    record = image_record(replace(FOUND, masks=FOUND.masks * 0.5), 1, (10, 20), config)
    assert record.detections[0].rle_counts is not None
    assert decode_mask(record.detections[0].rle_counts, 10, 20).sum() == pixels


def test_proposals() -> None:
    found = Proposals(FOUND.boxes, FOUND.scores, FOUND.count)
    record = proposal_record(found, 1, (10, 20), 0.0)
    assert (record.status, record.width, record.height) == ("ok", 20, 10)
    assert record.boxes.tolist() == [[2, 3, 10, 4], [0, 0, 4, 4]]
    assert record.scores.tolist() == [0.75, 0.5]
    assert proposal_record(found, 1, (10, 20), 0.6).scores.tolist() == [0.75]
    assert proposal_record(found, 0, (10, 20), 0.0).boxes.shape == (0, 4)
