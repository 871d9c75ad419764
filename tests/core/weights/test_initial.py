from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.config.trunk import BackboneConfig
from maskrcnn_core.errors import CheckpointError, ConfigError
from maskrcnn_core.weights.checkpoint import save_checkpoint
from maskrcnn_core.weights.initial import check_initial, load_initial_weights

CONFIG = ModelConfig(categories=(Category(1, "one"),))


class Detector(nn.Module):
    """Names as a detector has them, every weight of one value."""

    def __init__(self, value: float, *, classes: int = 2, rpn: bool = True, heads: bool = True, width: int = 3) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(width, 3), nn.BatchNorm1d(3))
        if rpn:
            self.dense = nn.ModuleDict({"head": nn.ModuleDict({"logits": nn.Linear(3, 1)})})
        if heads:
            box = nn.ModuleDict({"layers": nn.Linear(3, 3), "classes": nn.Linear(3, classes)})
            self.regions = nn.ModuleDict({"box": nn.ModuleDict({"head": box})})
        with torch.no_grad():
            for tensor in self.state_dict().values():
                tensor.fill_(value)


def saved(folder: Path, detector: Detector, config: ModelConfig = CONFIG) -> Path:
    save_checkpoint(folder, detector.state_dict(), config)
    return folder


def values(detector: nn.Module) -> dict[str, float]:
    return {name: float(tensor.reshape(-1)[0]) for name, tensor in detector.state_dict().items()}


def test_what_fits_is_taken_and_the_rest_is_named(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, Detector(5.0, classes=9, rpn=False))
    detector = Detector(1.0)
    report = load_initial_weights(detector, CONFIG, [checkpoint])
    found = values(detector)
    assert {name for name, value in found.items() if value == 5.0} == set(report.taken)
    assert {name for name, value in found.items() if value == 1.0} == set(report.fresh)
    assert report.fresh_parts == ("dense.head.logits", "regions.box.head.classes")
    assert set(report.unused) == {"regions.box.head.classes.weight", "regions.box.head.classes.bias"}
    assert "trunk.1.running_mean" in report.taken  # buffers as well: a frozen norm is one


def test_the_first_of_several_checkpoints_wins(tmp_path: Path) -> None:
    """The fourth step of alternating training: RPN of one, heads of the other."""
    rpn = saved(tmp_path / "rpn", Detector(5.0, heads=False))
    heads = saved(tmp_path / "heads", Detector(6.0, rpn=False))
    detector = Detector(1.0)
    report = load_initial_weights(detector, CONFIG, [rpn, heads])
    assert report.fresh == report.unused == ()
    expected = {"trunk": 5.0, "dense": 5.0, "regions": 6.0}
    assert all(value == expected[name.split(".")[0]] for name, value in values(detector).items())


def test_a_trunk_that_does_not_fit_is_no_start(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, Detector(5.0, width=4))
    with pytest.raises(CheckpointError, match=r"1 weights of the trunk are not in it .* trunk\.0\.weight \[3, 3\]"):
        load_initial_weights(Detector(1.0), CONFIG, [checkpoint])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": BackboneConfig(name="resnet18")}, r"has model\.backbone\.name 'resnet50', this run 'resnet18'"),
        ({"backbone": BackboneConfig(stride_in_1x1=True)}, r"model\.backbone\.stride_in_1x1 False, this run True"),
        (
            {"input": InputConfig(channels="bgr")},
            r"model\.input\.channels 'rgb', this run 'bgr'; .* --model\.input\.ch",
        ),
        ({"input": InputConfig(mean=(0.0, 0.0, 0.0))}, r"has model\.input\.mean"),
    ],
)
@pytest.mark.parametrize(
    "check",
    [check_initial, lambda config, checkpoints: load_initial_weights(Detector(1.0), config, checkpoints)],
    ids=["before", "while loading"],
)
def test_other_conventions_are_refused(
    tmp_path: Path, check: Callable[..., object], change: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check(replace(CONFIG, **change), [saved(tmp_path, Detector(5.0))])


def test_frozen_stages_and_sizes_may_differ(tmp_path: Path) -> None:
    config = replace(
        CONFIG, backbone=BackboneConfig(frozen_stages=5, pretrained=False), input=InputConfig(short_side=400)
    )
    check_initial(config, [saved(tmp_path, Detector(5.0))])


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        check_initial(CONFIG, [tmp_path / "nothing"])
    (saved(tmp_path, Detector(5.0)) / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="cut short"):
        check_initial(CONFIG, [tmp_path])
