"""Requests as one stream through a detector: none is lost, none waits for ever, and a broken detector says so."""

import threading
import time
from collections.abc import Generator, Iterable
from concurrent.futures import CancelledError, wait

import pytest
import torch

from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.errors import ImageError
from maskrcnn_core.inference.preparation import Request
from maskrcnn_core.records.labels import ImageRecord
from pipelines.serving.detector_feed import DetectorFeed, DetectorLost

PIXELS = torch.zeros(3, 4, 5, dtype=torch.uint8)


class BatchingPredictor:
    """Computes what has come at each pause, or when there are `most`; breaks when it is told to."""

    config = ModelConfig(categories=(Category(1, "one"),))
    categories = config.categories
    fingerprint = "f"

    def __init__(self, most: int = 8) -> None:
        self.most = most
        self.batches: list[int] = []
        self.may_compute = threading.Event()
        self.may_compute.set()
        self.breaks = self.fails = False

    def predict_each(self, requests: Iterable[Request | None]) -> Generator[list[tuple[int, ImageRecord]]]:
        waiting: list[Request] = []
        for request in requests:
            waiting += [] if request is None else [request]
            if waiting and (request is None or len(waiting) == self.most):
                yield self._computed(waiting)
                waiting = []
        if waiting:
            yield self._computed(waiting)

    def _computed(self, waiting: list[Request]) -> list[tuple[int, ImageRecord]]:
        self.may_compute.wait(10)
        if self.breaks:
            raise RuntimeError("the device\nis gone")
        self.batches.append(len(waiting))
        return [(one.key, self._record(one)) for one in waiting]

    def _record(self, request: Request) -> ImageRecord:
        if self.fails:
            return ImageRecord("failed", "out of memory", None, None)
        if isinstance(request.content, ImageError):
            return ImageRecord(request.content.status, str(request.content), None, None)
        assert isinstance(request.content, torch.Tensor)
        return ImageRecord("ok", None, *request.content.shape[:0:-1])


def opened(predictor: BatchingPredictor, wait_seconds: float = 0.005) -> DetectorFeed:
    return DetectorFeed(lambda: predictor, wait_seconds)


def ask(feed: DetectorFeed, count: int = 1) -> list:
    now = time.monotonic()
    return [feed.ask(PIXELS, arrived=now, decode_seconds=0.0) for _ in range(count)]


def test_one_image_is_answered_at_once() -> None:
    feed = opened(BatchingPredictor(), wait_seconds=5.0)
    started = time.monotonic()
    (answer,) = ask(feed)
    detected = answer.result(10)
    assert time.monotonic() - started < 2.0  # an idle detector waits for nobody
    assert (detected.record.width, detected.record.height, detected.batch) == (5, 4, 1)
    assert detected.model == "f"
    feed.close()


def test_what_comes_while_it_is_busy_is_one_batch() -> None:
    predictor = BatchingPredictor()
    predictor.may_compute.clear()
    feed = opened(predictor)
    first = ask(feed)
    while not feed._under_way:
        time.sleep(0.001)
    others = ask(feed, 20)
    predictor.may_compute.set()
    assert {answer.result(10).record.status for answer in first + others} == {"ok"}
    assert predictor.batches == [1, 8, 8, 4]
    feed.close()


def test_an_error_in_place_of_an_image_is_its_record() -> None:
    feed = opened(BatchingPredictor())
    answer = feed.ask(ImageError("unreadable", "torn"), arrived=0.0, decode_seconds=0.0)
    assert answer.result(10).record == ImageRecord("unreadable", "torn", None, None)
    feed.close()


def test_what_nobody_waits_for_is_not_computed() -> None:
    predictor = BatchingPredictor()
    predictor.may_compute.clear()
    feed = opened(predictor)
    (first,) = ask(feed)
    while not feed._under_way:
        time.sleep(0.001)
    others = ask(feed, 5)
    assert [one.cancel() for one in others[:4]] == [True] * 4
    predictor.may_compute.set()
    wait([first, others[4]], 10)
    assert predictor.batches == [1, 1]
    with pytest.raises(CancelledError):
        others[0].result()
    feed.close()


def test_closing_answers_what_was_asked() -> None:
    predictor = BatchingPredictor()
    feed = opened(predictor)
    answers = ask(feed, 30)
    feed.close()
    assert {answer.result(0).record.status for answer in answers} == {"ok"}
    with pytest.raises(DetectorLost):
        ask(feed)


def test_a_stream_that_breaks_is_told_and_begun_anew() -> None:
    predictor = BatchingPredictor()
    feed = opened(predictor)
    predictor.breaks = True
    (answer,) = ask(feed)
    with pytest.raises(DetectorLost, match="RuntimeError: the device is gone"):
        answer.result(10)
    assert feed.is_well(10.0)
    predictor.breaks = False
    assert ask(feed)[0].result(10).record.status == "ok"
    feed.close()


@pytest.mark.parametrize("way", ["breaks", "fails"])
def test_a_detector_that_works_on_nothing_is_not_well(way: str) -> None:
    predictor = BatchingPredictor()
    feed = opened(predictor)
    setattr(predictor, way, True)
    for _ in range(16):
        ask(feed)[0].exception(10)
    assert not feed.is_well(10.0)
    feed.close()


def test_a_detector_that_hangs_is_not_well() -> None:
    predictor = BatchingPredictor()
    predictor.may_compute.clear()
    feed = opened(predictor)
    ask(feed)
    while not feed._under_way:
        time.sleep(0.001)
    assert feed.is_well(10.0)
    time.sleep(0.05)
    assert not feed.is_well(0.01)
    predictor.may_compute.set()
    feed.close()


def test_what_cannot_be_loaded_is_raised() -> None:
    def load() -> BatchingPredictor:
        raise ImageError("missing", "no weights")

    with pytest.raises(ImageError, match="no weights"):
        DetectorFeed(load, 0.0)
