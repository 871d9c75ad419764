"""What the benchmarks of speed share: the peer with random weights, ours with the same, images, the machine."""

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import (
    KeypointRCNN,
    MaskRCNN,
    keypointrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn,
)

from maskrcnn_core.data.generated.pictures import generate_dataset
from maskrcnn_core.errors import StorageError
from maskrcnn_core.importers.torchvision import import_torchvision
from maskrcnn_core.importers.torchvision_one_stage import import_torchvision_one_stage
from maskrcnn_core.inference.predictor import Predictor
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.weights.checkpoint import save_checkpoint
from pipelines.benchmarks.config import BenchmarkRun
from pipelines.benchmarks.one_stage_peer import one_stage_model

PEER_NORM_EPS = 1e-5  # of torch's BatchNorm2d, which torchvision builds where no released weights are loaded
_LONG_PER_SHORT = 5 / 3
Kind = Literal["masks", "keypoints"]
Shares: TypeAlias = tuple[tuple[str, float], ...]
_SHOWN_OPERATORS = 10
_GPU_CALLS = 5
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")


def machine(device: torch.device | None = None) -> str:
    """Processor, threads and versions, and the GPU where that computes, for the record of a measurement."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    gpu = f"{torch.cuda.get_device_name(device)}; " if device is not None and device.type == "cuda" else ""
    return (
        f"{gpu}{model}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}"
    )


def use_threads(threads: int) -> int:
    """The number of threads, all cores for 0, set for torch in this process."""
    threads = threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    return threads


def peer_model(
    short_side: int, long_side: int, seed: int = 0, kind: Kind = "masks", **settings: object
) -> MaskRCNN | KeypointRCNN:
    """torchvision's `maskrcnn_resnet50_fpn` or `keypointrcnn_resnet50_fpn` with seeded random weights that behave like
    trained ones.

    Batch-norm statistics are perturbed and the logits scaled, so that there are many confident detections.

    Args:
        short_side, long_side: limits of its resizing, pixels.
        kind: masks of COCO's 90 classes, or keypoints of people.
        settings: further arguments of torchvision's `MaskRCNN` or `KeypointRCNN`.
    """
    torch.manual_seed(seed)
    build = maskrcnn_resnet50_fpn if kind == "masks" else keypointrcnn_resnet50_fpn
    classes = {"masks": 91, "keypoints": 2}[kind]
    model: MaskRCNN | KeypointRCNN = build(
        weights=None, weights_backbone=None, num_classes=classes, min_size=short_side, max_size=long_side, **settings
    )
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.0)
                module.bias.normal_(0, 0.1)
        model.rpn.head.cls_logits.weight.mul_(8.0)
        model.rpn.head.bbox_pred.weight.mul_(5.0)
        model.roi_heads.box_predictor.cls_score.weight.mul_(30.0)
        model.roi_heads.box_predictor.bbox_pred.weight.mul_(5.0)
        if kind == "masks":
            model.roi_heads.mask_predictor.mask_fcn_logits.weight.mul_(5.0)
        else:
            model.roi_heads.keypoint_predictor.kps_score_lowres.weight.mul_(10.0)
    return model.eval()


def peer_name(run: BenchmarkRun) -> str:
    """torchvision's name of the model that the run asks for."""
    return {"masks": "maskrcnn", "keypoints": "keypointrcnn"}.get(run.model, run.model) + "_resnet50_fpn"


def peer_of(run: BenchmarkRun) -> nn.Module:
    """The peer at the size that the run asks for."""
    sides = run.short_side, long_side(run)
    if run.model == "retinanet":
        return one_stage_model("retinanet_resnet50_fpn", *sides, detections_per_img=run.max_detections)
    if run.model == "fcos":
        return one_stage_model("fcos_resnet50_fpn", *sides, detections_per_img=run.max_detections)
    peer: nn.Module = peer_model(*sides, kind=run.model, box_detections_per_img=run.max_detections)
    return peer


def long_side(run: BenchmarkRun) -> int:
    """Limit of the input's long side, pixels."""
    return run.long_side or int(run.short_side * _LONG_PER_SHORT)


def imported_predictor(
    peer: nn.Module,
    run: BenchmarkRun,
    checkpoint: Path | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Predictor:
    """Our detector with the peer's weights, saved as a checkpoint too where one is named.

    Args:
        changes: of `settings_of(run)`.
    """
    read = import_torchvision_one_stage if run.model in ("retinanet", "fcos") else import_torchvision
    config, state = read(peer.state_dict(), norm_eps=PEER_NORM_EPS)
    sides = replace(config.input, short_side=run.short_side, long_side=long_side(run))
    config = replace(config.with_detection(max_detections=run.max_detections), input=sides)
    if checkpoint is not None:
        save_checkpoint(checkpoint, state, config)
    detector = build_detector(config, load_pretrained=False)
    detector.load_state_dict(state)
    return Predictor(detector, config, replace(settings_of(run), **(changes or {})))


def contents_of(run: BenchmarkRun) -> list[bytes]:
    """Encoded images: the first of the folder by name, or generated ones of 640 x 480 or so."""
    if run.images is None:
        with tempfile.TemporaryDirectory() as scratch:
            generate_dataset(Path(scratch) / "set", num_images=run.num_images, seed=0, image_size=(480, 640))
            return [file.read_bytes() for file in sorted((Path(scratch) / "set" / "images").iterdir())]
    folder = Path(run.images)
    files = sorted(f for f in folder.glob("*") if f.suffix.lower() in _IMAGE_ENDINGS) if folder.is_dir() else []
    if not files:
        raise StorageError(f"{run.images}: no images with {', '.join(_IMAGE_ENDINGS)}; expected a folder of images")
    return [file.read_bytes() for file in files[: run.num_images]]


def brought_to(image: Tensor, size: tuple[int, int]) -> Tensor:
    """[3, H, W] uint8 at another (height, width), so that the network's input has one size for all images."""
    return functional.interpolate(image[None].float(), size=size, mode="bilinear")[0].round().to(torch.uint8)


def settings_of(run: BenchmarkRun) -> PredictorSettings:
    """How our side runs."""
    area = _padded(long_side(run)) * _padded(run.short_side if run.long_side else long_side(run))
    return PredictorSettings(
        device="cuda" if run.use_gpu else "cpu",
        precision=run.precision,
        apply_exif=False,
        # A batch is what the run says: exactly where all images have one size, else at least.
        batch_pixels=run.batch * area,
    )


def arithmetic_rate(device: torch.device, dtype: torch.dtype, rounds: int = 7) -> float:
    """Floating-point operations per second, the best of some rounds of a large matrix product and of a wide 3x3
    convolution, which can come from different libraries. A GPU needs larger ones to reach its rate."""
    on_gpu = device.type == "cuda"
    side = 8192 if on_gpu else 2048
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = 2.0 * side**3 / _best(lambda: one @ other, device, rounds)
    count, width, *area = (16, 256, 200, 336) if on_gpu else (8, 512, 28, 28)
    image = torch.randn(count, width, *area, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    kernel = torch.randn(width, width, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    flops = 2.0 * count * area[0] * area[1] * width * width * 9
    return max(product, flops / _best(lambda: functional.conv2d(image, kernel, padding=1), device, rounds))


def copy_rate(device: torch.device, rounds: int = 7) -> float:
    """Bytes read and written per second while copying: the best of some rounds."""
    megabytes = 1024 if device.type == "cuda" else 256
    source = torch.ones(megabytes << 18, device=device)
    target = torch.empty_like(source)
    return 2.0 * source.nbytes / _best(lambda: target.copy_(source), device, rounds)


def _best(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Seconds of a call, in the best of some rounds; on a GPU of several calls each, as starting one takes a while."""
    calls = _GPU_CALLS if device.type == "cuda" else 1

    def in_a_row() -> None:
        for _ in range(calls):
            work()

    return min(seconds_of(in_a_row, device) for _ in range(rounds)) / calls


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Until all that a call starts on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _padded(side: int) -> int:
    return -(-side // 32) * 32


def write_figures(result: Any, output: str) -> None:
    """All figures of a measurement as JSON, where a file is named."""
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(json.dumps(asdict(result), indent=2) + "\n")


def trace_once(work: Callable[[], object], path: str) -> Shares:
    """Write a Chrome trace of one call, and return its dearest operators.

    Returns:
        Name and share of the operators' own time, the ten largest; nothing where no file is named.
    """
    return profile_once(work, path)[0] if path else ()


def profile_once(work: Callable[[], object], path: str) -> tuple[Shares, Shares]:
    """Write a Chrome trace of one call, and return its dearest operators and, on a GPU, kernels.

    Args:
        work: waits for the device before it returns.

    Returns:
        The ten largest operators, and the ten largest kernels: name and share of the own time of all (on a GPU an
        operator's own time is that of its kernels).
    """
    with torch.profiler.profile() as profile:
        work()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    profile.export_chrome_trace(path)
    events = profile.key_averages()
    # Kernels are events of their own; each is counted in the operator that launched it, too.
    on_cpu = [event for event in events if event.device_type.name == "CPU"]
    kernels = [event for event in events if event.device_type.name == "CUDA" and not event.is_user_annotation]
    on_gpu = any(event.self_device_time_total for event in on_cpu)
    own = {event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total for event in on_cpu}
    return _largest(own), _largest({event.key: event.self_device_time_total for event in kernels})


def _largest(times: Mapping[str, float]) -> Shares:
    total = sum(times.values()) or 1.0
    largest = sorted(times.items(), key=lambda item: item[1], reverse=True)[:_SHOWN_OPERATORS]
    return tuple((name, time / total) for name, time in largest)
