"""Where the time of an image goes, stage by stage, beside the least time that this machine needs for each.

The *floor* of a stage is the larger of two quotients: its floating-point operations over the rate of a large product
or convolution, and the bytes that it must read and write at least once (its inputs, its weights, its outputs) over the
rate of a large copy, all measured in the same run. Operations are counted on the plain network: a layer that needs
fewer (Winograd's convolution) can come out below 1. Stages without arithmetic worth counting (sorting, NMS) have only
bytes. Needs no Ray.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from maskrcnn_core.benchmark_config import BenchmarkRun
from maskrcnn_core.data.decode import decode_image
from maskrcnn_core.data.transform import pad_batch, prepare_image, resized_size
from maskrcnn_core.inference.output import image_record
from maskrcnn_core.inference.predictor import Predictor
from maskrcnn_core.inference.records import record_schema, records_to_table
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.frozen_norm import fold
from maskrcnn_core.model.region_detector import RegionDetector
from pipelines.benchmarking import (
    contents_of,
    imported_predictor,
    machine,
    peer_of,
    trace_once,
    use_threads,
    write_figures,
)

_MAX_PIXELS = 178_956_970

# Parts of the detector in the order in which they run: attribute, name of its stage, name of what follows it.
_PARTS = (
    ("trunk", "trunk", "trunk"),
    ("pyramid", "pyramid", "pyramid"),
    ("rpn_head", "RPN head", "proposals (top k, NMS)"),
    ("box_transform", "RoIAlign for boxes", "RoIAlign for boxes"),
    ("region_stage", "region stage", "region stage"),
    ("box_head", "box head", "detections (softmax, NMS)"),
    ("mask_transform", "RoIAlign for masks", "RoIAlign for masks"),
    ("mask_head", "mask head", "masks into slots"),
    ("keypoint_transform", "RoIAlign for keypoints", "RoIAlign for keypoints"),
    ("keypoint_head", "keypoint head", "keypoint decoding"),
)


@dataclass(frozen=True)
class Stage:
    """One of them, for one image.

    Attributes:
        name: of the stage.
        seconds: median.
        flops: floating-point operations of the plain network.
        bytes: read and written at least.
        floor: the least time that this machine needs, seconds.
    """

    name: str
    seconds: float
    flops: float
    bytes: float
    floor: float


@dataclass(frozen=True)
class StageTable:
    """All stages, from encoded image to label rows.

    Attributes:
        stages: in the order in which they run.
        total: sum of their seconds.
        peak_flops: rate of a large matrix product or convolution, operations per second.
        bandwidth: rate of a copy, bytes read and written per second.
        operators: the dearest ones and their share of the time, where a trace was written.
        images: that were measured.
        machine: what it ran on.
    """

    stages: tuple[Stage, ...]
    total: float
    peak_flops: float
    bandwidth: float
    operators: tuple[tuple[str, float], ...]
    images: int
    machine: str


@dataclass
class _Work:
    """What was counted for a stage of one image."""

    seconds: float = 0.0
    bytes: float = 0.0


@dataclass
class _Clock:
    """Adds the time since the last mark to a stage."""

    device: torch.device
    work: dict[str, _Work] = field(default_factory=dict)
    last: float = 0.0

    def start(self) -> None:
        self.last = self._now()

    def mark(self, name: str, moved: float = 0.0) -> None:
        now = self._now()
        work = self.work.setdefault(name, _Work())
        work.seconds += now - self.last
        work.bytes += moved
        self.last = self._now()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def benchmark_stages(run: BenchmarkRun) -> StageTable:
    """Measure them.

    Raises:
        StorageError: the folder has no images.
    """
    use_threads(run.threads)
    device = torch.device("cuda" if run.use_gpu else "cpu")
    contents = contents_of(run)
    peer = peer_of(run)
    predictor = imported_predictor(peer, run)
    plain = build_detector(predictor.config, load_pretrained=False)
    fold(plain.to(device).eval())
    flops = _flops_of(predictor, plain, contents[0])
    dtype = torch.bfloat16 if run.precision == "bfloat16" else torch.float32
    peak, bandwidth = arithmetic_rate(device, dtype), copy_rate(device)
    for content in contents:
        _one_image(predictor, content, _Clock(device))  # warm-up
    clocks: list[_Clock] = []
    for _ in range(run.rounds):
        for content in contents:
            clocks.append(_Clock(device))
            _one_image(predictor, content, clocks[-1])
    stages = []
    for name in clocks[0].work:
        seconds = statistics.median(clock.work[name].seconds for clock in clocks if name in clock.work)
        moved = statistics.median(clock.work[name].bytes for clock in clocks if name in clock.work)
        floor = max(flops.get(name, 0.0) / peak, moved / bandwidth)
        stages.append(Stage(name, seconds, flops.get(name, 0.0), moved, floor))
    result = StageTable(
        stages=tuple(stages),
        total=sum(stage.seconds for stage in stages),
        peak_flops=peak,
        bandwidth=bandwidth,
        operators=trace_once(lambda: predictor.predict(contents[:1]), run.trace),
        images=len(contents),
        machine=machine(device),
    )
    write_figures(result, run.output)
    return result


@torch.inference_mode()
def _one_image(predictor: Predictor, content: bytes, clock: _Clock) -> None:
    """From the file to its row, as `Predictor.predict` and the label job go."""
    config, rule = predictor.config, predictor.config.input
    clock.start()
    image = decode_image(content, max_pixels=_MAX_PIXELS, apply_exif=False)
    clock.mark("decode", len(content) + image.nbytes)
    height, width = image.shape[-2:]
    size = resized_size(height, width, rule.short_side, rule.long_side, rule.resize)
    pixels = prepare_image(
        image, size=size, mean=rule.mean, std=rule.std, channels=rule.channels, scale=rule.scale, resize=rule.resize
    )
    clock.mark("resize, normalise", image.nbytes + pixels.nbytes)
    batch = pad_batch([pixels], [(height, width)], rule.divisor)
    clock.mark("pad", 2 * pixels.nbytes)
    with _hooked(predictor.detector, clock):
        detections = predictor.detect(batch)
    clock.mark("boxes to the image's frame")
    record = image_record(detections, 0, (height, width), config)
    masks = detections.masks
    clock.mark("paste, run lengths", 0.0 if masks is None else masks.nbytes)
    records_to_table([0], ["image"], [record], predictor.fingerprint, record_schema(config.categories))
    clock.mark("rows")


@contextmanager
def _hooked(detector: RegionDetector, clock: _Clock) -> Iterator[None]:
    """The detector's parts mark the clock while the block runs; what lies between two parts belongs to the former."""
    handles: list[Any] = []
    between = ["to the device"]

    def before(_: nn.Module, __: Any) -> None:
        clock.mark(between[0])

    def after(name: str, following: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            weights = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
            clock.mark(name, _bytes_of(inputs) + weights + _bytes_of(output))
            between[0] = following

        return hook

    for attribute, name, following in _PARTS:
        module = getattr(detector, attribute)
        if module is not None:
            handles.append(module.register_forward_pre_hook(before))
            handles.append(module.register_forward_hook(after(name, following)))
    try:
        yield
    finally:
        clock.mark(between[0])
        for handle in handles:
            handle.remove()


def _bytes_of(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, list | tuple):
        return sum(map(_bytes_of, value))
    return 0


@torch.inference_mode()
def _flops_of(predictor: Predictor, plain: RegionDetector, content: bytes) -> dict[str, float]:
    """Operations of each part of the plain network for one image."""
    rule = predictor.config.input
    image = decode_image(content, max_pixels=_MAX_PIXELS, apply_exif=False)
    height, width = image.shape[-2:]
    size = resized_size(height, width, rule.short_side, rule.long_side, rule.resize)
    pixels = prepare_image(image, size=size, mean=rule.mean, std=rule.std)
    # The plain network has random weights and may find nothing: let the heads see what the real one would give them.
    images = pad_batch([pixels], [(height, width)], rule.divisor).to(predictor.settings.device)
    with predictor.arithmetic():
        proposals, found = predictor.detector.propose(images), predictor.detector.detect(images)
    counter = FlopCounterMode(display=False)
    totals: dict[str, float] = {}
    for attribute, name, _ in _PARTS:
        module = getattr(plain, attribute)
        if module is not None:
            totals[name] = 0.0
            module.register_forward_pre_hook(lambda *_, name=name: _add(totals, name, -counter.get_total_flops()))
            module.register_forward_hook(lambda *_, name=name: _add(totals, name, counter.get_total_flops()))
    with counter:
        features = plain.features(images)
        if plain.rpn_head is not None:
            plain.rpn_head(features.maps)
        plain.boxes(features, proposals)
        plain.masks_on(features, found)
        plain.heatmaps_on(features, found)
    return totals


def _add(totals: dict[str, float], name: str, amount: float) -> None:
    totals[name] += amount


def arithmetic_rate(device: torch.device, dtype: torch.dtype, rounds: int = 7) -> float:
    """Floating-point operations per second, the best of some rounds of a large matrix product and of a wide 3x3
    convolution, which can come from different libraries."""
    one, other = (torch.randn(2048, 2048, device=device, dtype=dtype) for _ in range(2))
    product = 2.0 * 2048**3 / _best(lambda: one @ other, device, rounds)
    image = torch.randn(8, 512, 28, 28, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    kernel = torch.randn(512, 512, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    flops = 2.0 * 8 * 28 * 28 * 512 * 512 * 9
    return max(product, flops / _best(lambda: functional.conv2d(image, kernel, padding=1), device, rounds))


def copy_rate(device: torch.device, megabytes: int = 256, rounds: int = 7) -> float:
    """Bytes read and written per second while copying: the best of some rounds."""
    source = torch.ones(megabytes << 18, device=device)
    target = torch.empty_like(source)
    return 2.0 * source.nbytes / _best(lambda: target.copy_(source), device, rounds)


def _best(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    best = float("inf")
    for _ in range(rounds):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best
