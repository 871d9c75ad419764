"""What a training step of a preset costs in processor time, and how many steps a budget buys.

Systems are compared after equal processor time, not after equal steps: a step of one may cost ten of another's. Wall
time says nothing on a machine that has other work as well.
"""

import math
import statistics
import time
from dataclasses import dataclass, replace

import torch

from maskrcnn_core.model.build import build_detector
from maskrcnn_core.training.step import seed_step, training_step
from pipelines.benchmarks.landscape_config import StepCostRun
from pipelines.training.config import TrainRun
from pipelines.training.datasets import training_data
from pipelines.training.job import TrainingJob, new_optimizer, open_batches
from pipelines.training.proposals import proposals_of

_WARM_UP = 2  # steps: memory is taken, files are read for the first time


@dataclass(frozen=True)
class StepCost:
    """What training costs.

    Attributes:
        seconds: processor time of a step with its images, all threads; mean.
        images: of a step.
        steps: that a budget buys; at least 1.
    """

    seconds: float
    images: int
    steps: int


def benchmark_steps(run: StepCostRun) -> StepCost:
    """Take some steps here, without Ray, and throw them away.

    Args:
        run: with `data.train`; what it says of workers and machines does not matter.

    Raises:
        UserError: settings, annotations or images cannot be used.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(run.threads)
    try:
        training = TrainRun("nowhere", model=run.model, data=run.data, train=run.train)
        seconds = _step_seconds(training, _WARM_UP + run.measured)[_WARM_UP:]
    finally:
        torch.set_num_threads(before)
    mean = statistics.mean(seconds)
    return StepCost(mean, run.train.images_per_step, max(1, math.floor(run.seconds / mean)))


def _step_seconds(run: TrainRun, steps: int) -> list[float]:
    """Processor time of each of some steps."""
    job = _job_here(run, steps)
    settings, seconds = job.run.train, []
    with open_batches(job, 0) as batches:
        started = time.process_time()
        for step, batch in enumerate(batches):
            seed_step(settings.seed, step, rank=0)
            training_step(
                job.learner,
                batch.images,
                batch.targets,
                job.optimizer,
                learning_rate=settings.learning_rate * settings.warmup_factor,
                clip_norm=settings.clip_norm,
                bfloat16=settings.precision == "bfloat16",
                skip_non_finite=True,
                proposals=batch.proposals,
            )
            now = time.process_time()
            seconds.append(now - started)
            started = now
    return seconds


def _job_here(run: TrainRun, steps: int) -> TrainingJob:
    """A worker's objects without those that report, save and validate."""
    data = training_data(run, fresh=True).dataset
    model = replace(run.model, categories=data.categories)
    run = replace(run, model=model, train=replace(run.train, steps=steps, epochs=0.0))
    torch.manual_seed(run.train.seed)
    detector = build_detector(model, load_pretrained=False)
    detector.to(memory_format=torch.channels_last)
    return TrainingJob(
        run=run,
        progress=None,
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
        detector=detector,
        learner=detector.train(),
        optimizer=new_optimizer(detector, run.train),
        data=data,
        epoch_images=float(len(data.images)),
        validation=None,
        board=None,
        proposals=proposals_of(run.data.train, "data.train"),
        validation_proposals=None,
        saver=None,
        average=None,
        loaders=0,
    )
