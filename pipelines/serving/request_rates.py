"""How many requests a client may send: a bucket for each, filled evenly (token bucket)."""

import time
from collections import OrderedDict
from collections.abc import Callable

# Clients that are remembered; the one that has been silent longest is forgotten, whose bucket is full by then.
_MOST_CLIENTS = 10_000


class RequestRates:
    """Requests of clients, counted.

    Args:
        per_minute: of one client, of which so many may come at once; 0 = any number.
        clock: seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_of(self, client: str) -> float:
        """Seconds until the client may send a request; 0 = this one is counted."""
        if not self._per_minute:
            return 0.0
        now, rate = self._clock(), self._per_minute / 60
        left, at = self._buckets.pop(client, (float(self._per_minute), now))
        left = min(float(self._per_minute), left + (now - at) * rate)
        counted = left >= 1
        self._buckets[client] = (left - counted, now)
        if len(self._buckets) > _MOST_CLIENTS:
            self._buckets.popitem(last=False)
        return 0.0 if counted else (1 - left) / rate
