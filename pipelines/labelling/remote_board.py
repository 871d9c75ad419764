"""The board of a run on a Ray cluster: one small actor."""

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.labelling.progress import Counts, ProgressBoard, Work

_SNAPSHOT_TIMEOUT = 30.0


class RemoteBoard:
    """A `Board` that passes on to the actor; picklable."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def begin(self, key: int) -> int:
        """See `Board`; waits for the answer, about a millisecond."""
        attempts: int = ray.get(self._actor.begin.remote(key))
        return attempts

    def done(self, key: int, work: Work) -> None:
        """See `Board`; does not wait."""
        self._actor.done.remote(key, work)

    def snapshot(self) -> Counts:
        """The counts so far."""
        counts: Counts = ray.get(self._actor.snapshot.remote(), timeout=_SNAPSHOT_TIMEOUT)
        return counts


def start_board() -> RemoteBoard:
    """Starts the actor on the driver's node: it lives as long as the run."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return RemoteBoard(ray.remote(ProgressBoard).options(num_cpus=0, scheduling_strategy=here).remote())
