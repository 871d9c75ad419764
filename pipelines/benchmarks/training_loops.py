"""Training loops to be timed: torchvision's as its reference script runs it, and ours, with and without what makes it
fast.

Inputs start as decoded images and masks of the whole image in memory, as a data set gives them. They are prepared in
the foreground, within the step that needs them, or in the background by worker processes of torch's DataLoader, as both
sides do it; ours is on a GPU one batch ahead.
"""

import functools
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection import MaskRCNN

from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.data.targets import ImageTargets, pad_targets, targets_from_dense
from maskrcnn_core.data.transform import pad_batch, prepare_image
from maskrcnn_core.kernels.gpu.availability import GPU_KERNELS, Kernel, without_kernels
from maskrcnn_core.model.dense.dense_stage import DenseStage
from maskrcnn_core.model.dense.head import DenseHead, at_anchors
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.structures import DenseOutputs, ImageBatch, Targets
from maskrcnn_core.training.device_feed import feed
from maskrcnn_core.training.optimizer import build_optimizer, parameter_groups
from maskrcnn_core.training.step import training_step

_RATE = 1e-6  # the weights stay what they are, and with them the work of a step
_MOMENTUM, _DECAY = 0.9, 1e-4

OurBatch: TypeAlias = tuple[ImageBatch, Targets]
PeerBatch: TypeAlias = tuple[Sequence[Tensor], Sequence[dict[str, Tensor]]]


@dataclass(frozen=True)
class AnnotatedImage:
    """One image as a data set gives it: pixels [3, H, W] uint8, boxes [G, 4], labels [G] in 1 .. 90, masks
    [G, H, W]."""

    pixels: Tensor
    boxes: Tensor
    labels: Tensor
    masks: Tensor


@dataclass(frozen=True)
class Variant:
    """How our side trains: as `jobs.train` does, unless told otherwise.

    Attributes:
        name: of the way.
        bfloat16: the forward pass under autocast.
        channels_last: memory layout of pixels and weights.
        sampled_losses: outputs of the RPN with gradients at the sampled anchors only, not at all of them.
        fused: the optimiser's update in one kernel, which also leaves it out where a gradient is not finite; without,
            one for each operation on all weights, and the host waits to know.
        compiled: trunk and pyramid by torch.compile, as with `train.compile`.
        cudnn_search: let cuDNN try its algorithms on each new shape (`jobs.train` and torchvision's script do not).
        without: kernels that torch's and torchvision's operators stand in for (`kernels/availability.py`).
    """

    name: str
    bfloat16: bool = False
    channels_last: bool = True
    sampled_losses: bool = True
    fused: bool = True
    compiled: bool = False
    cudnn_search: bool = False
    without: str = ""


def ablations(best: Variant, device: torch.device) -> list[Variant]:
    """`best` with one optimisation less, or one more that is off by default."""
    variants = [
        replace(best, name=f"{best.name}, contiguous", channels_last=False),
        replace(best, name=f"{best.name}, RPN losses of all anchors", sampled_losses=False),
        replace(best, name=f"{best.name}, foreach optimiser", fused=False),
    ]
    if device.type == "cuda":
        kernels: list[Kernel] = [kernel for kernel in GPU_KERNELS if kernel != "masks"]
    else:
        kernels = [] if best.bfloat16 else ["winograd"]
    variants += [replace(best, name=f"{best.name}, without our {kernel}", without=kernel) for kernel in kernels]
    if device.type == "cuda":
        variants += [
            replace(best, name=f"{best.name}, trunk and pyramid compiled", compiled=True),
            replace(best, name=f"{best.name}, cuDNN's search", cudnn_search=True),
        ]
    return variants


@dataclass(frozen=True)
class TrainingLoop:
    """A way to train.

    Attributes:
        batches: those of one timed run, as the steps get them.
        step: one step on a batch; returns the losses, on the device.
        model, optimizer: what it updates.
        cudnn_search: see `Variant`.
    """

    batches: Callable[[], Generator[Any]]
    step: Callable[[Any], Tensor]
    model: nn.Module
    optimizer: torch.optim.Optimizer
    cudnn_search: bool = False

    def own_bytes(self) -> int:
        """Of weights and the optimiser's state."""
        states = (value for state in self.optimizer.state.values() for value in state.values())
        tensors = chain(self.model.parameters(), self.model.buffers(), states)
        return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))


@dataclass(frozen=True)
class LoopTimes:
    """What was measured of consecutive steps.

    Attributes:
        seconds: of a step.
        cpu_seconds: of a step, all threads of this process.
        waiting: seconds of a step until its batch was there.
        images: of all steps.
        peak_bytes: largest GPU memory of this way, without what other ways hold; 0 on a CPU.
    """

    seconds: float
    cpu_seconds: float
    waiting: float
    images: int
    peak_bytes: int


def run_loop(loop: TrainingLoop, lead: int, device: torch.device) -> LoopTimes:
    """Take a step on each batch and measure all but the first `lead` of them."""
    on_gpu = device.type == "cuda"
    of_others = torch.cuda.memory_allocated(device) - loop.own_bytes() if on_gpu else 0
    torch.backends.cudnn.benchmark = loop.cudnn_search
    with closing(loop.batches()) as batches:
        for _ in range(lead):
            loop.step(next(batches))
        if on_gpu:
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
        begin, cpu_begin, asked = time.perf_counter(), time.process_time(), time.perf_counter()
        images, waiting, losses = 0, 0.0, []
        for batch in batches:
            waiting += time.perf_counter() - asked
            losses.append(loop.step(batch))
            images += len(batch[0])
            asked = time.perf_counter()
        torch.stack(losses).tolist()
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    peak = torch.cuda.max_memory_allocated(device) - of_others if on_gpu else 0
    torch.backends.cudnn.benchmark = False
    loop.optimizer.zero_grad(set_to_none=True)  # memory for the next way
    return LoopTimes(seconds / len(losses), cpu_seconds / len(losses), waiting / len(losses), images, peak)


class OurData(Dataset[tuple[Tensor, ImageTargets]]):
    """Images and targets as `jobs.train` puts them into batches: normalised values, masks cropped to their boxes.

    Args:
        images: come over and over.
        length: items of an epoch.
    """

    def __init__(self, config: ModelConfig, images: Sequence[AnnotatedImage], length: int) -> None:
        self._input, self._images, self._length = config.input, images, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Tensor, ImageTargets]:
        image = self._images[index % len(self._images)]
        size = (image.pixels.shape[1], image.pixels.shape[2])
        pixels = prepare_image(image.pixels, size=size, mean=self._input.mean, std=self._input.std)
        return pixels, targets_from_dense(image.boxes, image.labels - 1, image.masks)


def _padded(items: Sequence[tuple[Tensor, ImageTargets]], *, dtype: torch.dtype) -> OurBatch:
    sizes = [(pixels.shape[1], pixels.shape[2]) for pixels, _ in items]
    images = pad_batch([pixels for pixels, _ in items], sizes, 32)
    return replace(images, pixels=images.pixels.to(dtype)), pad_targets([targets for _, targets in items])


def our_inputs(
    config: ModelConfig, images: Sequence[AnnotatedImage], *, dtype: torch.dtype = torch.float32
) -> OurBatch:
    """A batch on the host, from what the data set gives, its pixels of type `dtype`."""
    data = OurData(config, images, len(images))
    return _padded([data[index] for index in range(len(images))], dtype=dtype)


def our_batches(
    config: ModelConfig, images: Sequence[AnnotatedImage], *, steps: int, loaders: int, dtype: torch.dtype
) -> Callable[[], Generator[OurBatch]]:
    """The batch of `our_inputs` `steps` times, each time prepared anew, by `loaders` processes (0 = in the
    foreground)."""
    if loaders == 0:
        return lambda: (our_inputs(config, images, dtype=dtype) for _ in range(steps))
    collate = functools.partial(_padded, dtype=dtype)
    loader = _loader(OurData(config, images, steps * len(images)), collate, len(images), loaders)

    def batches() -> Generator[OurBatch]:
        yield from loader

    return batches


class PeerData(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Images and targets as torchvision's reference gives them to its loader: values 0..1, masks of the whole image.

    Args:
        images: come over and over.
        length: items of an epoch.
    """

    def __init__(self, images: Sequence[AnnotatedImage], length: int) -> None:
        self._images, self._length = images, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        image = self._images[index % len(self._images)]
        target = {"boxes": image.boxes, "labels": image.labels, "masks": image.masks}
        return image.pixels.float() / 255, target


def _zipped(items: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> PeerBatch:
    images, targets = zip(*items, strict=True)
    return images, targets


def peer_inputs(images: Sequence[AnnotatedImage]) -> PeerBatch:
    """A batch as torchvision's models take it."""
    data = PeerData(images, len(images))
    return _zipped([data[index] for index in range(len(images))])


def peer_batches(images: Sequence[AnnotatedImage], *, steps: int, loaders: int) -> Callable[[], Generator[PeerBatch]]:
    """The same batch `steps` times, each time made anew, by `loaders` processes (0 = in the foreground)."""
    if loaders == 0:
        return lambda: (peer_inputs(images) for _ in range(steps))
    loader = _loader(PeerData(images, steps * len(images)), _zipped, len(images), loaders)

    def batches() -> Generator[PeerBatch]:
        yield from loader

    return batches


def _loader(data: Dataset[Any], collate: Callable[[Any], Any], batch_size: int, loaders: int) -> DataLoader[Any]:
    """Processes that make one batch each, and start anew, in the same order, whenever it is iterated."""
    return DataLoader(
        data,
        batch_size=batch_size,
        num_workers=loaders,
        collate_fn=collate,
        persistent_workers=True,
        # One batch each kept ready, so that a timed run soon lives on what they make meanwhile.
        prefetch_factor=1,
        # A forked child could inherit a lock of one of the threads here.
        multiprocessing_context="forkserver",
    )


def peer_loop(peer: MaskRCNN, batches: Callable[[], Generator[PeerBatch]], *, autocast: bool) -> TrainingLoop:
    """Steps as torchvision's reference script (references/detection/engine.py) takes them; bfloat16 needs no scaler."""
    trainable = [parameter for parameter in peer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=_RATE, momentum=_MOMENTUM, weight_decay=_DECAY)
    device = trainable[0].device

    def step(batch: PeerBatch) -> Tensor:
        images = [image.to(device) for image in batch[0]]
        targets = [{name: value.to(device) for name, value in target.items()} for target in batch[1]]
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            losses = peer(images, targets)
            total: Tensor = sum(losses.values())
        total.item()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return torch.stack(list(losses.values())).detach()

    return TrainingLoop(batches, step, peer, optimizer)


def our_loop(detector: Detector, batches: Callable[[], Generator[OurBatch]], variant: Variant) -> TrainingLoop:
    """Steps as `jobs.train` takes them, which reads the losses now and then, here after the last step.

    The batches are those of the host, which `feed` takes to the device; one step takes a batch from wherever it is.
    """
    detector = _changed(detector, variant)
    if variant.fused:
        optimizer = build_optimizer(detector, learning_rate=_RATE, momentum=_MOMENTUM, weight_decay=_DECAY)
    else:
        groups = parameter_groups(detector, _DECAY)
        optimizer = torch.optim.SGD(groups, lr=_RATE, momentum=_MOMENTUM, foreach=True)
    device = next(detector.parameters()).device

    def step(batch: OurBatch) -> Tensor:
        images, targets = batch[0].to(device), batch[1].to(device)
        if not variant.channels_last:
            images = replace(images, pixels=images.pixels.contiguous())
        with without_kernels(variant.without) if variant.without else nullcontext():
            return training_step(
                detector,
                images,
                targets,
                optimizer,
                learning_rate=_RATE,
                with_grad_norm=True,
                skip_non_finite=True,
                bfloat16=variant.bfloat16,
            ).losses

    return TrainingLoop(lambda: feed(batches(), device), step, detector, optimizer, variant.cudnn_search)


def _changed(detector: Detector, variant: Variant) -> Detector:
    """The detector of a variant: the same, or a copy where it differs."""
    if variant.channels_last and variant.sampled_losses and not variant.compiled:
        return detector
    detector = deepcopy(detector)
    if not variant.channels_last:
        detector.to(memory_format=torch.contiguous_format)
    if not variant.sampled_losses:
        detector = Detector(detector.trunk, detector.pyramid, _every_anchor(detector.dense), detector.regions).train()
    if variant.compiled:
        detector.trunk.compile()
        detector.pyramid.compile()
    return detector


def _every_anchor(stage: DenseStage | None) -> DenseStage:
    assert stage is not None
    return DenseStage(EveryAnchorHead(stage.head), stage.anchors, stage.coding, stage.loss, stage.rules)


class EveryAnchorHead(nn.Module):
    """A dense head that computes all anchors once, with gradients: losses and proposals share its outputs."""

    def __init__(self, head: DenseHead) -> None:
        super().__init__()
        self.head = head
        self._outputs: DenseOutputs | None = None

    def at(self, maps: Sequence[Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
        """As `DenseHead.at`, from the outputs of all anchors."""
        self._outputs = self.head(maps)
        return at_anchors(self._outputs, index)

    def forward(self, maps: Sequence[Tensor]) -> DenseOutputs:
        """As of any dense head: what `at` has just computed."""
        assert self._outputs is not None
        outputs, self._outputs = self._outputs, None
        return outputs
