"""A COCO file -> columns, in pieces: never more than a few megabytes of it are Python objects at a time.

The pieces are found by brackets (`json_spans`) and converted one by one, here or in tasks on other machines
(`ConvertPieces`). A file that pieces are not found in, since it is no UTF-8 or no JSON at all, is read as a whole where
it is small, and as a stream where it is large, so that what is wrong with it can be said.

Faults of single entries cost the smallest thing that is wrong and are counted (`annotations`, `sections`).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from maskrcnn_core.data.coco.annotations import Asked, read_annotations
from maskrcnn_core.data.coco.column_rows import image_table, object_batch
from maskrcnn_core.data.coco.column_schema import OBJECTS, ColumnsInfo
from maskrcnn_core.data.coco.columns import (
    OBJECTS_FILE,
    AnnotationColumns,
    open_columns,
    places_of_objects,
    write_folder,
)
from maskrcnn_core.data.coco.entry_faults import FaultList, Faults
from maskrcnn_core.data.coco.json_spans import ListSpan, NoSpans, list_spans, parse_piece
from maskrcnn_core.data.coco.json_stream import stream_entries
from maskrcnn_core.data.coco.json_text import parse_json, without_garbage_collection
from maskrcnn_core.data.coco.sections import CocoDict, CocoSections, SizeOf
from maskrcnn_core.errors import AnnotationError

_SECTIONS = ("images", "annotations", "categories")
_WHOLE_BYTES = 1 << 26
"""Of a file that is parsed as a whole where its pieces are not found."""


@dataclass(frozen=True)
class Reader:
    """What a reader needs of the images of a file.

    Attributes:
        names: images need a file name; kept = those that have one keep it.
        sizes: images need a size; a function is asked for what the file does not say.
    """

    names: Literal[True, "kept"] = True
    sizes: bool | SizeOf = True


SCORING = Reader(names="kept", sizes=False)
"""Scoring knows images by their ids, and takes sizes that are missing from the labels."""


class KnownImages(Protocol):
    """Clean entries of the images that annotations may refer to."""

    def among(self, image_ids: Iterable[int]) -> Mapping[int, CocoDict]:
        """Those that are there, by id."""
        ...


@dataclass(frozen=True)
class ImageSizes:
    """Ids and sizes of all images of a file, small enough to be sent to tasks.

    Attributes:
        ids: [images], ascending.
        sizes: [images, 2]: height and width, 0 where they are not known.
        left_out: ids of images that are not used.
    """

    ids: NDArray[np.int64]
    sizes: NDArray[np.int32]
    left_out: frozenset[int]

    @classmethod
    def of(cls, sections: CocoSections) -> ImageSizes:
        """Of all images that have come."""
        images = sections.images
        ids = np.fromiter(images, np.int64, len(images))
        sides = ((image.get("height", 0), image.get("width", 0)) for image in images.values())
        sizes = np.fromiter((side for pair in sides for side in pair), np.int32, 2 * len(images)).reshape(-1, 2)
        order = np.argsort(ids, kind="stable")
        return cls(ids[order], sizes[order], frozenset(sections.left_out))

    def among(self, image_ids: Iterable[int]) -> dict[int, CocoDict]:
        """Clean entries, as far as annotations need them."""
        wanted = np.unique(np.fromiter(image_ids, np.int64))
        places = np.searchsorted(self.ids, wanted)
        places[places == len(self.ids)] = 0
        places = places[self.ids[places] == wanted] if len(self.ids) else places[:0]
        entries: dict[int, CocoDict] = {}
        for image_id, (height, width) in zip(self.ids[places].tolist(), self.sizes[places].tolist(), strict=True):
            entries[image_id] = {"id": image_id} | ({"width": width, "height": height} if width else {})
        return entries


@dataclass(frozen=True)
class Converted:
    """What became of a piece of section `annotations`.

    Attributes:
        objects: the clean ones.
        ids: of all entries, to be compared with those of other pieces.
        faults: of single entries.
    """

    objects: pa.RecordBatch
    ids: CocoSections
    faults: Faults


def convert_entries(entries: Iterable[Any], images: ImageSizes, keypoints: Mapping[int, int]) -> Converted:
    """Columns of some entries of section `annotations`.

    Args:
        images: of the file.
        keypoints: their number by category id.
    """
    ids, faults = CocoSections(names="kept", sizes=False, keypoints=False), FaultList()
    usable, image_ids = [], array("q")
    for entry in entries:
        known = ids.add_annotation(entry)
        if known is not None:
            usable.append(entry)
            image_ids.append(known[1])
    clean = read_annotations(usable, images.among(image_ids), Asked(True, keypoints), faults, images.left_out)
    return Converted(object_batch(list(clean)), ids, faults.faults())


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
        content: bytes of the file, or the file memory-mapped.
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
    document = parse_json(bytes(content))
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
        if any(not isinstance(self._spans.get(name), ListSpan) for name in _SECTIONS):
            raise NoSpans

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
        self._asked_pictures = False

    def columns(self, document: _Sections, convert: ConvertPieces) -> AnnotationColumns:
        self._asked_pictures = False
        sections = CocoSections(names=self._reader.names, sizes=self._sizes(), keypoints=False)
        for some in document.entries("images"):
            for entry in some:
                sections.add_image(entry)
        for some in document.entries("categories"):
            for entry in some:
                sections.add_category(entry)
        keypoints = {one["id"]: len(one["keypoints"]) for one in sections.categories if "keypoints" in one}
        writer = _Writer(self._folder)
        try:
            for converted in document.converted(convert, ImageSizes.of(sections), keypoints):
                if converted.ids.is_refused:
                    break  # and the file with it: what follows needs no columns
                sections.absorb(converted.ids)
                sections.faults.extend(converted.faults)
                writer.add(converted.objects)
            else:
                sections.finish()
                return self._finished(sections, writer)
        finally:
            writer.close()
        return self._refused(document, sections)

    def _refused(self, document: _Sections, sections: CocoSections) -> AnnotationColumns:
        """Annotations that are wrong, from the first on, so that their places in the file are right."""
        again = CocoSections(names=self._reader.names, sizes=self._sizes(), keypoints=False)
        for name, add in (("images", again.add_image), ("categories", again.add_category)):
            for some in document.entries(name):
                for entry in some:
                    add(entry)
        for some in document.entries("annotations"):
            for entry in some:
                again.add_annotation(entry)
        again.finish()
        raise AssertionError("a piece of the file is refused, the whole is not")

    def _sizes(self) -> bool | SizeOf:
        asked = self._reader.sizes
        if not callable(asked):
            return asked

        def size_of(name: str, named_by_url: bool) -> tuple[int, int] | None:
            self._asked_pictures = True
            return asked(name, named_by_url)

        return size_of

    def _finished(self, sections: CocoSections, writer: _Writer) -> AnnotationColumns:
        images = image_table(sections.images.values())
        image_ids = images.column("id").to_numpy()
        objects = writer.finish()
        places = places_of_objects(image_ids, objects.column("image_id").to_numpy())
        has_all = all("width" in image and image.get("file_name") for image in sections.images.values())
        info = ColumnsInfo(
            source=self._source,
            digest=self._digest,
            categories=tuple(sections.categories),
            keypoint_fault=_keypoint_fault(sections),
            faults=sections.faults.faults(),
            named_by_url=any("named_by_url" in image for image in sections.images.values()),
            has_id_zero=sections.has_id_zero,
            sized_by_pictures=self._asked_pictures,
            is_plain=has_all and not sections.left_out and not self._asked_pictures,
            left_out=tuple(sorted(sections.left_out)),
        )
        if self._folder is None:
            return AnnotationColumns(info, images, objects, *places)
        write_folder(self._folder, info, images, *places)
        return open_columns(str(self._folder))


def _keypoint_fault(sections: CocoSections) -> str:
    if sections.keypoint_fault:
        return f"{sections.keypoint_fault}. To mend: correct these images and categories, or remove them."
    if len({tuple(one["keypoints"]) for one in sections.categories if "keypoints" in one}) > 1:
        return "categories have different lists of keypoints, expected one list in the file"
    return ""


class _Writer:
    """Collects the objects: in memory, or in a file."""

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / OBJECTS_FILE
        self._batches: list[pa.RecordBatch] = []
        self._file = self._writer = None
        if self._path is not None:
            self._file = pa.OSFile(str(self._path), "wb")
            self._writer = pa.ipc.new_file(self._file, OBJECTS)

    def add(self, batch: pa.RecordBatch) -> None:
        if not batch.num_rows:
            return
        if self._writer is None:
            self._batches.append(batch)
        else:
            self._writer.write_batch(batch)

    def close(self) -> None:
        if self._writer is not None and self._file is not None:
            self._writer.close()
            self._file.close()
            self._writer = self._file = None

    def finish(self) -> pa.Table:
        self.close()
        if self._path is None:
            return pa.Table.from_batches(self._batches, OBJECTS)
        return pa.ipc.open_file(pa.memory_map(str(self._path))).read_all()
