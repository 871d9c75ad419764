"""What a labelling run's driver can carry: chunks a second with many workers that only take their time."""

import resource
import tempfile
from dataclasses import dataclass
from pathlib import Path

from maskrcnn_core.inference.settings import PredictorSettings
from pipelines.benchmarks.config import DriverRun
from pipelines.benchmarks.stub_worker import StubWorker, never_loaded
from pipelines.cluster.config import ClusterConfig
from pipelines.cluster.connection import connect
from pipelines.labelling.config import LabelConfig, LabelRun
from pipelines.labelling.detector import Detector
from pipelines.labelling.execution import label_on_cluster
from pipelines.labelling.worker_settings import WorkerSettings
from pipelines.labels.chunks import NOTHING, Chunk


@dataclass(frozen=True)
class DriverPoint:
    """What the driver did.

    Attributes:
        workers, chunks: how many there were.
        seconds: from the first chunk begun to the last one done.
        cpu_seconds: of the driving process, from its connection to its end.
        board_images: that the board has counted, which must be all.
    """

    workers: int
    chunks: int
    seconds: float
    cpu_seconds: float
    board_images: int


def benchmark_driver(run: DriverRun) -> DriverPoint:
    """Chunks through `label_on_cluster` on a cluster of this machine whose workers sleep."""
    todo = [Chunk(0, start, start + run.rows) for start in range(0, run.chunks * run.rows, run.rows)]
    settings = WorkerSettings(str(run.chunk_seconds), PredictorSettings(), group_size=run.group)
    with tempfile.TemporaryDirectory(prefix="driver-") as scratch:
        output = str(Path(scratch) / "out")
        labelling = LabelRun(
            "none", "none", output, label=LabelConfig(num_workers=run.workers, threads_per_worker=1, use_gpu=False)
        )
        with connect(ClusterConfig(num_cpus=run.workers + 4)):
            before = resource.getrusage(resource.RUSAGE_SELF)
            counts, files = label_on_cluster(
                labelling,
                Detector(never_loaded, never_loaded),
                settings,
                todo,
                NOTHING,
                run.chunks * run.rows,
                lambda _: None,
                StubWorker,
                run.task_chunks * run.rows,
            )
            after = resource.getrusage(resource.RUSAGE_SELF)
    if len(files) != run.chunks:
        raise RuntimeError(f"expected {run.chunks} files, got {len(files)}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return DriverPoint(run.workers, run.chunks, counts.seconds, cpu, counts.images)
