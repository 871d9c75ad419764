"""Label files by parts: all of them one after the other in this process, or some in each task of a cluster.

A run of a hundred million images has a hundred thousand files. What is asked of each of them is asked here, so that no
process opens them all, and the answers come in the order of the files whoever is faster.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipelines.cluster.config import ClusterConfig
from pipelines.images.manifest import Tasks, one_by_one
from pipelines.storage.config import StorageConfig
from pipelines.storage.s3_settings import settings_environment

# A process opens some 100 to 500 files a second on S3: with more than these a cluster is worth its start.
MOST_FILES_HERE = 2000
_FILES_OF_A_TASK = 100


@dataclass(frozen=True)
class Readers:
    """Who reads label files.

    Attributes:
        tasks: how the parts are spread.
        share: puts a value where every task finds it; returns it, or a reference that a task's argument may be.
        files_at_once: of a part; 0 = all are one part.
    """

    tasks: Tasks
    share: Callable[[Any], Any]
    files_at_once: int = 0

    def parts(self, files: Sequence[str]) -> list[Sequence[str]]:
        """The files in parts, in order; none is empty."""
        size = self.files_at_once or max(1, len(files))
        return [files[start : start + size] for start in range(0, len(files), size)]

    def in_order(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """What a function gives for each tuple of arguments, in their order; only what came too early is held.

        Raises:
            UserError: of the function.
        """
        early: dict[int, Any] = {}
        wanted = 0
        for number, result in self.tasks(_numbered, [(i, function, *some) for i, some in enumerate(arguments)]):
            early[number] = result
            while wanted in early:
                yield early.pop(wanted)
                wanted += 1


def _numbered(number: int, function: Callable[..., Any], *arguments: Any) -> tuple[int, Any]:
    return number, function(*arguments)


def _itself(value: Any) -> Any:
    return value


HERE = Readers(one_by_one, _itself)
"""This process."""


@contextmanager
def readers_for(num_files: int, cluster: ClusterConfig, config: StorageConfig) -> Iterator[Readers]:
    """Those of so many label files, inside the block: this process, or beyond `MOST_FILES_HERE` the cluster."""
    if num_files <= MOST_FILES_HERE:
        yield HERE
        return
    from pipelines.cluster.connection import connect  # Ray takes longer to import than a small run to read

    with connect(cluster, environment=settings_environment(config)):
        yield readers_on_cluster()


def readers_on_cluster() -> Readers:
    """Tasks of the connected cluster."""
    import ray

    return Readers(_tasks_on_cluster, ray.put, _FILES_OF_A_TASK)


def _tasks_on_cluster(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    from pipelines.cluster.connection import on_cluster, unwrapped_errors

    with unwrapped_errors():
        yield from on_cluster(function, arguments)
