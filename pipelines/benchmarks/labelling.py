"""Images to Parquet: `jobs.label` beside a bare loop over its predictor, and beside the way of Ray's documentation.

The latter ("Object detection batch inference" in Ray's documentation, with Mask R-CNN in place of Faster R-CNN) reads
decoded images into the object store, maps batches through a pool of one actor that holds torchvision's model, and
writes what the model returns, full-size masks included. It is so much slower on a GPU that it gets only some of the
images there.
"""

import contextlib
import functools
import itertools
import logging
import os
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import torch

from maskrcnn_core.inference.predictor import Predictor, load_predictor
from maskrcnn_core.inference.settings import PredictorSettings
from pipelines.benchmarks.config import BenchmarkRun
from pipelines.benchmarks.peer import (
    contents_of,
    imported_predictor,
    long_side,
    machine,
    peer_model,
    peer_of,
    use_threads,
    write_figures,
)
from pipelines.cluster.config import ClusterConfig
from pipelines.cluster.connection import connect
from pipelines.labelling.config import LabelConfig, LabelRun
from pipelines.labelling.progress import LabelProgress
from pipelines.labelling.run import LabelSummary, label
from pipelines.labelling.worker_settings import GROUP_SIZE_GPU

_SAMPLE_SECONDS = 2.0  # looking is work too, and the kernel keeps the peaks
_DOCUMENTED_BATCH = 2
_DOCUMENTED_IMAGES_GPU = 128
_UTILISATION = ("nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200")
_LEAST_SECONDS = 2.0
_TRIED_IMAGES = 8


@dataclass(frozen=True)
class LabellingWay:
    """One way from images to labels.

    Attributes:
        name: of the way.
        images_per_second: median of the rounds, start-up apart (`_steady_rate`).
        ratio: median of the rounds' ratios to the bare loop.
        peak_bytes: largest resident size of any of its processes; 0 where it was not watched.
        written_bytes: size of the labels; 0 where it writes none.
        gpu_busy: share of the time in which the GPU computed, by nvidia-smi, from its first work to its last; median.
            None on a CPU and where nvidia-smi says nothing.
    """

    name: str
    images_per_second: float
    ratio: float
    peak_bytes: int
    written_bytes: int
    gpu_busy: float | None = None


@dataclass(frozen=True)
class LabellingComparison:
    """The ways, bare loop first, and what they had in common.

    Attributes:
        ways: bare loop, jobs.label and, without a checkpoint of one's own, the documentation's way.
        images: of a round; detections: mean per image.
        busy: share of the time in which the detector of jobs.label did not wait for images; median.
        machine: what it ran on.
        files: different images among them, each as often as any other or once more; 0 = all.
    """

    ways: tuple[LabellingWay, ...]
    images: int
    detections: float
    busy: float
    machine: str
    files: int = 0


@dataclass
class _Measured:
    """A way's figures, round after round (attributes as of `LabellingWay`)."""

    name: str
    rates: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    written_bytes: int = 0
    gpu_busy: list[float] = field(default_factory=list)

    def beside(self, bare: "_Measured") -> LabellingWay:
        return LabellingWay(
            self.name,
            statistics.median(self.rates),
            statistics.median(rate / other for rate, other in zip(self.rates, bare.rates, strict=True)),
            self.peak_bytes,
            self.written_bytes,
            statistics.median(self.gpu_busy) if self.gpu_busy else None,
        )


def benchmark_label(run: BenchmarkRun) -> LabellingComparison:
    """Measure the ways in turns, `run.rounds` times.

    Raises:
        StorageError: the folder has no images.
    """
    threads = use_threads(run.threads)
    device = "cuda" if run.use_gpu else "cpu"
    files = contents_of(run)
    contents = [*itertools.islice(itertools.cycle(files), run.num_images)]
    bare, ours = _Measured("bare loop over the predictor"), _Measured("jobs.label")
    few = min(len(contents), _DOCUMENTED_IMAGES_GPU) if run.use_gpu else len(contents)
    of_them = f", first {few} images" if few < len(contents) else ""
    documented = _Measured(f"Ray documentation's way, torchvision{of_them}")
    detections, busy = 0, []
    with tempfile.TemporaryDirectory() as scratch:
        folder, first_images = Path(scratch) / "images", Path(scratch) / "first_images"
        _write(contents, folder)
        _write(contents[:few], first_images)
        checkpoint = Path(run.checkpoint or Path(scratch) / "checkpoint")
        if not run.checkpoint:
            imported_predictor(peer_of(run), run, checkpoint)
        settings = PredictorSettings(device=device, precision=run.precision, apply_exif=True)
        predictor = load_predictor(str(checkpoint), settings)
        group = GROUP_SIZE_GPU if run.use_gpu else 1
        predictor.predict(contents[:group])
        if not (run.use_gpu or run.threads):
            torch.set_num_threads(_best_threads(predictor, contents[:_TRIED_IMAGES], threads))
        for index in range(run.rounds):
            with _gpu_watched(bare.gpu_busy, run.use_gpu):
                bare.rates.append(len(contents) / _bare_loop(predictor, folder, group))
            written = Path(scratch) / f"labelled{index}"
            with _watched(ours, run.use_gpu):
                rate, summary = _job(run, str(checkpoint), folder, written, threads)
            ours.rates.append(rate)
            busy.append(1.0 - summary.waiting_share)
            detections, ours.written_bytes = summary.detections, _size(written / "labels")
            if not run.checkpoint:
                written = Path(scratch) / f"documented{index}"
                with _watched(documented, run.use_gpu):
                    documented.rates.append(few / _documented_way(run, first_images, written, threads))
                documented.written_bytes = _size(written)
    result = LabellingComparison(
        tuple(way.beside(bare) for way in (bare, ours, documented) if way.rates),
        len(contents),
        detections / len(contents),
        statistics.median(busy),
        machine(torch.device(device)),
        len(files) if len(files) < len(contents) else 0,
    )
    write_figures(result, run.output)
    return result


def _write(contents: Sequence[bytes], folder: Path) -> None:
    folder.mkdir()
    for index, content in enumerate(contents):
        (folder / f"{index:06d}.jpg").write_bytes(content)


def _bare_loop(predictor: Predictor, folder: Path, group: int) -> float:
    """Seconds from the first file to the last record, `group` images a call."""
    started = time.perf_counter()
    files = sorted(folder.iterdir())
    for first in range(0, len(files), group):
        predictor.predict([file.read_bytes() for file in files[first : first + group]])
    return time.perf_counter() - started


def _best_threads(predictor: Predictor, contents: Sequence[bytes], most: int) -> int:
    """All threads or one, by which the bare loop is faster."""
    seconds = {}
    for threads in (most, 1):
        torch.set_num_threads(threads)
        predictor.predict(contents[:1])
        started = time.perf_counter()
        for content in contents:
            predictor.predict([content])
        seconds[threads] = time.perf_counter() - started
    return min(seconds, key=lambda threads: seconds[threads])


def _job(run: BenchmarkRun, checkpoint: str, folder: Path, output: Path, threads: int) -> tuple[float, LabelSummary]:
    """Images per second of jobs.label, and its summary."""
    points: list[tuple[int, float]] = []
    config = LabelConfig(
        num_workers=run.workers,
        threads_per_worker=max(1, threads // run.workers) if run.workers else run.threads,
        precision=run.precision,
        use_gpu=run.use_gpu,
    )
    labelling = LabelRun(checkpoint=checkpoint, images=str(folder), output=str(output), label=config)
    summary = label(labelling, functools.partial(_note, points))
    _note(points, summary)
    return _steady_rate(points), summary


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
        results = [{name: value.cpu() for name, value in output.items()} for output in outputs]
        return {
            "path": batch["path"],
            "boxes": [result["boxes"].numpy() for result in results],
            "labels": [result["labels"].numpy() for result in results],
            "scores": [result["scores"].numpy() for result in results],
            "masks": [(result["masks"][:, 0] > 0.5).numpy() for result in results],
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
def _watched(way: _Measured, on_gpu: bool) -> Iterator[None]:
    """Notes the largest resident size of any process below this one that lives during the block, and how busy the GPU
    is."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(_SAMPLE_SECONDS):
            way.peak_bytes = max([way.peak_bytes, *map(_peak_of, _descendants())])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        with _gpu_watched(way.gpu_busy, on_gpu):
            yield
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def _gpu_watched(busy: list[float], wanted: bool) -> Iterator[None]:
    """Adds the share of the time in which GPUs computed during the block; nothing where nvidia-smi says none."""
    process: subprocess.Popen[str] | None = None
    if wanted:
        # In a group of its own, so that whatever it starts ends with it. Its lines, five a second, wait in the pipe;
        # should this process be killed, it ends when it cannot write the next one.
        with contextlib.suppress(OSError):  # such as none there
            process = subprocess.Popen(
                _UTILISATION, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
            )
    try:
        yield
    finally:
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            lines, _ = process.communicate()
            busy += _busy_share(lines)


def _busy_share(lines: str) -> list[float]:
    """Mean of percentages, one a line, from the first that is not 0 to the last; nothing where there is none."""
    percentages = [int(line) for line in lines.split() if line.isdigit()]
    worked = [index for index, percentage in enumerate(percentages) if percentage]
    return [statistics.mean(percentages[worked[0] : worked[-1] + 1]) / 100] if worked else []


def _descendants() -> Sequence[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    tree = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= more
    return sorted(tree - {os.getpid()})


def _peak_of(pid: int) -> int:
    """`VmHWM` of a process, bytes; 0 where it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return 0
