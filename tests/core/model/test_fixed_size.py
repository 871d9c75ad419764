"""Detection as a GPU does it, on the CPU: the same detections, and no operation that would make the host wait."""

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from maskrcnn_core.boxes import soft_suppress, suppress
from maskrcnn_core.config.dense import DenseConfig
from maskrcnn_core.config.heads import BoxHeadConfig, KeypointHeadConfig
from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.data.transform import pad_batch
from maskrcnn_core.inference.views import MergeRule, View, detect_in_views, mirrored
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.model.regions import align, transform
from maskrcnn_core.model.regions.levels import cut_by_level
from maskrcnn_core.structures import Detections, ImageBatch
from tests.small_detector import FINDING, finding_detector

CONFIG = replace(
    FINDING,
    dense=DenseConfig(pre_nms_test=100, post_nms_test=30),
    box_head=BoxHeadConfig(channels=32, max_detections=12, min_score=0.2),
    keypoint_head=KeypointHeadConfig(enabled=True, names=("a", "b"), categories=("disc",), channels=8, layers=1),
    categories=(Category(1, "disc"), Category(5, "square"), Category(9, "cross")),
)

# Each asks the device for a number or for a size, or copies a list from the host (lift_fresh).
WAITING = {
    "_local_scalar_dense",
    "bincount",
    "equal",
    "is_nonzero",
    "lift_fresh",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
    "_unique2",
}


# On a CPU these read the memory without any operation.
READING = {"tolist", "numpy", "__array__", "cpu"}


class NeverReads(TorchFunctionMode):
    """Raises where values of a tensor become Python's or numpy's."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if getattr(func, "__name__", "") in READING:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


class NeverWaits(TorchDispatchMode):
    """Raises at an operation that waits; counts calls of non-maximum suppression, which waits once each."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.suppressions = 0
        self._never_reads = NeverReads()

    def __enter__(self) -> "NeverWaits":
        self._never_reads.__enter__()  # type: ignore[no-untyped-call]
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._never_reads.__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
            for index in (args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ())
        )
        unbounded = name == "repeat_interleave" and not (kwargs or {}).get("output_size")
        if name in WAITING or by_mask or unbounded:
            raise AssertionError(f"{func} waits for the device")
        self.suppressions += name == "nms"
        return func(*args, **(kwargs or {}))


def detector_of(config: ModelConfig, fixed_size: bool) -> Detector:
    detector = finding_detector(config, fixed_size_on=("cpu",) if fixed_size else ())
    return detector.eval().requires_grad_(False)


def batch() -> ImageBatch:
    generator = torch.Generator().manual_seed(3)
    sizes = [(96, 128), (90, 100)]
    return pad_batch([torch.randn(3, *size, generator=generator) for size in sizes], sizes, 32)


@pytest.fixture
def regions_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """RoI transforms decide by the device of the regions."""
    monkeypatch.setattr(transform, "roi_align", align.align_by_operator)
    monkeypatch.setattr(align, "cut_by_level", lambda *given, fixed_size: cut_by_level(*given, fixed_size=True))


def assert_same(fixed: Detections, free: Detections) -> None:
    assert fixed.count.equal(free.count)
    assert 0 < free.boxes.shape[1] <= fixed.boxes.shape[1]
    slots = free.boxes.shape[1]
    assert fixed.labels[:, :slots].equal(free.labels)
    for name, tolerance in (("boxes", 1e-3), ("scores", 1e-5), ("masks", 1e-4), ("keypoints", 1e-2)):
        one, other = getattr(fixed, name), getattr(free, name)
        torch.testing.assert_close(one[:, :slots], other, atol=tolerance, rtol=1e-4)
        rest = one[:, slots:] - (torch.tensor([0.0, 0.0, 1.0, 1.0]) if name == "boxes" else 0.0)
        assert not rest.any()


@pytest.mark.parametrize("nms", ["hard", "soft_gaussian"])
def test_the_same_detections_without_waiting(regions_as_on_a_gpu: None, nms: Literal["hard", "soft_gaussian"]) -> None:
    config = replace(CONFIG, box_head=replace(CONFIG.box_head, nms=nms))
    images = batch()
    free, fixed = detector_of(config, False).detect(images), detector_of(config, True)
    fixed.detect(images)  # anchors of this shape are made once, on the host
    with NeverWaits() as watch:
        found = fixed.detect(images)
    assert watch.suppressions == (2 if nms == "hard" else 1)  # of all images, levels and classes together
    assert found.boxes.shape[1] == config.box_head.max_detections
    assert_same(found, free)


def test_proposals_without_waiting(regions_as_on_a_gpu: None) -> None:
    images, fixed = batch(), detector_of(CONFIG, True)
    expected = detector_of(CONFIG, False).propose(images)
    fixed.propose(images)
    with NeverWaits() as watch:
        found = fixed.propose(images)
    assert watch.suppressions == 1
    assert found.count.equal(expected.count)
    torch.testing.assert_close(found.boxes[:, : expected.boxes.shape[1]], expected.boxes)


def test_several_views_wait_only_to_merge(regions_as_on_a_gpu: None) -> None:
    images, fixed = batch(), detector_of(CONFIG, True)
    views = [View(images), View(mirrored(images), flipped=True)]
    rule = MergeRule(nms_overlap=0.5, max_detections=12, mirrored_keypoints=(1, 0))
    expected = detect_in_views(detector_of(CONFIG, False), views, rule)
    detect_in_views(fixed, views, rule)  # anchors of this shape are made once, on the host
    with NeverWaits() as watch:
        found = detect_in_views(fixed, views, rule)
    assert watch.suppressions == 5
    assert_same(found, expected)


def test_the_watch_sees_what_waits() -> None:
    values, every = torch.arange(3.0), torch.ones(3, dtype=torch.bool)
    for waits in (
        lambda: values[0].item(),
        lambda: values.tolist(),
        lambda: values[every],
        lambda: values.masked_select(every),
        lambda: every.nonzero(),
        lambda: bool(every.any()),
        lambda: values.new_tensor([1.0, 2.0]),
        lambda: values.unique(),
    ):
        with pytest.raises(AssertionError, match="waits for the device"), NeverWaits():
            waits()


def test_suppression_far_from_the_origin_is_exact() -> None:
    # 30 images with 80 classes: in float32 the last groups would be rounded to a quarter of a pixel.
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(30, 40, 2, generator=generator) * 40 + 1300
    boxes = torch.cat((corners, corners + torch.rand(30, 40, 2, generator=generator) * 20 + 1), dim=-1)
    scores, groups = torch.rand(30, 40, generator=generator), torch.randint(76, 80, (30, 40), generator=generator)
    valid = torch.rand(30, 40, generator=generator) > 0.1
    expected = suppress(boxes, scores, groups, valid, 0.3, fixed_size=False)
    assert suppress(boxes, scores, groups, valid, 0.3, fixed_size=True).equal(expected)
    assert 0 < expected.sum() < valid.sum()


def test_many_images_are_suppressed_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(7, 20, 2, generator=generator) * 30
    boxes = torch.cat((corners, corners + 12), dim=-1)
    scores, groups = torch.rand(7, 20, generator=generator), torch.randint(0, 2, (7, 20), generator=generator)
    valid = torch.ones(7, 20, dtype=torch.bool)
    expected = suppress(boxes, scores, groups, valid, 0.4, fixed_size=True)
    monkeypatch.setattr("maskrcnn_core.boxes._BOXES_AT_ONCE", 60)  # three images
    with NeverWaits() as watch:
        found = suppress(boxes, scores, groups, valid, 0.4, fixed_size=True)
    assert found.equal(expected)
    assert watch.suppressions == 3


@pytest.mark.parametrize("slots", [0, 3])
def test_nothing_to_suppress(slots: int) -> None:
    nothing = torch.zeros(2, slots, dtype=torch.bool)
    empty = torch.zeros(2, slots, 4), torch.zeros(2, slots), nothing.long(), nothing
    assert not suppress(*empty, 0.5, fixed_size=True).any()
    rule: dict[str, Any] = {"gaussian": True, "max_overlap": 0.5, "sigma": 0.5, "min_score": 0.1, "max_kept": 2}
    _, kept = soft_suppress(*empty, **rule, fixed_size=True)
    assert kept.shape == (2, min(slots, 2))
    assert not kept.any()
