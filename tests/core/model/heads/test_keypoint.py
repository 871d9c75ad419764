"""The keypoint head: its layers, what it should light, and its loss."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.roi_heads import keypointrcnn_loss

from maskrcnn_core.model.heads.keypoint import KeypointHead, keypoint_loss, keypoint_targets
from maskrcnn_core.structures import Targets
from tests.core.model.lone_loss import lone_loss


def test_layers_are_torchvisions() -> None:
    torch.manual_seed(0)
    layers, predictor = KeypointRCNNHeads(6, (8, 8, 8)), KeypointRCNNPredictor(8, 5)
    head = KeypointHead(6, 8, 3, 5)
    with torch.no_grad():
        for ours, theirs in zip(
            (*head.convs, head.deconv), (layers[0], layers[2], layers[4], predictor.kps_score_lowres), strict=True
        ):
            ours.weight.copy_(theirs.weight)
            torch.nn.init.normal_(theirs.bias)
            ours.bias.copy_(theirs.bias)
        features = torch.randn(3, 6, 14, 14)
        got = head(features)
        torch.testing.assert_close(got, predictor(layers(features.clone())))
    assert got.shape == (3, 5, 56, 56)


def test_parameters_of_the_standard_head() -> None:
    # 256 -> 512, 7 x 512 -> 512 (3x3), 512 -> 17 (4x4), each with biases
    wanted = 256 * 512 * 9 + 512 + 7 * (512 * 512 * 9 + 512) + 512 * 17 * 16 + 17
    assert sum(p.numel() for p in KeypointHead(256, 512, 8, 17).parameters()) == wanted


@pytest.mark.parametrize("layers", [0, 2])
def test_no_regions(layers: int) -> None:
    assert KeypointHead(4, 8, layers, 3)(torch.zeros(0, 4, 7, 7)).shape == (0, 3, 28, 28)


def people(seed: int) -> tuple[Targets, Tensor, Tensor, Tensor]:
    """Two images of three objects with five keypoints, and 12 regions with their image and object."""
    source = torch.Generator().manual_seed(seed)
    keypoints = torch.rand(2, 3, 5, 3, generator=source) * 60
    keypoints[..., 2] = torch.randint(0, 3, (2, 3, 5), generator=source)
    corners = torch.rand(12, 2, generator=source) * 20
    boxes = torch.cat((corners, corners + 20 + torch.rand(12, 2, generator=source) * 40), dim=1)
    yes = torch.ones(2, 3, dtype=torch.bool)
    targets = Targets(torch.zeros(2, 3, 4), yes.long(), yes, ~yes, keypoints=keypoints)
    return targets, boxes, torch.arange(2).repeat_interleave(6), torch.randint(0, 3, (12,), generator=source)


def test_loss_is_torchvisions() -> None:
    targets, boxes, images, objects = people(0)
    assert targets.keypoints is not None
    logits = torch.randn(12, 5, 16, 16, generator=torch.Generator().manual_seed(1))
    split = [images == number for number in range(2)]
    expected = keypointrcnn_loss(
        logits, [boxes[s] for s in split], list(targets.keypoints), [objects[s] for s in split]
    )
    cells, counted = keypoint_targets(targets, boxes, images, objects, torch.ones(12, dtype=torch.bool), 16)
    torch.testing.assert_close(lone_loss(keypoint_loss(logits, cells, counted)), expected)
    assert 0.1 < counted.float().mean() < 0.9


@pytest.mark.parametrize("garbage", [1e4, float("inf"), float("nan")])
def test_regions_of_other_categories_give_no_loss(garbage: float) -> None:
    targets, boxes, images, objects = people(2)
    logits = torch.randn(12, 5, 16, 16)
    learned = torch.arange(12) % 3 == 0
    some = keypoint_targets(targets, boxes[learned], images[learned], objects[learned], learned[learned], 16)
    expected = lone_loss(keypoint_loss(logits[learned], *some))
    logits[~learned] = garbage
    torch.testing.assert_close(
        lone_loss(keypoint_loss(logits, *keypoint_targets(targets, boxes, images, objects, learned, 16))), expected
    )


def test_loss_of_nothing_visible_is_zero_with_zero_gradient() -> None:
    targets, boxes, images, objects = people(3)
    assert targets.keypoints is not None
    targets.keypoints[..., 2] = 0  # as of an object without annotated keypoints
    logits = torch.randn(12, 5, 16, 16, requires_grad=True)
    loss = lone_loss(
        keypoint_loss(logits, *keypoint_targets(targets, boxes, images, objects, torch.ones(12).bool(), 16))
    )
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
    none = torch.zeros(0, dtype=torch.int64)
    cells, counted = keypoint_targets(targets, boxes[:0], none, none, none.bool(), 16)
    assert lone_loss(keypoint_loss(logits[:0], cells, counted)).item() == 0


def test_gradient_is_softmax_minus_one_hot() -> None:
    logits = torch.randn(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    lone_loss(keypoint_loss(logits, torch.tensor([[5]]), torch.tensor([[True]]))).backward()
    expected = logits.detach().flatten().softmax(0) - functional.one_hot(torch.tensor(5), 16)
    torch.testing.assert_close(logits.grad.flatten(), expected)


def test_head_learns_to_point() -> None:
    """Each region shows one bright cell; the head has to point at it."""
    torch.manual_seed(0)
    head = KeypointHead(2, 8, 1, 1)
    place = torch.randint(1, 6, (24, 2))
    features = torch.zeros(24, 2, 7, 7)
    features[torch.arange(24), 0, place[:, 1], place[:, 0]] = 1.0
    boxes = torch.tensor([[0.0, 0, 7, 7]]).repeat(24, 1)
    yes = torch.ones(1, 24, dtype=torch.bool)
    keypoints = torch.cat((place + 0.5, torch.full((24, 1), 2.0)), dim=1)[None, :, None]
    targets = Targets(boxes[None], yes.long(), yes, ~yes, keypoints=keypoints)
    zeros, own = torch.zeros(24, dtype=torch.int64), torch.arange(24)
    cells, counted = keypoint_targets(targets, boxes, zeros, own, yes[0], 28)
    optimizer = torch.optim.Adam(head.parameters(), 0.02)
    losses = []
    for _ in range(80):
        loss = lone_loss(keypoint_loss(head(features), cells, counted))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3
    found = head(features).flatten(2).argmax(dim=2)
    distance = torch.stack((found % 28 - cells % 28, found // 28 - cells // 28)).abs()
    assert distance.float().mean() <= 1.0
