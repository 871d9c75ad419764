"""Room for so much at once, in the order of asking."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Room:
    """Lets in as long as the sum of what is inside stays within a limit; alone, anything may come in.

    Used in one event loop.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._taken = limit, 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def of(self, amount: int) -> AsyncIterator[None]:
        """The block is entered once there is room; a caller that is cancelled leaves the queue."""
        if self._waiting or not self._fits(amount):
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append((amount, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # let in and cancelled at once
                    self._leave(amount)
                raise
        else:
            self._taken += amount
        try:
            yield
        finally:
            self._leave(amount)

    def _fits(self, amount: int) -> bool:
        return self._taken == 0 or self._taken + amount <= self._limit

    def _leave(self, amount: int) -> None:
        self._taken -= amount
        while self._waiting and (self._waiting[0][1].done() or self._fits(self._waiting[0][0])):
            size, turn = self._waiting.popleft()
            if not turn.done():
                self._taken += size
                turn.set_result(None)
