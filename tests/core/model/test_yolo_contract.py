"""YOLO's detectors keep the contract of all others: they learn, find, have fixed shapes, save and load, carry masks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jobs.cli import parse_run
from maskrcnn_core.config.dense_head import DenseHeadConfig
from maskrcnn_core.config.heads import KeypointHeadConfig, MaskHeadConfig
from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.config.regions import RegionsConfig
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.layers.cpu_layers import use_cpu_layers
from maskrcnn_core.layers.frozen_norm import fold
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.structures import ImageBatch, Targets
from maskrcnn_core.weights.checkpoint import load_checkpoint, save_checkpoint
from pipelines.training.config import TrainRun
from tests.small_detector import with_fixed_size_on

PRESETS = ("yolov2", "tiny_yolov2", "yolov1", "yolov1_local", "tiny_yolov1")
FOLDER = Path(__file__).resolve().parents[3] / "jobs" / "configs" / "one_stage"
SIDE = 128
LOSSES = {"dense_class", "dense_box", "dense_objectness"}


def small(name: str) -> ModelConfig:
    """The preset at 128 x 128 pixels, narrow where a setting says how wide; the full trunks become the tiny ones."""
    argv = ["--config", str(FOLDER / f"{name}.yaml"), "--output", "none"]
    model = parse_run(TrainRun, prog="train", argv=argv).model
    dense = model.dense
    scale = SIDE / model.input.short_side
    priors = tuple(tuple((w * scale, h * scale) for w, h in level) for level in dense.anchors.priors)
    layers = (32,) if dense.head.layers else ()
    head = replace(dense.head, width=32, layers=layers, local=8 if dense.head.local else 0)
    trunk = {"yolov1": "yolov1_tiny", "darknet19": "darknet_tiny"}.get(model.backbone.name, model.backbone.name)
    return replace(
        model,
        input=replace(model.input, short_side=SIDE, long_side=SIDE),
        backbone=replace(model.backbone, name=trunk, norm="group"),
        pyramid=replace(model.pyramid, channels=32, narrow=8),
        dense=replace(dense, anchors=replace(dense.anchors, priors=priors), head=head),
        categories=(Category(1, "person"), Category(7, "other")),
    )


def images() -> ImageBatch:
    """Noise, and in it a red object and a blue one."""
    sizes = torch.tensor([[SIDE, SIDE]] * 2)
    pixels = 0.3 * torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    pixels[:, 0, 12:70, 10:60] += 0.7
    pixels[:, 2, 40:110, 70:120] += 0.7
    return ImageBatch(pixels, sizes, sizes)


def targets(number: int = 2) -> Targets:
    boxes = torch.tensor([[[10.0, 12.0, 60.0, 70.0], [70.0, 40.0, 120.0, 110.0]]]).expand(2, -1, -1)[:, :number]
    real = torch.ones(2, number, dtype=torch.bool)
    return Targets(
        boxes=boxes,
        labels=torch.arange(2)[:number].expand(2, -1),
        valid=real,
        crowd=~real,
        masks=torch.full((2, number, 8, 8), 255, dtype=torch.uint8),
        mask_boxes=boxes,
        keypoints=torch.cat((boxes[:, :, None, :2] + 9, torch.full((2, number, 1, 1), 2.0)), dim=-1),
    )


def built(config: ModelConfig, fixed_size_on: tuple[str, ...] | None = None) -> Detector:
    torch.manual_seed(0)
    detector = build_detector(config, load_pretrained=False)
    return detector if fixed_size_on is None else with_fixed_size_on(detector, fixed_size_on)


@pytest.mark.parametrize("name", PRESETS)
def test_it_learns_and_finds_and_comes_back(name: str, tmp_path: Path) -> None:
    config = small(name)
    detector = built(config).train()
    losses = detector(images(), targets())
    assert set(losses) == LOSSES
    torch.stack(list(losses.values())).sum().backward()
    without = [n for n, p in detector.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())]
    assert without == []
    nothing = detector(images(), targets(0))
    assert set(nothing) == LOSSES
    assert all(bool(loss.isfinite()) for loss in nothing.values())
    detector.eval()
    found = detector.adapted(min_score=-1.0, max_detections=7, max_proposals=5).detect(images())
    assert found.boxes.shape == (2, 7, 4)
    assert bool(((found.boxes >= 0) & (found.boxes <= SIDE)).all())
    assert bool(((found.scores >= 0) & (found.scores <= 1)).all())
    assert detector.propose(images()).count.min() > 0
    save_checkpoint(tmp_path, detector.state_dict(), config)
    loaded, state = load_checkpoint(tmp_path)
    assert loaded == config
    built(loaded).load_state_dict(state)


@pytest.mark.parametrize("name", ["yolov2", "tiny_yolov1"])
def test_fixed_shapes_and_other_layers_find_the_same(name: str) -> None:
    config = small(name)
    config = replace(config, dense=replace(config.dense, detection=replace(config.dense.detection, min_score=0.0)))
    plain, fixed = built(config).eval(), built(config, fixed_size_on=("cpu",)).eval()
    expected = plain.detect(images())
    filled = fixed.detect(images())
    count = int(expected.count[0])
    assert filled.boxes.shape[1] > count
    assert filled.count.tolist() == expected.count.tolist()
    assert torch.allclose(filled.boxes[0, :count], expected.boxes[0, :count], atol=1e-4)
    losses = [built(config, where).eval()(images(), targets()) for where in (None, ("cpu",))]
    for loss in LOSSES:
        assert torch.allclose(losses[0][loss], losses[1][loss])
    # Folded and in the CPU's own layers, within their rounding.
    fold(plain)
    use_cpu_layers(plain)
    with torch.inference_mode():
        other = plain.detect(images())
    assert torch.allclose(other.scores[:, :3], expected.scores[:, :3], atol=1e-3)


@pytest.mark.parametrize("name", ["yolov2", "yolov1_local"])
def test_bfloat16(name: str) -> None:
    config = small(name)
    detector = built(config).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = detector(images(), targets())
    assert all(loss.dtype == torch.float32 and bool(loss.isfinite()) for loss in losses.values())
    detector.eval()
    exact = detector.adapted(min_score=-1.0, max_detections=5, max_proposals=5).detect(images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = detector.adapted(min_score=-1.0, max_detections=5, max_proposals=5).detect(images())
    assert rough.boxes.dtype == torch.float32
    assert torch.allclose(rough.scores, exact.scores, atol=0.05)


def test_masks_and_keypoints_stand_on_its_detections() -> None:
    config = replace(
        small("yolov2"),
        regions=RegionsConfig(batch_size=16, mask_resolution=4, keypoint_resolution=4),
        mask_head=MaskHeadConfig(channels=8, layers=1),
        keypoint_head=KeypointHeadConfig(enabled=True, channels=8, layers=1, names=("nose",)),
    )
    detector = built(config).train()
    assert set(detector(images(), targets())) == LOSSES | {"roi_mask", "roi_keypoint"}
    found = detector.eval().adapted(min_score=-1.0, max_detections=3, max_proposals=5).detect(images())
    assert found.masks is not None
    assert found.masks.shape[:2] == (2, 3)
    assert found.keypoints is not None


def test_two_pictures_are_learnt_by_heart() -> None:
    config = small("yolov2")
    config = replace(config, dense=replace(config.dense, loss=replace(config.dense.loss, warm_up_images=0)))
    detector = built(config).train()
    optimizer = torch.optim.Adam(detector.parameters(), lr=3e-3)
    first = last = torch.zeros(())
    for step in range(70):
        losses: Tensor = torch.stack(list(detector(images(), targets()).values())).sum()
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()
        first, last = (losses.detach() if step == 0 else first), losses.detach()
    assert last < 0.2 * first
    found = detector.eval().detect(images())
    assert found.labels[:, :2].sort(dim=1).values.tolist() == [[0, 1]] * 2
    for image in range(2):
        boxes = found.boxes[image, found.labels[image].argsort(stable=True)]
        assert bool(((boxes[0] - targets().boxes[image, 0]).abs() < 8).all())


def test_a_map_of_another_size_is_refused() -> None:
    detector = built(small("tiny_yolov1")).eval()
    sizes = torch.tensor([[192, 192]])
    with pytest.raises(ConfigError, match="made for maps of 2 x 2 cells"):
        detector.detect(ImageBatch(torch.zeros(1, 3, 192, 192), sizes, sizes))


@pytest.mark.parametrize(
    ("section", "change", "said"),
    [
        ("coding", {"kind": "deltas"}, r"model\.dense\.coding\.kind: .* cells where"),
        ("head", {"kind": "shared", "norm": "none"}, r"model\.dense\.head\.kind: .* cells where"),
        ("detection", {"score_from": "sigmoid"}, r"model\.dense\.detection\.score_from: .* conditional where"),
        ("anchors", {"offset": 0.0}, r"model\.dense\.anchors: .* offset 0\.5"),
        ("anchors", {"priors": ()}, r"model\.dense\.anchors\.priors"),
        ("loss", {"kind": "focal"}, r"model\.dense\.coding\.kind: .* another where"),
    ],
)
def test_parts_that_do_not_go_together(section: str, change: dict[str, object], said: str) -> None:
    dense = small("yolov2").dense
    with pytest.raises(ConfigError, match=said):
        replace(dense, **{section: replace(getattr(dense, section), **change)})


def test_fully_connected_layers_need_one_size() -> None:
    config = small("tiny_yolov1")
    with pytest.raises(ConfigError, match=r"model\.input\.fit: got aspect"):
        build_detector(replace(config, input=replace(config.input, fit="aspect")), load_pretrained=False)
    with pytest.raises(ConfigError, match=r"model\.dense\.head\.norm"):
        DenseHeadConfig(kind="whole_map", norm="group")
