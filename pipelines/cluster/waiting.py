"""Waiting for machines: an autoscaler starts them, or lost ones come back."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from ray.util.placement_group import placement_group, remove_placement_group

from maskrcnn_core.errors import ConfigError
from pipelines.cluster.autoscaler import live_nodes, read_capacity
from pipelines.cluster.capacity import Capacity, Demand, fits_now, require_reachable, shortage, waiting_line

_POLL_SECONDS = 2.0
# A line at once, and again so often while nothing changes.
_REPEAT_SECONDS = 60.0


class Patience:
    """Counts how long something has been waited for, and says what, now and then.

    Args:
        demand: what is waited for.
        setting: name of the setting that limits the time, for the message.
        minutes: how long at most.
        tell: takes a line for the user; lines that say something new come at once, others once a minute.
        clock: seconds.
    """

    def __init__(
        self,
        demand: Demand,
        setting: str,
        minutes: float,
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._demand, self._setting, self._minutes = demand, setting, minutes
        self._tell, self._clock = tell, clock
        self._since: float | None = None
        self._told: tuple[str, float] = ("", 0.0)
        self._before = ""

    def reset(self) -> None:
        """What was waited for is there."""
        self._since = None
        self._told = ("", 0.0)
        self._before = ""

    def go_on(self, capacity: Capacity) -> None:
        """Still waiting; says so where it is time.

        Raises:
            ConfigError: the time is over, or the cluster can never have what is waited for.
        """
        require_reachable(self._demand, capacity)
        now = self._clock()
        self._since = now if self._since is None else self._since
        if now - self._since >= 60.0 * self._minutes:
            raise ConfigError(self._given_up(capacity))
        line, before = waiting_line(self._demand, capacity), self._before
        self._before = line
        if line != before and fits_now(self._demand, capacity):  # machines that have just come are there in a moment
            return
        told, at = self._told
        if line != told or now - at >= _REPEAT_SECONDS:
            self._told = (line, now)
            left = math.ceil((60.0 * self._minutes - (now - self._since)) / 60.0)
            self._tell(f"{line}; for up to {left} more minute{'' if left == 1 else 's'} ({self._setting})")

    def _given_up(self, capacity: Capacity) -> str:
        demand = self._demand
        waited = f" after {self._minutes:g} minutes of waiting" if self._minutes else ""
        held = "other work holds what it needs" if fits_now(demand, capacity) else shortage(demand, capacity)
        return (
            f"{demand.setting}: {held}{waited} ({self._setting}); {demand.mend}; or repeat the command once the "
            "machines are there"
        )


def wait_for_machines(demand: Demand, setting: str, minutes: float, tell: Callable[[str], None]) -> None:
    """Return once the connected cluster has room for a demand, which its autoscaler is told of meanwhile.

    A cluster that this process has started is not waited for.

    Args:
        demand: what has to be free at the same time.
        setting, minutes, tell: see `Patience`; 0 minutes = no waiting.

    Raises:
        ConfigError: it can never be had, or was not there in time.
    """
    capacity = read_capacity()
    require_reachable(demand, capacity)
    patience = Patience(demand, setting, minutes, tell)
    if capacity.is_own or (minutes == 0 and fits_now(demand, capacity)):
        return
    if minutes == 0:
        patience.go_on(capacity)
    with _asked_for(demand) as is_there:
        while not is_there():
            patience.go_on(replace(capacity, nodes=live_nodes()))


@contextmanager
def _asked_for(demand: Demand) -> Iterator[Callable[[], bool]]:
    """A function that waits a moment for the demand to be free; the request ends with the block.

    A placement group holds what is free for it, counts what other work uses, and is what autoscalers go by.
    """
    group = placement_group([dict(bundle) for bundle in demand.bundles], strategy="PACK")
    try:
        yield lambda: bool(group.wait(_POLL_SECONDS))
    finally:
        remove_placement_group(group)
