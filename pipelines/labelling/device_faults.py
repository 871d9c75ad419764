"""Which devices of a run are broken: a GPU that is lost should cost its own work, and not that of the others."""

import os
import socket
import sys
from dataclasses import dataclass, field

MOST_FAULTS = 3
"""In a row, each in a process of its own: a new one finds a device that works again, or the same fault."""

# More broken devices than this, or than this share of all, are no accident of single machines.
_MOST_GIVEN_UP = 2
_MOST_GIVEN_UP_SHARE = 0.02

_SHOWN = 10
_NODE_DIGITS = 12


@dataclass(frozen=True)
class Standing:
    """Of a device in a run.

    Attributes:
        is_given_up: it gets no more work.
        ends_run: so many are given up that the run ends.
        given_up: the devices that are, with the last reason of each.
    """

    is_given_up: bool
    ends_run: bool
    given_up: str


@dataclass
class _Device:
    causes: set[int] = field(default_factory=set)
    reason: str = ""

    @property
    def is_given_up(self) -> bool:
        return len(self.causes) >= MOST_FAULTS


@dataclass
class DeviceFaults:
    """Counts the faults of a run's devices, by their names."""

    _devices: dict[str, _Device] = field(default_factory=dict)

    def join(self, device: str) -> Standing:
        """A process begins on a device."""
        return self._standing(self._devices.setdefault(device, _Device()))

    def fault(self, device: str, cause: int, reason: str) -> Standing:
        """The detector works on nothing there, or hangs; its process ends.

        Args:
            device: where.
            cause: what it worked on; the same thing twice is rather at fault itself.
            reason: in words.
        """
        found = self._devices.setdefault(device, _Device())
        found.causes.add(cause)
        found.reason = reason
        return self._standing(found)

    def success(self, device: str) -> None:
        """The detector works there; what is given up stays so."""
        found = self._devices.get(device)
        if found is not None and not found.is_given_up:
            found.causes.clear()

    def is_given_up(self, device: str) -> bool:
        """Whether it gets no more work."""
        return device in self._devices and self._devices[device].is_given_up

    def _standing(self, device: _Device) -> Standing:
        lost = [name for name, each in self._devices.items() if each.is_given_up]
        most = max(_MOST_GIVEN_UP, int(_MOST_GIVEN_UP_SHARE * len(self._devices)))
        ends_run = bool(lost) and (len(lost) > most or len(lost) == len(self._devices))
        more = f"; and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        shown = "; ".join(f"{name}: {self._devices[name].reason}" for name in lost[:_SHOWN])
        return Standing(device.is_given_up, ends_run, f"{shown}{more}")


def this_device() -> str:
    """The name of what this process computes on: its machine, its GPU and its node of a Ray cluster, as it has them."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    ray = sys.modules.get("ray")
    node = ray.get_runtime_context().get_node_id() if ray is not None and ray.is_initialized() else ""
    parts = [socket.gethostname(), f"GPU {gpu}" if gpu else "", f"(Ray node {node[:_NODE_DIGITS]})" if node else ""]
    return " ".join(part for part in parts if part)
