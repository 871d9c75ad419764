"""Labelling in processes of this machine, without Ray: the same workers, chunks and files, sooner under way."""

import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, Self

from maskrcnn_core.errors import ConfigError
from pipelines.cluster.computing_environment import computing_environment
from pipelines.cluster.cpus import physical_cores
from pipelines.images.manifest import Tasks
from pipelines.labelling.config import LabelConfig, LabelRun
from pipelines.labelling.detector import Detector
from pipelines.labelling.planning import MOST_THREADS, largest_first
from pipelines.labelling.process_pool import ProcessPool
from pipelines.labelling.progress import Counts, LabelProgress, Poller, ProgressBoard, Work, reporter
from pipelines.labelling.signs_of_life import longest_silence
from pipelines.labelling.thread_probe import Shape, ThreadProbe
from pipelines.labelling.time_limits import stalled_seconds
from pipelines.labelling.worker_settings import WorkerSettings, on_device
from pipelines.labels.chunks import Chunk, LabelFile, Tally

# Listing and reading footers waits for disks and networks.
_TASK_THREADS = 16

# What a GPU of CUDA or ROCm shows as: torch, which takes seconds to import, is only asked where there is one of these.
_GPU_FILES = ("/dev/nvidia[0-9]*", "/dev/dxg", "/dev/kfd")

_WORKER_BYTES = 3 << 30


class OneMachine:
    """A `Backend`; its processes end with the block that it is entered for.

    Args:
        run: as it was given.
        tell: takes lines for the user.
    """

    def __init__(self, run: LabelRun, tell: Callable[[str], None]) -> None:
        self._run, self._tell = run, tell
        self._fitted: LabelConfig | None = None
        self._note_of_device: str | None = None
        self._pool: ProcessPool | None = None
        self._probe: ThreadProbe | None = None
        self._board = ProgressBoard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def start_loading(self, detector: Detector, settings: WorkerSettings) -> None:
        """See `Backend`."""
        self._open(detector, on_device(settings, self.fitted())).resize(1)

    def fingerprint(self, detector: Detector, settings: WorkerSettings) -> str:
        """See `Backend`; this process then needs no torch, which would take a core's time from the one that loads."""
        loaded = None if self._pool is None else self._pool.fingerprint()
        return loaded or detector.fingerprint(settings)

    def tasks(self) -> Tasks:
        """See `Backend`."""
        return _in_threads

    def fitted(self) -> LabelConfig:
        """See `Backend`."""
        if self._fitted is None:
            self._fitted = self._on_chosen_device(self._run.label)
        return self._fitted

    def num_workers(self) -> int:
        """See `Backend`; all that there may come to be."""
        label = self.fitted()
        if label.use_gpu:
            return label.num_workers or label.workers_per_gpu * len(_visible_gpus())
        return label.num_workers or max(1, physical_cores() // max(1, label.threads_per_worker))

    def worker_threads(self) -> int:
        """See `Backend`."""
        return self.first_shape().threads

    def label_chunks(
        self,
        detector: Detector,
        settings: WorkerSettings,
        todo: Sequence[Chunk],
        before: Tally,
        images: int,
        on_progress: Callable[[LabelProgress], None] | None,
    ) -> tuple[Counts, dict[str, LabelFile]]:
        """See `Backend`."""
        label = self.fitted()
        if self._note_of_device is not None:
            self._tell(self._note_of_device)
            self._note_of_device = None
        report = None if on_progress is None else reporter(on_progress, before, images)
        files: dict[str, LabelFile] = {}
        stalled = stalled_seconds(label, max(chunk.stop - chunk.start for chunk in todo))
        pool, shape = self._open(detector, settings), self.first_shape()
        probe = self._probe = _new_probe(label, shape)
        tune = partial(self._tune, pool, probe, settings, images - before.images)
        try:
            pool.use(replace(settings, threads=shape.threads))
            pool.resize(shape.processes)
            with Poller(self._board, report) as poller:
                for chunk, file in pool.label(largest_first(todo), stalled, tune):
                    poller.check()
                    files[chunk.name] = file
            return self._board.snapshot(), files
        finally:
            self._close()

    def first_shape(self) -> Shape:
        """What the run begins with: as the settings say, else few processes of many threads."""
        label, cores = self.fitted(), physical_cores()
        if label.use_gpu:
            processes = self.num_workers()
        elif label.threads_per_worker and not label.num_workers:
            processes = max(1, cores // label.threads_per_worker)
        else:
            processes = label.num_workers or max(1, cores // MOST_THREADS)
        return Shape(processes, label.threads_per_worker or max(1, cores // processes))

    def environment(self, place: int) -> Mapping[str, str]:
        """Variables of the process at a place: each has a GPU, where there are any."""
        if not self.fitted().use_gpu:
            return computing_environment()
        gpus = _visible_gpus()
        return {**computing_environment(), "CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]}

    def _open(self, detector: Detector, settings: WorkerSettings) -> ProcessPool:
        if self._pool is None:
            self._board = ProgressBoard()
            silence = longest_silence(self.fitted())
            self._pool = ProcessPool(detector.load, settings, self._board, self.environment, self._note, silence)
        return self._pool

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.close()
        self._pool = None

    def _note(self, place: int, work: Work) -> None:
        if self._probe is not None:
            self._probe.add(place, work)

    def _tune(self, pool: ProcessPool, probe: ThreadProbe, settings: WorkerSettings, images: int) -> None:
        """Change the number of processes and threads where the probe has found something out."""
        if probe.is_over:
            return
        shape = probe.decide(images - self._board.snapshot().images)
        if shape is not None:
            pool.resize(shape.processes)
            pool.use(replace(settings, threads=shape.threads))
        if (findings := probe.findings()) is not None:
            self._tell(findings)

    def _on_chosen_device(self, label: LabelConfig) -> LabelConfig:
        """With `use_gpu` chosen, which is said once there is work: a mistake is the only line.

        Raises:
            ConfigError: more workers than GPUs are asked for.
        """
        gpus = len(_visible_gpus()) if label.use_gpu else 0
        if label.use_gpu is True and gpus * label.workers_per_gpu < max(1, label.num_workers):
            share = f"a GPU for each {label.workers_per_gpu}" if label.workers_per_gpu > 1 else "a GPU each"
            raise ConfigError(
                f"label.use_gpu: {label.num_workers or 'at least 1'} workers need {share}, this machine has {gpus}; "
                "use fewer, or a cluster (cluster.address)"
            )
        if label.use_gpu == "auto":
            self._note_of_device = f"computing on {_some(gpus)} of this machine (label.use_gpu auto)"
        return replace(label, use_gpu=bool(gpus))


def _new_probe(label: LabelConfig, first: Shape) -> ThreadProbe:
    """One that is over at once where the user has chosen."""
    is_chosen = bool(label.use_gpu or label.num_workers or label.threads_per_worker)
    return ThreadProbe(first, most=0 if is_chosen else max(1, _free_bytes() // _WORKER_BYTES))


def _in_threads(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """`Tasks` in threads; the sequence may grow until the last result has been taken."""
    with ThreadPoolExecutor(_TASK_THREADS, "task") as threads:
        started = 0
        while started < len(arguments):
            some = arguments[started : started + _TASK_THREADS]
            started += len(some)
            yield from threads.map(function, *zip(*some, strict=True))


def _some(gpus: int) -> str:
    return "CPUs" if not gpus else "1 GPU" if gpus == 1 else f"{gpus} GPUs"


def _visible_gpus() -> list[str]:
    """Names of this process's GPUs, as `CUDA_VISIBLE_DEVICES` takes them."""
    if not any(glob.glob(pattern) for pattern in _GPU_FILES):
        return []
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    count = torch.cuda.device_count()
    return named[:count] if named[0] else [str(index) for index in range(count)]


def _free_bytes() -> int:
    """Memory that is free or can be freed; a lot where nobody tells."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return 1 << 62
