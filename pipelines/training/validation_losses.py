"""The training losses on validation data: where they rise while those of the training data fall, a run has learned
enough."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from maskrcnn_core.data.dataset import CocoTrainingData, Sample, TrainingItem, collate, collate_proposals
from maskrcnn_core.data.proposals import ProposalFiles
from maskrcnn_core.errors import ImageError
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.training.loader import prefetch
from maskrcnn_core.training.seeds import image_seeds
from pipelines.training.config import TrainRun
from pipelines.training.datasets import target_rule, validation_data
from pipelines.training.image_files import PatientFiles

_IMAGES = "images"


@torch.no_grad()
def sum_losses(
    detector: Detector,
    run: TrainRun,
    *,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    proposals: ProposalFiles | None = None,
) -> dict[str, float]:
    """Sums of the losses over every `world_size`-th validation image, from number `rank`, and their number `images`.

    Images are taken one by one, without augmentation; what is drawn depends on the image alone, so that two
    validations differ by the weights only. Images that cannot be read are left out.

    Args:
        detector: a copy, in place brought into evaluation mode; not in inference form.
        proposals: of the images, where the model has no RPN.
    """
    detector.eval()
    data = _data(run, proposals)
    indices = range(rank, len(data), world_size)
    sums: dict[str, float] = {_IMAGES: 0.0}
    for index, item in zip(indices, prefetch((_item(data, index, run) for index in indices), depth=2), strict=True):
        if item is None:
            continue
        images, targets, _ = collate([item], run.model.input)
        given = collate_proposals([item])
        targets = replace(targets, seeds=image_seeds(run.train.seed, 0, [index]))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=run.train.precision == "bfloat16"):
            losses = detector(images.to(device), targets.to(device), None if given is None else given.to(device))
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + float(value)
        sums[_IMAGES] += 1
    return sums


def mean_losses(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the images of all parts; empty where there are none."""
    images = sum(part.get(_IMAGES, 0.0) for part in parts)
    names = dict.fromkeys(name for part in parts for name in part if name != _IMAGES)
    return {name: sum(part.get(name, 0.0) for part in parts) / images for name in names} if images else {}


def _data(run: TrainRun, proposals: ProposalFiles | None) -> CocoTrainingData:
    model, val = run.model, run.data.val
    return CocoTrainingData(
        validation_data(run, learnt=True).dataset,
        PatientFiles(val.images),
        model.input,
        target_rule(run),
        max_pixels=run.data.max_pixels,
        proposals=proposals,
        max_proposals=model.dense.post_nms_train,
    )


def _item(data: CocoTrainingData, index: int, run: TrainRun) -> TrainingItem | None:
    try:
        return data[Sample(index=index, flip=False, short_side=run.model.input.short_side)]
    except ImageError:
        return None
