"""A training step of torchvision's `maskrcnn_resnet50_fpn` against ours: same weights, images and objects, in one run.

Both start from decoded images and masks of the whole image, as a data set gives them, at the size that the network
sees, and end with updated weights. First the losses are compared, with every anchor and region sampled so that no
chance is in them. The peer is built as torchvision builds it for fine-tuning: frozen batch norms, three trainable
stages.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.misc import FrozenBatchNorm2d

from maskrcnn_core.benchmark_config import BenchmarkRun
from maskrcnn_core.config import ModelConfig
from maskrcnn_core.data.coco import load_coco
from maskrcnn_core.data.decode import decode_image
from maskrcnn_core.data.generated import generate_dataset
from maskrcnn_core.data.segmentation import rasterise
from maskrcnn_core.data.targets import pad_targets, targets_from_dense
from maskrcnn_core.data.transform import pad_batch, prepare_image
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.region_detector import RegionDetector
from maskrcnn_core.structures import ImageBatch, Targets
from maskrcnn_core.training.optimizer import build_optimizer
from maskrcnn_core.training.step import training_step
from maskrcnn_core.weights.torchvision_models import import_torchvision
from pipelines.benchmarking import PEER_NORM_EPS, machine, trace_once, use_threads, write_figures

_PAIRS = {
    "loss_objectness": "rpn_objectness",
    "loss_rpn_box_reg": "rpn_box",
    "loss_classifier": "roi_class",
    "loss_box_reg": "roi_box",
    "loss_mask": "roi_mask",
}
_TOLERANCE = 1e-3
_RATE = 1e-6  # the weights stay what they are, and with them the work of a step
_EVERYTHING = 10**6


@dataclass(frozen=True)
class AnnotatedImage:
    """One image as a data set gives it: pixels [3, H, W] uint8, boxes [G, 4], labels [G] in 1 .. 90, masks
    [G, H, W]."""

    pixels: Tensor
    boxes: Tensor
    labels: Tensor
    masks: Tensor


@dataclass(frozen=True)
class TrainingWay:
    """One way to do a training step.

    Attributes:
        name: of it.
        seconds, cpu_seconds: medians of a step over the rounds: time that passes, and all threads' time.
        ratio, cpu_ratio: how many times as fast it is as the first way: medians of the rounds' ratios.
    """

    name: str
    seconds: float
    cpu_seconds: float
    ratio: float
    cpu_ratio: float


@dataclass(frozen=True)
class TrainingComparison:
    """Ways to do one training step.

    Attributes:
        ways: torchvision's first, ours last.
        losses: by our names, the peer's and ours, in float32 with everything sampled.
        images: of a step.
        operators: of ours, the dearest ones and their share of the time, where a trace was written.
        machine: what it ran on.
    """

    ways: tuple[TrainingWay, ...]
    losses: dict[str, tuple[float, float]]
    images: int
    operators: tuple[tuple[str, float], ...]
    machine: str


def benchmark_train(run: BenchmarkRun) -> TrainingComparison:
    """Measure it on generated images. On a GPU the peer computes with autocast, as its reference script can.

    Raises:
        RuntimeError: the losses differ, so that the times would compare different things.
    """
    use_threads(run.threads)
    device = torch.device("cuda" if run.use_gpu else "cpu")
    images = annotated_images(run.num_images, (run.short_side, run.short_side * 4 // 3 // 32 * 32))
    peer = training_peer(run.short_side)
    config, detector = training_twin(peer)
    losses = compared_losses(peer, detector, config, images)
    for name, (theirs, ours) in losses.items():
        if abs(theirs - ours) > _TOLERANCE * max(abs(theirs), 1e-3):
            raise RuntimeError(f"{name}: torchvision has {theirs:.6f}, ours is {ours:.6f}; expected the same")
    title = "torchvision maskrcnn_resnet50_fpn, " + ("autocast to bfloat16" if run.use_gpu else "float32")
    ways = {title: peer_step(peer.to(device), images, autocast=run.use_gpu)}
    detector.to(device)
    for precision in ("float32", "bfloat16"):
        if precision in ("float32", run.precision):
            step = our_step(detector, config, images, bfloat16=precision == "bfloat16")
            ways[f"ours, {precision}"] = step
    for way in ways.values():  # warm-up
        way()
    rounds = [[_timed(way, device) for way in ways.values()] for _ in range(run.rounds)]
    wall, cpu = ([[step[kind] for step in steps] for steps in rounds] for kind in (0, 1))
    result = TrainingComparison(
        ways=tuple(
            TrainingWay(
                name,
                statistics.median(seconds[place] for seconds in wall),
                statistics.median(seconds[place] for seconds in cpu),
                statistics.median(seconds[0] / seconds[place] for seconds in wall),
                statistics.median(seconds[0] / seconds[place] for seconds in cpu),
            )
            for place, name in enumerate(ways)
        ),
        losses=losses,
        images=len(images),
        operators=trace_once(list(ways.values())[-1], run.trace),
        machine=machine(device),
    )
    write_figures(result, run.output)
    return result


def _timed(way: Callable[[], None], device: torch.device) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    way()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def annotated_images(number: int, size: tuple[int, int]) -> list[AnnotatedImage]:
    """Generated images, all resized to (height, width)."""
    with tempfile.TemporaryDirectory() as scratch:
        generate_dataset(Path(scratch), num_images=number, seed=0, image_size=(480, 640))
        dataset = load_coco(str(Path(scratch) / "annotations.json"), require_masks=True)
        images = []
        for image in dataset.images:
            content = (Path(scratch) / "images" / image.file_name).read_bytes()
            pixels = decode_image(content, max_pixels=10**8, apply_exif=False)
            objects = [item for item in image.objects if not item.crowd and item.segmentation is not None]
            drawn = [torch.from_numpy(rasterise(o.segmentation, image.height, image.width)) for o in objects]  # type: ignore[arg-type]
            masks = torch.stack(drawn) if drawn else torch.zeros(0, image.height, image.width)
            masks = functional.interpolate(masks[None].float(), size=size, mode="nearest")[0].to(torch.uint8)
            seen = masks.flatten(1).bool().any(dim=1)
            labels = torch.tensor([item.category_id for item in objects], dtype=torch.int64)
            resized = functional.interpolate(pixels[None].float(), size=size, mode="bilinear")[0]
            images.append(AnnotatedImage(resized.to(torch.uint8), _tight_boxes(masks[seen]), labels[seen], masks[seen]))
    return images


def _tight_boxes(masks: Tensor) -> Tensor:
    boxes = torch.zeros(len(masks), 4)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
        box[:] = torch.tensor([columns[0, 0], rows[0, 0], columns[-1, 0] + 1, rows[-1, 0] + 1])
    return boxes


def training_peer(short_side: int) -> MaskRCNN:
    """torchvision's model in train mode, with seeded random weights."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    model: MaskRCNN = MaskRCNN(backbone, 91, min_size=short_side, max_size=short_side * 5 // 3)
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.5, 1.0)
    return model.train()


def training_twin(peer: MaskRCNN) -> tuple[ModelConfig, RegionDetector]:
    """Our detector with the peer's weights, in train mode."""
    config, state = import_torchvision(peer.state_dict(), norm_eps=PEER_NORM_EPS)
    config = replace(config, backbone=replace(config.backbone, frozen_stages=2))
    detector = build_detector(config, load_pretrained=False)
    detector.load_state_dict(state)
    detector.to(memory_format=torch.channels_last)
    return config, detector.train()


def our_inputs(config: ModelConfig, images: list[AnnotatedImage]) -> tuple[ImageBatch, Targets]:
    """A batch, from what the data set gives."""
    sizes = [(image.pixels.shape[1], image.pixels.shape[2]) for image in images]
    prepared = [
        prepare_image(image.pixels, size=size, mean=config.input.mean, std=config.input.std)
        for image, size in zip(images, sizes, strict=True)
    ]
    targets = [targets_from_dense(image.boxes, image.labels - 1, image.masks) for image in images]
    return pad_batch(prepared, sizes, 32), pad_targets(targets)


def _peer_inputs(
    images: list[AnnotatedImage], device: torch.device | None = None
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    named = [{"boxes": image.boxes, "labels": image.labels, "masks": image.masks} for image in images]
    targets = [{name: value.to(device) for name, value in target.items()} for target in named]
    return [image.pixels.to(device).float() / 255 for image in images], targets


@torch.no_grad()
def compared_losses(
    peer: MaskRCNN, detector: RegionDetector, config: ModelConfig, images: list[AnnotatedImage]
) -> dict[str, tuple[float, float]]:
    """Both sides' losses with every anchor and region sampled."""
    samplers = (peer.rpn.fg_bg_sampler, peer.roi_heads.fg_bg_sampler)
    before = [sampler.batch_size_per_image for sampler in samplers]
    rules = detector.rpn_loss, detector.roi_loss
    try:
        for sampler in samplers:
            sampler.batch_size_per_image = _EVERYTHING
        detector.rpn_loss = replace(rules[0], batch_size=_EVERYTHING, positive_fraction=1.0)
        detector.roi_loss = replace(rules[1], batch_size=_EVERYTHING, positive_fraction=1.0)
        theirs, ours = peer(*_peer_inputs(images)), detector(*our_inputs(config, images))
    finally:
        for sampler, size in zip(samplers, before, strict=True):
            sampler.batch_size_per_image = size
        detector.rpn_loss, detector.roi_loss = rules
    return {name: (float(theirs[other]), float(ours[name])) for other, name in _PAIRS.items()}


def peer_step(peer: MaskRCNN, images: list[AnnotatedImage], *, autocast: bool) -> Callable[[], None]:
    """A step as torchvision's reference script (references/detection/engine.py) takes it."""
    trainable = [parameter for parameter in peer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=_RATE, momentum=0.9, weight_decay=1e-4)
    device = trainable[0].device

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            losses = peer(*_peer_inputs(images, device))
            total = sum(loss for loss in losses.values())
        total.item()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    return step


def our_step(
    detector: RegionDetector, config: ModelConfig, images: list[AnnotatedImage], *, bfloat16: bool
) -> Callable[[], None]:
    """A step as `jobs.train` takes it."""
    optimizer = build_optimizer(detector, learning_rate=_RATE, momentum=0.9, weight_decay=1e-4)
    device = next(detector.parameters()).device

    def step() -> None:
        batch, targets = our_inputs(config, images)
        training_step(
            detector,
            batch.to(device),
            targets.to(device),
            optimizer,
            learning_rate=_RATE,
            with_grad_norm=True,
            skip_non_finite=True,
            bfloat16=bfloat16,
        ).losses.sum().item()

    return step
