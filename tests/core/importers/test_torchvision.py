"""torchvision's keys in our names: everything arrives, parts give torchvision's numbers, what does not fit is named."""

import re

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

from maskrcnn_core.config.model import Category
from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.importers.config_names import parse_source_config
from maskrcnn_core.importers.finish import default_categories
from maskrcnn_core.importers.torchvision import import_torchvision, is_torchvision
from maskrcnn_core.kernels.gpu.availability import without_kernels
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.heads.box import BoxHead
from tests.core.importers.synthetic_models import detectron2_state, mmdetection_state

NORM_EPS = 1e-5
PREFIX = "regions.box.head."


@pytest.fixture(scope="module")
def reference() -> MaskRCNN:
    """A ResNet-18 with four foreground classes, its batch norms with lively statistics; a narrow box head."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d)
    model = MaskRCNN(backbone, num_classes=5)
    model.roi_heads.box_head = TwoMLPHead(256 * 49, 24)
    model.roi_heads.box_predictor = FastRCNNPredictor(24, 5)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def state(reference: MaskRCNN) -> dict[str, Tensor]:
    return reference.state_dict()


@torch.no_grad()
def test_trunk_and_pyramid_are_torchvisions(reference: MaskRCNN, state: dict[str, Tensor]) -> None:
    config, translated = import_torchvision(state, norm_eps=NORM_EPS)
    assert config.backbone.name == "resnet18"
    detector = build_detector(config, load_pretrained=False).eval()
    fitting = {key: value for key, value in translated.items() if not key.startswith(PREFIX)}
    missing, unexpected = detector.load_state_dict(fitting, strict=False)
    assert not unexpected
    assert all(key.startswith(PREFIX) for key in missing)
    images = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    expected = list(reference.backbone(images).values())
    for got, theirs in zip(detector.pyramid(detector.trunk(images)), expected, strict=True):
        assert float((got - theirs).abs().max() / theirs.abs().max()) < 1e-5
    outputs = detector.dense.head(expected)
    their_logits, their_deltas = reference.rpn.head(expected)
    torch.testing.assert_close(outputs.logits[0][0, :, 0], their_logits[0][0].permute(1, 2, 0).flatten())
    by_anchor = their_deltas[0].view(1, 3, 4, 24, 32).permute(0, 3, 4, 1, 2).reshape(1, -1, 4)
    torch.testing.assert_close(outputs.deltas[0], by_anchor)
    features, labels = torch.randn(3, 256, 14, 14), torch.tensor([0, 3, 1])
    their_masks = reference.roi_heads.mask_predictor(reference.roi_heads.mask_head(features))
    theirs = their_masks[torch.arange(3), labels + 1]
    # Four of its layers are rounded in another way where they are Winograd's.
    assert float((detector.regions.mask.head(features, labels) - theirs).abs().max() / theirs.abs().max()) < 1e-4
    with without_kernels("winograd"):
        torch.testing.assert_close(detector.regions.mask.head(features, labels), theirs, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_box_head_is_torchvisions_with_background_last(reference: MaskRCNN, state: dict[str, Tensor]) -> None:
    _, translated = import_torchvision(state, norm_eps=NORM_EPS)
    head = BoxHead(256, 7, 24, 2, 4, class_agnostic=False)
    head.load_state_dict(
        {key.removeprefix(PREFIX): value for key, value in translated.items() if key.startswith(PREFIX)}
    )
    features = torch.randn(3, 256, 7, 7)
    their_logits, their_deltas = reference.roi_heads.box_predictor(reference.roi_heads.box_head(features))
    logits, deltas = head(features)
    torch.testing.assert_close(logits, their_logits[:, [1, 2, 3, 4, 0]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(deltas.flatten(1), their_deltas[:, 4:], rtol=1e-4, atol=1e-5)


def test_conventions_are_torchvisions(state: dict[str, Tensor]) -> None:
    config, _ = import_torchvision(state)
    assert (config.dense.anchors.rounded, config.dense.anchors.fitted_strides, config.regions.aligned) == (
        True,
        True,
        False,
    )
    assert config.mask_head.paste == "torchvision"
    assert not config.backbone.pretrained


def test_norm_epsilon_decides_the_scales(state: dict[str, Tensor]) -> None:
    body = "backbone.body.bn1."
    for eps in (0.0, 1e-2):
        _, translated = import_torchvision(state, norm_eps=eps)
        expected = state[f"{body}weight"] / (state[f"{body}running_var"] + eps).sqrt()
        torch.testing.assert_close(translated["trunk.stem.0.scale"], expected)


def old_name(key: str) -> str:
    """Names before torchvision 0.13."""
    key = re.sub(r"(inner_blocks|layer_blocks)\.(\d)\.0\.", r"\1.\2.", key)
    key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
    return re.sub(r"roi_heads\.mask_head\.(\d)\.0\.", lambda m: f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}.", key)


def test_old_key_names(state: dict[str, Tensor]) -> None:
    old = {old_name(key): value for key, value in state.items()}
    assert {"backbone.fpn.inner_blocks.0.weight", "rpn.head.conv.weight"} <= set(old)
    assert "roi_heads.mask_head.mask_fcn1.weight" in old
    config, expected = import_torchvision(state)
    old_config, got = import_torchvision(old)
    assert old_config == config
    assert set(got) == set(expected)
    assert all(torch.equal(got[key], expected[key]) for key in expected)


def test_missing_and_left_over_keys_are_named(state: dict[str, Tensor]) -> None:
    lacking = {key: value for key, value in state.items() if key != "roi_heads.box_head.fc7.bias"}
    with pytest.raises(CheckpointError, match=r"1 keys are missing \(roi_heads\.box_head\.fc7\.bias\)"):
        import_torchvision(lacking)
    with pytest.raises(CheckpointError, match=r"1 keys are left over \(extra\.weight\)"):
        import_torchvision(state | {"extra.weight": torch.zeros(1)})


def test_kind_is_told_by_the_keys(state: dict[str, Tensor]) -> None:
    assert is_torchvision(state)
    assert not is_torchvision({"backbone.body.conv1.weight": torch.zeros(1)})
    assert not is_torchvision({})
    assert not is_torchvision(detectron2_state())
    assert not is_torchvision(mmdetection_state())


def test_categories(state: dict[str, Tensor]) -> None:
    config, _ = import_torchvision(state)
    assert [(category.id, category.name) for category in config.categories] == [(n, f"class {n}") for n in range(1, 5)]
    named = tuple(Category(10 * n, f"kind {n}") for n in range(4))
    assert import_torchvision(state, categories=named)[0].categories == named
    with pytest.raises(CheckpointError, match="it has 4 classes, got 3 categories"):
        import_torchvision(state, categories=named[:3])


def test_categories_of_coco_keep_their_ids() -> None:
    categories = default_categories(90, with_keypoints=False)
    assert [category.id for category in categories] == list(range(1, 91))
    assert (categories[0].name, categories[11].name, categories[12].name) == ("person", "N/A", "stop sign")
    assert sum(category.name == "N/A" for category in categories) == 10
    assert default_categories(80, with_keypoints=False)[79] == Category(90, "toothbrush")
    assert default_categories(1, with_keypoints=True) == (Category(1, "person"),)
    assert default_categories(1, with_keypoints=False) == (Category(1, "class 1"),)


def shapes_of(name: str) -> dict[str, Tensor]:
    """The state dict of one of torchvision's models, without values."""
    with torch.device("meta"):
        model: nn.Module = getattr(detection, name)(weights=None, weights_backbone=None)
    return model.state_dict()


@pytest.mark.parametrize(
    ("name", "network", "convs", "layers", "mask", "keypoint"),
    [
        ("maskrcnn_resnet50_fpn", "resnet50", 0, 2, True, False),
        ("maskrcnn_resnet50_fpn_v2", "resnet50", 4, 1, True, False),
        ("keypointrcnn_resnet50_fpn", "resnet50", 0, 2, False, True),
        ("fasterrcnn_resnet50_fpn", "resnet50", 0, 2, False, False),
        ("fasterrcnn_resnet50_fpn_v2", "resnet50", 4, 1, False, False),
        ("fasterrcnn_mobilenet_v3_large_fpn", "mobilenet_v3_large_torchvision", 0, 2, False, False),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", "mobilenet_v3_large_torchvision", 0, 2, False, False),
    ],
)
def test_every_model_fits_its_detector(
    name: str, network: str, convs: int, layers: int, mask: bool, keypoint: bool
) -> None:
    config, translated = import_torchvision(shapes_of(name), source_config=parse_source_config(name))
    with torch.device("meta"):
        expected = build_detector(config, load_pretrained=False).state_dict()
    assert {key: value.shape for key, value in translated.items()} == {k: v.shape for k, v in expected.items()}
    assert config.backbone.name == network
    assert (config.box_head.convs, config.box_head.layers) == (convs, layers)
    assert (config.mask_head.enabled, config.keypoint_head.enabled) == (mask, keypoint)
    assert config.pyramid.norm == config.box_head.conv_norm == ("frozen_batch" if convs else "none")
    assert config.dense.convs == (2 if convs else 1)
    assert len(config.categories) == (1 if keypoint else 90)
    small = "_320_" in name
    assert (config.input.short_side, config.dense.pre_nms_test) == ((320, 150) if small else (800, 1000))


def test_epsilon_is_told_by_the_keys() -> None:
    """Only released weights of the first version have frozen norms, which count no batches, and epsilon 0."""
    kinds = {"maskrcnn_resnet50_fpn": 0.0, "maskrcnn_resnet50_fpn_v2": 1e-5, "fasterrcnn_mobilenet_v3_large_fpn": 1e-5}
    for name, released in kinds.items():
        state = {key: torch.full(value.shape, 1e-3) for key, value in shapes_of(name).items()}
        first = "features.0.0" if "mobilenet" in name else "stem.0"
        frozen = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        for source, eps in ((state, 1e-5), (frozen, released if "v2" not in name else 1e-5)):
            if "v2" in name and source is frozen:
                continue  # its norms are never frozen
            scale = import_torchvision(source)[1][f"trunk.{first}.scale"]
            torch.testing.assert_close(scale, torch.full_like(scale, 1e-3 / (1e-3 + eps) ** 0.5))


def test_anchors_of_several_sizes_come_by_size(state: dict[str, Tensor]) -> None:
    """torchvision orders a position's anchors by ratio, then size; we by size, then ratio."""
    shapes = shapes_of("fasterrcnn_mobilenet_v3_large_fpn")
    source = {key: torch.zeros(value.shape) for key, value in shapes.items()}
    source["rpn.head.cls_logits.bias"] = torch.tensor([10.0 * ratio + size for ratio in range(3) for size in range(5)])
    source["rpn.head.bbox_pred.bias"] = torch.tensor(
        [100.0 * ratio + 10 * size + side for ratio in range(3) for size in range(5) for side in range(4)]
    )
    config, translated = import_torchvision(source)
    assert config.dense.anchors.every_level
    assert translated["dense.head.logits.bias"].tolist() == [10.0 * r + s for s in range(5) for r in range(3)]
    assert translated["dense.head.deltas.bias"].tolist() == [
        100.0 * r + 10 * s + side for s in range(5) for r in range(3) for side in range(4)
    ]


def test_a_name_that_contradicts_the_keys(state: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"network resnet50 \(the keys: resnet18\)"):
        import_torchvision(state, source_config=parse_source_config("maskrcnn_resnet50_fpn"))
