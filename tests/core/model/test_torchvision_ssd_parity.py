"""torchvision's SSD models and ours with their weights, side by side: detections, losses, counts of parameters."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import detection

from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.data.targets import ImageTargets, pad_targets
from maskrcnn_core.data.transform import fitted_size, pad_batch, prepare_input
from maskrcnn_core.importers.torchvision_ssd import import_torchvision_ssd
from maskrcnn_core.inference.frames import boxes_in_original
from maskrcnn_core.layers.frozen_norm import FrozenAffineConv2d
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.structures import ImageBatch
from tests.small_detector import with_fixed_size_on

MODELS = {"ssd300_vgg16": 35_641_826, "ssdlite320_mobilenet_v3_large": 3_440_060}


def noise(count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """[count, 3, *size] uint8, without areas of one colour, where scores would be equal but for their last bits."""
    coarse = (count, 3, -(-size[0] // 8), -(-size[1] // 8))
    values = torch.randint(0, 256, coarse, generator=torch.Generator().manual_seed(seed)).float()
    return F.interpolate(values, size=size, mode="bicubic").clamp(0, 255).byte()


def peer_model(name: str) -> nn.Module:
    """Seeded random weights; norms with the statistics of noise, so that nothing fades, and lively logits."""
    torch.manual_seed(0)
    model: nn.Module = getattr(detection, name)(weights=None, weights_backbone=None)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
            norm.weight.uniform_(0.7, 1.3)
            norm.bias.normal_(0, 0.3)
        if norms:
            model.train()
            model.head(list(model.backbone(noise(4, (320, 320)).float() / 127.5 - 1).values()))
        for level in model.head.classification_head.module_list:
            predictor = level if isinstance(level, nn.Conv2d) else level[1]
            predictor.weight.mul_(5.0 if norms else 1.0)
            predictor.bias.normal_(0, 0.5)
    return model.eval()


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="module")
def peer(name: str) -> nn.Module:
    return peer_model(name)


@pytest.fixture(scope="module")
def ours(peer: nn.Module) -> tuple[ModelConfig, Detector]:
    config, state = import_torchvision_ssd(peer.state_dict())
    detector = build_detector(config, load_pretrained=False)
    detector.load_state_dict(state, strict=True)
    return config, detector.eval()


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    return [noise(1, (240, 320), seed=1)[0], noise(1, (200, 150), seed=2)[0]]


def as_batch(config: ModelConfig, images: list[Tensor]) -> ImageBatch:
    rule = config.input
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    prepared = [
        prepare_input(image, fitted_size(*size, rule, rule.short_side, rule.long_side), rule)
        for image, size in zip(images, sizes, strict=True)
    ]
    return pad_batch(prepared, sizes, rule.divisor)


@pytest.fixture(scope="module")
@torch.no_grad()
def expected(peer: nn.Module, images: list[Tensor]) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """torchvision's detections, and its losses."""
    pixels = [image.float() / 255 for image in images]
    detections = peer.eval()(pixels)
    peer.train()
    for module in peer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return detections, peer(pixels, objects()[0])


@torch.no_grad()
@pytest.mark.parametrize("fixed_size", [False, True])
def test_detections(
    expected: tuple[list[dict[str, Tensor]], dict[str, Tensor]],
    ours: tuple[ModelConfig, Detector],
    images: list[Tensor],
    fixed_size: bool,
) -> None:
    config, detector = ours
    batch = as_batch(config, images)
    found = with_fixed_size_on(detector, ("cpu",) if fixed_size else ()).eval().detect(batch)
    boxes = boxes_in_original(found.boxes, batch)
    for index, theirs in enumerate(expected[0]):
        count = int(found.count[index])
        assert count == len(theirs["scores"]) > 50
        assert (found.scores[index, :count] - theirs["scores"]).abs().max() < 1e-4
        # Each one at its place, but for those whose scores are alike up to rounding.
        same = (found.labels[index, :count] + 1)[:, None] == theirs["labels"]
        same &= (boxes[index, :count, None] - theirs["boxes"]).abs().amax(dim=2) < 0.05
        places = torch.arange(count)
        same &= ((places[:, None] - places).abs() <= 2) & (
            (found.scores[index, :count, None] - theirs["scores"]).abs() < 1e-4
        )
        assert same.any(dim=1).all()
        assert same.any(dim=0).all()
        assert same.diagonal().float().mean() > 0.95


def objects() -> tuple[list[dict[str, Tensor]], list[Tensor], list[Tensor]]:
    """Of two images: three objects, of which two have one best prior, and none; for torchvision and for us."""
    boxes = [torch.tensor([[60.0, 30, 200, 150], [62, 28, 203, 151], [10, 10, 40, 60]]), torch.zeros(0, 4)]
    labels = [torch.tensor([5, 18, 90]), torch.zeros(0, dtype=torch.int64)]
    theirs = [{"boxes": b, "labels": n} for b, n in zip(boxes, labels, strict=True)]
    return theirs, boxes, [n - 1 for n in labels]


@torch.no_grad()
@pytest.mark.parametrize("fixed_size", [False, True])
def test_losses(
    expected: tuple[list[dict[str, Tensor]], dict[str, Tensor]],
    ours: tuple[ModelConfig, Detector],
    images: list[Tensor],
    fixed_size: bool,
) -> None:
    config, detector = ours
    _, boxes, labels = objects()
    batch = as_batch(config, images)
    side = config.input.short_side
    scales = [torch.tensor([side / w, side / h] * 2) for h, w in batch.original_sizes.tolist()]
    targets = pad_targets(
        [
            ImageTargets(own * scale, label, torch.zeros(len(label), dtype=torch.bool))
            for own, scale, label in zip(boxes, scales, labels, strict=True)
        ]
    )
    got = with_fixed_size_on(detector, ("cpu",) if fixed_size else ()).train()(batch, targets)
    assert set(got) == {"dense_class", "dense_box"}
    assert float(got["dense_class"]) == pytest.approx(float(expected[1]["classification"]), rel=1e-4)
    assert float(got["dense_box"]) == pytest.approx(float(expected[1]["bbox_regression"]), rel=1e-4)
    assert min(map(float, got.values())) > 0.1


def test_parameters(name: str, ours: tuple[ModelConfig, Detector]) -> None:
    """torchvision's count; its batch norms have scale and shift as parameters, ours as constants."""
    _, detector = ours
    count = sum(parameter.numel() for parameter in detector.parameters())
    for module in detector.modules():
        if isinstance(module, FrozenAffineConv2d):
            count += module.scale.numel() + module.shift.numel()
    assert count == MODELS[name]
