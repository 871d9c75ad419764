"""Where the time of an image goes, stage by stage, beside the least time that this machine needs for each.

The *floor* of a stage is the larger of two quotients: its floating-point operations over the rate of a large product
or convolution, and the bytes that it must read and write at least once (its inputs, its weights, its outputs) over the
rate of a large copy, all measured in the same run. Operations are counted on the plain network: a layer that needs
fewer (Winograd's convolution) can come out below 1. Stages without arithmetic worth counting (sorting, NMS) have only
bytes. With a GPU, what the host does has no floor.

The stages run one after the other, and with a GPU the host waits for each. What that costs is measured beside them:
the network as one CUDA graph, and `Predictor.predict`, which does the host's and the device's share of several batches
at the same time. Needs no Ray.
"""

import functools
import io
import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.config.limits import MAX_PIXELS
from maskrcnn_core.data.decode import decode_image
from maskrcnn_core.data.packing import Size
from maskrcnn_core.data.transform import fitted_size, pad_batch, padded_size, prepare_input
from maskrcnn_core.inference.predictor import Predictor
from maskrcnn_core.kernels.gpu.availability import without_kernels
from maskrcnn_core.layers.frozen_norm import fold
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.structures import ImageBatch
from pipelines.benchmarks.config import BenchmarkRun
from pipelines.benchmarks.peer import (
    arithmetic_rate,
    brought_to,
    contents_of,
    copy_rate,
    imported_predictor,
    machine,
    peer_of,
    seconds_of,
    trace_once,
    use_threads,
    write_figures,
)
from pipelines.benchmarks.stage_steps import IN_FRAME, Clock, Work, in_stages, one_batch, parts_of

_JPEG_QUALITY = 95
_GPU_WARM_UPS = 2
_GRAPH_WARM_UPS = 5  # a shape is recorded when it comes for the fourth time
_MANY_BATCHES = 8
# What the host does where there is a device beside it, and what crosses the bus.
_OF_THE_HOST = {"decode", "pack", "copy to the device", "results to the host", "records", "rows"}


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
class InOneGo:
    """Seconds of an image where nothing waits between the stages, medians.

    Attributes:
        network: its stages in the table, which wait: from the trunk to boxes in the image's frame.
        graph: the same as one replayed CUDA graph.
        predict: `Predictor.predict` of one batch.
        predict_many: of several batches in one call.
        batches: how many these are.
    """

    network: float
    graph: float
    predict: float
    predict_many: float
    batches: int = _MANY_BATCHES


@dataclass(frozen=True)
class StageTable:
    """All stages, from encoded image to label rows.

    Attributes:
        stages: in the order in which they run.
        total: sum of their seconds.
        batch: images that go through them together.
        in_one_go: what the waiting between stages costs; None on a CPU.
        peak_flops: rate of a large matrix product or convolution, operations per second.
        bandwidth: rate of a copy, bytes read and written per second.
        operators: the dearest ones and their share of the time, where a trace was written.
        images: that were measured.
        machine: what it ran on.
    """

    stages: tuple[Stage, ...]
    total: float
    batch: int
    in_one_go: InOneGo | None
    peak_flops: float
    bandwidth: float
    operators: tuple[tuple[str, float], ...]
    images: int
    machine: str


def benchmark_stages(run: BenchmarkRun) -> StageTable:
    """Measure them.

    Raises:
        StorageError: the folder has no images.
    """
    use_threads(run.threads)
    device = torch.device("cuda" if run.use_gpu else "cpu")
    contents = contents_of(run)
    predictor = imported_predictor(peer_of(run), run)
    if run.long_side and (run.use_gpu or run.batch > 1):
        contents = [_encoded_in(content, (run.short_side, run.long_side)) for content in contents]
    batches = batches_of_one_shape(contents, run.batch, predictor.config.input)
    clock = Clock(device)
    staged = in_stages(predictor, pixels_at_once(batches, predictor.config.input), clock)
    plain = build_detector(predictor.config, load_pretrained=False)
    fold(plain.to(device).eval())
    flops = flops_of(predictor, plain, batches[0])
    dtype = torch.bfloat16 if run.precision == "bfloat16" else torch.float32
    peak, bandwidth = arithmetic_rate(device, dtype), copy_rate(device)
    for batch in batches * (_GPU_WARM_UPS if run.use_gpu else 1):
        one_batch(staged, batch, clock)
    measured: list[dict[str, Work]] = []
    for batch in batches * run.rounds:
        one_batch(staged, batch, clock)
        measured.append(clock.work)
    stages = []
    for name in measured[0]:
        seconds = statistics.median(work[name].seconds for work in measured if name in work) / run.batch
        moved = statistics.median(work[name].bytes for work in measured if name in work) / run.batch
        floor = max(flops.get(name, 0.0) / peak, moved / bandwidth)
        if run.use_gpu and name in _OF_THE_HOST:
            floor = 0.0
        stages.append(Stage(name, seconds, flops.get(name, 0.0), moved, floor))
    in_one_go = None
    if "copy to the device" in measured[0]:
        names = [stage.name for stage in stages]
        network = sum(stage.seconds for stage in stages[names.index("trunk") : names.index(IN_FRAME) + 1])
        in_one_go = InOneGo(network, *without_waiting(predictor, batches, run.rounds))
    result = StageTable(
        stages=tuple(stages),
        total=sum(stage.seconds for stage in stages),
        batch=run.batch,
        in_one_go=in_one_go,
        peak_flops=peak,
        bandwidth=bandwidth,
        operators=trace_once(lambda: predictor.predict(batches[0]), run.trace),
        images=len({id(content) for batch in batches for content in batch}),
        machine=machine(device),
    )
    write_figures(result, run.output)
    return result


def batches_of_one_shape(contents: Sequence[bytes], size: int, rule: InputConfig) -> list[list[bytes]]:
    """Full batches of images whose network input has one padded shape, that of the first image; where there are too few
    for one batch they are repeated. Images of one size follow each other, as the predictor sorts them. Batches of one
    image may differ in shape."""
    if size == 1:
        return [[content] for content in contents]
    images = [decoded_image(content) for content in contents]
    shapes = [padded_size(input_size(image, rule), rule.divisor) for image in images]
    alike = [index for index, shape in enumerate(shapes) if shape == shapes[0]]
    again = itertools.cycle(alike)
    batches = [list(itertools.islice(again, size)) for _ in range(max(len(alike) // size, 1))]
    return [[contents[index] for index in sorted(batch, key=lambda index: images[index].shape)] for batch in batches]


def pixels_at_once(batches: Sequence[Sequence[bytes]], rule: InputConfig) -> int:
    """Padded input pixels of the largest of the batches, each of one padded shape."""

    def padded(content: bytes) -> int:
        height, width = padded_size(input_size(decoded_image(content), rule), rule.divisor)
        return height * width

    return max(padded(batch[0]) * len(batch) for batch in batches)


def network_input(images: Sequence[Tensor], rule: InputConfig) -> ImageBatch:
    """Images [3, H, W] uint8 of one padded shape as the host makes a batch of them."""
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    pixels = [prepare_input(image, input_size(image, rule), rule) for image in images]
    return pad_batch(pixels, sizes, rule.divisor, letterboxed=rule.fit == "letterbox")


def decoded_image(content: bytes) -> Tensor:
    """[3, H, W] uint8 RGB, never turned."""
    return decode_image(content, max_pixels=MAX_PIXELS, apply_exif=False)


def input_size(image: Tensor, rule: InputConfig) -> Size:
    """(height, width) in which the network sees an image."""
    height, width = image.shape[-2:]
    return fitted_size(height, width, rule, rule.short_side, rule.long_side)


def _encoded_in(content: bytes, size: Size) -> bytes:
    """The image as JPEG of another (height, width)."""
    file = io.BytesIO()
    pixels = brought_to(decoded_image(content), size).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()


def without_waiting(predictor: Predictor, batches: Sequence[list[bytes]], rounds: int) -> tuple[float, float, float]:
    """Seconds of an image, medians: the network as one CUDA graph, `predict` of one batch, and of several batches."""
    device = torch.device(predictor.settings.device)
    on_gpu = device.type == "cuda"
    rule = predictor.config.input
    inputs = [network_input([*map(decoded_image, contents)], rule).to(device) for contents in batches]
    # Several batches in one call shall have as many images each as one alone.
    settings = replace(predictor.settings, batch_pixels=pixels_at_once(batches, rule), cpu_layers=False, compile=False)
    alone = Predictor(predictor.detector, predictor.config, settings)
    ways: list[list[float]] = [[], [], []]
    for contents, batch in zip(batches, inputs, strict=True):
        calls: tuple[Callable[[], object], ...] = (
            functools.partial(alone.detect_on_device, batch),
            functools.partial(alone.predict, contents),
            functools.partial(alone.predict, contents * _MANY_BATCHES),
        )
        for seconds, call, count in zip(ways, calls, (1, 1, _MANY_BATCHES), strict=True):
            for _ in range(_GRAPH_WARM_UPS if on_gpu and count == 1 else 1):
                call()
            seconds += [seconds_of(call, device) / count / len(contents) for _ in range(rounds)]
    graph, predict, predict_many = map(statistics.median, ways)
    return graph, predict, predict_many


@torch.inference_mode()
def flops_of(predictor: Predictor, plain: Detector, contents: Sequence[bytes]) -> dict[str, float]:
    """Operations of each part of the plain network for one image, the mean of a batch."""
    images = [*map(decoded_image, contents)]
    # The plain network has random weights and may find nothing: let the heads see what the real one would give them.
    batch = network_input(images, predictor.config.input).to(predictor.settings.device)
    with predictor.arithmetic():
        proposals, detections = predictor.detector.propose(batch), predictor.detector.detect(batch)
    counter = FlopCounterMode(display=False)
    totals: dict[str, float] = {}
    for name, module in parts_of(plain):
        totals[name] = 0.0
        module.register_forward_pre_hook(lambda *_, name=name: _add(totals, name, -counter.get_total_flops()))
        module.register_forward_hook(lambda *_, name=name: _add(totals, name, counter.get_total_flops()))
    # Of our kernels and of cuDNN's fused convolutions the counter knows nothing.
    with without_kernels(), counter:
        features = plain.features(batch)
        if plain.dense is not None:
            plain.dense.head(features.maps)
        plain.boxes(features, proposals)
        plain.masks(features, detections)
        plain.heatmaps(features, detections)
    return {name: total / len(contents) for name, total in totals.items()}


def _add(totals: dict[str, float], name: str, amount: float) -> None:
    totals[name] += amount
