"""Machines for Ray's autoscaler that are processes here, and that vanish as a provider's do."""

import time
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

_START_SECONDS = 6.0  # longer than anybody waits before saying that he waits; real machines take minutes


class VanishingMachines(FakeMultiNodeProvider):  # type: ignore[misc] # Ray has no types here
    """Ray's own provider for tests, which counts machines whose processes are dead, and starts new ones at once."""

    def create_node_with_resources_and_labels(self, *launch: Any) -> None:
        """Start machines; called in a thread of the autoscaler's."""
        time.sleep(_START_SECONDS)
        super().create_node_with_resources_and_labels(*launch)

    def non_terminated_nodes(self, tag_filters: Any) -> list[str]:
        """Machines that run; called at the beginning of each of the autoscaler's rounds."""
        with self.lock:
            for name in [name for name, machine in self._nodes.items() if _is_gone(machine)]:
                del self._nodes[name]
        found: list[str] = super().non_terminated_nodes(tag_filters)
        return found


def _is_gone(machine: Any) -> bool:
    """Whether the raylet of a machine has ended; the head is none of the provider's."""
    node = machine.get("node")
    return node is not None and not node.remaining_processes_alive()
