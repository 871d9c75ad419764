"""A classifier's weights in a trunk give the classifier's own feature maps."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.importers.convert import convert_checkpoint
from maskrcnn_core.model.trunks.imagenet_weights import is_classifier, load_backbone_weights
from maskrcnn_core.model.trunks.resnet import ResNetTrunk
from maskrcnn_core.model.trunks.sequential import sequential_trunk
from tests.core.importers.synthetic_models import detectron2_state


def classifier(name: str) -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = torchvision.models.get_model(name, weights=None)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return classifier("resnet18")


@pytest.fixture
def saved(resnet: nn.Module, tmp_path: Path) -> Path:
    torch.save(resnet.state_dict(), tmp_path / "resnet18.pth")
    return tmp_path / "resnet18.pth"


def trunk() -> ResNetTrunk:
    return ResNetTrunk(torchvision.models.get_model("resnet18", weights=None)).eval()


@torch.no_grad()
def test_a_resnets_maps(resnet: nn.Module, saved: Path) -> None:
    ours = trunk()
    load_backbone_weights(ours, saved, "resnet18")
    x = torch.randn(1, 3, 64, 64)
    expected = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(x))))
    for got, layer in zip(ours(x), (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4), strict=True):
        expected = layer(expected)
        assert torch.equal(got, expected)


@torch.no_grad()
def test_a_chains_last_map(tmp_path: Path) -> None:
    network = classifier("mobilenet_v3_small")
    torch.save(network.state_dict(), tmp_path / "m.pth")
    ours = sequential_trunk("mobilenet_v3_small", pretrained=False).eval()
    load_backbone_weights(ours, tmp_path / "m.pth", "mobilenet_v3_small")
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(ours(x)[-1], network.features(x))


def changed(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    if kind == "missing":
        return {key: value for key, value in state.items() if key != "layer2.0.conv1.weight"}
    if kind == "left over":
        return state | {"layer5.weight": torch.zeros(1)}
    return state | {"conv1.weight": torch.zeros(64, 4, 7, 7)}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"1 keys are missing \(stages\.1\.0\.conv1\.weight\)"),
        ("left over", r"1 keys are left over \(layer5\.weight\)"),
        ("misshapen", r"1 keys have another shape \(conv1\.weight \[64, 4, 7, 7\] \(expected \[64, 3, 7, 7\]\)\)"),
    ],
)
def test_what_does_not_fit_is_named(kind: str, message: str, resnet: nn.Module, tmp_path: Path) -> None:
    torch.save(changed(resnet.state_dict(), kind), tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=rf"bad\.pth does not fit model\.backbone\.name resnet18: {message}"):
        load_backbone_weights(trunk(), tmp_path / "bad.pth", "resnet18")


def test_a_classifier_is_no_detector(saved: Path, resnet: nn.Module, tmp_path: Path) -> None:
    assert is_classifier(resnet.state_dict())
    assert not is_classifier(detectron2_state())
    with pytest.raises(CheckpointError, match=r"of an image classifier.*--model\.backbone\.weights \S*resnet18\.pth"):
        convert_checkpoint(saved, tmp_path / "out")
    assert not (tmp_path / "out").exists()
