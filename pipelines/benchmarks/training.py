"""Training torchvision's `maskrcnn_resnet50_fpn` against ours: same weights, images and objects, in one run.

Both start from decoded images and masks of the whole image, as a data set gives them, at the size that the network
sees, and end with updated weights. First the losses are compared, with every anchor and region sampled so that no
chance is in them. The peer is built as torchvision builds it for fine-tuning: frozen batch norms, three trainable
stages. On a CPU single steps are timed, inputs prepared within them; on a GPU loops of steps, with loaders in the
background.
"""

import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.misc import FrozenBatchNorm2d

from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.data.coco.dataset import load_coco
from maskrcnn_core.data.decode import decode_image
from maskrcnn_core.data.generated.pictures import generate_dataset
from maskrcnn_core.data.segmentation import rasterise
from maskrcnn_core.importers.torchvision import import_torchvision
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.training.compilation import check_compiler
from maskrcnn_core.training.device_feed import pixel_type
from pipelines.benchmarks.config import BenchmarkRun
from pipelines.benchmarks.peer import PEER_NORM_EPS, machine, profile_once, use_threads, write_figures
from pipelines.benchmarks.training_loops import (
    AnnotatedImage,
    LoopTimes,
    TrainingLoop,
    Variant,
    ablations,
    our_batches,
    our_inputs,
    our_loop,
    peer_batches,
    peer_inputs,
    peer_loop,
    run_loop,
)

_PAIRS = {
    "loss_objectness": "rpn_objectness",
    "loss_rpn_box_reg": "rpn_box",
    "loss_classifier": "roi_class",
    "loss_box_reg": "roi_box",
    "loss_mask": "roi_mask",
}
_TOLERANCE = 1e-3
_EVERYTHING = 10**6
_COMPARED_IMAGES = 2  # on the CPU, with every region: more take minutes
_GPU_STEPS = 20
_MOST_LOADERS = 12
_LEAD = 3  # steps before those of a loop that count: loaders start, cuDNN chooses, memory is taken


@dataclass(frozen=True)
class TrainingWay:
    """One way to train.

    Attributes:
        name: of it.
        seconds, cpu_seconds: medians of a step over the rounds: time that passes, and that of this process's threads.
        ratio, cpu_ratio: how many times as fast it is as the first way: medians of the rounds' ratios.
        waiting: share of the time that it waited for its inputs, or prepared them; median.
        images: of all measured steps.
        peak_bytes: largest GPU memory, without what the other ways hold; 0 on a CPU.
    """

    name: str
    seconds: float
    cpu_seconds: float
    ratio: float
    cpu_ratio: float
    waiting: float
    images: int
    peak_bytes: int


@dataclass(frozen=True)
class TrainingComparison:
    """Ways to train.

    Attributes:
        ways: torchvision's first, then ours, then ours with other settings.
        losses: by our names, the peer's and ours, in float32 with everything sampled, of the first images.
        images: of a step.
        height, width: of the images, pixels.
        objects: of an image, mean.
        steps: of a round.
        loaders: processes in the background; 0 = inputs are prepared within the step.
        operators, kernels: of ours, the dearest ones and their share of the time, where a trace was written; kernels of
            a GPU only.
        machine: what it ran on.
    """

    ways: tuple[TrainingWay, ...]
    losses: dict[str, tuple[float, float]]
    images: int
    height: int
    width: int
    objects: float
    steps: int
    loaders: int
    operators: tuple[tuple[str, float], ...]
    kernels: tuple[tuple[str, float], ...]
    machine: str


def benchmark_train(run: BenchmarkRun, progress: Callable[[str], None] = lambda line: None) -> TrainingComparison:
    """Measure it on generated images. On a GPU the peer computes with autocast, as its reference script can.

    Args:
        progress: given a line whenever a way has done a round.

    Raises:
        RuntimeError: the losses differ, so that the times would compare different things.
        ConfigError: torch cannot compile here, and a way should.
    """
    use_threads(run.threads)
    device = torch.device("cuda" if run.use_gpu else "cpu")
    if run.use_gpu and run.ablate:
        check_compiler(device)
    height, width = run.short_side, run.long_side or run.short_side * 4 // 3 // 32 * 32
    images = annotated_images(run.num_images, (height, width))
    peer = training_peer(height, width)
    config, detector = training_twin(peer)
    if run.use_gpu:
        losses = compared_losses_of_small(peer, detector, config, (height // 4, width // 4))
    else:
        losses = compared_losses(peer, detector, config, images[:_COMPARED_IMAGES])
    for name, (theirs, ours) in losses.items():
        if abs(theirs - ours) > _TOLERANCE * max(abs(theirs), 1e-3):
            raise RuntimeError(f"{name}: torchvision has {theirs:.6f}, ours is {ours:.6f}; expected the same")
    ways, best = training_ways(run, peer.to(device), detector.to(device), config, images)
    lead = _LEAD if loaders_of(run) else 0
    for way in ways.values() if lead == 0 else ():  # warm-up
        run_loop(way, lead, device)
    rounds: list[list[LoopTimes]] = []
    for number in range(1, run.rounds + 1):
        rounds.append([])
        for name, way in ways.items():
            rounds[-1].append(run_loop(way, lead, device))
            progress(f"round {number}: {name}, {rounds[-1][-1].seconds:.3f} s/step")
    operators, kernels = _traced(ways[best], run.trace)
    result = TrainingComparison(
        ways=tuple(_way(name, [(times[0], times[index]) for times in rounds]) for index, name in enumerate(ways)),
        losses=losses,
        images=len(images),
        height=height,
        width=width,
        objects=statistics.mean(len(image.boxes) for image in images),
        steps=steps_of(run),
        loaders=loaders_of(run),
        operators=operators,
        kernels=kernels,
        machine=machine(device),
    )
    write_figures(result, run.output)
    return result


def steps_of(run: BenchmarkRun) -> int:
    """Steps of a round."""
    return run.steps or (_GPU_STEPS if run.use_gpu else 1)


def loaders_of(run: BenchmarkRun) -> int:
    """Processes that prepare a way's inputs in the background; 0 = none."""
    if run.loaders or not run.use_gpu:
        return run.loaders
    return min(max((os.cpu_count() or 1) - 2, 1), _MOST_LOADERS)


def training_ways(
    run: BenchmarkRun,
    peer: MaskRCNN,
    detector: Detector,
    config: ModelConfig,
    images: list[AnnotatedImage],
) -> tuple[dict[str, TrainingLoop], str]:
    """What is measured, by name, the peer first; and the name of our side at its settings."""
    device = next(detector.parameters()).device
    loaders = loaders_of(run)
    steps = steps_of(run) + (_LEAD if loaders else 0)
    title = "torchvision maskrcnn_resnet50_fpn, " + ("autocast to bfloat16" if run.use_gpu else "float32")
    theirs = peer_batches(images, steps=steps, loaders=loaders)
    ways = {title: peer_loop(peer, theirs, autocast=run.use_gpu)}
    variants = [Variant("ours, float32")]
    if run.precision == "bfloat16":
        variants.append(Variant("ours, bfloat16", bfloat16=True))
    best = variants[-1]
    if run.ablate:
        variants += ablations(best, device)
    batches = {}
    for half in (False, True):
        dtype = pixel_type(device, bfloat16=half, rounds_input=detector.trunk.rounds_input)
        batches[half] = our_batches(config, images, steps=steps, loaders=loaders, dtype=dtype)
    for variant in variants:
        ways[variant.name] = our_loop(detector, batches[variant.bfloat16], variant)
    return ways, best.name


def _way(name: str, rounds: list[tuple[LoopTimes, LoopTimes]]) -> TrainingWay:
    """Over the rounds, from the first way's times and its own."""
    return TrainingWay(
        name,
        seconds=statistics.median(own.seconds for _, own in rounds),
        cpu_seconds=statistics.median(own.cpu_seconds for _, own in rounds),
        ratio=statistics.median(first.seconds / own.seconds for first, own in rounds),
        cpu_ratio=statistics.median(first.cpu_seconds / own.cpu_seconds for first, own in rounds),
        waiting=statistics.median(own.waiting / own.seconds for _, own in rounds),
        images=sum(own.images for _, own in rounds),
        peak_bytes=max(own.peak_bytes for _, own in rounds),
    )


def _traced(way: TrainingLoop, path: str) -> tuple[tuple[tuple[str, float], ...], tuple[tuple[str, float], ...]]:
    """Operators and kernels of one step whose inputs are there; nothing where no file is named."""
    if not path:
        return (), ()
    batches = way.batches()
    batch = next(batches)
    batches.close()
    return profile_once(lambda: way.step(batch).tolist(), path)


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


def training_peer(short_side: int, long_side: int) -> MaskRCNN:
    """torchvision's model in train mode, with seeded random weights; images of these sides keep their size."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    model: MaskRCNN = MaskRCNN(backbone, 91, min_size=short_side, max_size=max(short_side * 5 // 3, long_side))
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.5, 1.0)
    return model.train()


def training_twin(peer: MaskRCNN) -> tuple[ModelConfig, Detector]:
    """Our detector with the peer's weights, in train mode."""
    config, state = import_torchvision(peer.state_dict(), norm_eps=PEER_NORM_EPS)
    config = replace(config, backbone=replace(config.backbone, frozen_stages=2))
    detector = build_detector(config, load_pretrained=False)
    detector.load_state_dict(state)
    detector.to(memory_format=torch.channels_last)
    return config, detector.train()


def compared_losses_of_small(
    peer: MaskRCNN, detector: Detector, config: ModelConfig, size: tuple[int, int]
) -> dict[str, tuple[float, float]]:
    """`compared_losses` on images of this (height, width): on the CPU of a GPU machine, whose time is dear."""
    resizing = peer.transform
    before = resizing.min_size, resizing.max_size
    resizing.min_size, resizing.max_size = (min(size),), max(size)
    try:
        return compared_losses(peer, detector, config, annotated_images(_COMPARED_IMAGES, size))
    finally:
        resizing.min_size, resizing.max_size = before


@torch.no_grad()
def compared_losses(
    peer: MaskRCNN, detector: Detector, config: ModelConfig, images: list[AnnotatedImage]
) -> dict[str, tuple[float, float]]:
    """Both sides' losses with every anchor and region sampled."""
    samplers = (peer.rpn.fg_bg_sampler, peer.roi_heads.fg_bg_sampler)
    before = [sampler.batch_size_per_image for sampler in samplers]
    everything = build_detector(_sampling_everything(config), load_pretrained=False).train()
    everything.load_state_dict(detector.state_dict())
    everything.to(next(detector.parameters()).device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        for sampler in samplers:
            sampler.batch_size_per_image = _EVERYTHING
        theirs, ours = peer(*peer_inputs(images)), everything(*our_inputs(config, images))
    finally:
        for sampler, size in zip(samplers, before, strict=True):
            sampler.batch_size_per_image = size
    return {name: (float(theirs[other]), float(ours[name])) for other, name in _PAIRS.items()}


def _sampling_everything(config: ModelConfig) -> ModelConfig:
    dense = replace(config.dense, batch_size=_EVERYTHING, positive_fraction=1.0)
    regions = replace(config.regions, batch_size=_EVERYTHING, positive_fraction=1.0)
    return replace(config, dense=dense, regions=regions)
