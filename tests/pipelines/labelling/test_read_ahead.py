"""Images read ahead of the detector: in order, and never too much of them."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from maskrcnn_core.errors import ImageError, StorageError
from pipelines.labelling import read_ahead
from pipelines.labelling.read_ahead import ReadAhead, ReadImage, ReadWindow

WAIT = 30.0


class Sizes:
    """Makes as many bytes as an image's name says; keeps the names in the order in which they were asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.hold = threading.Event()
        self.hold.set()

    def read(self, uri: str) -> bytes | ImageError:
        self.asked.append(uri)
        assert self.hold.wait(WAIT)
        if uri == "hangs":
            time.sleep(1.5)
        return bytes(int(uri)) if uri.isdigit() else ImageError("missing", uri)

    def late(self, uri: str, seconds: float) -> ImageError:
        return ImageError("unreadable", f"{uri}: late")


def ahead_of(reader: Sizes, *, images: int = 100, readers: int = 2, limit: float = 0.0) -> ReadAhead:
    return ReadAhead(reader, None, readers, limit, images)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_images_come_in_order_whatever_became_of_them() -> None:
    reads = ahead_of(Sizes(), limit=0.3)
    found = [image.content for image in reads.images([1, 2, 3, 4], ["3", "none", "hangs", "0"])]
    assert [content if isinstance(content, bytes) else str(content) for content in found] == [
        b"\0\0\0",
        "none",
        "hangs: late",
        b"",
    ]


def test_no_more_images_are_read_than_the_window_holds() -> None:
    reader = Sizes()
    images = ahead_of(reader, images=3).images([*range(10)], [str(number) for number in range(10)])
    taken: list[ReadImage] = [next(images)]
    until(lambda: len(reader.asked) == 3)
    time.sleep(0.1)
    assert reader.asked == ["0", "1", "2"]
    taken[0].ticket.leave()
    taken.append(next(images))
    until(lambda: len(reader.asked) == 4)
    for image in taken:
        image.ticket.leave()  # a second time frees nothing
    for image in images:
        image.ticket.leave()
    assert sorted(reader.asked) == [str(number) for number in range(10)]


def test_no_more_bytes_are_held_than_the_window_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "_MOST_BYTES", 250)
    monkeypatch.setattr(read_ahead, "_UNREAD_PER_READER", 1)
    reader = Sizes()
    images = ahead_of(reader).images([*range(10)], ["100"] * 10)
    first = next(images)
    until(lambda: len(reader.asked) == 2)
    second, third = next(images), next(images)  # those that were being read, and one more below the limit
    time.sleep(0.1)
    assert len(reader.asked) <= 4
    for image in (first, second, third):
        image.ticket.leave()
    rest = 0
    for image in images:
        rest += 1
        image.ticket.leave()
    assert rest == 7


def test_an_image_larger_than_the_window_comes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "_MOST_BYTES", 10)
    found = []
    for image in ahead_of(Sizes()).images([1, 2], ["100", "200"]):
        found.append(image.content)
        image.ticket.leave()
    assert found == [bytes(100), bytes(200)]


def test_chunks_are_read_one_after_the_other() -> None:
    reader = Sizes()
    reader.hold.clear()
    reads = ahead_of(reader, images=4, readers=1)
    with ThreadPoolExecutor(2) as threads:

        def read(uris: list[str]) -> list[int]:
            found = []
            for image in reads.images([*range(len(uris))], uris):
                found.append(len(bytes(image.content)))  # type: ignore[arg-type]
                image.ticket.leave()
            return found

        first = threads.submit(read, ["1"] * 9)
        until(lambda: len(reader.asked) == 1)
        second = threads.submit(read, ["2"] * 9)
        reader.hold.set()
        assert first.result(WAIT) == [1] * 9
        assert second.result(WAIT) == [2] * 9
    assert reader.asked == ["1"] * 9 + ["2"] * 9


def test_a_chunk_that_is_left_frees_its_places_and_its_turn() -> None:
    reader = Sizes()
    reads = ahead_of(reader, images=4)
    images = reads.images([*range(9)], ["5"] * 9)
    next(images).ticket.leave()
    images.close()
    assert [len(bytes(next(reads.images([0], ["7"])).content))] == [7]  # type: ignore[arg-type]
    until(lambda: reads._window._unread == 0)
    assert (reads._window._images, reads._window._bytes) == (1, 7)  # the one that nobody has taken yet


def test_an_error_of_storage_is_raised_where_the_chunk_is() -> None:
    class Refusing(Sizes):
        def read(self, uri: str) -> bytes | ImageError:
            raise StorageError("no such bucket")

    reads = ahead_of(Refusing())
    with pytest.raises(StorageError, match="no such bucket"):
        next(reads.images([*range(9)], ["5"] * 9))
    until(lambda: reads._window._images == reads._window._unread == 0)


def test_room_is_given_without_waiting_where_there_is_some() -> None:
    window = ReadWindow(2, 1)
    tickets = [window.enter(wait=False) for _ in range(3)]
    assert [ticket is None for ticket in tickets] == [False, False, True]
    assert tickets[0] is not None
    tickets[0].leave()
    assert window.enter(wait=True) is not None
