"""One worker's part of a training run, built: detector, optimizer, data, logs."""

import contextlib
import copy
import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
import ray.train
import ray.train.collective
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.data.coco.dataset import CocoDataset
from maskrcnn_core.data.dataset import CocoTrainingData
from maskrcnn_core.data.proposals import ProposalFiles
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.model.trained import require_weights_of
from maskrcnn_core.structures import ImageBatch
from maskrcnn_core.training.batches import BadImage
from maskrcnn_core.training.compilation import check_compiler
from maskrcnn_core.training.device_feed import feed, pixel_type
from maskrcnn_core.training.loader import load_batches
from maskrcnn_core.training.moving_average import MovingAverage
from maskrcnn_core.training.optimizer import build_optimizer
from maskrcnn_core.training.repeat_factors import dataset_repeat_factors
from maskrcnn_core.training.sampler import BatchPlan, slots_of
from maskrcnn_core.training.state import TrainingState, load_learnt_weights, load_training_state
from maskrcnn_core.weights.checkpoint import load_checkpoint
from maskrcnn_core.weights.initial import load_initial_weights
from pipelines.cluster.cpus import physical_cores, usable_cpus
from pipelines.training.augmentation import color_jitter, framing, scale_jitter
from pipelines.training.batch import Batch, packed_batch
from pipelines.training.checkpoint_saver import CheckpointSaver, clear_staging
from pipelines.training.checkpoint_store import StoredCheckpoint, newest_intact, opened
from pipelines.training.config import TrainConfig, TrainRun
from pipelines.training.datasets import target_rule, training_data, validation_data
from pipelines.training.events import (
    CheckpointPassedOver,
    CheckpointSaved,
    InitialWeightsLoaded,
    TrackerFailed,
    TrainingStarted,
)
from pipelines.training.image_files import PatientFiles
from pipelines.training.loader_processes import loader_processes
from pipelines.training.output import initial_checkpoints, require_visible, resume_uri
from pipelines.training.proposals import proposals_of
from pipelines.training.readers import remote_batches
from pipelines.training.schedule import images_per_epoch
from pipelines.training.trackers.board import TrackerBoard, open_board


@dataclass(frozen=True)
class TrainingJob:
    """The objects of one worker's run.

    Attributes:
        run: configuration.
        progress: `ProgressLog` actor.
        rank, world_size: of this worker.
        device: that it computes on.
        detector: the bare module.
        learner: the detector, wrapped to average gradients where there are several workers.
        optimizer: of the detector's parameters.
        data: training annotations.
        epoch_images: training images that an epoch shows, those with rare categories as often as they are repeated.
        validation: validation annotations; None where the run has none.
        proposals, validation_proposals: of the images of `data` and `validation`; None where the RPN makes them.
        board: trackers of the run; on rank 0 only.
        saver: of checkpoints; on rank 0 only.
        average: moving average of the detector's weights, or None.
        loaders: processes that prepare this worker's images, or actors; 0 = a thread.
    """

    run: TrainRun
    progress: Any
    rank: int
    world_size: int
    device: torch.device
    detector: Detector
    learner: nn.Module
    optimizer: torch.optim.Optimizer
    data: CocoDataset
    epoch_images: float
    validation: CocoDataset | None
    board: TrackerBoard | None
    proposals: ProposalFiles | None
    validation_proposals: ProposalFiles | None
    saver: CheckpointSaver | None
    average: MovingAverage | None
    loaders: int

    @property
    def best_weights(self) -> dict[str, Tensor]:
        """What is published and validated: the moving average, where there is one, or the weights themselves."""
        return self.detector.state_dict() if self.average is None else self.average.state_dict()

    def best_detector(self) -> Detector:
        """A copy with `best_weights`."""
        detector = copy.deepcopy(self.detector)
        detector.load_state_dict(self.best_weights)
        return detector

    def tell(self, event: Any) -> None:
        """Send an event to the driver; rank 0 only, without waiting."""
        if self.rank == 0:
            self.progress.add.remote(event)

    @property
    def slots(self) -> range:
        """This worker's places in each batch."""
        return slots_of(self.rank, self.world_size, self.run.train.images_per_step)

    def count_bad(self, step: int, bad: Sequence[BadImage]) -> None:
        """Have the bad images of a step counted.

        Raises:
            ImageError: there are too many of them.
        """
        seen = min((step + 1) * self.run.train.images_per_step, len(self.data.images))
        verdict = ray.get(self.progress.count_bad.remote(bad, seen))
        if verdict is not None:
            raise verdict

    def agree(self, decision: bool) -> bool:
        """The first worker's decision, on all of them."""
        if self.world_size == 1:
            return decision
        box = [decision]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def prepare_job(
    run: TrainRun, progress: Any, owner: str, environment: Mapping[str, str], stack: contextlib.ExitStack
) -> tuple[TrainingJob, TrainingState]:
    """Build everything from the configuration and the last checkpoint, inside a worker of Ray Train.

    Args:
        run: configuration.
        progress: `ProgressLog` actor.
        owner: proof that this process may write to the run (`output.take_over`).
        environment: variables for the trackers.
        stack: closes what has to be closed.

    Raises:
        UserError: the checkpoint, the annotations or the backbone's weights cannot be read.
    """
    require_visible(run.output)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    # Ray limits OpenMP to one thread per reserved CPU.
    threads = run.train.threads_per_worker or max(1, physical_cores() // context.get_local_world_size())
    torch.set_num_threads(threads)
    device = ray.train.torch.get_device()
    with _resumed_checkpoint(run.output, rank, progress) as checkpoint:
        detector, optimizer, start, averaged = _restore(run, rank, device, checkpoint)
        is_new = checkpoint is None
    if is_new and run.init and rank == 0:  # the others get rank 0's weights
        _load_initial(run.init, run.model, detector, progress)
    if world_size > 1:
        _broadcast(detector)
    average = _moving_average(detector, run.train.ema_decay, averaged)
    if run.train.compile:
        _compile(detector, device)
    board = _opened_board(run, start.step, environment, progress, stack) if rank == 0 else None
    data = training_data(run).dataset
    job = TrainingJob(
        run=run,
        progress=progress,
        rank=rank,
        world_size=world_size,
        device=device,
        detector=detector,
        learner=_learner(detector),
        optimizer=optimizer,
        data=data,
        epoch_images=images_per_epoch(data, run.train.repeat_threshold),
        validation=validation_data(run).dataset if run.data.val.annotations else None,
        board=board,
        proposals=proposals_of(run.data.train, "data.train"),
        validation_proposals=proposals_of(run.data.val, "data.val"),
        saver=None if board is None else _saver(run.output, owner, progress, board),
        average=average,
        loaders=loader_processes(
            run.data.workers,
            on_gpu=device.type == "cuda",
            cpus=usable_cpus(),
            workers_here=context.get_local_world_size(),
        ),
    )
    job.tell(_started(job, start, threads))
    return job, start


def _compile(detector: Detector, device: torch.device) -> None:
    check_compiler(device)
    detector.trunk.compile()
    detector.pyramid.compile()


def _load_initial(init: str, model: ModelConfig, detector: Detector, progress: Any) -> None:
    """Weights of other checkpoints in a new run's detector."""
    sources = initial_checkpoints(init)
    initial = load_initial_weights(detector, model, sources)
    progress.add.remote(
        InitialWeightsLoaded(sources, len(initial.taken), initial.fresh_parts, initial.common, initial.new)
    )


def _learner(detector: Detector) -> nn.Module:
    """The detector as it learns: on several workers their gradients are averaged."""
    # Buffers are equal from the start and stay so. The setting has another name from torch 2.13 on.
    known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    learner: nn.Module = ray.train.torch.prepare_model(
        detector, parallel_strategy_kwargs={buffers: False, "gradient_as_bucket_view": True}
    )
    return learner.train()


def _started(job: TrainingJob, start: TrainingState, threads: int) -> TrainingStarted:
    return TrainingStarted(
        start.step,
        job.run.train.steps,
        len(job.data.images),
        len(job.validation.images) if job.validation else 0,
        job.world_size,
        threads,
        job.data.faults.counts.get("object", 0),
        job.loaders,
    )


@contextlib.contextmanager
def _resumed_checkpoint(output: str, rank: int, progress: Any) -> Iterator[Path | None]:
    """The local folder of the newest checkpoint that is whole, the same one on every worker; None for a new run."""
    root = resume_uri(output)
    with contextlib.ExitStack() as stack:
        newest: tuple[StoredCheckpoint, Path] | None = None
        if rank == 0:
            clear_staging(output)
            faults: list[str] = []
            newest = stack.enter_context(newest_intact(root, faults))
            for fault in faults:
                progress.add.remote(CheckpointPassedOver(fault))
        stored = ray.train.collective.broadcast_from_rank_zero(None if newest is None else newest[0])
        if stored is not None and newest is None:
            newest = stored, stack.enter_context(opened(stored))
        yield None if newest is None else newest[1]


def _opened_board(
    run: TrainRun, step: int, environment: Mapping[str, str], progress: Any, stack: contextlib.ExitStack
) -> TrackerBoard:
    def tell(tracker: str, reason: str) -> None:
        progress.add.remote(TrackerFailed(tracker, reason))

    board = open_board(run, step, environment, tell)
    stack.callback(board.close)
    return board


def _saver(output: str, owner: str, progress: Any, board: TrackerBoard) -> CheckpointSaver:
    def saved(step: int, uri: str) -> None:
        progress.add.remote(CheckpointSaved(step, uri))
        board.store()

    return CheckpointSaver(output, owner, saved)


def _restore(
    run: TrainRun, rank: int, device: torch.device, checkpoint: Path | None
) -> tuple[Detector, torch.optim.Optimizer, TrainingState, dict[str, Tensor] | None]:
    """Detector and optimizer as they were at the checkpoint, or new ones; and the checkpoint's weights where they are
    the moving average of the detector's."""
    settings = run.train
    torch.manual_seed(settings.seed)
    # Rank 0 sends its weights to the others, so only it needs the backbone's.
    pretrained = run.model.backbone.pretrained and checkpoint is None and not run.init and rank == 0
    detector = build_detector(run.model, load_pretrained=pretrained)
    detector.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = new_optimizer(detector, settings)
    if checkpoint is None:
        return detector, optimizer, TrainingState(), None
    _, weights = load_checkpoint(checkpoint)
    learnt = load_learnt_weights(checkpoint)
    own = weights if learnt is None else learnt
    require_weights_of(detector, {name: tuple(value.shape) for name, value in own.items()}, checkpoint)
    detector.load_state_dict(own)
    return detector, optimizer, load_training_state(checkpoint, optimizer), None if learnt is None else weights


def new_optimizer(detector: Detector, settings: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer that the settings ask for, before its first step."""
    return build_optimizer(
        detector,
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        bias_decay=settings.weight_decay_bias,
        norm_decay=settings.weight_decay_norm,
        algorithm=settings.optimizer,
    )


def _moving_average(detector: nn.Module, decay: float, stored: dict[str, Tensor] | None) -> MovingAverage | None:
    if decay == 0:
        return None
    average = MovingAverage(detector, decay)
    if stored is not None:
        average.load_state_dict(stored)
    return average


def _broadcast(detector: nn.Module) -> None:
    """Give every rank the weights and buffers of rank 0."""
    for tensor in detector.state_dict().values():
        contiguous = tensor.contiguous()
        dist.broadcast(contiguous, src=0)
        tensor.copy_(contiguous)


@contextlib.contextmanager
def open_batches(job: TrainingJob, start: int) -> Iterator[Iterator[Batch[ImageBatch]]]:
    """This rank's batches from step `start` to the last, prepared in the background while the block runs, and on the
    device when they are handed out."""
    settings, model = job.run.train, job.run.model
    data = CocoTrainingData(
        job.data,
        PatientFiles(job.run.data.train.images),
        model.input,
        target_rule(job.run),
        max_pixels=job.run.data.max_pixels,
        proposals=job.proposals,
        max_proposals=model.dense.post_nms_train,
        resized_on_device=job.device.type == "cuda",
        jitter=scale_jitter(settings.augment, settings.flip_probability, model.input),
        framing=framing(settings.augment, model.input),
        colors=color_jitter(settings.augment),
    )
    plan = BatchPlan(
        data.sizes,
        batch_size=settings.images_per_step,
        seed=settings.seed,
        world_size=job.world_size,
        flip_probability=settings.flip_probability,
        short_sides=settings.short_sides or (model.input.short_side,),
        steps_per_size=settings.steps_per_size,
        aspect_ratio_factor=settings.aspect_ratio_factor,
        repeat_factors=dataset_repeat_factors(job.data, settings.repeat_threshold),
        partner_probability=settings.augment.copy_paste,
    )
    rounds = settings.precision == "bfloat16"
    collated = functools.partial(
        packed_batch,
        rule=model.input,
        dtype=pixel_type(job.device, bfloat16=rounds, rounds_input=job.detector.trunk.rounds_input),
    )
    steps: dict[str, Any] = {"rank": job.rank, "start": start, "stop": settings.steps, "on_bad": job.count_bad}
    with contextlib.ExitStack() as stack:
        if job.run.data.reader == "ray":
            batches = stack.enter_context(remote_batches(data, collated, plan, readers=job.loaders, **steps))
        else:
            batches = load_batches(data, collated, plan, workers=job.loaders, **steps)
        # What goes in packed comes out padded.
        yield stack.enter_context(contextlib.closing(cast(Any, feed(batches, job.device))))
