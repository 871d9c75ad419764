"""A part of a large export, as a task writes it, and the parts put together.

    task:  label files of a part -> a piece for each list of each file          (in a folder for pieces)
                                 -> the files that single images have           (where they belong)
    then:  every file = what it has once, and between these its pieces, part behind part

A task that is tried again writes new pieces; the names of the old ones are known to nobody.
"""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from maskrcnn_core.errors import StorageError
from maskrcnn_core.export.formats import FormatName, load_format
from maskrcnn_core.export.source import ExportFile, ExportStyle, JoinedList, Listed, Once, file_text
from pipelines import storage
from pipelines.exporting.counted import CountedSource, Counts
from pipelines.exporting.writing import link_images, two_of_one_name, write_new
from pipelines.labels.stream import LabelFiles

_COPIED_BYTES = 1 << 20

PieceKind = Literal["text", "listed", "numbered"]


@dataclass(frozen=True)
class PartWork:
    """What is to be done with each part.

    Attributes:
        format: of the export.
        style: how objects are written.
        draws: as of `CountedSource`.
        images: folder within the export that images are linked into; None = they are not.
    """

    format: FormatName
    style: ExportStyle
    draws: bool
    images: str | None


@dataclass(frozen=True)
class PartPlace:
    """Where parts are written, as uris.

    Attributes:
        pieces: folder for pieces.
        files: folder for the files of single images.
    """

    pieces: str
    files: str


@dataclass(frozen=True)
class Piece:
    """Entries of one part between two texts that a file has once.

    Attributes:
        uri: where they are.
        kind: texts; or entries of a list, one a line, without numbers or with.
    """

    uri: str
    kind: PieceKind


@dataclass(frozen=True)
class PartFile:
    """One part of a file of the export.

    Attributes:
        name: of the file, as of `ExportFile`.
        once: [T] what all parts have alike.
        between: [T + 1] what this part has before, between and behind these; None = nothing.
    """

    name: str
    once: tuple[str, ...]
    between: tuple[Piece | None, ...]


@dataclass(frozen=True)
class WrittenPart:
    """What a task has written."""

    files: tuple[PartFile, ...]
    counts: Counts


def export_part(number: int, source: LabelFiles, shared: tuple[PartWork, PartPlace]) -> WrittenPart:
    """Write a part of an export.

    Args:
        number: of the part.
        source: its images.
        shared: what is to be done, and where.

    Raises:
        StorageError: the labels cannot be read, the place cannot be written, or two images have one name.
    """
    work, place = shared
    again = not storage.create_bytes(storage.join(place.pieces, f"{number:06d}.begun"), b"")
    chosen, counted = load_format(work.format), CountedSource(source, work.draws)
    files = []
    for file in chosen.files(counted, work.style):
        if file.of_image:
            _write_image_file(file, place.files, again)
        else:
            files.append(_write_part(file, storage.join(place.pieces, f"{number:06d}-{uuid.uuid4().hex}")))
    if work.images is not None:
        link_images(counted, storage.join(place.files, work.images), again=again)
    return WrittenPart(tuple(files), counted.counts)


def _write_image_file(file: ExportFile, folder: str, again: bool) -> None:
    """A file that nobody else writes; one that an attempt before this has left, whole or not, is replaced."""
    text = "".join(file_text(file.pieces))
    uri = storage.join(folder, file.name)
    if storage.is_local(uri):
        path = Path(folder) / file.name
        if again and path.is_file() and text.encode().startswith(path.read_bytes()):
            path.unlink()
        write_new(path, file.name, iter([text]))
    elif not storage.create_bytes(uri, text.encode()) and not (again and storage.read_bytes(uri) == text.encode()):
        raise two_of_one_name(file.name)


def _write_part(file: ExportFile, uri: str) -> PartFile:
    once: list[str] = []
    between: list[Piece | None] = []
    writer = _PieceWriter(f"{uri}-0")
    for piece in file.pieces:
        if isinstance(piece, Once):
            between.append(writer.close())
            once.append(piece.text)
            writer = _PieceWriter(f"{uri}-{len(once)}")
        else:
            writer.write(piece)
    return PartFile(file.name, tuple(once), (*between, writer.close()))


class _PieceWriter:
    """Writes a piece; nothing where there is none."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._stream: pa.NativeFile | None = None
        self._kind: PieceKind = "text"

    def write(self, entry: str | Listed) -> None:
        text = entry if isinstance(entry, str) else f"{entry.text}\n"
        try:
            if self._stream is None:
                self._kind = "text" if isinstance(entry, str) else "numbered" if entry.numbered else "listed"
                filesystem, path = storage.filesystem_and_path(self._uri)
                self._stream = filesystem.open_output_stream(path, buffer_size=_COPIED_BYTES)
            self._stream.write(text.encode())
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> Piece | None:
        if self._stream is None:
            return None
        try:
            self._stream.close()
        except OSError as error:
            raise self._unwritable(error) from error
        return Piece(self._uri, self._kind)

    def _unwritable(self, error: OSError) -> StorageError:
        return StorageError(f"output: {self._uri!r:.200} cannot be written: {error.strerror or error}")


def joined_files(parts: Sequence[Sequence[PartFile]]) -> Iterator[ExportFile]:
    """The files of an export whose parts are in order; there is at least one."""
    for same in zip(*parts, strict=True):
        yield ExportFile(same[0].name, _joined(same))


def _joined(parts: Sequence[PartFile]) -> Iterator[str]:
    once = parts[0].once
    for place in range(len(once) + 1):
        if place:
            yield once[place - 1]
        entries = JoinedList()
        for piece in (part.between[place] for part in parts):
            if piece is not None:
                yield from _entries(piece, entries)


def _entries(piece: Piece, entries: JoinedList) -> Iterator[str]:
    for line in _lines(piece.uri):
        if piece.kind == "text":
            yield line
        elif piece.kind == "listed":
            yield entries.separated() + line.removesuffix("\n")
        else:
            yield entries.numbered(line.removesuffix("\n"))


def _lines(uri: str) -> Iterator[str]:
    """Lines with their ends, of a file read a little at a time."""
    rest = b""
    with storage.open_stream(uri) as read:
        while block := read(_COPIED_BYTES):
            *lines, rest = (rest + block).split(b"\n")
            yield from (f"{line.decode()}\n" for line in lines)
    if rest:
        yield rest.decode()
