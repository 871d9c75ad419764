"""One contract for every combination of trunk, pyramid, RoI transform and heads: what is allowed works, what is not
says so."""

import itertools
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_core.config.dense import DenseConfig
from maskrcnn_core.config.dense_anchors import AnchorConfig
from maskrcnn_core.config.heads import BoxHeadConfig, KeypointHeadConfig, MaskHeadConfig
from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.config.pyramid import PyramidConfig
from maskrcnn_core.config.regions import RegionsConfig
from maskrcnn_core.config.trunk import BackboneConfig
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.model.trunks.timm_network import TimmTrunk
from maskrcnn_core.structures import ImageBatch, Proposals, Targets
from maskrcnn_core.weights.checkpoint import load_checkpoint, save_checkpoint
from tests.core.model.test_detector import part_of

TRUNKS = (
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "alexnet",
    "vgg11_bn",
    "vgg16",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_lite0",
    "inception_v3",
    "inception_v4",
    "inception_resnet_v2",
    "timm:regnetx_002",
)
PYRAMIDS = ("fpn", "in_network", "c4", "dc5")
TRANSFORMS = ("align", "align max", "align adaptive", "pool", "warp")
HEADS = ("rpn", "box", "mask", "keypoints", "mask keypoints", "given proposals", "mlp mask", "softmax mask")

PERSON, OTHER = Category(1, "person"), Category(7, "other")
CLEAR = re.compile(r"model\.(pyramid|backbone)\.[a-z_]+: [^\n]{20,}")


class Buildable(Protocol):
    """A combination of parts, and what is expected of the detector that has them."""

    @property
    def heads(self) -> str: ...

    @property
    def losses(self) -> set[str]: ...

    @property
    def learning(self) -> set[str]: ...

    def config(self) -> ModelConfig: ...


@dataclass(frozen=True)
class Combination:
    trunk: str = "resnet18"
    pyramid: str = "fpn"
    transform: str = "align"
    heads: str = "mask"

    def __str__(self) -> str:
        return f"{self.trunk}, {self.pyramid}, {self.transform}, {self.heads}"

    @property
    def losses(self) -> set[str]:
        """Names of what it learns by."""
        names = set() if self.heads == "given proposals" else {"rpn_objectness", "rpn_box"}
        names |= set() if self.heads == "rpn" else {"roi_class", "roi_box"}
        names |= {"roi_mask"} if "mask" in self.heads else set()
        return names | ({"roi_keypoint"} if "keypoints" in self.heads else set())

    @property
    def learning(self) -> set[str]:
        """Parts that get a gradient."""
        parts = {"trunk"} | ({"dense"} if self.heads != "given proposals" else set())
        parts |= set() if self.heads == "rpn" else {"regions.box"}
        parts |= {"regions.mask"} if "mask" in self.heads else set()
        return parts | ({"regions.keypoints"} if "keypoints" in self.heads else set())

    def config(self) -> ModelConfig:
        kind: Any = self.pyramid
        one_map = kind in ("c4", "dc5")
        levels = (2, 3, 4) if self.trunk in ("alexnet",) else (2, 3, 4, 5)
        transform, _, detail = self.transform.partition(" ")
        any_transform: Any = transform
        return ModelConfig(
            backbone=BackboneConfig(self.trunk, pretrained=False, frozen_stages=2),
            pyramid=PyramidConfig(kind, channels=12, levels=levels),
            dense=DenseConfig(
                anchors=AnchorConfig(
                    sizes=(16.0, 32.0, 64.0) if one_map else (8.0, 16.0, 32.0, 64.0, 96.0)[: len(levels) + 1],
                    every_level=one_map,
                ),
                enabled=self.heads != "given proposals",
                batch_size=32,
                post_nms_train=24,
                post_nms_test=12,
            ),
            regions=RegionsConfig(
                transform=any_transform,
                reduction="max" if detail == "max" else "average",
                sampling_ratio=0 if detail == "adaptive" else 2,
                canonical_size=32.0,
                batch_size=16,
                box_resolution=4,
                mask_resolution=4,
                keypoint_resolution=4,
            ),
            box_head=BoxHeadConfig(enabled=self.heads != "rpn", channels=16, layers=1, min_score=0.0, max_detections=5),
            mask_head=MaskHeadConfig(
                enabled="mask" in self.heads,
                kind="mlp" if self.heads == "mlp mask" else "fcn",
                activation="softmax" if self.heads == "softmax mask" else "sigmoid",
                channels=8,
                layers=1,
            ),
            keypoint_head=KeypointHeadConfig(
                enabled="keypoints" in self.heads, channels=8, layers=1, names=("nose", "left_eye", "right_eye")
            ),
            categories=(PERSON, OTHER),
        )


def images(count: int = 2) -> ImageBatch:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(count, 3, 64, 96, generator=generator)
    sizes = torch.tensor([[64, 96]] * count)
    return ImageBatch(pixels, sizes, sizes)


def targets(count: int = 2, objects: int = 2) -> Targets:
    generator = torch.Generator().manual_seed(4)
    corners = torch.rand(count, objects, 2, generator=generator) * torch.tensor([50.0, 24.0])
    boxes = torch.cat((corners, corners + 16.0 + 20.0 * torch.rand(count, objects, 2, generator=generator)), dim=-1)
    real = torch.ones(count, objects, dtype=torch.bool)
    points = boxes[:, :, None, :2] + 8.0 * torch.rand(count, objects, 3, 2, generator=generator)
    return Targets(
        boxes=boxes,
        labels=torch.arange(objects).remainder(2).expand(count, objects).contiguous(),
        valid=real,
        crowd=~real,
        masks=torch.full((count, objects, 8, 8), 255, dtype=torch.uint8),
        mask_boxes=boxes,
        keypoints=torch.cat((points, torch.full((count, objects, 3, 1), 2.0)), dim=-1),
    )


def proposals(batch: ImageBatch) -> Proposals:
    objects = targets(len(batch)).boxes
    return Proposals(objects, torch.full(objects.shape[:2], 0.9), torch.full((len(batch),), objects.shape[1]))


def needed(combination: Buildable, batch: ImageBatch) -> tuple[Proposals, ...]:
    return (proposals(batch),) if combination.heads == "given proposals" else ()


def alive(detector: Detector) -> Detector:
    """The detector with weights that keep the features' scale. As timm draws them for Inception, and without a batch
    norm that adapts, the features fade to nothing."""
    for name, parameter in detector.trunk.named_parameters():
        if parameter.ndim == 4 and isinstance(detector.trunk, TimmTrunk):
            nn.init.kaiming_normal_(parameter.data, nonlinearity="linear" if "project" in name else "relu")
    return detector


def build(combination: Buildable) -> Detector | None:
    """The detector, or None where the combination is refused with a clear line."""
    torch.manual_seed(0)
    try:
        return alive(build_detector(combination.config(), load_pretrained=False).train())
    except ConfigError as error:
        line = str(error)
    assert CLEAR.match(line), line
    return None


def check_training(detector: Detector, combination: Buildable) -> None:
    batch = images()
    given = needed(combination, batch)
    losses = detector(batch, targets(), *given)
    assert set(losses) == combination.losses
    assert all(bool(torch.isfinite(loss)) for loss in losses.values()), losses
    total: Tensor = torch.stack(list(losses.values())).sum()
    total.backward()
    learnt = [(name, p) for name, p in detector.named_parameters() if p.requires_grad]
    without = [name for name, parameter in learnt if parameter.grad is None]
    assert without == []
    assert all(bool(torch.isfinite(p.grad).all()) for _, p in learnt if p.grad is not None)
    parts = {part_of(name) for name, p in learnt if p.grad is not None and bool(p.grad.abs().sum() > 0)}
    assert combination.learning <= parts
    frozen = [name for name, p in detector.named_parameters() if not p.requires_grad]
    assert all(name.startswith(("trunk.", "regions.trunk.")) for name in frozen)
    nothing = detector(batch, targets(objects=0), *given)
    assert set(nothing) == set(losses)
    assert all(bool(torch.isfinite(loss)) for loss in nothing.values())


def check_detections(detector: Detector, combination: Buildable) -> None:
    detector.eval()
    batch = images()
    if combination.heads == "rpn":
        found: Any = detector.propose(batch)
    else:
        found = detector.detect(batch, *needed(combination, batch))
        count = int(found.count.max())
        assert found.labels.shape == found.scores.shape == (2, count)
        assert (found.masks is not None) == ("mask" in combination.heads)
        assert (found.keypoints is not None) == ("keypoints" in combination.heads)
        if found.masks is not None:
            assert found.masks.shape[2] == found.masks.shape[3]
            assert bool((found.masks >= 0).all())
            assert bool((found.masks <= 1).all())
        if found.keypoints is not None:
            assert found.keypoints.shape == (2, count, 3, 3)
            people = found.valid & (found.labels == 0)
            inside = (found.keypoints[..., :2] >= found.boxes[:, :, None, :2] - 1) & (
                found.keypoints[..., :2] <= found.boxes[:, :, None, 2:] + 1
            )
            assert bool(inside[people].all())
            assert bool((found.keypoints[~people] == 0).all())
    assert int(found.count.min()) > 0
    limit = torch.tensor([96.0, 64.0, 96.0, 64.0])
    assert bool(((found.boxes >= 0) & (found.boxes <= limit)).all())
    assert bool((found.scores[:, 1:] <= found.scores[:, :-1] + 1e-6).all())


def check_one_by_one(detector: Detector, combination: Buildable) -> None:
    if combination.heads == "rpn":
        return
    batch = images()
    together = detector.detect(batch, *needed(combination, batch))
    one = ImageBatch(batch.pixels[1:], batch.input_sizes[1:], batch.original_sizes[1:])
    given = [Proposals(p.boxes[1:], p.scores[1:], p.count[1:]) for p in needed(combination, batch)]
    alone = detector.detect(one, *given)
    count = int(alone.count[0])
    assert count == int(together.count[1])
    torch.testing.assert_close(together.boxes[1, :count], alone.boxes[0, :count], rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(together.scores[1, :count], alone.scores[0, :count], rtol=1e-3, atol=1e-4)


def check_no_detections(detector: Detector, combination: Buildable) -> None:
    if combination.heads == "rpn":
        return
    batch = images()
    sure = detector.adapted(min_score=1.0, max_detections=5, max_proposals=12)
    nothing = sure.detect(batch, *needed(combination, batch))
    assert nothing.count.tolist() == [0, 0]


def check_round_trip(detector: Detector, combination: Buildable, folder: Path) -> None:
    save_checkpoint(folder, detector.state_dict(), combination.config())
    config, state = load_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    again = build_detector(config, load_pretrained=False)
    again.load_state_dict(state)
    assert config == combination.config()
    loaded = again.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in detector.state_dict().items())


def refused(combination: Combination) -> bool:
    """Their C5 is a pool alone: there is nothing to dilate."""
    return combination.pyramid == "dc5" and combination.trunk.startswith(("alexnet", "vgg"))


def check(combination: Combination, folder: Path) -> None:
    detector = build(combination)
    assert (detector is None) == refused(combination)
    if detector is not None:
        check_built(detector, combination, folder)


def check_built(detector: Detector, combination: Buildable, folder: Path) -> None:
    check_training(detector, combination)
    check_detections(detector, combination)
    check_one_by_one(detector, combination)
    check_no_detections(detector, combination)
    check_round_trip(detector, combination, folder / "checkpoint")


def trunks_and_pyramids() -> Iterable[Combination]:
    """Every trunk with every pyramid; transforms and heads take turns."""
    turns = itertools.cycle(itertools.product(TRANSFORMS, ("mask", "keypoints", "mask keypoints")))
    for trunk, pyramid in itertools.product(TRUNKS, PYRAMIDS):
        transform, heads = next(turns)
        yield Combination(trunk, pyramid, transform, heads)


def pyramids_transforms_and_heads() -> Iterable[Combination]:
    """Several levels and one map with every transform and every choice of heads, on one small trunk; the other two
    pyramids with every choice of heads, transforms taking turns."""
    for pyramid, transform, heads in itertools.product(("fpn", "c4"), TRANSFORMS, HEADS):
        if heads != "rpn" or transform == TRANSFORMS[0]:  # an RPN cuts nothing
            yield Combination("resnet18", pyramid, transform, heads)
    turns = itertools.cycle(TRANSFORMS)
    for pyramid, heads in itertools.product(("in_network", "dc5"), HEADS):
        yield Combination("resnet18", pyramid, next(turns), heads)


@pytest.mark.parametrize("combination", list(trunks_and_pyramids()), ids=str)
def test_trunks_and_pyramids(combination: Combination, tmp_path: Path) -> None:
    check(combination, tmp_path)


@pytest.mark.parametrize("combination", list(pyramids_transforms_and_heads()), ids=str)
def test_pyramids_transforms_and_heads(combination: Combination, tmp_path: Path) -> None:
    check(combination, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("pyramid", PYRAMIDS)
@pytest.mark.parametrize("trunk", TRUNKS)
def test_every_combination(trunk: str, pyramid: str, tmp_path: Path) -> None:
    """The full product of the four axes, one test for each trunk and pyramid: some twenty minutes on one core."""
    for number, (transform, heads) in enumerate(itertools.product(TRANSFORMS, HEADS)):
        combination = Combination(trunk, pyramid, transform, heads)
        try:
            check(combination, tmp_path / str(number))
        except Exception as error:
            error.add_note(f"in the combination {combination}")
            raise
        shutil.rmtree(tmp_path / str(number), ignore_errors=True)  # some trunks have hundreds of megabytes


REFUSED = (
    Combination("alexnet", "dc5"),
    Combination("vgg16", "dc5"),
)


@pytest.mark.parametrize("combination", REFUSED, ids=str)
def test_what_is_not_allowed_says_so(combination: Combination) -> None:
    with pytest.raises(ConfigError, match=r"model\.pyramid\.kind: got dc5"):
        build_detector(combination.config(), load_pretrained=False)
