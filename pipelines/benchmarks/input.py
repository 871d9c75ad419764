"""The input of training: our loader beside that of torchvision's detection reference, on the same files.

Both sides read the same images in the same batches, mirrored alike, in as many processes of torch's DataLoader, one
thread each. There are two comparisons:
    for a GPU that resizes      theirs ends with images and masks in the size of the file, as its model takes them; ours
                                with images in the size of the file and masks cropped to their objects
    resized by the host         theirs with the model's transform in the same processes; ours as on a CPU
"""

import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.data.coco.dataset import CocoDataset, load_coco
from maskrcnn_core.data.dataset import CocoTrainingData
from maskrcnn_core.data.files import Folder
from maskrcnn_core.data.generated.pictures import generate_dataset
from maskrcnn_core.data.targets import TargetRule
from maskrcnn_core.training.loader import load_batches
from maskrcnn_core.training.sampler import BatchPlan
from pipelines.benchmarks.config import InputBenchmarkRun
from pipelines.benchmarks.peer import machine, write_figures
from pipelines.benchmarks.reference_loader import ReferenceData, Transformed, as_tuples
from pipelines.training.batch import packed_batch

_LEAD = 2  # batches of each process that do not count: it starts, and fills what is kept ready


@dataclass(frozen=True)
class InputWay:
    """One way from files to batches.

    Attributes:
        name: of it.
        images_per_second: median over the rounds, by the clock.
        images_per_core_second: the same by the processor time of the loader processes.
        ratio, core_ratio: how many times that of torchvision's way it is: medians of the rounds' ratios.
    """

    name: str
    images_per_second: float
    images_per_core_second: float
    ratio: float
    core_ratio: float


@dataclass(frozen=True)
class InputComparison:
    """What was measured.

    Attributes:
        ways: torchvision's and ours for a GPU that resizes, then both resized by the host.
        images: of a round.
        batch: images of a batch.
        processes: of each way.
        machine: what it ran on.
    """

    ways: tuple[InputWay, ...]
    images: int
    batch: int
    processes: int
    machine: str


@dataclass(frozen=True)
class _Timed:
    """A batch, and how much processor time its process had used when it was made."""

    batch: Any
    process: int
    seconds: float
    images: int


class _Timing:
    """A collate function that also says what its process has used."""

    def __init__(self, collate: Callable[[Sequence[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, items: Sequence[Any]) -> _Timed:
        return _Timed(self._collate(items), os.getpid(), time.process_time(), len(items))


@dataclass(frozen=True)
class _Times:
    """Images a second, by the clock and by processor time."""

    wall: float
    core: float


def benchmark_input(run: InputBenchmarkRun, progress: Callable[[str], None] = lambda line: None) -> InputComparison:
    """Measure it.

    Args:
        progress: given a line whenever a way has done a round.

    Raises:
        UserError: the images or annotations cannot be used.
    """
    processes = run.processes or max(1, len(os.sched_getaffinity(0)))
    rule = InputConfig(short_side=run.short_side, long_side=run.long_side or run.short_side * 5 // 3)
    dtype = torch.bfloat16 if run.precision == "bfloat16" else torch.float32
    with _data_of(run) as (dataset, folder):
        reference = ReferenceData(dataset, folder)
        ours, for_gpu = (
            CocoTrainingData(dataset, Folder(folder), rule, TargetRule(), resized_on_device=on_device)
            for on_device in (False, True)
        )
        packed = functools.partial(packed_batch, rule=rule, dtype=dtype)
        ways: dict[str, tuple[Any, Callable[[Sequence[Any]], Any]]] = {
            "torchvision's loader, not resized": (reference, as_tuples),
            "ours for a GPU, not resized": (for_gpu, packed),
            "torchvision's loader and transform": (reference, Transformed(rule)),
            "ours, resized": (ours, packed),
        }
        plan = BatchPlan(ours.sizes, batch_size=run.batch, seed=0, short_sides=(rule.short_side,))
        steps = -(-run.num_images // run.batch)
        rounds: list[list[_Times]] = []
        for number in range(1, run.rounds + 1):
            rounds.append([])
            for name, (data, collate) in ways.items():
                rounds[-1].append(_measured(data, collate, plan, steps, processes))
                progress(f"round {number}: {name}, {rounds[-1][-1].wall:.1f} images/s")
    result = InputComparison(
        tuple(_way(name, rounds, place) for place, name in enumerate(ways)),
        steps * run.batch,
        run.batch,
        processes,
        machine(),
    )
    write_figures(result, run.output)
    return result


@contextmanager
def _data_of(run: InputBenchmarkRun) -> Iterator[tuple[CocoDataset, str]]:
    """The annotations and the folder of the images: what was given, or generated pictures of 480 x 640 pixels."""
    if run.annotations:
        yield load_coco(run.annotations, require_masks=True, on_fault="drop"), run.images
        return
    with tempfile.TemporaryDirectory(prefix="maskrcnn-input-") as folder:
        generate_dataset(Path(folder), num_images=min(run.num_images, 64), seed=0, image_size=(480, 640))
        yield load_coco(str(Path(folder) / "annotations.json"), require_masks=True), str(Path(folder) / "images")


def _measured(
    data: Any, collate: Callable[[Sequence[Any]], Any], plan: BatchPlan, steps: int, processes: int
) -> _Times:
    """One pass of new processes over the batches; the first batches of each do not count."""
    lead = _LEAD * processes
    batches = load_batches(data, _Timing(collate), plan, stop=lead + steps, workers=processes)
    last: dict[int, float] = {}
    for timed in islice(batches, lead):
        last[timed.process] = timed.seconds
    images, used, begin = 0, 0.0, time.perf_counter()
    for timed in batches:
        used += timed.seconds - last[timed.process]
        images += timed.images
        last[timed.process] = timed.seconds
    return _Times(images / (time.perf_counter() - begin), images / used)


def _way(name: str, rounds: Sequence[Sequence[_Times]], place: int) -> InputWay:
    own, peer = [times[place] for times in rounds], [times[place // 2 * 2] for times in rounds]
    return InputWay(
        name,
        statistics.median(times.wall for times in own),
        statistics.median(times.core for times in own),
        statistics.median(one.wall / other.wall for one, other in zip(own, peer, strict=True)),
        statistics.median(one.core / other.core for one, other in zip(own, peer, strict=True)),
    )
