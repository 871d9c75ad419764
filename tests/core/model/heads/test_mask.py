"""The mask head: one class of many, what it should draw, and its loss."""

from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection.roi_heads import project_masks_on_boxes

from maskrcnn_core.data.targets import pad_targets, targets_from_dense
from maskrcnn_core.model.heads.mask import MaskHead, MaskMLP, mask_loss, mask_probabilities, mask_targets
from maskrcnn_core.structures import Targets
from tests.core.model.lone_loss import lone_loss


def test_only_the_wanted_class_is_computed() -> None:
    torch.manual_seed(0)
    head = MaskHead(4, 6, 2, 5, class_agnostic=False)
    assert head.predictor.bias is not None
    torch.nn.init.normal_(head.predictor.weight)
    torch.nn.init.normal_(head.predictor.bias)
    features, labels = torch.randn(3, 4, 7, 7), torch.tensor([4, 0, 2])
    x = features
    for conv in head.convs:
        x = conv(x).relu()
    every = head.predictor(head.deconv(x).relu())
    got = head(features, labels)
    assert got.shape == (3, 14, 14)
    torch.testing.assert_close(got, every[torch.arange(3), labels])


def test_class_agnostic_ignores_labels() -> None:
    torch.manual_seed(0)
    head = MaskHead(4, 6, 0, 5, class_agnostic=True)
    features = torch.randn(3, 4, 7, 7)
    got = head(features, torch.tensor([4, 0, 2]))
    torch.testing.assert_close(got, head.predictor(head.deconv(features).relu())[:, 0])
    assert torch.equal(got, head(features, torch.tensor([0, 1, 99])))


@pytest.mark.parametrize("agnostic", [True, False])
def test_no_regions(agnostic: bool) -> None:
    head = MaskHead(4, 6, 1, 5, class_agnostic=agnostic)
    assert head(torch.zeros(0, 4, 7, 7), torch.zeros(0, dtype=torch.int64)).shape == (0, 14, 14)


def dense_masks() -> Tensor:
    """Of a 60 x 80 image: a ring, a triangle at the border, one pixel, and the whole image."""
    y, x = torch.meshgrid(torch.arange(60), torch.arange(80), indexing="ij")
    distance = ((y - 30) ** 2 + (x - 40) ** 2).sqrt()
    return torch.stack([(distance < 20) & (distance > 9), y + x < 25, (y == 7) & (x == 66), y >= 0])


@pytest.mark.parametrize("fixed_size", [False, True])
@pytest.mark.parametrize("size", [14, 28])
def test_targets_are_torchvisions(size: int, fixed_size: bool) -> None:
    masks = dense_masks()
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(40, 2, generator=generator) * torch.tensor([70.0, 50])
    sides = 1 + torch.rand(40, 2, generator=generator) * 60
    boxes = torch.cat((corners, torch.minimum(corners + sides, torch.tensor([80.0, 60]))), dim=1)
    boxes = torch.cat((boxes, torch.tensor([[20.0, 10, 60, 50], [0, 0, 25, 25], [66, 7, 67, 8], [0, 0, 80, 60]])))
    objects = torch.cat((torch.arange(40) % 4, torch.arange(4)))
    expected = project_masks_on_boxes(masks.to(torch.uint8), boxes, objects, size)
    targets = pad_targets([targets_from_dense(torch.zeros(4, 4), torch.zeros(4), masks)] * 2)
    got = mask_targets(targets, boxes, torch.arange(44) % 2, objects, size, aligned=False, fixed_size=fixed_size)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert 0.1 < float(got.mean()) < 0.9


@pytest.mark.parametrize("fixed_size", [False, True])
def test_targets_by_eye(fixed_size: bool) -> None:
    # An object that fills the left half of its crop's 8 x 8 pixels at (10, 20), drawn on a 4 x 4 grid over them.
    masks = torch.zeros(1, 1, 10, 10, dtype=torch.uint8)
    masks[..., 1:9, 1:5] = 255
    frame = torch.tensor([[[9.0, 19, 19, 29]]])
    yes = torch.ones(1, 1, dtype=torch.bool)
    targets = Targets(frame, yes.long(), yes, ~yes, masks, frame)
    zero = torch.tensor([0])
    got = mask_targets(targets, torch.tensor([[10.0, 20, 18, 28]]), zero, zero, 4, aligned=True, fixed_size=fixed_size)
    assert got[0].tolist() == [[1, 1, 0, 0]] * 4
    shifted = mask_targets(
        targets, torch.tensor([[18.0, 20, 26, 28]]), zero, zero, 4, aligned=True, fixed_size=fixed_size
    )
    assert not shifted.any()


@pytest.mark.parametrize("fixed_size", [False, True])
def test_targets_of_no_regions_and_of_padding(fixed_size: bool) -> None:
    targets = pad_targets([targets_from_dense(torch.zeros(4, 4), torch.zeros(4), dense_masks())])
    none = torch.zeros(0, dtype=torch.int64)
    assert mask_targets(targets, torch.zeros(0, 4), none, none, 28, aligned=True, fixed_size=fixed_size).shape == (
        0,
        28,
        28,
    )
    # An empty region over a frame of zeros, as padding gives: finite.
    no = torch.zeros(1, 1, dtype=torch.bool)
    padding = Targets(torch.zeros(1, 1, 4), no.long(), no, no, torch.zeros(1, 1, 5, 5).byte(), torch.zeros(1, 1, 4))
    zero = torch.tensor([0])
    assert (
        mask_targets(padding, torch.zeros(1, 4), zero, zero, 28, aligned=True, fixed_size=fixed_size).isfinite().all()
    )


@pytest.mark.parametrize("garbage", [5.0, float("inf"), float("nan")])
def test_loss_is_the_mean_over_counted_regions(garbage: float) -> None:
    torch.manual_seed(0)
    logits, wanted = torch.randn(4, 6, 6), torch.rand(4, 6, 6)
    counted = torch.tensor([True, False, True, False])
    expected = functional.binary_cross_entropy_with_logits(logits[counted], wanted[counted])
    logits[~counted] = garbage
    torch.testing.assert_close(lone_loss(mask_loss(logits, wanted, counted)), expected)


def test_loss_of_nothing_is_zero_with_zero_gradient() -> None:
    logits = torch.randn(2, 6, 6, requires_grad=True)
    loss = lone_loss(mask_loss(logits, torch.zeros(2, 6, 6), torch.zeros(2, dtype=torch.bool)))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
    assert lone_loss(mask_loss(logits[:0], torch.zeros(0, 6, 6), torch.zeros(0, dtype=torch.bool))).item() == 0


@pytest.mark.parametrize("class_agnostic", [True, False])
def test_deconvolution_and_own_class_equal_the_plain_layers(class_agnostic: bool) -> None:
    torch.manual_seed(0)
    head = MaskHead(8, 6, 2, 5, class_agnostic=class_agnostic).double()
    features, labels = torch.randn(3, 8, 4, 4, dtype=torch.float64), torch.tensor([4, 0, 2])
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
        x = features
        for conv in head.convs:
            x = conv(x).relu()
        every_class = head.predictor(head.deconv(x).relu())
        expected = every_class[:, 0] if class_agnostic else every_class[torch.arange(3), labels]
        torch.testing.assert_close(head(features, labels), expected)


def with_random_weights(head: MaskHead | MaskMLP) -> MaskHead | MaskMLP:
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head.double()


def every_logit(head: MaskHead | MaskMLP, features: Tensor) -> Tensor:
    """Logits of all outputs [R, K or K + 1, M, M], layer by layer."""
    if isinstance(head, MaskMLP):
        x = features.permute(0, 2, 3, 1).flatten(1)
        for layer in head.layers:
            x = layer(x).relu()
        return head.predictor(x).view(len(x), -1, head.side, head.side)
    for conv in head.convs:
        features = conv(features).relu()
    return head.predictor(head.deconv(features).relu())


@torch.no_grad()
@pytest.mark.parametrize("class_agnostic", [True, False])
@pytest.mark.parametrize("kind", ["fcn", "mlp"])
@pytest.mark.parametrize("layers", [0, 2])
def test_variants_equal_the_plain_layers(kind: str, layers: int, class_agnostic: bool) -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(3, 8, 4, 4, dtype=torch.float64), torch.tensor([4, 0, 2])
    own = torch.zeros(3, dtype=torch.int64) if class_agnostic else labels
    for activation in ("sigmoid", "softmax"):
        extra = int(activation == "softmax")
        arguments = (8, 6, layers, 5) if kind == "fcn" else (8, 4, 6, layers, 5)
        head = with_random_weights(
            (MaskHead if kind == "fcn" else MaskMLP)(*arguments, class_agnostic=class_agnostic, activation=activation)
        )
        every = every_logit(head, features)
        assert every.shape == (3, (1 if class_agnostic else 5) + extra, 8, 8)
        output = head(features, labels)
        if activation == "sigmoid":
            torch.testing.assert_close(output, every[torch.arange(3), own])
            torch.testing.assert_close(mask_probabilities(output), every[torch.arange(3), own].sigmoid())
        else:
            shares = every.softmax(dim=1)
            torch.testing.assert_close(mask_probabilities(output), shares[torch.arange(3), own])
            torch.testing.assert_close(output[:, 1].exp(), shares[:, -1])
        assert head(features[:0], labels[:0]).shape == output[:0].shape
        assert mask_probabilities(output[:0]).shape == (0, 8, 8)


def test_classes_compete_in_a_softmax_and_not_in_a_sigmoid() -> None:
    # Raising another class's logit by its bias takes probability from the own class, in the softmax alone.
    features, labels = torch.randn(2, 4, 3, 3), torch.zeros(2, dtype=torch.int64)
    for activation in ("sigmoid", "softmax"):
        head = MaskHead(4, 6, 1, 3, class_agnostic=False, activation=activation)
        before = mask_probabilities(head(features, labels))
        with torch.no_grad():
            head.predictor.bias[1] += 3.0
        after = mask_probabilities(head(features, labels))
        assert bool((after < before - 0.1).all()) == (activation == "softmax")
        assert torch.equal(after, before) == (activation == "sigmoid")


@pytest.mark.parametrize("garbage", [5.0, float("inf"), float("nan")])
def test_softmax_loss_is_the_cross_entropy_of_class_or_background(garbage: float) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 6, 5, 5), torch.tensor([2, 0, 4, 1])  # 5 classes, the last logit is background
    inside = torch.rand(4, 5, 5) < 0.5
    counted = torch.tensor([True, True, False, True])
    classes = torch.where(inside, labels[:, None, None], 5)
    expected = functional.cross_entropy(logits[counted], classes[counted])
    logs = logits.log_softmax(dim=1)
    output = torch.stack((logs[torch.arange(4), labels], logs[:, 5]), dim=1)
    output[~counted] = garbage
    torch.testing.assert_close(lone_loss(mask_loss(output, inside.float(), counted)), expected)
    # A fractional target is a share of both.
    half = torch.full((4, 5, 5), 0.5)
    wanted = -(output[counted].mean(dim=(1, 2, 3))).mean()
    torch.testing.assert_close(lone_loss(mask_loss(output, half, counted)), wanted)
    assert lone_loss(mask_loss(output[:0], half[:0], counted[:0])).item() == 0


@pytest.mark.parametrize("kind", ["fcn", "mlp"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_every_variant_learns_its_masks(kind: str, activation: Literal["sigmoid", "softmax"]) -> None:
    """The bright half of the region is the object; its class is seen too, which the softmax has to tell."""
    torch.manual_seed(0)
    labels, counted = torch.arange(16) % 3, torch.ones(16, dtype=torch.bool)
    features = torch.randn(16, 4, 4, 4) * 0.1
    features[torch.arange(16), 1 + labels] += 1.0
    right = torch.arange(16) % 2 == 0
    features[right, 0, :, 2:] += 1.0
    features[~right, 0, :, :2] += 1.0
    column = torch.arange(8)
    wanted = torch.where(right[:, None], column >= 4, column < 4)[:, None].expand(-1, 8, -1).float()
    arguments = (4, 16, 1, 3) if kind == "fcn" else (4, 4, 16, 1, 3)
    head = (MaskHead if kind == "fcn" else MaskMLP)(*arguments, class_agnostic=False, activation=activation)
    optimizer = torch.optim.Adam(head.parameters(), 0.02)
    for _ in range(80):
        loss = lone_loss(mask_loss(head(features, labels), wanted, counted))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = mask_probabilities(head(features, labels)) >= 0.5
    assert (drawn == wanted.bool()).float().mean() > 0.95


def test_the_paper_s_fully_connected_head() -> None:
    # Table 2e: 256 x 14 x 14 -> 1024 -> 1024 -> 80 x 28 x 28
    head = MaskMLP(2, 14, 16, 2, 80, class_agnostic=False)
    assert [layer.weight.shape for layer in head.layers] == [(16, 2 * 196), (16, 16)]
    assert head.predictor.weight.shape == (80 * 784, 16)
    assert head(torch.zeros(1, 2, 14, 14), torch.tensor([79])).shape == (1, 28, 28)
