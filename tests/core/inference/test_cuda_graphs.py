"""Which batches are recorded, and that replays are what was recorded."""

import logging
import threading
import time

import pytest
import torch

from maskrcnn_core.inference.cuda_graphs import CapturedByShape
from maskrcnn_core.structures import Detections, ImageBatch


def batch(images: int, value: float, device: str = "cpu") -> ImageBatch:
    sizes = torch.full((images, 2), 4, device=device)
    return ImageBatch(torch.full((images, 3, 4, 4), value, device=device), sizes, sizes)


def found_in(images: ImageBatch) -> Detections:
    """Scores are the mean of the pixels."""
    scores = images.pixels.mean(dim=(1, 2, 3))[:, None]
    count = torch.ones(len(images), dtype=torch.int64, device=scores.device)
    return Detections(scores[..., None].expand(-1, -1, 4), scores, scores.long(), count)


class Recorded:
    """Counts replays."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.replayed: list[int] = []

    def record(self, compute: object, images: ImageBatch) -> "Recorded.One":
        self.made.append(len(images))
        return Recorded.One(self)

    class One:
        def __init__(self, whole: "Recorded") -> None:
            self._whole = whole

        def __call__(self, images: ImageBatch, /) -> Detections:
            self._whole.replayed.append(len(images))
            return found_in(images)


def test_a_shape_is_recorded_when_it_comes_the_fourth_time() -> None:
    watch = Recorded()
    detect = CapturedByShape(found_in, record=watch.record)
    for turn in range(6):
        for images in (1, 2) if turn < 3 else (2,):
            assert detect(batch(images, turn + 0.5)).scores.tolist() == [[turn + 0.5]] * images
    assert watch.made == [2]
    assert watch.replayed == [2, 2, 2]


def test_no_more_shapes_than_wanted() -> None:
    watch = Recorded()
    detect = CapturedByShape(found_in, most_shapes=2, record=watch.record)
    for images in (1, 2, 3):
        for _ in range(5):
            detect(batch(images, 1.0))
    assert watch.made == [1, 2]


def test_what_is_read_beside_the_images_is_kept() -> None:
    anchors = [torch.ones(1)]
    detect = CapturedByShape(found_in, lambda: list(anchors), record=Recorded().record)
    for _ in range(4):
        detect(batch(1, 1.0))
    kept = anchors.pop()
    assert any(kept is part for _, parts in detect._recordings.values() for part in parts)  # type: ignore[attr-defined]


def test_a_shape_that_cannot_be_recorded_is_computed(caplog: pytest.LogCaptureFixture) -> None:
    def record(compute: object, images: ImageBatch) -> Recorded.One:
        raise RuntimeError("operation not permitted when stream is capturing")

    detect = CapturedByShape(found_in, record=record)
    with caplog.at_level(logging.WARNING):
        for _ in range(6):
            assert detect(batch(2, 3.0)).scores.tolist() == [[3.0]] * 2
    assert [entry.message for entry in caplog.records] == [
        "batches of [2, 3, 4, 4] are not recorded as a CUDA graph: operation not permitted when stream is capturing"
    ]


class CommonMemory:
    """Recordings that all compute in one place, in steps between which other threads come, as a GPU's do."""

    def __init__(self) -> None:
        self.value = 0.0
        self.made = 0

    def record(self, compute: object, images: ImageBatch) -> "CommonMemory":
        self.made += 1
        time.sleep(0.001)
        return self

    def __call__(self, images: ImageBatch, /) -> Detections:
        self.value = float(images.pixels.flatten()[0])
        time.sleep(0)
        found = self.value
        time.sleep(0)
        return found_in(batch(len(images), found))


def test_threads_have_the_answers_to_their_own_images() -> None:
    memory = CommonMemory()
    detect = CapturedByShape(found_in, most_shapes=2, record=memory.record)
    wrong: list[tuple[float, list[list[float]]]] = []

    def ask(value: float) -> None:
        for turn in range(200):
            images = 1 + turn % 3  # two shapes that are recorded, one that is not
            answer = detect(batch(images, value)).scores.tolist()
            if answer != [[value]] * images:
                wrong.append((value, answer))

    threads = [threading.Thread(target=ask, args=(float(value),)) for value in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert memory.made == 2  # once each, though several threads came with the fourth
    seen = detect._seen
    assert sorted(seen.values())[:2] == [4, 4]


def test_a_batch_that_is_not_recorded_waits_for_nobody() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def slow(images: ImageBatch) -> Detections:
        if len(images) == 2:
            inside.set()
            assert go_on.wait(10)
        return found_in(images)

    detect = CapturedByShape(slow, record=CommonMemory().record)
    thread = threading.Thread(target=detect, args=(batch(2, 1.0),))
    thread.start()
    assert inside.wait(10)
    assert detect(batch(1, 5.0)).scores.tolist() == [[5.0]]
    go_on.set()
    thread.join()


@pytest.mark.gpu
@pytest.mark.parametrize("own_streams", [False, True])
def test_threads_on_a_gpu(own_streams: bool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    detect = CapturedByShape(found_in)
    wrong: list[float] = []

    def ask(value: float) -> None:
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream() if own_streams else None):
            for turn in range(200):
                images = 1 + turn % 2
                if detect(batch(images, value, "cuda")).scores.tolist() != [[value]] * images:
                    wrong.append(value)

    threads = [threading.Thread(target=ask, args=(float(value),)) for value in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.gpu
def test_replays_do_not_share_memory() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    detect = CapturedByShape(found_in)
    with torch.inference_mode():
        found = [detect(batch(3, float(value), "cuda")) for value in range(8)]
        other = [detect(batch(1, float(value), "cuda")) for value in range(8)]
    for value in range(8):
        assert found[value].scores.tolist() == [[value]] * 3
        assert other[value].scores.tolist() == [[value]]
