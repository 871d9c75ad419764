"""Batches on the device before the step that needs them: while the network learns from one, the next is copied.

batches     of the loader's processes, in their shared memory
feed        a thread      into page-locked memory, from which the GPU copies by itself on a stream of its own
the caller                takes a step; its stream, not the host, waits until the copy has arrived
"""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, is_dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from maskrcnn_core.data.prefetch import close
from maskrcnn_core.structures import map_tensors, tensors_of

_Item = TypeVar("_Item")
_Batch = TypeVar("_Batch", bound=tuple[Any, ...])


def pixel_type(device: torch.device, *, bfloat16: bool, rounds_input: bool) -> torch.dtype:
    """What the host should write a batch's pixels in: half the bytes, wherever no result depends on it.

    Under autocast to bfloat16 a first layer that is a convolution rounds its input, to the nearest value as the host
    does.

    Args:
        bfloat16: the network runs under autocast.
        rounds_input: the trunk's first layer is one (`Trunk`).
    """
    return torch.bfloat16 if bfloat16 and rounds_input and device.type == "cuda" else torch.float32


def feed(batches: Iterator[_Batch], device: torch.device) -> Generator[_Batch]:
    """The same batches on the device, in order.

    On a GPU a thread copies the next batch while the caller works on the one that it has, as `one_ahead` does. On a CPU
    a batch is made ready when it is asked for. Closing the generator closes `batches`, too.

    Args:
        batches: tuples, named or not, on the host, of dataclasses with tensors and a method `to(device)`: those of
            `structures`, or `PackedInputs`, which arrive as an `ImageBatch`; what else is in them (None, image ids)
            stays as it is.
        device: that the caller computes on, on the stream that is current where it asks for a batch.
    """
    try:
        if device.type == "cpu":
            for batch in batches:
                yield _with_each(batch, lambda part: part.to(device))
            return
        with closing(one_ahead(_copies(batches, device))) as copies:
            for copy in copies:
                yield copy.on_stream(torch.cuda.current_stream(device))
    finally:
        close(batches)


def one_ahead(items: Iterator[_Item]) -> Generator[_Item]:
    """The same items; a background thread makes the next one, and no more, while the caller has the one before.

    An exception of `items` is raised here, at its place in the order. Closing the generator waits for the item that is
    being made, ends the thread and closes `items`, where that is a generator.
    """
    try:
        with ThreadPoolExecutor(1, "feed") as thread:
            coming = thread.submit(_taken, items)
            while taken := coming.result():
                coming = thread.submit(_taken, items)
                yield taken[0]
    finally:
        close(items)


def _taken(items: Iterator[_Item]) -> list[_Item]:
    """The next item, or nothing after the last."""
    return list(islice(items, 1))


@dataclass(frozen=True)
class _Copy(Generic[_Batch]):
    """A batch on its way.

    Attributes:
        batch: on the device.
        arrived: recorded after the last of it.
    """

    batch: _Batch
    arrived: torch.cuda.Event

    def on_stream(self, stream: torch.cuda.Stream) -> _Batch:
        """The batch, for work on the stream, which waits for it."""
        stream.wait_event(self.arrived)
        for part in self.batch:
            for tensor in tensors_of(part).values() if is_dataclass(part) else ():
                # Its memory is the copying stream's, which would give it to a later batch while this stream reads.
                tensor.record_stream(stream)
        return self.batch


def _copies(batches: Iterator[_Batch], device: torch.device) -> Generator[_Copy[_Batch]]:
    """The batches, each with its copy to a GPU begun."""
    stream = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(stream):  # which sets the device, too, in the thread that this runs in
            locked = _with_each(batch, lambda part: map_tensors(part, Tensor.pin_memory))
            copied = _with_each(locked, lambda part: part.to(device))
            arrived = torch.cuda.Event()
            arrived.record(stream)
        yield _Copy(copied, arrived)
        arrived.synchronize()  # so long the GPU reads what is locked; by now it hardly ever does


def _with_each(batch: _Batch, change: Callable[[Any], Any]) -> _Batch:
    """The tuple with each dataclass in it changed."""
    parts = [change(part) if is_dataclass(part) else part for part in batch]
    make: Any = getattr(batch, "_make", tuple)
    made: _Batch = make(parts)
    return made
