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
from maskrcnn_core.structures import ImageBatch, Proposals, Targets, map_tensors


def accumulate_gradients(
    learner: nn.Module,
    images: ImageBatch,
    targets: Targets,
    proposals: Proposals | None,
    *,
    pieces: int,
    count: Normalizer = own_count,
    context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> dict[str, Tensor]:
    """Forward and backward of a batch in pieces.

    Args:
        learner: the detector, or what wraps it to average gradients over processes. No norm in it may keep statistics
            of what it sees (`BackboneConfig.norm` sync_batch): it sees everything twice.
        targets: without seeds they get some from torch's default generator.
        pieces: at most so many, of nearly equal size.
        count: what sums over the whole batch are divided by.
        context: in which the forward passes run (autocast).

    Returns:
        Losses of the whole batch, detached.
    """
    if targets.seeds is None:
        targets = replace(targets, seeds=torch.randint(2**62, (len(images),)).to(targets.boxes.device))
    # Each piece has its rows of every tensor.
    parts = [
        tuple(map_tensors(whole, itemgetter(rows)) for whole in (images, targets, proposals) if whole is not None)
        for rows in _cut(len(images), pieces)
    ]
    # First what each piece would be divided by, then the divisors of the whole batch.
    counts = [_counts(learner, part, context) for part in parts]
    divisors = count(torch.stack(counts).sum(dim=0))
    # Gradients of the pieces add up in the parameters; the last piece averages them over the processes.
    losses: dict[str, Tensor] = {}
    for number, part in enumerate(parts):
        with _unsynchronised(learner, number < len(parts) - 1):
            with context():
                own: dict[str, Tensor] = learner(*part, count=lambda _: divisors)
            torch.stack([loss.float() for loss in own.values()]).sum().backward()
        # Their losses add up likewise, as each is already divided by the counts of the whole.
        for name, loss in own.items():
            losses[name] = losses.get(name, torch.zeros_like(loss)) + loss.detach()
    return losses


def _cut(count: int, pieces: int) -> list[slice]:
    pieces = min(pieces, count)
    return [slice(piece * count // pieces, (piece + 1) * count // pieces) for piece in range(pieces)]


@torch.no_grad()
def _counts(
    learner: nn.Module, part: Sequence[Any], context: Callable[[], contextlib.AbstractContextManager[Any]]
) -> Tensor:
    """What the losses of a piece would be divided by, [L] in their order."""
    bare = learner.module if isinstance(learner, nn.parallel.DistributedDataParallel) else learner
    asked: list[Tensor] = []

    def noted(counts: Tensor) -> Tensor:
        asked.append(counts)
        return own_count(counts)

    with context():
        bare(*part, count=noted)
    return asked[0]


def _unsynchronised(learner: nn.Module, wanted: bool) -> contextlib.AbstractContextManager[Any]:
    """Within it, gradients stay the process's own: they are averaged after the last piece."""
    if wanted and hasattr(learner, "no_sync"):
        no_sync: contextlib.AbstractContextManager[Any] = learner.no_sync()  # type: ignore[operator]
        return no_sync
    return contextlib.nullcontext()
