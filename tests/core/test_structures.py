"""What crosses module boundaries: counts of padded slots, and moving between devices."""

import dataclasses

import pytest
import torch

from maskrcnn_core.structures import Detections, ImageBatch, Proposals, Targets, map_tensors, tensors_of, valid_slots


def test_valid_slots_by_eye() -> None:
    assert valid_slots(torch.tensor([2, 0, 3]), 3).tolist() == [[True, True, False], [False] * 3, [True] * 3]
    assert valid_slots(torch.tensor([0, 0]), 0).shape == (2, 0)
    assert valid_slots(torch.zeros(0, dtype=torch.int64), 4).shape == (0, 4)


def test_valid_follows_count() -> None:
    boxes, scores, count = torch.zeros(2, 3, 4), torch.zeros(2, 3), torch.tensor([1, 3])
    expected = [[True, False, False], [True, True, True]]
    assert Proposals(boxes, scores, count).valid.tolist() == expected
    assert Detections(boxes, scores, torch.zeros(2, 3, dtype=torch.int64), count).valid.tolist() == expected


def test_moving_keeps_every_field_and_absent_ones_absent() -> None:
    empty = torch.zeros(1, 2, dtype=torch.bool)
    targets = Targets(torch.ones(1, 2, 4), torch.ones(1, 2, dtype=torch.int64), empty, ~empty, torch.ones(1, 2, 3, 3))
    moved = targets.to("meta")
    for field in dataclasses.fields(targets):
        before, after = getattr(targets, field.name), getattr(moved, field.name)
        if before is None:
            assert after is None
        else:
            assert (after.device.type, after.shape, after.dtype) == ("meta", before.shape, before.dtype)
    assert targets.boxes.device.type == "cpu"


def test_a_change_reaches_every_tensor_and_leaves_absent_ones_absent() -> None:
    boxes, scores, count = torch.zeros(2, 3, 4), torch.zeros(2, 3), torch.tensor([1, 3])
    found = Detections(boxes, scores, torch.zeros(2, 3, dtype=torch.int64), count)
    assert list(tensors_of(found)) == ["boxes", "scores", "labels", "count"]
    second = map_tensors(found, lambda tensor: tensor[1:])
    assert {name: len(tensor) for name, tensor in tensors_of(second).items()} == dict.fromkeys(tensors_of(found), 1)
    assert (second.count.tolist(), second.masks, found.count.tolist()) == ([3], None, [1, 3])


def test_image_batch_counts_images_and_is_frozen() -> None:
    sizes = torch.tensor([[4, 5], [6, 7]])
    batch = ImageBatch(torch.zeros(2, 3, 8, 8), sizes, sizes)
    assert len(batch) == 2
    assert torch.equal(batch.to("cpu").input_sizes, sizes)
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.pixels = torch.zeros(1)  # type: ignore[misc]
