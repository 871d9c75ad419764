"""What the ingress makes of a deployment's answers: a lost process is asked again once, busy ones are told as lost."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from maskrcnn_core.records.labels import ImageRecord
from pipelines.serving.application import RemoteDetector
from pipelines.serving.detector_feed import Detected, DetectorLost

FOUND = Detected(ImageRecord("ok", None, 1, 1), "f", 0.0, 0.0, 0.0, 1)


class Response:
    """Of a deployment: an answer or an error, after some time."""

    def __init__(self, outcome: Any, seconds: float = 0.0) -> None:
        self._outcome, self._seconds = outcome, seconds
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def __await__(self) -> Iterator[Any]:
        async def answer() -> Any:
            await asyncio.sleep(self._seconds)
            if isinstance(self._outcome, Exception):
                raise self._outcome
            return self._outcome

        return answer().__await__()


class Handle:
    """Of a deployment whose responses are given."""

    def __init__(self, *responses: Response) -> None:
        self.responses = list(responses)
        self.asked = 0

    def __getattr__(self, method: str) -> "Handle":
        assert method in ("detect", "describe")
        return self

    def remote(self, *arguments: Any) -> Response:
        self.asked += 1
        return self.responses[self.asked - 1]


def test_a_lost_process_is_asked_again_once() -> None:
    handle = Handle(Response(ActorDiedError()), Response(FOUND))
    assert asyncio.run(RemoteDetector(handle).detect(b"")) is FOUND
    handle = Handle(Response(ActorDiedError()), Response(ActorDiedError()))
    with pytest.raises(DetectorLost):
        asyncio.run(RemoteDetector(handle).detect(b""))
    assert handle.asked == 2


def test_a_full_deployment_is_told_as_lost() -> None:
    full = BackPressureError(num_queued_requests=3, max_queued_requests=3)
    with pytest.raises(DetectorLost):
        asyncio.run(RemoteDetector(Handle(Response(full))).detect(b""))
    with pytest.raises(DetectorLost):
        asyncio.run(RemoteDetector(Handle(Response(ActorDiedError()))).describe())


def test_what_nobody_waits_for_is_cancelled() -> None:
    response = Response(FOUND, seconds=30)

    async def leave() -> None:
        async with asyncio.timeout(0.01):
            await RemoteDetector(Handle(response)).detect(b"")

    with pytest.raises(TimeoutError):
        asyncio.run(leave())
    assert response.is_cancelled
