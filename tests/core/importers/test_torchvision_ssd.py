"""torchvision's SSD checkpoints: what is told from the keys, and what is said of a file that does not fit. The
numbers are compared in `tests/core/model/test_torchvision_ssd_parity.py`."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from maskrcnn_core.config.model import Category
from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.importers.config_names import parse_source_config
from maskrcnn_core.importers.convert import convert_checkpoint
from maskrcnn_core.importers.torchvision_ssd import import_torchvision_ssd
from maskrcnn_core.model.trained import load_trained


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    found: dict[str, Tensor] = model.state_dict()
    return found


def test_a_file_becomes_a_folder(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "ssd.pth")
    names = tuple(Category(number, name) for number, name in ((3, "disc"), (5, "cross"), (9, "star")))
    convert_checkpoint(tmp_path / "ssd.pth", tmp_path / "ours", categories=names)
    config, detector = load_trained(str(tmp_path / "ours"))
    assert config.categories == names
    assert config.backbone.name == "mobilenet_v3_large_reduced"
    assert (config.input.fit, config.input.short_side) == ("square", 320)
    assert config.finds == "detections"
    # Background's row, the first of each anchor's, is the last.
    theirs = state["head.classification_head.module_list.3.1.bias"].view(6, 4)
    ours = detector.state_dict()["dense.head.logits.3.pointwise.bias"].view(6, 4)
    assert torch.equal(ours, theirs[:, [1, 2, 3, 0]])


def test_categories_are_numbered_where_nobody_names_them(state: dict[str, Tensor]) -> None:
    config, _ = import_torchvision_ssd(state, source_config=parse_source_config("ssdlite320_mobilenet_v3_large"))
    assert [category.name for category in config.categories] == ["class 1", "class 2", "class 3"]


def without(key: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("backbone.extra.2.1.0.weight"), r"1 keys are missing \(backbone\.extra\.2\.1\.0\.weight\)"),
        (without("head.regression_head.module_list.0.1.bias"), r"expected predictors .* with as many rows"),
        (lambda state: state | {"backbone.more": torch.zeros(1)}, r"left over \(backbone\.more\)"),
        (
            lambda state: state | {"head.regression_head.module_list.5.1.weight": torch.zeros(20, 128, 1, 1)},
            r"have another shape",
        ),
    ],
)
def test_a_file_that_does_not_fit(
    state: dict[str, Tensor], change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        import_torchvision_ssd(change(state))


def test_another_models_name_and_other_categories(state: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"got 'ssd300_vgg16', but the keys are those of ssdlite320"):
        import_torchvision_ssd(state, source_config=parse_source_config("ssd300_vgg16"))
    with pytest.raises(CheckpointError, match=r"it has 3 classes, got 1 categories"):
        import_torchvision_ssd(state, categories=(Category(1, "disc"),))
