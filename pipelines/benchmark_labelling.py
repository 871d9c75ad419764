"""Images to Parquet: `jobs.label` beside a bare loop over its predictor, and beside the way of Ray's documentation.

The latter ("Object detection batch inference" in Ray's documentation, with Mask R-CNN in place of Faster R-CNN) reads
decoded images into the object store, maps batches through a pool of one actor that holds torchvision's model, and
writes what the model returns, full-size masks included.
"""

import contextlib
import functools
import logging
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import torch

from maskrcnn_core.benchmark_config import BenchmarkRun
from maskrcnn_core.cluster_config import ClusterConfig
from maskrcnn_core.inference.predictor import load_predictor
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.label_config import LabelConfig, LabelRun
from pipelines.benchmarking import (
    contents_of,
    imported_predictor,
    long_side,
    machine,
    peer_model,
    peer_of,
    use_threads,
    write_figures,
)
from pipelines.cluster import connect
from pipelines.label_progress import LabelProgress
from pipelines.labelling import LabelSummary, label

_SAMPLE_SECONDS = 2.0  # looking is work too, and the kernel keeps the peaks
_DOCUMENTED_BATCH = 2
_LEAST_SECONDS = 2.0


@dataclass(frozen=True)
class LabellingWay:
    """One way from images to labels.

    Attributes:
        name: of the way.
        images_per_second: median of the rounds, start-up apart (`_steady_rate`).
        ratio: median of the rounds' ratios to the bare loop.
        peak_bytes: largest resident size of any of its processes; 0 where it was not watched.
        written_bytes: size of the labels; 0 where it writes none.
    """

    name: str
    images_per_second: float
    ratio: float
    peak_bytes: int
    written_bytes: int


@dataclass(frozen=True)
class LabellingComparison:
    """The ways, bare loop first, and what they had in common.

    Attributes:
        ways: bare loop, jobs.label and, without a checkpoint of one's own, the documentation's way.
        images: of a round; detections: mean per image.
        busy: share of the time in which the detector of jobs.label did not wait for images; median.
        machine: what it ran on.
    """

    ways: tuple[LabellingWay, ...]
    images: int
    detections: float
    busy: float
    machine: str


def benchmark_label(run: BenchmarkRun) -> LabellingComparison:
    """Measure the ways in turns, `run.rounds` times.

    Raises:
        StorageError: the folder has no images.
    """
    threads = use_threads(run.threads)
    device = "cuda" if run.use_gpu else "cpu"
    contents = contents_of(run)
    with tempfile.TemporaryDirectory() as scratch:
        folder, checkpoint = Path(scratch) / "images", Path(scratch) / "checkpoint"
        folder.mkdir()
        for index, content in enumerate(contents):
            (folder / f"{index:06d}.jpg").write_bytes(content)
        if run.checkpoint:
            checkpoint = Path(run.checkpoint)
            settings = PredictorSettings(device=device, precision=run.precision, apply_exif=True)
            predictor = load_predictor(run.checkpoint, settings)
        else:
            predictor = imported_predictor(peer_of(run), run, checkpoint)
        predictor.predict(contents[:1])
        rounds: list[list[float]] = []
        peaks, sizes, found = [0, 0, 0], [0, 0, 0], 0
        busy: list[float] = []
        for index in range(run.rounds):
            started = time.perf_counter()
            for file in sorted(folder.iterdir()):
                predictor.predict([file.read_bytes()])
            seconds = [time.perf_counter() - started]
            output = Path(scratch) / f"labelled{index}"
            points: list[tuple[int, float]] = []
            with _watched(peaks, 1):
                summary = label(
                    LabelRun(
                        checkpoint=str(checkpoint),
                        images=str(folder),
                        output=str(output),
                        label=LabelConfig(
                            num_workers=run.workers,
                            threads_per_worker=max(1, threads // run.workers),
                            precision=run.precision,
                            use_gpu=run.use_gpu,
                        ),
                    ),
                    functools.partial(_note, points),
                )
            _note(points, summary)
            seconds.append(len(contents) / _steady_rate(points))
            busy.append(1.0 - summary.waiting_share)
            found, sizes[1] = summary.detections, _size(output / "labels")
            if not run.checkpoint:
                documented = Path(scratch) / f"documented{index}"
                with _watched(peaks, 2):
                    seconds.append(_documented_way(run, folder, documented, threads))
                sizes[2] = _size(documented)
            rounds.append(seconds)
    names = ["bare loop over the predictor", "jobs.label"]
    if not run.checkpoint:
        names.append("Ray documentation's way, torchvision")
    ways = tuple(
        LabellingWay(
            name,
            statistics.median(len(contents) / seconds[place] for seconds in rounds),
            statistics.median(seconds[0] / seconds[place] for seconds in rounds),
            peaks[place],
            sizes[place],
        )
        for place, name in enumerate(names)
    )
    result = LabellingComparison(
        ways, len(contents), found / len(contents), statistics.median(busy), machine(torch.device(device))
    )
    write_figures(result, run.output)
    return result


class _DocumentedDetector:
    """torchvision's Mask R-CNN for `map_batches`, as the documentation writes such a class."""

    def __init__(self, short_side: int, long: int, max_detections: int, threads: int, device: str, note: str) -> None:
        torch.set_num_threads(threads)
        self._model = peer_model(short_side, long, box_detections_per_img=max_detections).to(device)
        self._device = device
        self._note = Path(note)

    @torch.inference_mode()
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if not self._note.exists():
            self._note.write_text(str(time.time()))  # the start-up ends here
        images = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in batch["image"]]
        outputs = self._model([image.to(self._device).float() / 255 for image in images])
        found = [{name: value.cpu() for name, value in output.items()} for output in outputs]
        return {
            "path": batch["path"],
            "boxes": [result["boxes"].numpy() for result in found],
            "labels": [result["labels"].numpy() for result in found],
            "scores": [result["scores"].numpy() for result in found],
            "masks": [(result["masks"][:, 0] > 0.5).numpy() for result in found],
        }


def _documented_way(run: BenchmarkRun, folder: Path, output: Path, threads: int) -> float:
    """Seconds from the first batch to the last file."""
    note = output.with_suffix(".started")
    device = "cuda" if run.use_gpu else "cpu"
    settings = (run.short_side, long_side(run), run.max_detections, threads, device, str(note))
    with connect(ClusterConfig()):
        context = ray.data.DataContext.get_current()
        shown, context.enable_progress_bars = context.enable_progress_bars, False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        try:
            ray.data.read_images(str(folder), include_paths=True, mode="RGB").map_batches(
                _DocumentedDetector,
                fn_constructor_args=settings,
                batch_size=_DOCUMENTED_BATCH,
                compute=ray.data.ActorPoolStrategy(size=1),
                num_cpus=1,
                num_gpus=int(run.use_gpu),
            ).write_parquet(str(output))
        finally:
            context.enable_progress_bars = shown
        return time.time() - float(note.read_text())


def _note(points: list[tuple[int, float]], state: LabelProgress | LabelSummary) -> None:
    """Adds how many images are done, and after how many seconds from the first batch."""
    done = state.done if isinstance(state, LabelProgress) else state.labelled_now
    if state.images_per_second > 0:
        points.append((done, done / state.images_per_second))


def _steady_rate(points: Sequence[tuple[int, float]]) -> float:
    """Images per second after the first quarter, when a new process has reached its pace and Ray has started the rest
    of its own; of all images where they were done too soon to tell."""
    total, end = points[-1]
    for done, second in points:
        if 4 * done >= total and end - second > _LEAST_SECONDS:
            return (total - done) / (end - second)
    return total / end


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.parquet"))


@contextlib.contextmanager
def _watched(peaks: list[int], place: int) -> Iterator[None]:
    """Notes the largest resident size of any process below this one that lives during the block."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(_SAMPLE_SECONDS):
            peaks[place] = max([peaks[place], *map(_peak_of, _descendants())])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _descendants() -> Sequence[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {os.getpid()})


def _peak_of(pid: int) -> int:
    """`VmHWM` of a process, bytes; 0 where it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return 0
