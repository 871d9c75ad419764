"""All stages at once give what they give in turn; whatever fails costs one image; nothing is left behind."""

import gc
import io
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.data.proposals import ImageProposals
from maskrcnn_core.errors import ImageError
from maskrcnn_core.inference.predictor import Predictor
from maskrcnn_core.inference.preparation import Request
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.records.labels import ImageRecord
from maskrcnn_core.structures import Detections, ImageBatch
from tests.core.inference.test_predictor_device import IMAGES, PLAIN, image_of, predictor_of
from tests.small_detector import FINDING

AT_ONCE = replace(PLAIN, prefetch=True, decode_threads=3, device_masks=True, device_preparation=True)


def encoded(pixels: Tensor, orientation: int = 1) -> bytes:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


# Several sizes, one turned by its EXIF orientation, and in the middle what cannot be decoded.
CONTENTS: list[bytes | Tensor | ImageError] = [
    *(encoded(image) for image in IMAGES),
    encoded(image_of(60, 90, 7), orientation=6),
    b"no image",
    ImageError("missing", "gone"),
    *IMAGES,
    encoded(image_of(64, 96, 8))[:500],
    *(image_of(60, 90, seed) for seed in range(10, 16)),
]


def assert_close(got: list[ImageRecord], expected: list[ImageRecord]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert (one.status, one.error, one.width, one.height) == (other.status, other.error, other.width, other.height)
        assert [found.category_id for found in one.detections] == [found.category_id for found in other.detections]
        for found, known in zip(one.detections, other.detections, strict=True):
            assert found.score == pytest.approx(known.score, abs=1e-4)
            assert found.bbox == pytest.approx(known.bbox, abs=0.02)
            assert (found.rle_counts is None) == (known.rle_counts is None)


@pytest.fixture(scope="module")
def expected() -> list[ImageRecord]:
    records = predictor_of(PLAIN).predict(CONTENTS)
    assert [record.status for record in records] == [
        *["ok"] * 6,
        *["unreadable", "missing"],
        *["ok"] * 5,
        "unreadable",
        *["ok"] * 6,
    ]
    assert (records[5].width, records[5].height) == (60, 90)  # turned
    assert min(len(record.detections) for record in records if record.status == "ok") > 0
    return records


@pytest.mark.parametrize("change", [{"prefetch": True}, {"decode_threads": 3}, {"prefetch": True, "decode_threads": 2}])
def test_the_same_records_with_threads(change: dict[str, Any], expected: list[ImageRecord]) -> None:
    assert predictor_of(replace(PLAIN, **change)).predict(CONTENTS) == expected


@pytest.mark.parametrize("settings", [replace(PLAIN, device_preparation=True), AT_ONCE])
def test_the_same_records_prepared_on_the_device(settings: PredictorSettings, expected: list[ImageRecord]) -> None:
    predictor = predictor_of(settings)
    assert_close(predictor.predict(CONTENTS), expected)
    assert_close(predictor.predict(CONTENTS[::-1]), expected[::-1])
    assert predictor.predict([]) == []


def test_several_views() -> None:
    views: dict[str, Any] = {"test_short_sides": (48, 64), "test_flip": True, "batch_pixels": 4 * 20_000}
    expected = predictor_of(replace(PLAIN, **views)).predict(CONTENTS)
    assert_close(predictor_of(replace(AT_ONCE, **views)).predict(CONTENTS), expected)


def test_the_rule_whose_values_are_pillows_is_kept_on_the_host() -> None:
    config = replace(FINDING, input=replace(FINDING.input, resize="antialias"))
    expected = predictor_of(PLAIN, config).predict(CONTENTS)
    assert predictor_of(AT_ONCE, config).predict(CONTENTS) == expected


def test_given_proposals() -> None:
    def given(image: Tensor, count: int) -> ImageProposals:
        height, width = image.shape[1:]
        corners = torch.rand(count, 2, generator=torch.Generator().manual_seed(count)) * torch.tensor([width, height])
        boxes = torch.cat((corners / 2, corners / 2 + 20), dim=1)
        return ImageProposals(boxes, torch.linspace(1, 0.1, count), (height, width))

    proposals: list[ImageProposals | ImageError] = [given(image, 5 + place) for place, image in enumerate(IMAGES)]
    proposals[1] = ImageError("failed", "no row")
    proposals[3] = replace(proposals[3], size=(1, 1))  # type: ignore[type-var]
    expected, got = (
        predictor_of(replace(settings, proposals="print")).predict(IMAGES, proposals) for settings in (PLAIN, AT_ONCE)
    )
    assert [record.status for record in expected] == ["ok", "failed", "ok", "failed", "ok"]
    assert_close(got, expected)


def test_proposals_asked_for() -> None:
    expected, got = (
        predictor_of(replace(settings, record="proposals")).propose(CONTENTS) for settings in (PLAIN, AT_ONCE)
    )
    for one, other in zip(got, expected, strict=True):
        assert (one.status, one.error) == (other.status, other.error)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=0.02)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)


# ---- at the same time


def one_a_batch(monkeypatch: pytest.MonkeyPatch) -> tuple[Predictor, Callable[[Callable[[int], None]], None]]:
    """A predictor whose batches hold one image, and what sets a function to be called at the start of each `finish`."""
    predictor = predictor_of(replace(AT_ONCE, batch_pixels=1))
    finish = predictor._finish_label

    def watch(called: Callable[[int], None]) -> None:
        def finishing(started: tuple[list, Detections]) -> list[ImageRecord]:
            called(started[0][0].key)
            return finish(started)

        monkeypatch.setattr(predictor, "_finish_label", finishing)

    return predictor, watch


def test_the_next_batch_is_started_before_the_last_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, watch = one_a_batch(monkeypatch)
    begun = threading.Semaphore(0)
    finished: list[tuple[int, str]] = []
    most: list[int] = []
    detected = predictor.detect_on_device

    def detecting(*arguments: Any) -> Detections:
        most.append(len(most) + 1 - len(finished))
        begun.release()
        return detected(*arguments)

    def finishing(place: int) -> None:
        assert torch.is_inference_mode_enabled() is False  # entered by the step itself
        for _ in range(2 if place == 0 else 1 if place < 4 else 0):
            assert begun.acquire(timeout=60)
        finished.append((place, threading.current_thread().name.split("_")[0]))

    monkeypatch.setattr(predictor, "detect_on_device", detecting)
    watch(finishing)
    assert [record.status for record in predictor.predict(IMAGES)] == ["ok"] * 5
    assert finished == [(place, "finish") for place in range(5)]
    assert max(most) <= 2


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, ValueError, IndexError, TypeError])
@pytest.mark.parametrize("prefetch", [False, True])
def test_what_fails_in_finishing_costs_only_its_image(
    error: type[Exception], prefetch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = predictor_of(replace(AT_ONCE, prefetch=prefetch))
    expected = predictor.predict(IMAGES)
    finish = predictor._finish_label

    def finishing(started: tuple[list, Detections]) -> list[ImageRecord]:
        if any(item.key == 1 for item in started[0]):
            raise error("no memory\nfor it")
        return finish(started)

    monkeypatch.setattr(predictor, "_finish_label", finishing)
    records = predictor.predict(IMAGES)
    assert records[1] == ImageRecord("failed", f"{error.__name__}: no memory", 96, 64)
    assert_close([*records[:1], *records[2:]], [*expected[:1], *expected[2:]])


def test_what_fails_on_the_device_costs_only_its_image(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = predictor_of(AT_ONCE)
    views = predictor._preparation.views

    def making(batch: object) -> list[ImageBatch]:
        if any(item.key == 4 for item in batch.items):  # type: ignore[attr-defined]
            raise torch.OutOfMemoryError("CUDA out of memory")
        return views(batch)  # type: ignore[arg-type]

    monkeypatch.setattr(predictor._preparation, "views", making)
    records = predictor.predict(IMAGES)
    assert [record.status for record in records] == ["ok"] * 4 + ["failed"]
    assert records[4].error == "OutOfMemoryError: CUDA out of memory"


class Fault(BaseException):
    """Not what an image can cause."""


@pytest.mark.parametrize("place", ["detect_on_device", "_finish_label"])
def test_a_fault_ends_the_call_and_leaves_nothing_running(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = predictor_of(replace(AT_ONCE, batch_pixels=1))
    step, calls = getattr(predictor, place), []

    def failing(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise Fault
        return step(*arguments)

    monkeypatch.setattr(predictor, place, failing)
    with pytest.raises(Fault):
        predictor.predict(IMAGES * 3)
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
    seen = len(calls)
    monkeypatch.undo()
    assert [record.status for record in predictor.predict(IMAGES)] == ["ok"] * 5
    assert len(calls) == seen


def test_threads_are_kept_between_calls_and_end_with_the_predictor() -> None:
    def ours() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name.startswith(("decode", "finish"))}

    before = ours()
    predictor = predictor_of(replace(AT_ONCE, decode_threads=2))
    assert ours() <= before  # none until there is something to do
    predictor.predict(CONTENTS)
    kept = ours() - before
    assert 2 <= len(kept) <= 3  # a decoder that is done at once takes the next image, too
    predictor.predict(IMAGES)
    later = ours() - before
    assert kept <= later
    assert len(later) <= 3
    del predictor
    end = time.monotonic() + 60
    while any(thread.is_alive() for thread in later) and time.monotonic() < end:
        gc.collect()  # a thread that has not put down its last image yet holds the predictor
        time.sleep(0.05)
    assert not any(thread.is_alive() for thread in later)


def test_a_detector_without_masks() -> None:
    config: ModelConfig = replace(FINDING, mask_head=replace(FINDING.mask_head, enabled=False))
    expected = predictor_of(PLAIN, config).predict(CONTENTS)
    assert_close(predictor_of(AT_ONCE, config).predict(CONTENTS), expected)


# ---- without an end


def streamed(predictor: Predictor, requests: Iterable[Request | None]) -> list[list[int]]:
    """The keys of each batch of records."""
    return [[key for key, _ in batch] for batch in predictor.predict_each(requests)]


@pytest.mark.parametrize("settings", [PLAIN, AT_ONCE, PredictorSettings()])
def test_a_stream_gives_the_records_of_a_list(settings: PredictorSettings) -> None:
    predictor = predictor_of(settings)
    expected = predictor.predict(CONTENTS)
    requests = [Request(100 + place, content) for place, content in enumerate(CONTENTS)]
    for given in (requests, [None, *requests[:7], None, None, *requests[7:]]):
        records = {key: record for batch in predictor.predict_each(given) for key, record in batch}
        assert sorted(records) == [request.key for request in requests]
        assert_close([records[request.key] for request in requests], expected)
    assert streamed(predictor, []) == streamed(predictor, [None]) == []


def test_one_image_a_batch_gives_the_same_bits_in_whatever_form() -> None:
    predictor = predictor_of(PredictorSettings())
    requests = [Request(place, content) for place, content in enumerate(CONTENTS)]
    records = dict(pair for batch in predictor.predict_each(requests) for pair in batch)
    assert [records[place] for place in range(len(CONTENTS))] == predictor.predict(CONTENTS)


@pytest.mark.parametrize("prefetch", [False, True])
def test_shapes_are_carried_over_until_a_pause_or_for_so_many_images(
    prefetch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = predictor_of(replace(PLAIN, prefetch=prefetch, batch_pixels=2 * 64 * 96))
    wide, high = image_of(60, 90), image_of(90, 60)
    requests = [Request(key, high if key == 1 else wide) for key in range(6)]
    assert streamed(predictor, requests) == [[0, 2], [3, 4], [1], [5]]
    assert streamed(predictor, [*requests[:2], None, *requests[2:]]) == [[0], [1], [2, 3], [4, 5]]
    monkeypatch.setattr("maskrcnn_core.inference.unfilled_batches._MOST_IMAGES_LATER", 2)
    assert streamed(predictor, requests) == [[0, 2], [1], [3, 4], [5]]


@pytest.mark.parametrize("settings", [replace(PLAIN, batch_pixels=10**6), replace(AT_ONCE, batch_pixels=10**6)])
def test_all_that_was_asked_is_answered_at_a_pause(settings: PredictorSettings) -> None:
    predictor = predictor_of(settings)
    answered: set[int] = set()

    def waiting() -> Iterator[Request | None]:
        yield from (Request(place, content) for place, content in enumerate(CONTENTS))
        deadline = time.monotonic() + 60
        while len(answered) < len(CONTENTS):  # no more images until these have come back
            assert time.monotonic() < deadline
            yield None
            time.sleep(0.01)
        yield Request(99, IMAGES[0])

    for batch in predictor.predict_each(waiting()):
        answered.update(key for key, _ in batch)
    assert answered == {*range(len(CONTENTS)), 99}
    assert predictor.idle_since is not None


def test_it_is_idle_when_no_batch_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, watch = one_a_batch(monkeypatch)
    seen: list[float | None] = []

    def finishing(_: int) -> None:
        deadline = time.monotonic() + 60
        while predictor.idle_since is not None:
            assert time.monotonic() < deadline
        seen.append(predictor.idle_since)

    watch(finishing)
    started = time.monotonic()
    assert streamed(predictor, [Request(key, image) for key, image in enumerate(IMAGES)]) == [[0], [1], [2], [3], [4]]
    assert seen == [None] * 5
    assert predictor.idle_since is not None
    assert started < predictor.idle_since < time.monotonic()


def test_a_stream_that_is_left_early_ends_its_threads() -> None:
    predictor = predictor_of(replace(AT_ONCE, batch_pixels=1))

    def endless() -> Iterator[Request | None]:
        for key in itertools.count():
            yield Request(key, IMAGES[0]) if key < 3 else None

    with closing(predictor.predict_each(endless())) as batches:
        assert [key for key, _ in next(batches)] == [0]
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_only_the_culprit_of_a_batch_in_a_stream_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = predictor_of(replace(AT_ONCE, batch_pixels=10**6))
    views = predictor._preparation.views

    def making(batch: Any) -> list[ImageBatch]:
        if any(item.key == 3 for item in batch.items):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return views(batch)

    monkeypatch.setattr(predictor._preparation, "views", making)
    batches = predictor.predict_each(Request(place, image) for place, image in enumerate(IMAGES))
    records = dict(pair for batch in batches for pair in batch)
    assert [records[place].status for place in range(5)] == ["ok", "ok", "ok", "failed", "ok"]
