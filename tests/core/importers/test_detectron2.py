"""detectron2's names and shapes import without a key left over, and each of its conventions is set and meant."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from maskrcnn_core.config.model import Category
from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.importers.config_names import parse_source_config
from maskrcnn_core.importers.convert import convert_checkpoint
from maskrcnn_core.importers.detectron2 import import_detectron2, is_detectron2
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.weights.checkpoint import load_checkpoint
from maskrcnn_core.weights.coco_categories import COCO_CATEGORIES
from tests.core.importers.synthetic_models import detectron2_state

NETWORKS = {"R_50": "resnet50", "R_101": "resnet101", "X_101": "resnext101_32x8d"}


def strictly_loaded(state: dict[str, Tensor], **settings: object) -> Detector:
    config, translated = import_detectron2(state, **settings)  # type: ignore[arg-type]
    detector = build_detector(config, load_pretrained=False)
    detector.load_state_dict(translated, strict=True)
    return detector.eval()


@pytest.mark.parametrize("network", list(NETWORKS))
@pytest.mark.parametrize(
    ("pyramid", "kind"),
    [
        ("FPN", "mask"),
        ("FPN", "keypoint"),
        ("FPN", "faster"),
        ("FPN", "fast"),
        ("FPN", "rpn"),
        ("C4", "mask"),
        ("C4", "faster"),
        ("C4", "rpn"),
        ("DC5", "mask"),
        ("DC5", "faster"),
    ],
)
def test_every_model_of_the_zoo_fits_its_detector(network: str, pyramid: str, kind: str) -> None:
    num_classes = 1 if kind == "keypoint" else 80
    state = detectron2_state(network, pyramid, kind, num_classes=num_classes)
    assert is_detectron2(state)
    config, translated = import_detectron2(state)
    with torch.device("meta"):
        detector = build_detector(config, load_pretrained=False)
    expected = {key: value.shape for key, value in detector.state_dict().items()}
    assert {key: value.shape for key, value in translated.items()} == expected
    assert (config.backbone.name, config.pyramid.kind) == (NETWORKS[network], pyramid.lower())
    assert config.dense.enabled == (kind != "fast")
    assert config.box_head.enabled == (kind != "rpn")
    assert config.mask_head.enabled == (kind == "mask")
    assert config.keypoint_head.enabled == (kind == "keypoint")
    categories = {"keypoint": COCO_CATEGORIES[:1], "rpn": (Category(1, "object"),)}.get(kind, COCO_CATEGORIES)
    assert config.categories == categories


def test_parameter_count_of_the_zoo_model() -> None:
    """Mask R-CNN R50-FPN: 44,343,216 weights in convolutions and fully connected layers, counted from its shapes."""
    state = detectron2_state()
    _, translated = import_detectron2(state)
    learnt = [value for key, value in translated.items() if not key.endswith((".scale", ".shift"))]
    assert sum(value.numel() for value in learnt) == 44_343_216


def test_new_baselines_have_norms_everywhere() -> None:
    config, translated = import_detectron2(detectron2_state(new_baseline=True))
    assert config.pyramid.norm == "frozen_batch"
    assert (config.dense.convs, config.box_head.convs, config.box_head.layers) == (2, 4, 1)
    assert config.box_head.conv_norm == "frozen_batch"
    assert translated["pyramid.outputs.3.scale"].shape == (256,)
    assert translated["regions.box.head.convs.3.shift"].shape == (256,)


def test_conventions() -> None:
    config, _ = import_detectron2(detectron2_state())
    assert (config.input.channels, config.input.scale, config.input.resize) == ("bgr", "byte", "antialias")
    assert config.input.mean == (103.53, 116.28, 123.675)
    assert config.input.std == (1.0, 1.0, 1.0)
    assert (config.input.short_side, config.input.long_side) == (800, 1333)
    assert config.backbone.stride_in_1x1
    assert not config.backbone.pretrained
    assert (config.dense.anchors.rounded, config.dense.anchors.fitted_strides, config.dense.anchors.every_level) == (
        False,
        False,
        False,
    )
    assert (config.regions.aligned, config.regions.sampling_ratio, config.regions.box_resolution) == (True, 0, 7)
    assert (config.dense.smooth_l1_beta, config.box_head.smooth_l1_beta) == (0.0, 0.0)
    assert (config.dense.pre_nms_train, config.dense.pre_nms_test) == (2000, 1000)
    assert (config.dense.post_nms_train, config.dense.post_nms_test) == (1000, 1000)
    assert config.mask_head.paste == "exact"


def test_conventions_that_depend_on_the_model() -> None:
    resnext, _ = import_detectron2(detectron2_state("X_101"))
    assert resnext.input.std == (57.375, 57.12, 58.395)
    assert not resnext.backbone.stride_in_1x1
    keypoint, _ = import_detectron2(detectron2_state(kind="keypoint", num_classes=1))
    assert (keypoint.box_head.smooth_l1_beta, keypoint.dense.post_nms_train) == (0.5, 1500)
    assert keypoint.keypoint_head.decode == "exact"
    for pyramid, resolution in (("C4", 14), ("DC5", 7)):
        single, _ = import_detectron2(detectron2_state(pyramid=pyramid))
        assert single.dense.anchors.every_level
        assert single.dense.anchors.sizes == (32.0, 64.0, 128.0, 256.0, 512.0)
        assert (single.dense.pre_nms_train, single.dense.pre_nms_test, single.dense.post_nms_train) == (
            12_000,
            6000,
            2000,
        )
        assert (single.regions.box_resolution, single.regions.mask_resolution) == (resolution, 14)
    alone, _ = import_detectron2(detectron2_state(pyramid="C4", kind="rpn"))
    assert (alone.dense.pre_nms_test, alone.dense.post_nms_test) == (12_000, 2000)


def test_a_configuration_says_what_the_keys_do_not() -> None:
    state = detectron2_state()

    def named(name: str) -> object:
        return import_detectron2(state, source_config=parse_source_config(name))[0]

    usual, _ = import_detectron2(state)
    assert named("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x") == usual
    old = import_detectron2(
        state, source_config=parse_source_config("Detectron1-Comparisons/mask_rcnn_R_50_FPN_noaug_1x")
    )[0]
    assert (old.regions.aligned, old.regions.sampling_ratio) == (False, 2)
    assert old.dense.smooth_l1_beta == pytest.approx(1 / 9)
    assert old.box_head.smooth_l1_beta == 1.0
    giou = import_detectron2(state, source_config=parse_source_config("mask_rcnn_R_50_FPN_1x_giou"))[0]
    assert (giou.dense.box_loss, giou.box_head.box_loss) == ("giou", "giou")
    city = import_detectron2(state, source_config=parse_source_config("Cityscapes/mask_rcnn_R_50_FPN"))[0]
    assert (city.input.short_side, city.input.long_side) == (1024, 2048)
    lvis = import_detectron2(
        state, source_config=parse_source_config("LVISv0.5-InstanceSegmentation/mask_rcnn_R_50_FPN_1x")
    )[0]
    assert (lvis.box_head.min_score, lvis.box_head.max_detections) == (1e-4, 300)


def test_a_configuration_that_contradicts_the_keys() -> None:
    said = parse_source_config("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_3x")
    with pytest.raises(CheckpointError, match=r"pyramid c4 \(the keys: dc5\).*mask_rcnn_R_50_DC5_3x"):
        import_detectron2(detectron2_state(pyramid="DC5"), source_config=said)


def test_older_files_carry_their_normalisation_and_anchors() -> None:
    extra = {
        "pixel_mean": torch.tensor([[[123.0]], [[116.0]], [[103.0]]]),
        "pixel_std": torch.tensor([[[58.0]], [[57.0]], [[56.0]]]),
        "proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(3, 4),
    }
    config, _ = import_detectron2(detectron2_state() | extra)
    assert (config.input.mean, config.input.std) == ((123.0, 116.0, 103.0), (58.0, 57.0, 56.0))
    assert not config.backbone.stride_in_1x1
    caffe = extra | {"pixel_std": torch.ones(3, 1, 1)}
    assert import_detectron2(detectron2_state() | caffe)[0].backbone.stride_in_1x1


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return detectron2_state(num_classes=3, device="cpu")


@pytest.fixture(scope="module")
def detector(state: dict[str, Tensor]) -> Detector:
    return strictly_loaded(state)


@torch.no_grad()
def test_stride_is_in_the_first_1x1(state: dict[str, Tensor], detector: Detector) -> None:
    """The first block of res3, written out: 1x1 with stride 2, 3x3, 1x1, each with its norm, and the shortcut."""

    def normed(x: Tensor, name: str, **how: Any) -> Tensor:
        x = functional.conv2d(x, state[f"{name}.weight"], **how)
        gamma, beta, mean, variance = (
            state[f"{name}.norm.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * gamma + beta

    x = torch.randn(1, 256, 8, 8, generator=torch.Generator().manual_seed(0))
    here = "backbone.bottom_up.res3.0."
    inner = normed(x, f"{here}conv1", stride=2).relu()
    inner = normed(inner, f"{here}conv2", padding=1).relu()
    expected = (normed(inner, f"{here}conv3") + normed(x, f"{here}shortcut", stride=2)).relu()
    torch.testing.assert_close(detector.trunk.stages[1][0](x), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_background_is_the_last_class(state: dict[str, Tensor], detector: Detector) -> None:
    """The box head written out: features flattened channels first, two layers, K + 1 logits, 4 K deltas."""
    features = torch.randn(2, 256, 7, 7, generator=torch.Generator().manual_seed(0))
    head = "roi_heads.box_head."
    x = features.flatten(1)
    for name in (f"{head}fc1", f"{head}fc2"):
        x = functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"]).relu()
    predictor = "roi_heads.box_predictor."
    scores = functional.linear(x, state[f"{predictor}cls_score.weight"], state[f"{predictor}cls_score.bias"])
    deltas = functional.linear(x, state[f"{predictor}bbox_pred.weight"], state[f"{predictor}bbox_pred.bias"])
    ours_scores, ours_deltas = detector.regions.box.head(features)
    torch.testing.assert_close(ours_scores, scores, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours_deltas.flatten(1), deltas, rtol=1e-4, atol=1e-4)


def test_class_agnostic_heads() -> None:
    config, _ = import_detectron2(detectron2_state(class_agnostic=True))
    assert config.box_head.class_agnostic
    assert config.mask_head.class_agnostic


def test_group_norm_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"stem\.conv1\.norm has weights but no running_mean, as a group norm"):
        import_detectron2(detectron2_state(group_norm=True))


def test_what_does_not_fit_is_named() -> None:
    state = detectron2_state()
    del state["roi_heads.box_head.fc2.bias"], state["backbone.bottom_up.res4.3.conv2.norm.running_var"]
    state["roi_heads.extra.weight"] = torch.empty(3, device="meta")
    with pytest.raises(CheckpointError) as caught:
        import_detectron2(state)
    message = str(caught.value)
    assert "2 keys are missing" in message
    assert "backbone.bottom_up.res4.3.conv2.norm.running_var, roi_heads.box_head.fc2.bias" in message
    assert "roi_heads.extra.weight" in message
    assert "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x" in message
    misshapen = detectron2_state() | {"backbone.fpn_output3.weight": torch.empty(256, 256, 1, 1, device="meta")}
    with pytest.raises(
        CheckpointError, match=r"1 have another shape \(backbone\.fpn_output3\.weight \[256, 256, 1, 1\] \(expected"
    ):
        import_detectron2(misshapen)
    columns = detectron2_state() | {"roi_heads.box_head.fc1.weight": torch.empty(1024, 1000, device="meta")}
    with pytest.raises(
        CheckpointError, match=r"shape that does not fit \(roi_heads\.box_head\.fc1\.weight \[1024, 1000"
    ):
        import_detectron2(columns)


def test_long_lists_are_cut() -> None:
    state = {key: value for key, value in detectron2_state().items() if ".res4." not in key or ".norm." not in key}
    with pytest.raises(CheckpointError, match=r"76 keys are missing \(.* and 68 more\)"):
        import_detectron2(state)


def test_no_known_resnet() -> None:
    state = {key: value for key, value in detectron2_state().items() if ".res4.5." not in key}
    with pytest.raises(CheckpointError, match=r"no ResNet is known with 3, 4, 5 bottleneck blocks"):
        import_detectron2(state)


def test_a_file_of_the_zoo_becomes_a_checkpoint(state: dict[str, Tensor], tmp_path: Path) -> None:
    arrays = {key: value.numpy() for key, value in state.items()}
    content = {"model": arrays, "__author__": "Detectron2 Model Zoo", "iteration": np.int64(3)}
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps(content))
    config = convert_checkpoint(
        tmp_path / "model_final.pkl",
        tmp_path / "out",
        source_config="COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x",
    )
    loaded_config, loaded = load_checkpoint(tmp_path / "out")
    assert loaded_config == config
    expected = import_detectron2(state)[1]
    assert set(loaded) == set(expected)
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)
