"""torchvision's detectors against ours: same weights and images, from uint8 image to COCO records, in turns.

Correctness comes first: a peer's detection counts as found where ours, in float32, has one of its class with the same
box and the same mask or keypoints. Bfloat16 is measured beside it; its agreement is only told, since random weights
put many scores next to each other and their scaled logits make much of every rounding (what it does to the AP of a
trained network is in docs/results.md). Needs no Ray.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pycocotools.mask
import torch
from torch import Tensor, nn

from maskrcnn_core.config.limits import MAX_PIXELS
from maskrcnn_core.data.decode import decode_image
from maskrcnn_core.inference.predictor import Predictor
from maskrcnn_core.kernels.gpu.availability import CPU_KERNELS, GPU_KERNELS, without_kernels
from maskrcnn_core.records.detections import DetectionRecord
from maskrcnn_core.records.labels import ImageRecord
from pipelines.benchmarks.config import BenchmarkRun
from pipelines.benchmarks.peer import (
    brought_to,
    contents_of,
    imported_predictor,
    machine,
    peer_name,
    peer_of,
    use_threads,
    write_figures,
)

_SAME_BOX, _SAME_MASK, _SAME_POINT = 0.95, 0.95, 2.0  # IoU, IoU, pixels
_SHORTEST = 0.01  # side of a detection, pixels
# Rounding decides who is the 100th.
_LEAST_AGREEMENT = 0.95
_GPU_WARM_UPS = 4

Label = dict[str, Any]
Way = Callable[[Sequence[Tensor]], Sequence[Sequence[Any]]]


@dataclass(frozen=True)
class DetectionWay:
    """One of the detectors.

    Attributes:
        name: of it.
        seconds: median per image.
        ratio: how many times as fast it is as the first way: median of the rounds' ratios.
        detections: mean per image.
        agreement: share of torchvision's detections that it has too.
        peak_bytes: most GPU memory that it held; 0 on a CPU.
    """

    name: str
    seconds: float
    ratio: float
    detections: float
    agreement: float
    peak_bytes: int = 0


@dataclass(frozen=True)
class DetectionComparison:
    """The detectors side by side.

    Attributes:
        ways: torchvision's first, ours last.
        images: how many, each measured once per round.
        machine: what it ran on.
    """

    ways: tuple[DetectionWay, ...]
    images: int
    machine: str


def benchmark_detect(run: BenchmarkRun) -> DetectionComparison:
    """Measure them.

    Raises:
        StorageError: the folder has no images.
        RuntimeError: the two find different things, so that the times would compare different work.
    """
    use_threads(run.threads)
    device = torch.device("cuda" if run.use_gpu else "cpu")
    images = [decode_image(content, max_pixels=MAX_PIXELS, apply_exif=False) for content in contents_of(run)]
    if run.long_side:
        images = [brought_to(image, (run.short_side, run.long_side)) for image in images]
    peer = peer_of(run)
    precisions: list[Literal["float32", "bfloat16"]] = ["float32"]
    if run.precision == "bfloat16":
        precisions.append("bfloat16")
    predictors = {name: imported_predictor(peer, replace(run, precision=name)) for name in precisions}
    peer.to(device)
    ways = _ways(peer, predictors, device, run)
    if run.ablate:
        ways |= _ablations(peer, run)

    with _exact_float32():
        labels_by_way = {name: list(way(images)) for name, way in ways.items()}
        # A batch of images of several sizes changes what torchvision finds in each.
        theirs = [labels for image in images for labels in peer_labels(peer, [image], device)]
    shared = {name: agreement(theirs, labels) for name, labels in labels_by_way.items()}
    if shared["ours, float32"] < _LEAST_AGREEMENT:
        raise RuntimeError(
            f"ours has {shared['ours, float32']:.1%} of torchvision's detections; the times would mean nothing"
        )
    rounds, peaks = _timed(ways, images, device, run)
    result = DetectionComparison(
        ways=tuple(
            DetectionWay(
                name,
                statistics.median(seconds[index] for seconds in rounds),
                statistics.median(seconds[0] / seconds[index] for seconds in rounds),
                statistics.mean(map(len, labels_by_way[name])),
                shared[name],
                peaks[name],
            )
            for index, name in enumerate(ways)
        ),
        images=len(images),
        machine=machine(device),
    )
    write_figures(result, run.output)
    return result


def _ways(
    peer: nn.Module,
    predictors: Mapping[Literal["float32", "bfloat16"], Predictor],
    device: torch.device,
    run: BenchmarkRun,
) -> dict[str, Way]:
    """Torchvision first, then ours, by name."""
    title = f"torchvision {peer_name(run)}"
    ways: dict[str, Way] = {f"{title}, float32": in_batches(lambda batch: peer_labels(peer, batch, device), run.batch)}
    if run.use_gpu or run.precision == "bfloat16":
        theirs_in_half = functools.partial(peer_labels, peer, device=device, autocast=True)
        ways[f"{title}, autocast to bfloat16"] = in_batches(theirs_in_half, run.batch)
    for precision, predictor in predictors.items():
        ways[f"ours, {precision}"] = _ours(predictor, run)
    return ways


def _timed(
    ways: Mapping[str, Way], images: Sequence[Tensor], device: torch.device, run: BenchmarkRun
) -> tuple[list[list[float]], dict[str, int]]:
    """Seconds of an image by round and way, and the peak of each way's memory on a GPU, bytes."""
    peaks = dict.fromkeys(ways, 0)
    rounds: list[list[float]] = []
    for _ in range(_GPU_WARM_UPS if run.use_gpu else 0):  # a shape is recorded when it comes the fourth time
        for name, way in ways.items():
            if name.startswith("ours"):
                way(images)
    for _ in range(run.rounds):
        seconds = []
        for name, way in ways.items():
            seconds.append(_seconds(way, images, device) / len(images))
            if device.type == "cuda":
                peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated())
        rounds.append(seconds)
    return rounds, peaks


def in_batches(way: Way, size: int) -> Way:
    """The same for a few images at a time."""
    return lambda images: [
        labels for first in range(0, len(images), size) for labels in way(images[first : first + size])
    ]


def _ours(predictor: Predictor, run: BenchmarkRun) -> Way:
    """One image at a time with a batch of one; else all at once, in batches of that size, one prepared and another
    encoded while the device computes a third."""
    way = functools.partial(our_labels, predictor)
    return in_batches(way, 1) if run.batch == 1 else way


def _ablations(peer: nn.Module, run: BenchmarkRun) -> dict[str, Way]:
    """Ours at the run's precision with one thing less."""
    ways: dict[str, Way] = {}
    kernels = GPU_KERNELS if run.use_gpu else CPU_KERNELS
    settings = ("cuda_graphs", "device_preparation", "device_masks", "prefetch") if run.use_gpu else ("cpu_layers",)

    def without(kernel: str, way: Way) -> Way:
        def slower(images: Sequence[Tensor]) -> Sequence[Sequence[Label]]:
            with without_kernels(kernel):
                return way(images)

        return slower

    for kernel in kernels:
        with without_kernels(kernel):  # some decide which layers a network gets
            predictor = imported_predictor(peer, run)
        ways[f"ours, {run.precision}, without our {kernel}"] = without(kernel, _ours(predictor, run))
    for setting in settings:
        predictor = imported_predictor(peer, run, changes={setting: False})
        ways[f"ours, {run.precision}, {setting} off"] = _ours(predictor, run)
    return ways


@torch.inference_mode()
def peer_labels(model: nn.Module, images: Sequence[Tensor], device: torch.device, autocast: bool = False) -> list[Any]:
    """torchvision the way its evaluation reference uses it: soft full-size masks, threshold, pycocotools."""
    arithmetic = torch.autocast(device.type, torch.bfloat16) if autocast else nullcontext()
    with arithmetic:
        outputs = model([image.to(device).float() / 255 for image in images])
    results = []
    for output in outputs:
        output = {
            name: value.float().cpu() if value.is_floating_point() else value.cpu() for name, value in output.items()
        }
        # Its one-stage models also give boxes that the image's border has cut to nothing.
        sides = output["boxes"][:, 2:] - output["boxes"][:, :2]
        output = {name: value[(sides >= _SHORTEST).all(dim=1)] for name, value in output.items()}
        labels = [
            {"category_id": category, "score": score, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            for (x1, y1, x2, y2), score, category in zip(
                output["boxes"].tolist(), output["scores"].tolist(), output["labels"].tolist(), strict=True
            )
        ]
        if "masks" in output:
            masks = (output["masks"][:, 0] > 0.5).numpy().astype(np.uint8)
            for label, mask in zip(labels, masks, strict=True):
                label["segmentation"] = pycocotools.mask.encode(np.asfortranarray(mask))
        if "keypoints" in output:
            for label, points in zip(labels, output["keypoints"].flatten(1).tolist(), strict=True):
                label["keypoints"] = points
        results.append(labels)
    return results


def our_labels(predictor: Predictor, images: Sequence[Tensor]) -> list[list[Label]]:
    """Ours, the way `jobs.label` uses it, in COCO's form.

    Raises:
        RuntimeError: an image failed.
    """
    records = predictor.predict(list(images))
    for record in records:
        if record.status != "ok":
            raise RuntimeError(f"an image failed: {record.error}")
    return [[_in_cocos_form(detection, record) for detection in record.detections] for record in records]


def _in_cocos_form(detection: DetectionRecord, record: ImageRecord) -> Label:
    label: Label = {"category_id": detection.category_id, "score": detection.score, "bbox": list(detection.bbox)}
    if detection.rle_counts is not None:
        label["segmentation"] = {"size": [record.height, record.width], "counts": detection.rle_counts.encode()}
    if detection.keypoints is not None:
        label["keypoints"] = detection.keypoints
    return label


def agreement(expected: Sequence[Sequence[Label]], detected: Sequence[Sequence[Label]]) -> float:
    """Share of the expected detections, image by image, that are among the detected ones; 1 where there are none."""
    total = same = 0
    for labels, others in zip(expected, detected, strict=True):
        total += len(labels)
        same += sum(any(_same(label, other) for other in others) for label in labels)
    return same / total if total else 1.0


def _same(one: Label, other: Label) -> bool:
    if one["category_id"] != other["category_id"]:
        return False
    if pycocotools.mask.iou([one["bbox"]], [other["bbox"]], [0])[0][0] < _SAME_BOX:
        return False
    if "segmentation" in one:
        masks = one["segmentation"], other["segmentation"]
        both_empty = not any(pycocotools.mask.area(mask) for mask in masks)
        return bool(both_empty or pycocotools.mask.iou([masks[0]], [masks[1]], [0])[0][0] >= _SAME_MASK)
    if "keypoints" in one:
        points = [np.reshape(label["keypoints"], (-1, 3))[:, :2] for label in (one, other)]
        return bool(np.median(np.abs(points[0] - points[1])) <= _SAME_POINT)
    return True


@contextmanager
def _exact_float32() -> Iterator[None]:
    """Within it float32 is float32: on a GPU torch lets convolutions round to TF32, which decides between scores that
    lie close together. The times are taken as torch is set."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _seconds(way: Way, images: Sequence[Tensor], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    way(images)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
