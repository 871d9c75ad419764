"""Labelling on a Ray cluster: one that is joined, or started on this machine for the run."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from pipelines.cluster.connection import connect, nodes, on_cluster, unwrapped_errors
from pipelines.images.manifest import Tasks
from pipelines.labelling.config import LabelConfig, LabelRun
from pipelines.labelling.detector import Detector
from pipelines.labelling.execution import label_on_cluster
from pipelines.labelling.machines import on_this_cluster
from pipelines.labelling.planning import plan_workers
from pipelines.labelling.progress import Counts, LabelProgress
from pipelines.labelling.worker_settings import WorkerSettings
from pipelines.labels.chunks import Chunk, LabelFile, Tally
from pipelines.storage.s3_settings import settings_environment


class RayBackend:
    """A `Backend`; the cluster is joined or started when it is first needed.

    Args:
        run: as it was given.
        stack: whose end ends the connection.
        tell: takes lines for the user.
    """

    def __init__(self, run: LabelRun, stack: ExitStack, tell: Callable[[str], None]) -> None:
        self._run, self._stack, self._tell = run, stack, tell
        self._is_connected = False
        self._fitted: LabelConfig | None = None

    def start_loading(self, detector: Detector, settings: WorkerSettings) -> None:
        """See `Backend`; nothing before it is known that a cluster is needed."""

    def fingerprint(self, detector: Detector, settings: WorkerSettings) -> str:
        """See `Backend`."""
        return detector.fingerprint(settings)

    def tasks(self) -> Tasks:
        """See `Backend`."""
        self._connect()
        return _on_cluster

    def fitted(self) -> LabelConfig:
        """See `Backend`, and `on_this_cluster`."""
        if self._fitted is None:
            self._connect()
            self._fitted = on_this_cluster(self._run.label, self._tell)
        return self._fitted

    def num_workers(self) -> int:
        """See `Backend`."""
        return plan_workers(self.fitted(), nodes()).workers

    def worker_threads(self) -> int:
        """See `Backend`."""
        return plan_workers(self.fitted(), nodes()).cpus

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
        run = replace(self._run, label=self.fitted())
        return label_on_cluster(run, detector, settings, todo, before, images, on_progress)

    def _connect(self) -> None:
        if not self._is_connected:
            run = self._run
            self._stack.enter_context(connect(run.cluster, environment=settings_environment(run.storage)))
            self._is_connected = True


def _on_cluster(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    with unwrapped_errors():
        yield from on_cluster(function, arguments)
