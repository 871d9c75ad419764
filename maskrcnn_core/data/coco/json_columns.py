"""A COCO file -> columns, in pieces: never more than a few megabytes of it are Python objects at a time.

The pieces are found by brackets (`json_spans`) and converted one by one, here or in tasks on other machines
(`ConvertPieces`). A file that pieces are not found in, since it is no UTF-8 or no JSON at all, is read as a whole where
it is small, and as a stream where it is large, so that what is wrong with it can be said.

Faults of single entries cost the smallest thing that is wrong and are counted (`annotations`, `sections`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from maskrcnn_core.data.coco.column_rows import image_table
from maskrcnn_core.data.coco.columns import AnnotationColumns
from maskrcnn_core.data.coco.columns_writer import ColumnsWriter
from maskrcnn_core.data.coco.conversion import AskedSizes, Converted, ImageSizes, Reader, convert_entries
from maskrcnn_core.data.coco.json_spans import NoSpans, list_spans, parse_piece
from maskrcnn_core.data.coco.json_stream import stream_entries
from maskrcnn_core.data.coco.json_text import parse_json, without_garbage_collection
from maskrcnn_core.data.coco.sections import CocoDict, CocoSections
from maskrcnn_core.errors import AnnotationError

_SECTIONS = ("images", "annotations", "categories")
_WHOLE_BYTES = 1 << 26
"""Of a file that is parsed as a whole where its pieces are not found."""


def convert_text(text: bytes, images: ImageSizes, keypoints: Mapping[int, int]) -> Converted:
    """`convert_entries` of JSON text: entries with commas between them.

    Raises:
        NoSpans: it is no JSON.
    """
    with without_garbage_collection():
        return convert_entries(parse_piece(text, (0, len(text))), images, keypoints)


ConvertPieces = Callable[[Iterator[bytes], ImageSizes, Mapping[int, int]], Iterator[Converted]]
"""Text of pieces -> their columns, in the same order: `convert_text` of each, here or elsewhere."""


def convert_here(pieces: Iterator[bytes], images: ImageSizes, keypoints: Mapping[int, int]) -> Iterator[Converted]:
    """One after the other, in this process."""
    return (convert_text(piece, images, keypoints) for piece in pieces)


def columns_of_json(
    content: Any,
    reader: Reader,
    *,
    source: str,
    digest: str = "",
    folder: Path | None = None,
    convert: ConvertPieces = convert_here,
) -> AnnotationColumns:
    """Read and check a COCO file.

    Args:
        content: bytes of the file, or what is sliced to bytes and has a length.
        reader: what is needed of its images.
        source, digest: of the file, as `ColumnsInfo` keeps them.
        folder: an empty one, for the columns; None = they stay in memory.
        convert: who converts the pieces.

    Raises:
        AnnotationError: the file is wrong; says what, without its name.
    """
    build = _Build(reader, source, digest, folder)
    with without_garbage_collection():
        try:
            return build.columns(_Pieces(content), convert)
        except NoSpans:
            pass
        entries = _whole(content) if len(content) <= _WHOLE_BYTES else _streamed(content)
        return build.columns(entries, convert)


def categories_of_json(content: Any) -> tuple[CocoDict, ...]:
    """Clean entries of the categories of a COCO file, whatever else it holds.

    Raises:
        AnnotationError: they are wrong; without the file's name.
    """
    sections = CocoSections(names=False, sizes=False, keypoints=False)
    for entry in _section(content, "categories"):
        sections.add_category(entry)
    sections.finish()
    return tuple(sections.categories)


def _section(content: Any, name: str) -> list[Any]:
    try:
        span = list_spans(content).get(name)
        if span is not None:
            return [entry for piece in span.pieces for entry in parse_piece(content, piece)]
    except NoSpans:
        pass
    section: list[Any] = _document(content, (name,))[name]
    return section


def _document(content: Any, names: Sequence[str]) -> dict[str, Any]:
    """The whole file, which has these sections."""
    document = parse_json(bytes(content[:]))
    if not isinstance(document, dict):
        raise AnnotationError(
            f"the top level is a {type(document).__name__}, expected an object with the sections "
            "images, annotations and categories (a list is a COCO results file, which is no ground truth)"
        )
    for name in names:
        if not isinstance(document.get(name), list):
            raise AnnotationError(_missing(name, is_there=name in document))
    return document


class _Sections(Protocol):
    def entries(self, name: str) -> Iterator[list[Any]]: ...

    def converted(
        self, convert: ConvertPieces, images: ImageSizes, keypoints: Mapping[int, int]
    ) -> Iterator[Converted]: ...


class _Pieces:
    """A document whose lists are cut into pieces."""

    def __init__(self, content: Any) -> None:
        self._content, self._spans = content, list_spans(content)
        for name in _SECTIONS:
            if self._spans.get(name) is None:
                if len(content) <= _WHOLE_BYTES:
                    raise NoSpans  # whether it is JSON at all comes first
                raise AnnotationError(_missing(name, is_there=name in self._spans))

    def entries(self, name: str) -> Iterator[list[Any]]:
        return (parse_piece(self._content, piece) for piece in self._of(name))

    def converted(
        self, convert: ConvertPieces, images: ImageSizes, keypoints: Mapping[int, int]
    ) -> Iterator[Converted]:
        texts = (bytes(self._content[begin:end]) for begin, end in self._of("annotations"))
        return convert(texts, images, keypoints)

    def _of(self, name: str) -> list[tuple[int, int]]:
        span = self._spans[name]
        assert span is not None
        return span.pieces


class _Entries:
    """A document whose entries come one by one."""

    def __init__(self, entries: Callable[[str], Iterator[Any]]) -> None:
        self._entries = entries

    def entries(self, name: str) -> Iterator[list[Any]]:
        return ([entry] for entry in self._entries(name))

    def converted(
        self, convert: ConvertPieces, images: ImageSizes, keypoints: Mapping[int, int]
    ) -> Iterator[Converted]:
        some: list[Any] = []
        for entry in self._entries("annotations"):
            some.append(entry)
            if len(some) == 10_000:
                yield convert_entries(some, images, keypoints)
                some = []
        yield convert_entries(some, images, keypoints)


def _whole(content: Any) -> _Entries:
    document = _document(content, _SECTIONS)
    return _Entries(lambda name: iter(document[name]))


def _missing(name: str, *, is_there: bool) -> str:
    got = "something else" if is_there else "no such section"
    return f"section '{name}': got {got}, expected a list of objects; add it as COCO has it"


def _streamed(content: Any) -> _Entries:
    def entries(name: str) -> Iterator[Any]:
        position, is_there = 0, False

        def read(size: int) -> bytes:
            nonlocal position
            position += size
            return bytes(content[position - size : position])

        for entry in stream_entries(read):
            if entry.key == name:
                is_there = True
                if entry.value != []:
                    yield entry.value
        if not is_there:
            raise AnnotationError(_missing(name, is_there=False))

    return _Entries(entries)


class _Build:
    """The columns of one file."""

    def __init__(self, reader: Reader, source: str, digest: str, folder: Path | None) -> None:
        self._reader, self._source, self._digest, self._folder = reader, source, digest, folder

    def columns(self, document: _Sections, convert: ConvertPieces) -> AnnotationColumns:
        sizes = AskedSizes(self._reader.sizes)
        sections = CocoSections(names=self._reader.names, sizes=sizes.given, keypoints=False)
        for some in document.entries("images"):
            for entry in some:
                sections.add_image(entry)
        for some in document.entries("categories"):
            for entry in some:
                sections.add_category(entry)
        keypoints = {one["id"]: len(one["keypoints"]) for one in sections.categories if "keypoints" in one}
        writer = ColumnsWriter(self._folder)
        try:
            for converted in document.converted(convert, ImageSizes.of(sections), keypoints):
                if converted.ids.is_refused:
                    break  # and the file with it: what follows needs no columns
                sections.absorb(converted.ids)
                sections.faults.extend(converted.faults)
                writer.add(converted.objects)
            else:
                sections.finish()
                return writer.finished(
                    sections,
                    image_table(sections.images.values()),
                    source=self._source,
                    digest=self._digest,
                    sized_by_pictures=sizes.looked,
                )
        finally:
            writer.close()
        return self._refused(document, sections)

    def _refused(self, document: _Sections, sections: CocoSections) -> AnnotationColumns:
        """Annotations that are wrong, from the first on, so that their places in the file are right."""
        again = CocoSections(names=self._reader.names, sizes=self._reader.sizes, keypoints=False)
        for name, add in (("images", again.add_image), ("categories", again.add_category)):
            for some in document.entries(name):
                for entry in some:
                    add(entry)
        for some in document.entries("annotations"):
            for entry in some:
                again.add_annotation(entry)
        again.finish()
        raise AssertionError("a piece of the file is refused, the whole is not")
