"""The board of a run on a Ray cluster: one small actor."""

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.labelling.device_faults import Standing
from pipelines.labelling.open_chunks import OpenChunks
from pipelines.labelling.progress import Counts, ProgressBoard, Work
from pipelines.labelling.signs_of_life import ProcessId, SignsOfLife

_SNAPSHOT_TIMEOUT = 30.0


class ClusterBoard(ProgressBoard):
    """The actor's state: it also knows which chunks are in work."""

    def __init__(self) -> None:
        super().__init__()
        self._chunks = OpenChunks()
        self._nodes: dict[str, str] = {}
        self._signs: SignsOfLife[ProcessId] = SignsOfLife()

    def sign(self, process: ProcessId) -> None:
        """A worker's process is alive."""
        self._signs.hear(process)

    def silent(self, seconds: float) -> list[ProcessId]:
        """Those that have given no sign for so long; see `SignsOfLife`."""
        return self._signs.silent(seconds)

    def join_from(self, device: str, node: str) -> Standing:
        """`join`, of a worker on a node of Ray's."""
        self._nodes[device] = node
        return self.join(device)

    def begin_chunk(self, device: str, chunk: str) -> None:
        """A worker begins one."""
        self._chunks.begin(device, chunk)

    def end_chunk(self, chunk: str) -> None:
        """It is done."""
        self._chunks.end(chunk)

    def is_quiet(self) -> bool:
        """Whether nothing is in work any more but on devices that are given up."""
        return self._chunks.is_quiet(self._devices.is_given_up)

    def next_pass(self) -> list[str]:
        """What was left goes to others; returns the nodes of the devices that are given up."""
        self._chunks = OpenChunks()
        return sorted({node for device, node in self._nodes.items() if self._devices.is_given_up(device)})


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

    def join(self, device: str) -> Standing:
        """See `Board`."""
        standing: Standing = ray.get(self._actor.join_from.remote(device, ray.get_runtime_context().get_node_id()))
        return standing

    def fault(self, device: str, cause: int, reason: str) -> Standing:
        """See `Board`."""
        standing: Standing = ray.get(self._actor.fault.remote(device, cause, reason))
        return standing

    def begin_chunk(self, device: str, chunk: str) -> None:
        """See `ClusterBoard`; does not wait."""
        self._actor.begin_chunk.remote(device, chunk)

    def end_chunk(self, chunk: str) -> None:
        """See `ClusterBoard`; does not wait."""
        self._actor.end_chunk.remote(chunk)

    def sign(self, process: ProcessId) -> None:
        """See `ClusterBoard`; raises where the actor is out of reach."""
        ray.get(self._actor.sign.remote(process))

    def silent(self, seconds: float) -> list[ProcessId]:
        """See `ClusterBoard`."""
        found: list[ProcessId] = ray.get(self._actor.silent.remote(seconds), timeout=_SNAPSHOT_TIMEOUT)
        return found

    def is_quiet(self) -> bool:
        """See `ClusterBoard`."""
        return bool(ray.get(self._actor.is_quiet.remote()))

    def next_pass(self) -> list[str]:
        """See `ClusterBoard`."""
        nodes: list[str] = ray.get(self._actor.next_pass.remote(), timeout=_SNAPSHOT_TIMEOUT)
        return nodes

    def snapshot(self) -> Counts:
        """The counts so far."""
        counts: Counts = ray.get(self._actor.snapshot.remote(), timeout=_SNAPSHOT_TIMEOUT)
        return counts


def start_board() -> RemoteBoard:
    """Starts the actor on the driver's node: it lives as long as the run."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return RemoteBoard(ray.remote(ClusterBoard).options(num_cpus=0, scheduling_strategy=here).remote())
