"""The schedule of a run in steps, from what was asked for in epochs and shares of the run.

It is worked out once, where the run starts, from the number of images; from there on only steps are known. So a run of
epochs learns the same bits as the run of steps that it comes to.
"""

import math
from dataclasses import replace

from maskrcnn_core.data.coco.dataset import CocoDataset
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.training.repeat_factors import dataset_repeat_factors
from pipelines.training.config import TrainConfig

_ROUNDING = 1e-9


def images_per_epoch(dataset: CocoDataset, repeat_threshold: float) -> float:
    """Images that an epoch shows, on average: all, and those with rare categories as often as they are repeated."""
    factors = dataset_repeat_factors(dataset, repeat_threshold)
    return float(len(dataset.images)) if factors is None else float(factors.sum())


def schedule_in_steps(settings: TrainConfig, epoch_images: float) -> TrainConfig:
    """The same settings with the steps that their epochs and shares come to; what was asked for stays beside them.

    Args:
        settings: as they were given; the batch size is a number.
        epoch_images: images that an epoch shows (`images_per_epoch`).

    Raises:
        ConfigError: the run would be longer than `train.steps` may be.
    """
    steps = settings.steps
    if settings.epochs:
        steps = max(1, math.ceil(settings.epochs * epoch_images / settings.images_per_step - _ROUNDING))
    warmup_steps, decay_steps, validate_every = settings.warmup_steps, settings.decay_steps, settings.validate_every
    if settings.warmup_share:
        warmup_steps = min(round(settings.warmup_share * steps), steps - 1)
    if settings.decay_shares:
        decay_steps = tuple(sorted({round(share * steps) for share in settings.decay_shares}))
    if settings.validations:
        validate_every = math.ceil(steps / settings.validations)
    return replace(
        settings, steps=steps, warmup_steps=warmup_steps, decay_steps=decay_steps, validate_every=validate_every
    )


def require_end_of_warmup(settings: TrainConfig) -> None:
    """Make sure that a run gets beyond its warm-up.

    Raises:
        ConfigError: it would end before; says how far the learning rate would come.
    """
    steps, warmup = settings.steps, settings.warmup_steps
    if warmup < steps:
        return
    reached = settings.warmup_factor + (1 - settings.warmup_factor) * (steps - 1) / warmup
    raise ConfigError(
        f"train.warmup_steps: the {warmup:,} steps of warm-up are not over at the end of {steps:,} steps, and the "
        f"learning rate reaches {reached:.0%} of its peak; expected fewer: set train.warmup_share, for example to 0.05"
    )


def schedule_remarks(settings: TrainConfig) -> tuple[str, ...]:
    """What is odd about when the learning rate of a run falls, and how to mend it."""
    late = [step for step in settings.decay_steps if step >= settings.steps] if settings.schedule == "step" else []
    if not late:
        return ()
    beyond = f"train.decay_steps {late} are beyond the end of {settings.steps} steps"
    if len(late) < len(settings.decay_steps):
        return (beyond,)
    return (
        f"the learning rate never falls: {beyond}; set --train.decay_shares, for example to 0.67 and 0.89 of the run: "
        "'[0.67,0.89]'",
    )
