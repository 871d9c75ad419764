"""Gradients of a batch that is computed in pieces, equal to those of the whole batch.

A mean over what is drawn in the whole batch is no mean of the pieces' means: one piece may have three objects, another
thirty. So the pieces run forward twice. The first time, without gradients, they only count; the second time each
divides its sums by the counts of the whole. Both times they draw the same, because what is drawn for an image depends
on its seed alone.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_core.model.loss_counts import Normalizer, own_count
from maskrcnn_core.model.region_detector import RegionDetector
from maskrcnn_core.structures import ImageBatch, Proposals, Targets, map_tensors


def accumulate_gradients(
    learner: nn.Module,
    detector: RegionDetector,
    images: ImageBatch,
    targets: Targets,
    proposals: Proposals | None,
    *,
    pieces: int,
    context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> dict[str, Tensor]:
    """Forward and backward of a batch in pieces.

    Args:
        learner: the detector, or what wraps it to average gradients over processes.
        detector: whose `normalizer` says what losses are divided by. No norm in it may keep statistics of what it sees
            (`BackboneConfig.norm` sync_batch): it sees everything twice.
        targets: without seeds they get some from torch's default generator.
        pieces: at most so many, of nearly equal size.
        context: in which the forward passes run (autocast).

    Returns:
        Losses of the whole batch, detached.
    """
    if targets.seeds is None:
        targets = replace(targets, seeds=torch.randint(2**62, (len(images),)).to(targets.boxes.device))
    parts = [
        tuple(map_tensors(whole, itemgetter(rows)) for whole in (images, targets, proposals) if whole is not None)
        for rows in _cut(len(images), pieces)
    ]
    original = detector.normalizer
    counts = [_counts(detector, part, context) for part in parts]
    divisors = [original(torch.stack(column).sum()) for column in zip(*counts, strict=True)]
    losses: dict[str, Tensor] = {}
    try:
        for number, part in enumerate(parts):
            detector.normalizer = _in_turn(divisors)
            with _unsynchronised(learner, number < len(parts) - 1):
                with context():
                    own: dict[str, Tensor] = learner(*part)
                torch.stack([loss.float() for loss in own.values()]).sum().backward()
            for name, loss in own.items():
                losses[name] = losses.get(name, torch.zeros_like(loss)) + loss.detach()
    finally:
        detector.normalizer = original
    return losses


def _in_turn(divisors: Sequence[Tensor]) -> Normalizer:
    """Gives one divisor after the other, whatever the count."""
    left = iter(divisors)
    return lambda _: next(left)


def _cut(count: int, pieces: int) -> list[slice]:
    pieces = min(pieces, count)
    return [slice(piece * count // pieces, (piece + 1) * count // pieces) for piece in range(pieces)]


@torch.no_grad()
def _counts(
    detector: RegionDetector, part: Sequence[Any], context: Callable[[], contextlib.AbstractContextManager[Any]]
) -> list[Tensor]:
    """What the losses of a piece would be divided by, in the order in which they ask."""
    found: list[Tensor] = []

    def note(count: Tensor) -> Tensor:
        found.append(count)
        return own_count(count)

    original = detector.normalizer
    detector.normalizer = note
    try:
        with context():
            detector(*part)
    finally:
        detector.normalizer = original
    return found


def _unsynchronised(learner: nn.Module, wanted: bool) -> contextlib.AbstractContextManager[Any]:
    """Within it, gradients stay the process's own: they are averaged after the last piece."""
    if wanted and hasattr(learner, "no_sync"):
        found: contextlib.AbstractContextManager[Any] = learner.no_sync()  # type: ignore[operator]
        return found
    return contextlib.nullcontext()
