"""MultiBox, OverFeat and DetectorNet keep the contract of all detectors: they learn, find, have fixed shapes, save and
load, carry masks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jobs.cli import parse_run
from maskrcnn_core.boxes import pairwise_iou
from maskrcnn_core.config.dense import DenseConfig
from maskrcnn_core.config.heads import KeypointHeadConfig, MaskHeadConfig
from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.config.regions import RegionsConfig
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.layers.cpu_layers import use_cpu_layers
from maskrcnn_core.layers.frozen_norm import fold
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.structures import Detections, ImageBatch
from maskrcnn_core.weights.checkpoint import load_checkpoint, save_checkpoint
from pipelines.training.config import TrainRun
from tests.core.model.test_fixed_size import NeverWaits
from tests.core.model.test_yolo_contract import SIDE, images, targets
from tests.small_detector import with_fixed_size_on

FOLDER = Path(__file__).resolve().parents[3] / "jobs" / "configs"
DENSE = {"dense_class", "dense_box"}
LOSSES = {
    "one_stage/multibox_lite0": DENSE,
    "history/multibox_lite0": DENSE | {"roi_class", "roi_box"},
    "history/deepmultibox_alexnet": DENSE,
    "one_stage/overfeat_lite0": DENSE,
    "history/overfeat_alexnet": DENSE,
    "one_stage/detectornet_lite0": {"dense_mask"},
}
DETECTORS = ("one_stage/multibox_lite0", "one_stage/overfeat_lite0", "one_stage/detectornet_lite0")


def small(name: str, **dense: Any) -> ModelConfig:
    """The preset at 128 x 128 pixels, narrow where a setting says how wide, with windows that fit."""
    argv = ["--config", str(FOLDER / f"{name}.yaml"), "--output", "none"]
    model = parse_run(TrainRun, prog="train", argv=argv).model
    head = model.dense.head
    if head.kind == "box_masks":
        sides = ((48.0, 56.0), (56.0, 72.0), (30.0, 30.0), (90.0, 100.0))
        dense["anchors"] = replace(model.dense.anchors, priors=(sides,))
        # Boxes on a grid overlap by round shares: none by just this one, which rounding would decide.
        dense["detection"] = replace(model.dense.detection, nms_overlap=0.4137)
    if head.kind == "windows":
        dense["anchors"] = replace(model.dense.anchors, priors=(((48.0, 48.0),),))
    layers: dict[str, Any] = {key: tuple(32 for _ in getattr(head, key)) for key in ("layers", "box_layers")}
    return replace(
        model,
        input=replace(model.input, short_side=SIDE, long_side=SIDE),
        backbone=replace(model.backbone, pretrained=False, frozen_stages=0),
        dense=replace(model.dense, head=replace(head, dropout=0.0, **layers), **dense),
        regions=replace(model.regions, batch_size=16),
        box_head=replace(model.box_head, channels=32, layers=1, min_score=0.0),
        categories=(Category(1, "person"), Category(7, "other")),
    )


def finding_all(config: ModelConfig) -> ModelConfig:
    return replace(config, dense=replace(config.dense, detection=replace(config.dense.detection, min_score=0.0)))


def built(config: ModelConfig, *, fixed_size: bool = False, lively: bool = False) -> Detector:
    """Always the same weights; lively: scores differ from place to place."""
    torch.manual_seed(0)
    detector = build_detector(config, load_pretrained=False)
    if lively:
        for name, parameter in detector.named_parameters():
            if name in ("dense.head.logits.weight", "dense.head.deltas.weight", "dense.head.masks.weight"):
                torch.nn.init.normal_(parameter, std=0.1)
    return with_fixed_size_on(detector, ("cpu",) if fixed_size else ())


def check_alike(found: Detections, expected: Detections, tolerance: float = 1e-3) -> None:
    """Scores in order, and the boxes of all whose score is nobody else's within rounding: most of them."""
    assert found.count.tolist() == expected.count.tolist()
    for image, count in enumerate(expected.count.tolist()):
        scores = expected.scores[image, :count]
        torch.testing.assert_close(found.scores[image, :count], scores, rtol=tolerance, atol=tolerance)
        gaps = torch.cat((torch.ones(1), scores[:-1] - scores[1:], torch.zeros(1)))
        clear = torch.minimum(gaps[:-1], gaps[1:]) > 1e-6
        assert int(clear.sum()) >= min(count - 1, count // 2)
        boxes = [detections.boxes[image, :count][clear] for detections in (found, expected)]
        torch.testing.assert_close(*boxes, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", LOSSES)
def test_it_learns_and_finds_and_comes_back(name: str, tmp_path: Path) -> None:
    config = small(name)
    detector = built(config).train()
    losses = detector(images(), targets())
    assert set(losses) == LOSSES[name]
    torch.stack(list(losses.values())).sum().backward()
    without = [n for n, p in detector.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())]
    assert without == []
    nothing = detector(images(), targets(0))
    assert set(nothing) == LOSSES[name]
    assert all(bool(loss.isfinite()) for loss in nothing.values())
    assert nothing.get("dense_box", 0) == 0
    detector.eval()
    assert detector.propose(images()).count.min() > 0
    if config.finds == "detections":
        found = detector.adapted(min_score=-1.0, max_detections=7, max_proposals=5).detect(images())
        assert int(found.count.min()) > 0
        assert bool(((found.boxes >= 0) & (found.boxes <= SIDE)).all())
        assert bool(((found.scores >= 0) & (found.scores <= 1)).all())
    save_checkpoint(tmp_path, detector.state_dict(), config)
    loaded, state = load_checkpoint(tmp_path)
    assert loaded == config
    built(loaded).load_state_dict(state)


@pytest.mark.parametrize("name", DETECTORS)
def test_the_shapes_of_a_gpu_and_one_by_one(name: str) -> None:
    """The same detections and losses, and nothing that waits for the device."""
    config = finding_all(small(name))
    expected = built(config, lively=True).eval().detect(images())
    assert int(expected.count.min()) > 0
    fixed = built(config, fixed_size=True, lively=True)
    check_alike(fixed.eval().detect(images()), expected)
    losses = built(config, lively=True).train()(images(), replace(targets(), seeds=torch.tensor([5, 6])))
    batch, objects = images(), replace(targets(), seeds=torch.tensor([5, 6]))
    with NeverWaits():
        fixed.eval().detect(batch)
        got = fixed.train()(batch, objects)
    for key, value in losses.items():
        torch.testing.assert_close(got[key], value, rtol=1e-4, atol=1e-5, msg=key)
    one = (
        built(config, lively=True)
        .eval()
        .detect(ImageBatch(batch.pixels[1:], batch.input_sizes[1:], batch.original_sizes[1:]))
    )
    last = {key: getattr(expected, key)[1:] for key in ("boxes", "scores", "labels", "count")}
    check_alike(one, Detections(**last))


def test_multibox_proposes_the_same_in_the_shapes_of_a_gpu() -> None:
    config = small("history/multibox_lite0")
    expected, found = (built(config, fixed_size=size, lively=True).eval().propose(images()) for size in (False, True))
    assert found.count.tolist() == expected.count.tolist()
    assert int(found.count.min()) > 1
    slots = expected.scores.shape[1]
    torch.testing.assert_close(found.boxes[:, :slots], expected.boxes)
    torch.testing.assert_close(found.scores[:, :slots], expected.scores)


@pytest.mark.parametrize("name", DETECTORS)
def test_layers_and_precision_of_a_cpu(name: str) -> None:
    config = finding_all(small(name))
    detector = built(config, lively=True).train()
    exact = detector(images(), targets())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = detector(images(), targets())
    for key, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[key], rtol=0.1, atol=0.05)
    plain = built(config, lively=True).eval()
    expected = plain.detect(images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = plain.detect(images())
    assert rough.boxes.dtype == torch.float32
    torch.testing.assert_close(rough.scores[:, 0], expected.scores[:, 0], rtol=0, atol=0.05)
    fold(plain)
    use_cpu_layers(plain)
    with torch.inference_mode():
        check_alike(plain.detect(images()), expected)


@pytest.mark.parametrize("name", DETECTORS)
def test_masks_and_keypoints_stand_on_its_detections(name: str) -> None:
    config = replace(
        small(name),
        regions=RegionsConfig(batch_size=16, mask_resolution=4, keypoint_resolution=4),
        mask_head=MaskHeadConfig(channels=8, layers=1),
        keypoint_head=KeypointHeadConfig(enabled=True, channels=8, layers=1, names=("nose",)),
    )
    detector = built(config).train()
    assert set(detector(images(), targets())) == LOSSES[name] | {"roi_mask", "roi_keypoint"}
    found = detector.eval().adapted(min_score=-1.0, max_detections=3, max_proposals=5).detect(images())
    assert found.masks is not None
    assert found.masks.shape[:2] == found.scores.shape
    assert found.keypoints is not None


@pytest.mark.parametrize("name", [*DETECTORS, "history/multibox_lite0"])
def test_two_pictures_are_learnt_by_heart(name: str) -> None:
    config, rate = small(name), 1e-3
    if "detectornet" in name:  # masks tell places, which they learn from a trunk that knows something (of its package)
        config, rate = replace(config, backbone=replace(config.backbone, pretrained=True, frozen_stages=5)), 3e-3
    torch.manual_seed(0)
    detector = build_detector(config, load_pretrained=True).train()
    optimizer = torch.optim.Adam([p for p in detector.parameters() if p.requires_grad], lr=rate)
    first = last = torch.zeros(())
    for step in range(60):
        losses: Tensor = torch.stack(list(detector(images(), targets()).values())).sum()
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()
        first, last = (losses.detach() if step == 0 else first), losses.detach()
    assert last < 0.2 * first
    found = detector.eval().detect(images())
    for image in range(2):
        for label, box in enumerate(targets().boxes[image]):
            its = found.labels[image] == label
            overlap = pairwise_iou(box[None], found.boxes[image, its][:1])
            assert float(overlap) > 0.7


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("multibox_lite0", {"head": {"kind": "shared"}}, r"model\.dense\.anchors\.kind: got 'boxes', expected another"),
        ("multibox_lite0", {"anchors": {"boxes": ()}}, r"model\.dense\.anchors\.boxes: got '0 boxes', expected some"),
        (
            "multibox_lite0",
            {"anchors": {"boxes": ((0.5, 0.0, 0.4, 1.0),)}},
            r"model\.dense\.anchors\.boxes: got \(0\.5",
        ),
        ("multibox_lite0", {"detection": {"score_from": "softmax"}}, r"score_from: got 'softmax', expected sigmoid"),
        ("overfeat_lite0", {"anchors": {"offset": 0.0}}, r"model\.dense\.anchors: .* offset 0\.5 where .* is windows"),
        ("overfeat_lite0", {"head": {"window": 2}}, r"model\.dense\.anchors: .* offset 1\.0 where .* is windows"),
        (
            "overfeat_lite0",
            {"head": {"box_layers": ()}},
            r"model\.dense\.head\.box_layers: got \(\), expected at least",
        ),
        ("detectornet_lite0", {"head": {"kind": "shared"}}, r"model\.dense\.head\.kind: .* box_masks where"),
        ("detectornet_lite0", {"detection": {"score_from": "sigmoid"}}, r"score_from: got 'sigmoid', expected linear"),
        ("overfeat_lite0", {"detection": {"score_from": "linear"}}, r"score_from: got 'linear', expected another"),
        ("overfeat_lite0", {"coding": {"kind": "corners"}}, r"model\.dense\.coding\.kind: got 'corners', expected"),
    ],
)
def test_parts_that_do_not_go_together(name: str, change: dict[str, dict[str, Any]], said: str) -> None:
    dense: DenseConfig = small(f"one_stage/{name}").dense
    with pytest.raises(ConfigError, match=said):
        replace(dense, **{section: replace(getattr(dense, section), **values) for section, values in change.items()})


def test_the_whole_image_has_one_size() -> None:
    config = small("one_stage/multibox_lite0")
    with pytest.raises(ConfigError, match=r"model\.input\.fit: got aspect, .* global"):
        build_detector(replace(config, input=replace(config.input, fit="aspect")), load_pretrained=False)
    sizes = torch.tensor([[192, 192]])
    with pytest.raises(ConfigError, match="made for maps of 4 x 4 cells"):
        built(config).eval().detect(ImageBatch(torch.zeros(1, 3, 192, 192), sizes, sizes))
