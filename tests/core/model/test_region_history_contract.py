"""The contract of `test_contract` for the tutorial's earlier systems: R-FCN, SPP-net and R-CNN, with each pyramid and
each set of heads that goes with them; in the shapes of a GPU, in half precision and with a CPU's layers too."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn_core.config.dense import DenseConfig
from maskrcnn_core.config.dense_anchors import AnchorConfig
from maskrcnn_core.config.heads import BoxHeadConfig, KeypointHeadConfig, MaskHeadConfig
from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.config.pyramid import PyramidConfig
from maskrcnn_core.config.regions import RegionsConfig
from maskrcnn_core.config.trunk import BackboneConfig
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.layers.cpu_layers import use_cpu_layers
from maskrcnn_core.layers.frozen_norm import fold
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.structures import Targets
from tests.core.model.test_contract import OTHER, PERSON, build, check_built, images, needed, targets
from tests.small_detector import with_fixed_size_on


@dataclass(frozen=True)
class System:
    """One of them. `heads` says what stands beside the box head, and "given proposals" that no RPN does."""

    transform: str
    pyramid: str
    heads: str = ""
    trunk: str = "resnet18"
    hardest: bool = False

    def __str__(self) -> str:
        return f"{self.transform}, {self.pyramid}, {self.trunk}, {self.heads or 'box'}"

    @property
    def losses(self) -> set[str]:
        names = {"roi_class", "roi_box"} | (set() if self._given else {"rpn_objectness", "rpn_box"})
        names |= {"roi_mask"} if "mask" in self.heads else set()
        return names | ({"roi_keypoint"} if "keypoints" in self.heads else set())

    @property
    def learning(self) -> set[str]:
        if self.pyramid == "pixels":
            return {"regions.box", "regions.trunk"}
        parts = {"trunk", "regions.box"} | (set() if self._given else {"dense"})
        return parts | ({"regions.mask"} if "mask" in self.heads else set())

    @property
    def _given(self) -> bool:
        return self.heads == "given proposals"

    def config(self) -> ModelConfig:
        kind: Any = self.pyramid.removesuffix(" scales")
        transform: Any = self.transform.split()[0]
        one_map = kind != "fpn"
        return ModelConfig(
            backbone=BackboneConfig(self.trunk, pretrained=False, frozen_stages=1),
            pyramid=PyramidConfig(
                kind, channels=12, image_scales=(1.0, 0.7, 0.5) if self.pyramid.endswith("scales") else ()
            ),
            dense=DenseConfig(
                anchors=AnchorConfig(
                    sizes=(16.0, 32.0, 64.0) if one_map else (8.0, 16.0, 32.0, 64.0, 96.0), every_level=one_map
                ),
                enabled=not self._given,
                batch_size=32,
                post_nms_train=24,
                post_nms_test=12,
            ),
            regions=RegionsConfig(
                transform=transform,
                rounding="torchvision" if "torchvision" in self.transform else "caffe",
                reduced_channels=10 if "reduced" in self.transform else 0,
                sampling="hardest" if self.hardest else "random",
                hardest_nms_overlap=0.7,
                pyramid_levels=(1, 2, 3),
                crop_size=40,
                crop_context=0 if self.heads not in ("", "given proposals") else 3,
                canonical_size=32.0,
                batch_size=12,
                box_resolution=3,
                mask_resolution=4,
                keypoint_resolution=4,
            ),
            box_head=BoxHeadConfig(channels=16, layers=1, class_agnostic=self.hardest, min_score=0.0, max_detections=5),
            mask_head=MaskHeadConfig(enabled="mask" in self.heads, channels=8, layers=1),
            keypoint_head=KeypointHeadConfig(
                enabled="keypoints" in self.heads, channels=8, layers=1, names=("nose", "left_eye", "right_eye")
            ),
            categories=(PERSON, OTHER),
        )


SYSTEMS = (
    System("position_pool reduced", "dc5", hardest=True),
    System("position_pool torchvision", "fpn", "mask keypoints"),
    System("position_align", "fpn", "given proposals", hardest=True),
    System("position_align", "c4", "mask", trunk="alexnet"),
    System("spatial_pyramid", "c4", "given proposals", trunk="alexnet"),
    System("spatial_pyramid", "fpn", "mask keypoints", hardest=True),
    System("spatial_pyramid", "dc5 scales", "given proposals"),
    System("crop", "pixels", "given proposals", hardest=True),
    System("crop", "fpn", "mask keypoints"),
    System("align", "c4", "mask", hardest=True),
)


@pytest.mark.parametrize("system", SYSTEMS, ids=str)
def test_the_contract(system: System, tmp_path: Path) -> None:
    detector = build(system)
    assert detector is not None
    check_built(detector, system, tmp_path)


# ---- the forms in which devices compute ------------------------------------------------------------------------------

IN_FORMS = pytest.mark.parametrize("system", [SYSTEMS[0], SYSTEMS[2], SYSTEMS[6], SYSTEMS[7]], ids=str)


def lively(system: System) -> Detector:
    """A detector whose scores differ from place to place."""
    torch.manual_seed(0)
    detector = build_detector(system.config(), load_pretrained=False)
    for name, parameter in detector.named_parameters():
        if name.endswith(("dense.head.logits.weight", "transform.classes.weight", "box.head.classes.weight")):
            torch.nn.init.normal_(parameter, std=0.05)
    return detector


def seeded(objects: int = 2) -> Targets:
    return replace(targets(objects=objects), seeds=torch.tensor([5, 6]))


@IN_FORMS
def test_it_learns_and_finds_the_same_in_the_shapes_of_a_gpu(system: System) -> None:
    free = lively(system)
    fixed, given = with_fixed_size_on(free, ("cpu",)), needed(system, images())
    for objects in (2, 0):
        losses = [detector.train()(images(), seeded(objects), *given) for detector in (free, fixed)]
        for name, value in losses[0].items():
            torch.testing.assert_close(losses[1][name], value, rtol=1e-4, atol=1e-5)
    found, other = (detector.eval().detect(images(), *given) for detector in (free, fixed))
    assert found.count.tolist() == other.count.tolist()
    slots = found.scores.shape[1]
    for name in ("boxes", "scores", "labels"):
        torch.testing.assert_close(getattr(other, name)[:, :slots], getattr(found, name), rtol=1e-3, atol=1e-3)


@IN_FORMS
def test_it_computes_in_bfloat16(system: System) -> None:
    detector, given = lively(system), needed(system, images())
    exact = detector.train()(images(), seeded(), *given)
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector(images(), seeded(), *given)
        found = detector.eval().detect(images(), *given)
    torch.stack(list(losses.values())).sum().backward()
    for name, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[name], rtol=0.15, atol=0.1)
    assert all(bool(torch.isfinite(p.grad).all()) for p in detector.parameters() if p.grad is not None)
    assert int(found.count.min()) > 0
    assert found.boxes.dtype == found.scores.dtype == torch.float32


@IN_FORMS
@torch.no_grad()
def test_cpu_layers_find_the_same(system: System) -> None:
    detector, given = lively(system).eval(), needed(system, images())
    expected = detector.detect(images(), *given)
    fold(detector)
    use_cpu_layers(detector)
    found = detector.detect(images(), *given)
    assert found.count.tolist() == expected.count.tolist()
    for name in ("boxes", "scores", "labels"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-2, atol=1e-2)


# ---- what does not go together ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "line"),
    [
        (System("align", "pixels", "given proposals"), r"model\.pyramid\.kind: got 'pixels'"),
        (System("crop", "pixels"), r"model\.pyramid\.kind: got 'pixels'"),
        (System("crop", "fpn", "given proposals"), r"model\.pyramid\.kind: got 'fpn', expected pixels"),
        (System("crop", "c4"), r"model\.pyramid\.kind: got 'c4'"),
        (System("spatial_pyramid", "dc5 scales"), r"model\.pyramid\.image_scales"),
        (System("spatial_pyramid", "fpn scales", "given proposals"), r"model\.pyramid\.image_scales"),
        (System("position_pool", "c4"), r"model\.regions\.transform: got position_pool with model\.pyramid\.kind c4"),
        (System("spatial_pyramid", "c4"), r"model\.regions\.transform: got spatial_pyramid"),
    ],
    ids=str,
)
def test_what_does_not_go_together_says_so(system: System, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        build_detector(system.config(), load_pretrained=False)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"mask_head": MaskHeadConfig(enabled=True)}, r"model\.regions\.crop_context: got 3, expected 0"),
        (
            {"backbone": BackboneConfig("resnet18", pretrained=False, norm="sync_batch")},
            r"norm: got sync_batch with .*crop",
        ),
    ],
)
def test_what_crops_do_not_go_with(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        build_detector(replace(System("crop", "fpn").config(), **changes), load_pretrained=False)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"pyramid_levels": ()}, r"pyramid_levels"),
        ({"pyramid_levels": (1, 7)}, r"pyramid_levels"),
        ({"crop_size": 20, "crop_context": 10}, r"crop_context"),
        ({"hardest_nms_overlap": 1.5}, r"hardest_nms_overlap"),
    ],
    ids=str,
)
def test_settings_have_limits(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        RegionsConfig(**settings)
