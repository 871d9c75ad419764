"""The contract of `test_contract` for one-stage detectors: trunk, pyramid, system, and the heads on what it finds."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn_core.config.dense import DenseConfig
from maskrcnn_core.config.dense_anchors import AnchorConfig
from maskrcnn_core.config.dense_detection import DenseDetectionConfig
from maskrcnn_core.config.dense_head import BoxCodingConfig, DenseHeadConfig
from maskrcnn_core.config.dense_loss import DenseLossConfig
from maskrcnn_core.config.heads import BoxHeadConfig, KeypointHeadConfig, MaskHeadConfig
from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.config.pyramid import PyramidConfig
from maskrcnn_core.config.regions import RegionsConfig
from maskrcnn_core.config.trunk import BackboneConfig
from maskrcnn_core.layers.cpu_layers import use_cpu_layers
from maskrcnn_core.layers.frozen_norm import fold
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.detector import Detector
from tests.core.model.test_contract import OTHER, PERSON, build, check_built, images, targets
from tests.small_detector import with_fixed_size_on

PYRAMIDS = ("fpn", "in_network", "c4", "dc5")
SYSTEMS = ("retinanet", "retinanet giou", "retinanet shared", "fcos", "class-agnostic fcos")
HEADS = ("boxes", "mask", "keypoints", "mask keypoints")
SIZES = (8.0, 16.0, 32.0, 48.0, 64.0)


@dataclass(frozen=True)
class OneStage:
    trunk: str = "resnet18"
    pyramid: str = "fpn"
    system: str = "retinanet"
    heads: str = "boxes"

    def __str__(self) -> str:
        return f"{self.trunk}, {self.pyramid}, {self.system}, {self.heads}"

    @property
    def losses(self) -> set[str]:
        """Names of what it learns by."""
        names = {"dense_class", "dense_box"} | ({"dense_centreness"} if "fcos" in self.system else set())
        names |= {"roi_mask"} if "mask" in self.heads else set()
        return names | ({"roi_keypoint"} if "keypoints" in self.heads else set())

    @property
    def learning(self) -> set[str]:
        """Parts that get a gradient."""
        parts = {"trunk", "dense"} | ({"regions.mask"} if "mask" in self.heads else set())
        return parts | ({"regions.keypoints"} if "keypoints" in self.heads else set())

    def config(self) -> ModelConfig:
        kind: Any = self.pyramid
        one_map = kind in ("c4", "dc5")
        extra: Any = "p6p7_on_p5" if "fcos" in self.system else "p6p7_on_c5"
        return ModelConfig(
            backbone=BackboneConfig(self.trunk, pretrained=False, frozen_stages=2),
            pyramid=PyramidConfig(kind, channels=12, levels=(3, 4, 5), extra=extra),
            dense=self._fcos(one_map) if "fcos" in self.system else self._retinanet(one_map),
            regions=RegionsConfig(canonical_size=32.0, batch_size=16, mask_resolution=4, keypoint_resolution=4),
            box_head=BoxHeadConfig(enabled=False),
            mask_head=MaskHeadConfig(enabled="mask" in self.heads, channels=8, layers=1),
            keypoint_head=KeypointHeadConfig(
                enabled="keypoints" in self.heads, channels=8, layers=1, names=("nose", "left_eye", "right_eye")
            ),
            categories=(PERSON, OTHER),
        )

    def _retinanet(self, one_map: bool) -> DenseConfig:
        giou, shared = "giou" in self.system, "shared" in self.system
        return DenseConfig(
            finds="detections",
            anchors=AnchorConfig(kind="octaves", sizes=SIZES[2:3] if one_map else SIZES),
            head=DenseHeadConfig("shared" if shared else "towers", norm="group" if giou else "none"),
            loss=DenseLossConfig("focal", divisor="average" if shared else "batch" if giou else "image"),
            detection=DenseDetectionConfig(min_score=0.0, max_detections=5, candidates_of="image" if giou else "level"),
            convs=2,
            positive_overlap=0.5,
            negative_overlap=0.4,
            box_loss="giou" if giou else "smooth_l1",
            post_nms_train=24,
        )

    def _fcos(self, one_map: bool) -> DenseConfig:
        return DenseConfig(
            finds="detections",
            anchors=AnchorConfig(sizes=(16.0,) if one_map else (4.0, 8.0, 16.0, 32.0, 64.0), ratios=(1.0,), offset=0.5),
            head=DenseHeadConfig("towers", norm="group", norm_bias=True, objectness=True),
            coding=BoxCodingConfig("edges"),
            loss=DenseLossConfig("points", centre_radius=3.0),
            detection=DenseDetectionConfig(
                score_from="centreness", min_score=0.0, max_detections=5, nms_per_class="agnostic" not in self.system
            ),
            convs=2,
            box_loss="giou",
            post_nms_train=24,
        )


def systems_and_heads() -> Iterable[OneStage]:
    """Every system with every choice of heads; pyramids take turns, so that each has met every choice of heads."""
    for number, (system, heads) in enumerate(itertools.product(SYSTEMS, HEADS)):
        yield OneStage("resnet18", PYRAMIDS[(number + number // len(HEADS)) % len(PYRAMIDS)], system, heads)


def trunks() -> Iterable[OneStage]:
    """Trunks of each kind."""
    turns = itertools.cycle(itertools.product(SYSTEMS, HEADS[1:]))
    for trunk in ("resnet50", "vgg16", "mobilenet_v2", "efficientnet_lite0", "timm:regnetx_002"):
        yield OneStage(trunk, "fpn", *next(turns))


@pytest.mark.parametrize("combination", [*systems_and_heads(), *trunks()], ids=str)
def test_one_stage(combination: OneStage, tmp_path: Path) -> None:
    detector = build(combination)
    assert detector is not None
    check_built(detector, combination, tmp_path / "checkpoint")


def test_focal_loss_and_towers_may_propose() -> None:
    """Two stages, of which the first learns as RetinaNet does, without classes."""
    torch.manual_seed(0)
    config = OneStage().config()
    proposing = replace(config.dense, finds="proposals", post_nms_test=12)
    box_head = BoxHeadConfig(channels=16, layers=1, min_score=0.0, max_detections=5)
    detector = build_detector(replace(config, dense=proposing, box_head=box_head), load_pretrained=False)
    losses = detector.train()(images(), targets())
    assert set(losses) == {"dense_class", "dense_box", "roi_class", "roi_box"}
    assert detector.eval().detect(images()).count.tolist() == [5, 5]


@pytest.mark.parametrize("heads", HEADS[:2])
def test_a_step_computes_the_head_once(heads: str) -> None:
    """Also where masks learn on its proposals."""
    detector = build_detector(OneStage(heads=heads).config(), load_pretrained=False).train()
    assert detector.dense is not None
    calls: list[Any] = []
    handle = detector.dense.head.logits.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[attr-defined]
    detector(images(), targets())
    handle.remove()
    assert len(calls) == 5  # levels


# ---- the forms in which devices compute ------------------------------------------------------------------------------

IN_FORMS = pytest.mark.parametrize(
    "combination", [OneStage(system=system, heads="mask keypoints") for system in ("retinanet giou", "fcos")], ids=str
)


def lively(combination: OneStage) -> Detector:
    """A detector whose scores differ from place to place."""
    torch.manual_seed(0)
    detector = build_detector(combination.config(), load_pretrained=False)
    for name, parameter in detector.named_parameters():
        if name in ("dense.head.logits.weight", "dense.head.deltas.weight"):
            torch.nn.init.normal_(parameter, std=0.1)
    return detector


@IN_FORMS
def test_it_learns_and_finds_the_same_in_the_shapes_of_a_gpu(combination: OneStage) -> None:
    free = lively(combination)
    fixed = with_fixed_size_on(free, ("cpu",))
    for objects in (targets(), targets(objects=0)):
        seeded = replace(objects, seeds=torch.tensor([5, 6]))
        losses = [detector.train()(images(), seeded) for detector in (free, fixed)]
        assert losses[0].keys() == losses[1].keys()
        for name, value in losses[0].items():
            torch.testing.assert_close(losses[1][name], value, rtol=1e-4, atol=1e-5)
    found, other = free.eval().detect(images()), fixed.eval().detect(images())
    assert found.count.tolist() == other.count.tolist()
    slots = found.scores.shape[1]
    for name in ("boxes", "scores", "labels", "masks", "keypoints"):
        torch.testing.assert_close(getattr(other, name)[:, :slots], getattr(found, name), rtol=1e-3, atol=1e-3)


@IN_FORMS
def test_it_computes_in_bfloat16(combination: OneStage) -> None:
    detector = lively(combination)
    exact = detector.train()(images(), targets())
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector(images(), targets())
        found = detector.eval().detect(images())
    torch.stack(list(losses.values())).sum().backward()
    for name, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[name], rtol=0.1, atol=0.05)
    assert all(bool(torch.isfinite(p.grad).all()) for p in detector.parameters() if p.grad is not None)
    assert found.count.tolist() == [5, 5]
    assert found.boxes.dtype == found.scores.dtype == torch.float32


@IN_FORMS
@torch.no_grad()
def test_cpu_layers_find_the_same(combination: OneStage) -> None:
    detector = lively(combination).eval()
    expected = detector.detect(images())
    fold(detector)
    use_cpu_layers(detector)
    found = detector.detect(images())
    assert found.count.tolist() == expected.count.tolist()
    for name in ("boxes", "scores", "labels", "masks", "keypoints"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-2, atol=1e-2)
