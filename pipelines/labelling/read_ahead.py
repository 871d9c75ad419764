"""Images of a worker's chunks, read ahead of its detector: across groups and chunks, within a bound of them all."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from maskrcnn_core.data.proposals import ImageProposals
from maskrcnn_core.errors import ImageError
from pipelines.images.reading_threads import Call, ReadingThreads

# Encoded images in memory that the detector has not taken yet.
_MOST_BYTES = 512 << 20

# A slow read holds up those after it, which go on up to so many for each that is made at the same time. More of them
# would be read before anybody knows how large they are.
_UNREAD_PER_READER = 4


class ReadWindow:
    """What may be read ahead, by all chunks of a worker together.

    Args:
        images: at most, from the start of their reading until the detector takes them.
        readers: images read at the same time.
    """

    def __init__(self, images: int, readers: int) -> None:
        self._most_images, self._most_unread = images, _UNREAD_PER_READER * readers
        self._images = self._unread = self._bytes = 0
        self._changed = threading.Condition()

    def grow(self, readers: int) -> None:
        """There are at least so many readers."""
        with self._changed:
            self._most_unread = max(self._most_unread, _UNREAD_PER_READER * readers)
            self._changed.notify_all()

    def enter(self, *, wait: bool) -> "Ticket | None":
        """Room for one more image; None where there is none and nobody waits."""
        with self._changed:
            if wait:
                self._changed.wait_for(self._has_room)
            elif not self._has_room():
                return None
            self._images += 1
            self._unread += 1
            return Ticket(self)

    def _has_room(self) -> bool:
        if not self._images:
            return True
        return self._images < self._most_images and self._unread < self._most_unread and self._bytes < _MOST_BYTES

    def count(self, images: int, unread: int, nbytes: int) -> None:
        """Changes what is in the window."""
        with self._changed:
            self._images += images
            self._unread += unread
            self._bytes += nbytes
            self._changed.notify_all()


class Ticket:
    """An image's place in a window: from the start of its reading until the detector takes it, or nobody will."""

    def __init__(self, window: ReadWindow) -> None:
        self._window, self._lock = window, threading.Lock()
        self._nbytes: int | None = None
        self._has_left = False

    def arrived(self, nbytes: int) -> None:
        """The image is read."""
        with self._lock:
            if self._has_left:  # it was given up
                return
            self._nbytes = nbytes
        self._window.count(0, -1, nbytes)

    def leave(self) -> None:
        """Free its place."""
        with self._lock:
            if self._has_left:
                return
            self._has_left = True
            nbytes = self._nbytes
        if nbytes is None:
            self._window.count(-1, -1, 0)
        else:
            self._window.count(-1, 0, -nbytes)


class Reading(Protocol):
    """The part of `pipelines.images.reading.ImageReader` that a worker uses."""

    def read(self, uri: str) -> bytes | ImageError:
        """An image file's bytes, or why there are none."""
        ...

    def late(self, uri: str, seconds: float) -> ImageError:
        """The failure of an image whose reading hangs."""
        ...


@dataclass(frozen=True)
class ReadImage:
    """An image as the detector gets it.

    Attributes:
        content: encoded, or why there is none.
        proposals: given in place of the RPN's; None = its own.
        ticket: of its place in the window.
    """

    content: bytes | ImageError
    proposals: ImageProposals | ImageError | None
    ticket: Ticket


@dataclass(frozen=True)
class _Reading:
    """An image that is being read."""

    uri: str
    content: Call[bytes | ImageError]
    proposals: Call[ImageProposals | ImageError] | None
    ticket: Ticket


class ReadAhead:
    """Reads images of chunks in order, chunk after chunk.

    Args:
        reader: of the images.
        read_proposals: reads those of an image id; None = there are none.
        readers: images read at the same time.
        limit: seconds of one read; 0 = no limit.
        images: most images ahead of the detector.
    """

    def __init__(
        self,
        reader: Reading,
        read_proposals: Callable[[int], ImageProposals | ImageError] | None,
        readers: int,
        limit: float,
        images: int,
    ) -> None:
        self._reader, self._read_proposals, self._limit = reader, read_proposals, limit
        self._threads = ReadingThreads(readers, limit)
        self._window = ReadWindow(images, readers)
        # Chunks are begun one after the other, so that the first is finished while the detector has the next.
        self._turn = threading.Lock()

    def grow(self, readers: int) -> None:
        """Read at least so many at the same time."""
        self._threads.grow(readers)
        self._window.grow(readers)

    def images(self, ids: Sequence[int], uris: Sequence[str]) -> Generator[ReadImage]:
        """The images of a chunk in order. Who takes one lets it `leave` the window later.

        Raises:
            StorageError: as `ImageReader.read` and `late`.
        """
        reading: deque[_Reading] = deque()
        begun = 0
        self._turn.acquire()
        is_our_turn = True
        try:
            while begun < len(ids) or reading:
                # Whoever has images to hand on does not wait for room: it comes from those.
                while begun < len(ids) and (ticket := self._window.enter(wait=not reading)) is not None:
                    reading.append(self._begun(ids[begun], uris[begun], ticket))
                    begun += 1
                if begun == len(ids) and is_our_turn:
                    is_our_turn = False
                    self._turn.release()
                image = self._arrived(reading[0])
                reading.popleft()
                yield image
        finally:
            if is_our_turn:
                self._turn.release()
            for image_begun in reading:
                image_begun.ticket.leave()

    def _begun(self, image_id: int, uri: str, ticket: Ticket) -> _Reading:
        content = self._threads.submit(partial(self._read, uri, ticket))
        proposals = (
            None if self._read_proposals is None else self._threads.submit(partial(self._read_proposals, image_id))
        )
        return _Reading(uri, content, proposals, ticket)

    def _read(self, uri: str, ticket: Ticket) -> bytes | ImageError:
        nbytes = 0
        try:
            content = self._reader.read(uri)
            nbytes = len(content) if isinstance(content, bytes) else 0
            return content
        finally:
            ticket.arrived(nbytes)

    def _arrived(self, reading: _Reading) -> ReadImage:
        try:
            content = reading.content.result()
        except TimeoutError:
            content = self._reader.late(reading.uri, self._limit)
        return ReadImage(content, self._given(reading.proposals), reading.ticket)

    def _given(self, proposals: Call[ImageProposals | ImageError] | None) -> ImageProposals | ImageError | None:
        if proposals is None:
            return None
        try:
            return proposals.result()
        except TimeoutError as error:
            return ImageError("failed", f"reading its proposals {error} (label.image_timeout)")
