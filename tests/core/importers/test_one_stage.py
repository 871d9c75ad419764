"""One-stage detectors of torchvision and detectron2 in our names: everything arrives, conventions are set, what does
not fit is named. That torchvision's give torchvision's numbers: `model/test_torchvision_one_stage_parity.py`."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models import detection

from maskrcnn_core.config.model import Category
from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.importers.config_names import parse_source_config
from maskrcnn_core.importers.convert import convert_checkpoint
from maskrcnn_core.importers.detectron2 import is_detectron2
from maskrcnn_core.importers.detectron2_one_stage import import_detectron2_one_stage, is_detectron2_one_stage
from maskrcnn_core.importers.torchvision import is_torchvision
from maskrcnn_core.importers.torchvision_one_stage import import_torchvision_one_stage, is_torchvision_one_stage
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.trained import load_trained
from maskrcnn_core.weights.coco_categories import COCO_CATEGORIES
from tests.core.importers.synthetic_models import detectron2_retinanet_state, detectron2_state

MODELS = ("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn")


def torchvision_state(name: str, num_classes: int = 91) -> dict[str, Tensor]:
    """Without values."""
    with torch.device("meta"):
        model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=num_classes)
    state: dict[str, Tensor] = model.state_dict()
    return state


def small_torchvision_state(num_classes: int = 4) -> dict[str, Tensor]:
    """A RetinaNet on a ResNet-50 with values."""
    torch.manual_seed(0)
    model = detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=num_classes)
    state: dict[str, Tensor] = model.state_dict()
    return state


def built_shapes(config: object) -> dict[str, torch.Size]:
    with torch.device("meta"):
        detector = build_detector(config, load_pretrained=False)  # type: ignore[arg-type]
    return {key: value.shape for key, value in detector.state_dict().items()}


@pytest.mark.parametrize("name", MODELS)
def test_torchvisions_fit_their_detectors(name: str) -> None:
    state = torchvision_state(name)
    assert is_torchvision_one_stage(state)
    assert not is_torchvision(state)
    config, translated = import_torchvision_one_stage(state, source_config=parse_source_config(name))
    assert built_shapes(config) == {key: value.shape for key, value in translated.items()}
    assert (len(config.categories), config.categories[17].name, config.categories[17].id) == (90, "dog", 18)
    assert (config.finds, config.dense.convs, config.pyramid.levels) == ("detections", 4, (3, 4, 5))
    assert config.pyramid.extra == ("p6p7_on_c5" if name.endswith("v2") else "p6p7_on_p5")
    assert config.dense.detection.max_detections == (100 if "fcos" in name else 300)
    assert config.dense.box_loss == ("smooth_l1" if name == MODELS[0] else "giou")


@pytest.mark.parametrize("name", MODELS)
def test_classes_are_in_the_order_of_labels_and_anchors_by_size(name: str) -> None:
    """Bias by bias: class 3 of torchvision's anchor (ratio 1, size 2) is our label 2 of the anchor (size 2, ratio
    1)."""
    anchors = 1 if "fcos" in name else 9
    state = {key: torch.zeros(value.shape) for key, value in torchvision_state(name, 4).items()}
    state["head.classification_head.cls_logits.bias"] = torch.arange(4.0 * anchors)
    _, translated = import_torchvision_one_stage(state, norm_eps=1.0)
    bias = translated["dense.head.logits.bias"].view(anchors, 3)
    assert bias[0].tolist() == [1, 2, 3]
    if anchors == 9:
        assert bias[2 * 3 + 1, 2] == (1 * 3 + 2) * 4 + 3


def test_names_of_before_are_read() -> None:
    state = small_torchvision_state()
    old = {
        re.sub(r"^(head\.\w+\.conv)\.(\d)\.0\.", lambda m: f"{m[1]}.{2 * int(m[2])}.", key): value
        for key, value in state.items()
    }
    assert set(old) != set(state)
    assert import_torchvision_one_stage(old)[1].keys() == import_torchvision_one_stage(state)[1].keys()


def test_detectron2s_fits_its_detector() -> None:
    for network, trunk in (("R_50", "resnet50"), ("R_101", "resnet101")):
        state = detectron2_retinanet_state(network)
        assert is_detectron2_one_stage(state)
        assert not is_detectron2(state)
        said = parse_source_config(f"COCO-Detection/retinanet_{network}_FPN_3x")
        config, translated = import_detectron2_one_stage(state, source_config=said)
        assert built_shapes(config) == {key: value.shape for key, value in translated.items()}
        assert (config.backbone.name, config.categories) == (trunk, COCO_CATEGORIES)
    assert not is_detectron2_one_stage(detectron2_state())
    assert is_detectron2(detectron2_state())
    assert (config.input.channels, config.input.scale, config.input.resize) == ("bgr", "byte", "antialias")
    assert (config.dense.smooth_l1_beta, config.dense.loss.divisor, config.dense.detection.max_detections) == (
        0.1,
        "average",
        100,
    )
    assert not config.dense.anchors.whole_sizes
    assert translated["dense.loss.averages"].tolist() == [100, 100]


def test_a_folder_is_written_and_loads(tmp_path: Path) -> None:
    torch.save(small_torchvision_state(), tmp_path / "model.pth")
    named = (Category(5, "a"), Category(6, "b"), Category(7, "c"))
    config = convert_checkpoint(tmp_path / "model.pth", tmp_path / "out", categories=named)
    again, detector = load_trained(tmp_path / "out")
    assert again == config
    assert detector.regions is None


def test_what_does_not_fit_is_named() -> None:
    state = small_torchvision_state()
    wrong = {key: value for key, value in state.items() if key != "head.regression_head.conv.2.0.weight"}
    with pytest.raises(CheckpointError, match=r"1 keys are missing \(head\.regression_head\.conv\.2\.0\.weight\)"):
        import_torchvision_one_stage(wrong)
    with pytest.raises(CheckpointError, match="it has 3 classes, got 1 categories"):
        import_torchvision_one_stage(state, categories=(Category(1, "a"),))
    with pytest.raises(CheckpointError, match="it says kind fcos"):
        import_torchvision_one_stage(state, source_config=parse_source_config("fcos_resnet50_fpn"))
    without = {key: value for key, value in state.items() if "cls_logits" not in key}
    with pytest.raises(CheckpointError, match="cls_logits has no class"):
        import_torchvision_one_stage(without)
