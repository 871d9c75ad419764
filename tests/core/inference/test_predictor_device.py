"""What a predictor does on a GPU, forced on the CPU: masks drawn on the device, work ahead on a thread, compiling."""

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from maskrcnn_core.config.heads import KeypointHeadConfig, MaskHeadConfig
from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.errors import ImageError
from maskrcnn_core.inference import device_form
from maskrcnn_core.inference.compiled import CompiledByShape
from maskrcnn_core.inference.predictor import Predictor
from maskrcnn_core.inference.settings import PredictorSettings, combined_fingerprint
from maskrcnn_core.structures import Detections
from tests.small_detector import FINDING, finding_detector

PLAIN = PredictorSettings(batch_pixels=4 * 64 * 96, device_masks=False, prefetch=False)


def predictor_of(settings: PredictorSettings, config: ModelConfig = FINDING) -> Predictor:
    return Predictor(finding_detector(config), config, settings)


def image_of(height: int, width: int, seed: int = 0) -> Tensor:
    coarse = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(coarse, size=(height, width))[0] * 255).to(torch.uint8)


IMAGES = [image_of(*size, seed) for seed, size in enumerate([(60, 90), (64, 96), (300, 200), (45, 301), (61, 92)])]


@pytest.mark.parametrize("paste", ["exact", "bicubic", "torchvision"])
def test_masks_drawn_on_the_device_are_the_same_records(paste: Literal["exact", "bicubic", "torchvision"]) -> None:
    config = replace(FINDING, mask_head=replace(FINDING.mask_head, paste=paste))
    expected = predictor_of(PLAIN, config).predict(IMAGES)
    got = predictor_of(replace(PLAIN, device_masks=True), config).predict(IMAGES)
    assert got == expected
    counts = [found.rle_counts for record in got for found in record.detections]
    assert len(counts) > 20
    assert len(set(counts)) > 10


@pytest.mark.parametrize(
    "settings", [replace(PLAIN, test_flip=True), replace(PLAIN, test_short_sides=(48, 64)), replace(PLAIN, min_score=1)]
)
def test_also_in_several_views_and_where_nothing_is_found(settings: PredictorSettings) -> None:
    expected = predictor_of(settings).predict(IMAGES[:3])
    assert predictor_of(replace(settings, device_masks=True)).predict(IMAGES[:3]) == expected


def test_also_where_masks_are_drawn_on_proposals() -> None:
    config = replace(FINDING, mask_head=replace(FINDING.mask_head, regions="proposals"))
    expected = predictor_of(PLAIN, config).predict(IMAGES[:2])
    assert predictor_of(replace(PLAIN, device_masks=True), config).predict(IMAGES[:2]) == expected


def test_a_detector_without_masks_and_one_with_keypoints() -> None:
    keypoints = KeypointHeadConfig(enabled=True, names=("a", "b"), categories=("three",), channels=8, layers=1)
    for config in (
        replace(FINDING, mask_head=MaskHeadConfig(enabled=False)),
        replace(FINDING, keypoint_head=keypoints),
    ):
        expected = predictor_of(PLAIN, config).predict(IMAGES[:2])
        assert predictor_of(replace(PLAIN, device_masks=True), config).predict(IMAGES[:2]) == expected


def test_soft_masks_stay_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[bool] = []

    def to(found: Detections, device: object, move: Callable[..., Detections] = Detections.to) -> Detections:
        copied.append(found.masks is not None)
        return move(found, device)

    monkeypatch.setattr(Detections, "to", to)
    predictor_of(replace(PLAIN, device_masks=True)).predict(IMAGES[:1])
    assert copied == [False]
    predictor_of(PLAIN).predict(IMAGES[:1])
    assert copied == [False, True]


CONTENTS: list[bytes | Tensor | ImageError] = [IMAGES[0], b"no image", *IMAGES[1:], ImageError("missing", "gone")]


def test_work_ahead_gives_the_same_records() -> None:
    expected = predictor_of(PLAIN).predict(CONTENTS)
    assert [record.status for record in expected] == ["ok", "unreadable", *["ok"] * 4, "missing"]
    ahead = predictor_of(replace(PLAIN, prefetch=True))
    assert ahead.predict(CONTENTS) == expected
    assert ahead.predict([]) == []


def test_the_next_batch_is_prepared_while_the_network_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = predictor_of(replace(PLAIN, prefetch=True, batch_pixels=1))
    second_ready = threading.Event()
    prepare, detected = predictor._preparation.prepare, predictor.detect_on_device
    threads: set[str] = set()

    def preparing(place: int, *arguments: Any) -> object:
        threads.add(threading.current_thread().name)
        item = prepare(place, *arguments)
        if place == 1:
            second_ready.set()
        return item

    def detecting(*arguments: Any) -> Detections:
        # The first image's batch computes only once the second image is there.
        assert second_ready.wait(timeout=60)
        return detected(*arguments)

    monkeypatch.setattr(predictor._preparation, "prepare", preparing)
    monkeypatch.setattr(predictor, "detect_on_device", detecting)
    assert [record.status for record in predictor.predict(IMAGES[:2])] == ["ok"] * 2
    assert threads == {"prefetch"}


@pytest.mark.parametrize("prefetch", [False, True])
def test_no_memory_for_a_batch_is_no_memory_for_its_images(monkeypatch: pytest.MonkeyPatch, prefetch: bool) -> None:
    predictor = predictor_of(replace(PLAIN, prefetch=prefetch))
    padded = predictor._preparation.padded

    def failing(items: list) -> object:
        if len(items) > 1 or items[0].key == 1:
            raise MemoryError("not enough")
        return padded(items)

    monkeypatch.setattr(predictor._preparation, "padded", failing)
    records = predictor.predict([IMAGES[1]] * 3)
    assert [record.status for record in records] == ["ok", "failed", "ok"]
    assert records[1].error == "MemoryError: not enough"


def test_none_of_it_is_part_of_the_fingerprint() -> None:
    expected = combined_fingerprint("weights", PredictorSettings())
    for settings in (
        PredictorSettings(device_masks=True),
        PredictorSettings(prefetch=True),
        PredictorSettings(device_preparation=True),
        PredictorSettings(decode_threads=3),
        PredictorSettings(compile=True),
    ):
        assert combined_fingerprint("weights", settings) == expected


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """The arguments of each call of torch.compile, which returns the function as it is."""
    calls: list[dict[str, object]] = []

    def compile_(compute: Callable[[Tensor], list[Tensor]], **arguments: object) -> Callable[[Tensor], list[Tensor]]:
        calls.append(arguments)
        return compute

    monkeypatch.setattr(torch, "compile", compile_)
    return calls


def test_each_shape_is_compiled_once_and_only_so_many(compilations: list[dict[str, object]]) -> None:
    seen = []

    def compute(pixels: Tensor) -> list[Tensor]:
        seen.append(tuple(pixels.shape))
        return [pixels + 1]

    by_shape = CompiledByShape(compute, most_shapes=2)
    shapes = [(1, 3, 8, 8), (1, 3, 8, 16), (1, 3, 8, 8), (2, 3, 8, 8), (1, 3, 8, 16), (2, 3, 8, 8)]
    for shape in shapes:
        assert by_shape(torch.zeros(shape))[0].equal(torch.ones(shape))
    assert seen == shapes
    assert compilations == [{"dynamic": False}] * 2


def test_a_predictor_compiles_where_it_is_asked_to(compilations: list[dict[str, object]]) -> None:
    settings = replace(PLAIN, cpu_layers=False)
    expected = predictor_of(settings).predict(IMAGES)
    assert compilations == []
    assert predictor_of(replace(settings, compile=True)).predict(IMAGES) == expected
    assert len(compilations) == 3  # two images of 64 x 96 and one more; 96 x 64; 32 x 96


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of torch's compiler
def test_compiled_maps_are_those_of_the_network() -> None:
    plain, fast = (predictor_of(replace(PLAIN, compile=compile_, cpu_layers=False)) for compile_ in (False, True))
    batch = plain._preparation.padded([plain._preparation.prepare(0, IMAGES[0])]).views[0]
    expected, got = plain.detect(batch), fast.detect(batch)
    assert isinstance(fast.detector._compiled_maps, CompiledByShape)
    assert got.count.equal(expected.count)
    torch.testing.assert_close(got.boxes, expected.boxes, atol=1e-2, rtol=1e-4)
    torch.testing.assert_close(got.scores, expected.scores, atol=1e-4, rtol=1e-3)


def test_the_defaults_follow_the_device() -> None:
    on_cpu = predictor_of(PredictorSettings())
    assert not on_cpu._choices.prefetch
    assert not on_cpu._choices.device_masks
    assert on_cpu._preparation.prepare(0, IMAGES[0]).pixels is None  # resized on the host
    assert vars(device_form)["CompiledByShape"] is CompiledByShape
    assert on_cpu.detector._compiled_maps is None
