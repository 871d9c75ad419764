"""One contract for SSD's parts on every kind of trunk, with masks and keypoints behind it or nothing: it learns, finds,
comes back from disk, and computes the same in the shapes of a GPU, in half precision and with a CPU's layers."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskrcnn_core.boxes import pairwise_iou
from maskrcnn_core.config.dense import DenseConfig
from maskrcnn_core.config.dense_anchors import AnchorConfig
from maskrcnn_core.config.dense_detection import DenseDetectionConfig
from maskrcnn_core.config.dense_head import BoxCodingConfig, DenseHeadConfig
from maskrcnn_core.config.dense_loss import DenseLossConfig
from maskrcnn_core.config.heads import BoxHeadConfig, KeypointHeadConfig, MaskHeadConfig
from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.config.pyramid import PyramidConfig
from maskrcnn_core.config.regions import RegionsConfig
from maskrcnn_core.config.trunk import BackboneConfig
from maskrcnn_core.data.coco.dataset import load_coco
from maskrcnn_core.data.dataset import CocoTrainingData, Sample, collate
from maskrcnn_core.data.files import Folder
from maskrcnn_core.data.generated.pictures import generate_dataset
from maskrcnn_core.data.targets import TargetRule
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.importers.default_boxes import default_boxes
from maskrcnn_core.inference.predictor import Predictor
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.structures import Detections, ImageBatch
from maskrcnn_core.weights.checkpoint import load_checkpoint, save_checkpoint
from tests.core.model.test_contract import images, targets
from tests.core.model.test_fixed_size import NeverWaits
from tests.small_detector import with_fixed_size_on


@dataclass(frozen=True)
class Form:
    """Trunk, its maps that enter, and what differs from SSD300."""

    trunk: str
    levels: tuple[int, ...]
    depthwise: bool = False
    norm: Any = "none"
    score_from: Any = "softmax"
    padding: Any = "symmetric"
    heads: str = ""

    def __str__(self) -> str:
        return f"{self.trunk}, {self.norm}, {self.score_from}, {self.heads or 'boxes'}"


FORMS = (
    Form("vgg16_reduced", (3, 4)),
    Form("resnet18", (3, 4, 5), norm="group", heads="mask keypoints"),
    Form("efficientnet_lite0", (3, 4, 5), depthwise=True, norm="sync_batch", heads="mask"),
    Form("mobilenet_v2_expanded", (4, 5), norm="frozen_batch", score_from="sigmoid", padding="tensorflow"),
    Form("mobilenet_v3_large_reduced", (4, 5), depthwise=True, norm="frozen_batch"),
    Form("mobilenet_v3_large_expanded", (4, 5), depthwise=True, norm="group", heads="keypoints"),
)


def config_of(form: Form) -> ModelConfig:
    sides = (16.0, 24.0, 32.0, 48.0, 64.0)[: len(form.levels) + 2]
    return ModelConfig(
        input=InputConfig(short_side=64, fit="square", divisor=1),
        backbone=BackboneConfig(form.trunk, pretrained=False, frozen_stages=1, padding=form.padding),
        pyramid=PyramidConfig(
            "tail",
            norm=form.norm,
            levels=form.levels,
            tail_channels=(128, 128),  # a group norm needs some channels where a map has one cell
            tail_steps=("stride", "stride"),
            tail_layers="depthwise" if form.depthwise else "plain",
            tail_activation="relu6" if form.depthwise else "relu",
            l2_scale=20.0,
        ),
        dense=DenseConfig(
            finds="detections",
            # Levels with different numbers of anchors.
            anchors=AnchorConfig(
                kind="priors",
                priors=tuple(((side, side), (side, side / 2))[: 1 + number % 2] for number, side in enumerate(sides)),
                fitted_strides=True,
                offset=0.5,
            ),
            head=DenseHeadConfig("levels", norm=form.norm if form.depthwise else "none", depthwise=form.depthwise),
            coding=BoxCodingConfig(weights=(10.0, 10.0, 5.0, 5.0)),
            loss=DenseLossConfig("hard_negatives"),
            detection=DenseDetectionConfig(
                form.score_from, min_score=0.01, max_candidates=20, candidates_of="class", max_detections=9
            ),
            positive_overlap=0.5,
            smooth_l1_beta=1.0,
        ),
        regions=RegionsConfig(batch_size=16, mask_resolution=4, keypoint_resolution=4, canonical_size=32.0),
        box_head=BoxHeadConfig(enabled=False),
        mask_head=MaskHeadConfig(enabled="mask" in form.heads, channels=8, layers=1),
        keypoint_head=KeypointHeadConfig(
            enabled="keypoints" in form.heads, channels=8, layers=1, names=("nose", "left_eye", "right_eye")
        ),
        categories=(Category(1, "person"), Category(7, "other")),
    )


def detector_of(form: Form, *, fixed_size: bool = False) -> Detector:
    torch.manual_seed(0)
    detector = build_detector(config_of(form), load_pretrained=False)
    return with_fixed_size_on(detector, ("cpu",) if fixed_size else ())


@pytest.fixture(scope="module", params=FORMS, ids=str)
def form(request: pytest.FixtureRequest) -> Form:
    chosen: Form = request.param
    return chosen


def losses_and_gradients(detector: Detector) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    losses = detector.train()(images(), targets())
    torch.stack(list(losses.values())).sum().backward()
    return losses, {name: p.grad for name, p in detector.named_parameters() if p.requires_grad}


def test_it_learns(form: Form) -> None:
    detector = detector_of(form)
    losses, gradients = losses_and_gradients(detector)
    wanted = {"dense_class", "dense_box"} | ({"roi_mask"} if "mask" in form.heads else set())
    assert set(losses) == wanted | ({"roi_keypoint"} if "keypoints" in form.heads else set())
    assert all(bool(torch.isfinite(loss)) for loss in losses.values()), losses
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values() if gradient is not None)
    nothing = detector(images(), targets(objects=0))
    assert set(nothing) == set(losses)
    assert nothing["dense_class"].item() == nothing["dense_box"].item() == 0
    assert all(bool(torch.isfinite(loss)) for loss in nothing.values())


def check_alike(found: Detections, expected: Detections, tolerance: float = 1e-3) -> None:
    assert found.count.tolist() == expected.count.tolist()
    for image, count in enumerate(expected.count.tolist()):
        for one, other in ((found.boxes, expected.boxes), (found.scores, expected.scores)):
            torch.testing.assert_close(one[image, :count], other[image, :count], rtol=tolerance, atol=tolerance)


def test_it_finds(form: Form) -> None:
    detector = detector_of(form).eval()
    found = detector.detect(images())
    assert int(found.count.min()) > 0
    assert bool(((found.boxes >= 0) & (found.boxes <= torch.tensor([96.0, 64, 96, 64]))).all())
    assert (found.masks is not None) == ("mask" in form.heads)
    assert (found.keypoints is not None) == ("keypoints" in form.heads)
    batch = images()
    one = detector.detect(ImageBatch(batch.pixels[1:], batch.input_sizes[1:], batch.original_sizes[1:]))
    whole = replace(
        found, boxes=found.boxes[1:], scores=found.scores[1:], labels=found.labels[1:], count=found.count[1:]
    )
    check_alike(one, whole)
    assert detector.adapted(min_score=1.0, max_detections=5, max_proposals=9).detect(batch).count.tolist() == [0, 0]


def test_the_shapes_of_a_gpu(form: Form) -> None:
    """The same detections and losses, and nothing that waits for the device."""
    if form.heads:
        pytest.skip("regions cut themselves by the device: see test_fixed_size")
    expected = detector_of(form).eval().detect(images())
    fixed = detector_of(form, fixed_size=True)
    check_alike(fixed.eval().detect(images()), expected)  # anchors of this shape are made once, on the host
    losses = detector_of(form).train()(images(), targets())
    batch, objects = images(), targets()
    with NeverWaits() as watched:
        fixed.eval().detect(batch)
    assert watched.suppressions == 1
    with NeverWaits():
        got = fixed.train()(batch, objects)
    for name, value in losses.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_from_disk(form: Form, tmp_path: Path) -> None:
    detector = detector_of(form)
    save_checkpoint(tmp_path, detector.state_dict(), config_of(form))
    config, state = load_checkpoint(tmp_path)
    assert config == config_of(form)
    again = build_detector(config, load_pretrained=False)
    again.load_state_dict(state)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in detector.state_dict().items())


def test_layers_and_precision_of_a_cpu(form: Form) -> None:
    """Winograd and bands give the numbers of torch's layers, bfloat16 nearly; records lie in the image."""
    pixels = torch.randint(0, 256, (3, 50, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    config = config_of(form)

    def records(**settings: Any) -> list[tuple[float, ...]]:
        predictor = Predictor(detector_of(form), config, PredictorSettings(min_score=0.0, **settings))
        (record,) = predictor.predict([pixels])
        assert record.status == "ok"
        for found in record.detections:
            assert found.bbox[0] + found.bbox[2] <= 90.01
            assert found.bbox[1] + found.bbox[3] <= 50.01
        return [(*found.bbox, found.score) for found in record.detections]

    plain, layered = records(cpu_layers=False), records()
    assert len(plain) == len(layered) > 0
    torch.testing.assert_close(torch.tensor(layered), torch.tensor(plain), rtol=1e-3, atol=1e-2)
    half = records(precision="bfloat16")
    assert len(half) > 0
    assert half[0][-1] == pytest.approx(plain[0][-1], abs=0.05)


def test_heads_that_work_on_every_level_alike_are_refused() -> None:
    config = config_of(FORMS[0])
    shared = replace(config, dense=replace(config.dense, head=DenseHeadConfig("shared")))
    with pytest.raises(ConfigError, match=r"model\.dense\.head\.kind: got shared, .* widths; use levels"):
        build_detector(shared, load_pretrained=False)


def test_no_imagenet_weights_of_halved_layers() -> None:
    config = config_of(FORMS[4])
    with pytest.raises(ConfigError, match=r"pretrained: got true for mobilenet_v3_large_reduced, .*_expanded$"):
        build_detector(replace(config, backbone=replace(config.backbone, pretrained=True)), load_pretrained=True)


def test_two_pictures_are_learnt_by_heart(tmp_path: Path) -> None:
    generate_dataset(tmp_path, num_images=2, seed=3, image_size=(90, 120))
    dataset = load_coco(str(tmp_path / "annotations.json"), require_masks=False)
    config = config_of(Form("efficientnet_lite0", (3, 4, 5), norm="group"))
    anchors = replace(config.dense.anchors, priors=default_boxes((12, 24, 44, 70, 100, 130), [(2,)] * 5))
    config = replace(
        config,
        input=replace(config.input, short_side=128, mean=(0.498,) * 3, std=(0.502,) * 3),
        backbone=replace(config.backbone, pretrained=True),  # out of its package
        dense=replace(config.dense, anchors=anchors),
        categories=dataset.categories,
    )
    data = CocoTrainingData(dataset, Folder(str(tmp_path / "images")), config.input, TargetRule(None))
    packed, objects, _ = collate([data[Sample(index, False, 128)] for index in range(2)], config.input)
    batch = packed.to("cpu")
    torch.manual_seed(0)
    detector = build_detector(config, load_pretrained=True).train()
    learner = torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(60):
        learner.zero_grad()
        torch.stack(list(detector(batch, objects).values())).sum().backward()
        learner.step()
    found = detector.eval().detect(batch)
    for image in range(2):
        real, sure = objects.valid[image], found.scores[image] > 0.5
        overlaps = pairwise_iou(objects.boxes[image : image + 1, real], found.boxes[image : image + 1, sure])[0]
        best, which = overlaps.max(dim=1)
        assert len(which) == int(real.sum()) == int(sure.sum()) > 2
        assert float(best.min()) > 0.6
        assert torch.equal(found.labels[image, sure][which], objects.labels[image, real])
