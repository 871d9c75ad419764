"""Where a labelling run computes: on a Ray cluster, or in processes of this machine."""

from collections.abc import Callable, Sequence
from typing import Protocol

from pipelines.images.manifest import Tasks
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.detector import Detector
from pipelines.labelling.progress import Counts, LabelProgress
from pipelines.labelling.worker_settings import WorkerSettings
from pipelines.labels.chunks import Chunk, LabelFile, Tally


class Backend(Protocol):
    """What `labelling.run` needs of the computers; what costs time begins when it is first asked for."""

    def start_loading(self, detector: Detector, settings: WorkerSettings) -> None:
        """Work is likely: a detector may be loaded while the images are listed."""
        ...

    def fingerprint(self, detector: Detector, settings: WorkerSettings) -> str:
        """Of the run's detector; waits for one that is being loaded, where that tells it sooner.

        Raises:
            CheckpointError: the checkpoint cannot be used.
            ConfigError: the model cannot do what the settings ask for.
        """
        ...

    def tasks(self) -> Tasks:
        """How work without a network is spread, such as listing and reading footers.

        Raises:
            ConfigError: the cluster cannot be joined.
        """
        ...

    def fitted(self) -> LabelConfig:
        """The run's settings for these computers: `use_gpu` is chosen, and there is room for the first workers.

        Raises:
            ConfigError: there can be no room, or there was none in time.
        """
        ...

    def num_workers(self) -> int:
        """Detector processes at the start.

        Raises:
            ConfigError: there is no room for those that were asked for.
        """
        ...

    def worker_threads(self) -> int:
        """CPU threads of a detector process at the start, as far as is known here."""
        ...

    def label_chunks(
        self,
        detector: Detector,
        settings: WorkerSettings,
        todo: Sequence[Chunk],
        before: Tally,
        images: int,
        on_progress: Callable[[LabelProgress], None] | None,
    ) -> tuple[Counts, dict[str, LabelFile]]:
        """Labels chunks, and writes a file for each.

        Args:
            detector: how it is loaded.
            settings: of the workers; the device is chosen.
            todo: the chunks.
            before: counts of what was labelled before, for the progress.
            images: of the whole run.
            on_progress: see `labelling.run.label`.

        Returns:
            The counts of this start, and the chunks' files by name.

        Raises:
            UserError: a worker met a mistake that ends the run, or all of them were lost.
        """
        ...
