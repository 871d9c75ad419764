"""Detection recorded once for each shape of batch and replayed as one launch (CUDA graphs).

A detector is some thousand kernels. At one image a batch the host needs longer to launch them than the device to run
them; replayed, they cost one launch. Recording needs what `fixed_size` detection has anyway: no shape that depends on
data and nothing that waits for the device. Replays overwrite each other's memory, so what comes out is copied.

Threads may share a detector. All recordings lie in one memory, so one thread at a time launches a replay, and where
threads have streams of their own, each replay waits on the device for the copies of the one before.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from maskrcnn_core.structures import Detections, ImageBatch, map_tensors, tensors_of

_LOGGER = logging.getLogger(__name__)

MOST_SHAPES = 32
"""Recordings that are kept. All use the same memory, as much as the largest batch needs."""

# A recording costs as much time as some twenty replays save; batches that are not full come in many sizes.
_SEEN_BEFORE = 3

Compute = Callable[[ImageBatch], Detections]


class Recording(Protocol):
    """What replays a computation on inputs of the shape it was recorded with."""

    def __call__(self, images: ImageBatch, /) -> Detections:
        """The results, in memory of their own."""
        ...


class CapturedByShape:
    """`compute`, recorded for the first `most_shapes` shapes that come a fourth time; as it is for any other.

    A shape that cannot be recorded (an operator that waits for the device) is computed as it is, and the log says so.
    May be called by several threads; those whose batches are not recorded do not wait for each other.

    Args:
        compute: of a batch on a CUDA device; no result depends on an earlier call.
        kept_alive: what `compute` reads beside its argument and might replace later, such as cached anchors; asked for
            after each recording, which holds on to it.
        record: makes a recording; another one for tests.
    """

    def __init__(
        self,
        compute: Compute,
        kept_alive: Callable[[], object] = lambda: None,
        most_shapes: int = MOST_SHAPES,
        record: Callable[[Compute, ImageBatch], Recording] | None = None,
    ) -> None:
        self._compute, self._kept_alive, self._most_shapes = compute, kept_alive, most_shapes
        self._record = record or _record_in_common_memory()
        self._seen: Counter[tuple[object, ...]] = Counter()
        # None: the shape could not be recorded.
        self._recordings: dict[tuple[object, ...], tuple[Recording | None, object]] = {}
        self._one_at_a_time = threading.Lock()

    def __call__(self, images: ImageBatch) -> Detections:
        """What `compute` makes of the images."""
        with self._one_at_a_time:
            recording = self._recording_for(images)
            if recording is not None:
                return recording(images)
        return self._compute(images)

    def _recording_for(self, images: ImageBatch) -> Recording | None:
        """The recording of the batch's shape, made if it is time to; None = there is none."""
        shape = (*images.pixels.shape, images.pixels.dtype)
        if shape not in self._recordings:
            self._seen[shape] += 1
            if self._seen[shape] <= _SEEN_BEFORE or len(self._recordings) >= self._most_shapes:
                return None
            recording = None
            try:
                recording = self._record(self._compute, images)
            except RuntimeError as error:
                _LOGGER.warning("batches of %s are not recorded as a CUDA graph: %s", list(shape[:-1]), error)
            self._recordings[shape] = recording, self._kept_alive()
        return self._recordings[shape][0]


@dataclass
class _CommonMemory:
    """What all recordings compute in.

    Attributes:
        pool: of the device's memory; made with the first recording.
        read: recorded when the outputs of the last replay have been copied.
    """

    pool: Any = None
    read: torch.cuda.Event | None = None


def _record_in_common_memory() -> Callable[[Compute, ImageBatch], Recording]:
    """Records into one pool of memory: recordings are never replayed at the same time."""
    memory = _CommonMemory()

    def record(compute: Compute, images: ImageBatch) -> Recording:
        if memory.pool is None:
            memory.pool = torch.cuda.graph_pool_handle()
        return _Graph(compute, images, memory)

    return record


class _Graph:
    """A CUDA graph of `compute` for inputs of one shape."""

    def __init__(self, compute: Compute, images: ImageBatch, memory: _CommonMemory) -> None:
        self._memory = memory
        self._inputs = map_tensors(images, Tensor.clone)
        self._graph = torch.cuda.CUDAGraph()
        device = images.pixels.device
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            compute(self._inputs)  # libraries make their workspaces for this stream
        torch.cuda.current_stream(device).wait_stream(aside)
        # Other threads (pinned memory of the next batch) may go on meanwhile.
        with torch.cuda.graph(self._graph, pool=memory.pool, stream=aside, capture_error_mode="thread_local"):
            self._outputs = compute(self._inputs)

    def __call__(self, images: ImageBatch) -> Detections:
        stream = torch.cuda.current_stream(images.pixels.device)
        if self._memory.read is not None:
            stream.wait_event(self._memory.read)
        given = tensors_of(images)
        for name, recorded in tensors_of(self._inputs).items():
            recorded.copy_(given[name], non_blocking=True)
        self._graph.replay()
        detections = map_tensors(self._outputs, Tensor.clone)
        self._memory.read = stream.record_event()
        return detections
