"""mmdetection's names and shapes import without a key left over, in its two styles."""

from pathlib import Path

import pytest
import torch

from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.importers.config_names import parse_source_config
from maskrcnn_core.importers.convert import convert_checkpoint
from maskrcnn_core.importers.mmdetection import import_mmdetection, is_mmdetection
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.weights.coco_categories import COCO_CATEGORIES
from tests.core.importers.synthetic_models import detectron2_state, mmdetection_state


@pytest.mark.parametrize(("network", "name"), [("R_50", "resnet50"), ("R_101", "resnet101")])
@pytest.mark.parametrize("kind", ["mask", "faster"])
def test_models_fit_their_detector(network: str, name: str, kind: str) -> None:
    state = mmdetection_state(network, kind)
    assert is_mmdetection(state)
    assert not is_mmdetection(detectron2_state())
    config, translated = import_mmdetection(state)
    with torch.device("meta"):
        expected = build_detector(config, load_pretrained=False).state_dict()
    assert {key: value.shape for key, value in translated.items()} == {k: v.shape for k, v in expected.items()}
    assert (config.backbone.name, config.mask_head.enabled, config.categories) == (
        name,
        kind == "mask",
        COCO_CATEGORIES,
    )


def test_pytorch_style() -> None:
    config, _ = import_mmdetection(mmdetection_state())
    assert (config.input.channels, config.input.scale, config.input.resize) == ("rgb", "byte", "float_nearest")
    assert (config.input.mean, config.input.std) == ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    assert not config.backbone.stride_in_1x1
    assert not config.mask_head.soft_targets
    assert (config.regions.aligned, config.regions.sampling_ratio, config.dense.anchors.rounded) == (True, 0, False)
    assert (config.dense.smooth_l1_beta, config.box_head.smooth_l1_beta) == (0.0, 0.0)


def test_caffe_style_must_be_named() -> None:
    said = parse_source_config("mask-rcnn_r50-caffe_fpn_1x_coco")
    config, translated = import_mmdetection(mmdetection_state(), source_config=said)
    assert (config.input.channels, config.input.std) == ("bgr", (1.0, 1.0, 1.0))
    assert config.input.mean == (103.53, 116.28, 123.675)
    assert config.backbone.stride_in_1x1
    assert set(translated) == set(import_mmdetection(mmdetection_state())[1])


def test_a_name_that_contradicts_the_keys() -> None:
    said = parse_source_config("mask-rcnn_r101_fpn_1x_coco")
    with pytest.raises(CheckpointError, match=r"network resnet101 \(the keys: resnet50\).*mask-rcnn_r50_fpn"):
        import_mmdetection(mmdetection_state(), source_config=said)


def test_values_arrive_as_they_are() -> None:
    """Its classes are in our order already; norms become scale and shift with epsilon 1e-5."""
    state = mmdetection_state(num_classes=3, device="cpu")
    _, translated = import_mmdetection(state)
    assert torch.equal(translated["regions.box.head.classes.weight"], state["roi_head.bbox_head.fc_cls.weight"])
    assert torch.equal(translated["regions.mask.head.predictor.bias"], state["roi_head.mask_head.conv_logits.bias"])
    scale = state["backbone.bn1.weight"] / (state["backbone.bn1.running_var"] + 1e-5).sqrt()
    torch.testing.assert_close(translated["trunk.stem.0.scale"], scale)
    shift = state["backbone.bn1.bias"] - state["backbone.bn1.running_mean"] * scale
    torch.testing.assert_close(translated["trunk.stem.0.shift"], shift)


@pytest.mark.parametrize("form", ["version 3", "version 2"])
def test_class_names_of_the_file(form: str, tmp_path: Path) -> None:
    names = ("cat", "dog", "newt")
    meta = {"dataset_meta": {"classes": names}} if form == "version 3" else {"CLASSES": names, "epoch": 12}
    torch.save({"meta": meta, "state_dict": mmdetection_state(num_classes=3, device="cpu")}, tmp_path / "m.pth")
    config = convert_checkpoint(tmp_path / "m.pth", tmp_path / "out")
    assert [(category.id, category.name) for category in config.categories] == list(enumerate(names, start=1))
