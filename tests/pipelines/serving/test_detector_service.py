"""A detector that answers: records as its predictor's, new weights in place, broken ones refused, health."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.inference.predictor import load_predictor
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.weights.checkpoint import save_checkpoint
from pipelines.serving.detector_feed import DetectorLost
from pipelines.serving.detector_service import DetectorService
from tests.pipelines.serving.local_service import new_service, picture
from tests.small_detector import FINDING

Result = TypeVar("Result")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("other")
    save_checkpoint(folder, build_detector(FINDING, load_pretrained=False).state_dict(), FINDING)
    return str(folder)


def with_service(checkpoint: str, play: Callable[[DetectorService], Coroutine[Any, Any, Result]]) -> Result:
    """What `play` returns, with a service that answers by this checkpoint."""

    async def run() -> Result:
        service = new_service()
        await service.use(checkpoint)
        try:
            return await play(service)
        finally:
            await asyncio.to_thread(service.close)

    return asyncio.run(run())


CONTENTS = [picture(60 + 8 * index, 90, seed=index) for index in range(4)]


def test_answers_are_the_predictors_one_by_one_and_together(checkpoint: str) -> None:
    expected = load_predictor(checkpoint, PredictorSettings()).predict([*CONTENTS, b"no image"])

    async def play(service: DetectorService) -> None:
        for content, record in zip([*CONTENTS, b"no image"], expected, strict=True):
            assert (await service.detect(content)).record == record
        asked = [*CONTENTS, b"no image"] * 5
        together = await asyncio.gather(*map(service.detect, asked))
        assert [one.record for one in together] == expected * 5

    with_service(checkpoint, play)


def test_new_weights_answer_once_they_are_there(checkpoint: str, other: str) -> None:
    """Each answer is of the old weights or of the new ones, as a whole, and none is lost."""
    predictors = {
        one.fingerprint: one for one in (load_predictor(path, PredictorSettings()) for path in (checkpoint, other))
    }
    expected = {name: one.predict(CONTENTS) for name, one in predictors.items()}

    async def play(service: DetectorService) -> list[str]:
        before = service.describe().fingerprint
        changing = asyncio.create_task(service.use(other))
        seen: list[str] = []
        while not changing.done() or len(set(seen)) < 2:
            answers = await asyncio.gather(*map(service.detect, CONTENTS))
            for answer, index in zip(answers, range(len(CONTENTS)), strict=True):
                assert answer.record == expected[answer.model][index]
            seen += [answer.model for answer in answers]
        await changing
        assert service.describe().fingerprint != before
        return seen

    seen = with_service(checkpoint, play)
    assert seen == sorted(seen, key=[*predictors].index)  # the old ones first


def test_a_checkpoint_that_is_no_good_changes_nothing(checkpoint: str, tmp_path: Path) -> None:
    async def play(service: DetectorService) -> None:
        before = service.describe()
        with pytest.raises(CheckpointError, match="no such checkpoint folder"):
            await service.use(str(tmp_path / "none"))
        assert service.describe() == before
        assert (await service.detect(CONTENTS[0])).record.status == "ok"

    with_service(checkpoint, play)


def detector_threads() -> int:
    return sum(thread.name == "detect" for thread in threading.enumerate())


def test_a_checkpoint_that_fails_on_a_test_image_changes_nothing(checkpoint: str) -> None:
    def load(path: str, settings: PredictorSettings) -> Any:
        predictor = load_predictor(checkpoint, settings)
        if path == "broken":
            predictor._detect = lambda images: 1 / 0  # type: ignore[assignment]
        return predictor

    async def run() -> None:
        service = new_service(load)
        await service.use("good")
        threads = detector_threads()
        with pytest.raises(CheckpointError, match="fails on a test image: ZeroDivisionError"):
            await service.use("broken")
        assert detector_threads() == threads
        assert (await service.detect(CONTENTS[0])).record.status == "ok"
        service.check_health()
        await asyncio.to_thread(service.close)

    asyncio.run(run())


def test_an_update_is_told(checkpoint: str, other: str, tmp_path: Path) -> None:
    async def play(service: DetectorService) -> None:
        before = service.describe()
        assert before.update == "none"
        service.use_soon(str(tmp_path / "none"))
        assert service.describe().update == "loading"
        await settled(service)
        assert service.describe() == replace(before, update="refused")
        service.use_soon(other)
        service.use_soon(checkpoint)
        service.use_soon(other)  # in this order
        assert (await service.detect(CONTENTS[0])).model == before.fingerprint
        await settled(service)
        assert service.describe().update == "none"
        assert service.describe().fingerprint != before.fingerprint

    with_service(checkpoint, play)


async def settled(service: DetectorService) -> None:
    while service._updates:
        await asyncio.sleep(0.01)


def test_without_a_checkpoint_there_is_no_answer() -> None:
    async def run() -> None:
        service = new_service()
        service.check_health()  # it may be loading
        with pytest.raises(DetectorLost):
            service.describe()
        with pytest.raises(DetectorLost):
            await service.detect(CONTENTS[0])

    asyncio.run(run())


def test_many_pixels_wait_for_room(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.serving.detector_service._MOST_PIXELS", 1)

    async def play(service: DetectorService) -> None:
        answers = await asyncio.gather(*map(service.detect, CONTENTS * 3))
        assert {answer.batch for answer in answers} == {1}
        assert {answer.record.status for answer in answers} == {"ok"}

    with_service(checkpoint, play)
