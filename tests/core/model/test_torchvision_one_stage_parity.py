"""torchvision's one-stage detectors and ours with their weights, side by side: detections, losses, parameter counts."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection

from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.data.generated.pictures import generate_picture
from maskrcnn_core.data.targets import pad_targets, targets_from_dense
from maskrcnn_core.importers.torchvision_one_stage import import_torchvision_one_stage
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.structures import Targets
from pipelines.benchmarks.one_stage_peer import OneStageModel, one_stage_model
from tests.core.model.torchvision_reference import as_batch

HEIGHT, WIDTH = 128, 192
MODELS: tuple[OneStageModel, ...] = ("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn")
LOSSES = {"classification": "dense_class", "bbox_regression": "dense_box", "bbox_ctrness": "dense_centreness"}


@pytest.fixture(scope="module", autouse=True)
def both_cores() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=MODELS)
def peer(request: pytest.FixtureRequest) -> nn.Module:
    return one_stage_model(request.param, HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def ours(peer: nn.Module) -> tuple[ModelConfig, Detector]:
    """Imported without a word about the model: the keys tell."""
    config, state = import_torchvision_one_stage(peer.state_dict())
    config = config.with_detection(max_detections=40)
    detector = build_detector(config, load_pretrained=False)
    detector.load_state_dict(state, strict=True)
    return config, detector.eval()


@pytest.fixture(scope="module")
def image() -> Tensor:
    """A picture of the size that the network sees."""
    pixels = generate_picture(4, image_size=(WIDTH, WIDTH)).pixels[:HEIGHT]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()


def not_empty(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first 40 detections with an area. The peer also gives those that lie outside of the image, cut to nothing;
    these suppress none."""
    boxes = found["boxes"]
    real = ((boxes[:, 2:] - boxes[:, :2]) >= 0.01).all(dim=1)
    return {name: values[real][:40] for name, values in found.items()}


@torch.no_grad()
@pytest.mark.parametrize("fixed_size", [False, True])
def test_detections(peer: nn.Module, ours: tuple[ModelConfig, Detector], image: Tensor, fixed_size: bool) -> None:
    config, detector = ours
    expected = not_empty(peer.eval()([image.float() / 255])[0])
    stages = detector.trunk, detector.pyramid, detector.dense, detector.regions
    detector = Detector(*stages, fixed_size_on=("cpu",) if fixed_size else ()).eval()
    found = detector.detect(as_batch(config, [image], [(HEIGHT, WIDTH)]))
    count = int(found.count[0])
    assert count == len(expected["scores"]) == 40
    assert len(expected["labels"].unique()) > 3
    assert (expected["scores"] > 2 * config.detection.min_score).any()
    assert (found.labels[0, :count] + 1).tolist() == expected["labels"].tolist()
    assert (found.scores[0, :count] - expected["scores"]).abs().max() < 1e-4
    assert (found.boxes[0, :count] - expected["boxes"]).abs().max() < 0.05


def objects() -> tuple[list[dict[str, Tensor]], Targets]:
    """Objects of many sizes in one image, none in the other; for torchvision and for us."""
    boxes = torch.tensor([[40.0, 20, 150, 110], [110, 40, 188, 126], [10, 10, 40, 60], [80, 70, 100, 86]])
    labels = torch.tensor([5, 18, 90, 1])
    none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    theirs = [{"boxes": boxes, "labels": labels}, {"boxes": none[0], "labels": none[1]}]
    ours = [
        targets_from_dense(each["boxes"], each["labels"] - 1, torch.zeros(len(each["boxes"]), HEIGHT, WIDTH).byte())
        for each in theirs
    ]
    return theirs, pad_targets(ours)


@torch.no_grad()
@pytest.mark.parametrize("fixed_size", [False, True])
def test_losses(peer: nn.Module, ours: tuple[ModelConfig, Detector], image: Tensor, fixed_size: bool) -> None:
    config, detector = ours
    peer.train()
    for module in peer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    theirs, targets = objects()
    pictures = [image, image.flip(2)]
    expected = peer([picture.float() / 255 for picture in pictures], theirs)
    stages = detector.trunk, detector.pyramid, detector.dense, detector.regions
    detector = Detector(*stages, fixed_size_on=("cpu",) if fixed_size else ()).train()
    got = detector(as_batch(config, pictures, [(HEIGHT, WIDTH)] * 2), targets)
    assert set(got) == {LOSSES[name] for name in expected}
    for name, value in expected.items():
        assert float(value) > 1e-3, f"{name} is too small to say anything"
        assert float(got[LOSSES[name]]) == pytest.approx(float(value), rel=1e-4), name


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("retinanet_resnet50_fpn", 34_014_999),
        ("retinanet_resnet50_fpn_v2", 38_198_935),
        ("fcos_resnet50_fpn", 32_269_600),
    ],
)
def test_parameter_counts_are_torchvisions(name: str, parameters: int) -> None:
    """torchvision's published counts. Ours are without class 0, of each anchor a kernel of 3 x 3 x 256 and a bias, and
    have batch norms as constants, which torchvision counts where they are not frozen (RetinaNet's second version)."""
    with torch.device("meta"):
        model = getattr(detection, name)(weights=None, weights_backbone=None)
    config, _ = import_torchvision_one_stage(model.state_dict())
    with torch.device("meta"):
        detector = build_detector(config, load_pretrained=False)
    nothing = (1 if "fcos" in name else 9) * (9 * 256 + 1)
    norms = 53_120 if name.endswith("v2") else 0
    assert sum(parameter.numel() for parameter in detector.parameters()) + nothing + norms == parameters
