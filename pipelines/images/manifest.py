"""Every image of a run with a unique id, as Parquet shards: built once, read in chunks, never held whole.

    FOLDER/part-00000-XXXX.parquet   image_id, uri, size, etag, width, height; sorted by image_id, ids disjoint between
                                     parts
    FOLDER/manifest.json             created last: rows of each part, digest, what it was made from

XXXX names the attempt that made them: two processes that list images for one run do not touch each other's files, and
the one that creates manifest.json first has made the manifest of both.

Building is a sort in two rounds of independent tasks. The first lists the parts of the source, and those that turn up
on the way, and writes pieces sorted by id; the second cuts the ids into ranges of equal weight, and each task merges
one range of all pieces into a part. Equal ids meet in one range, so that the second round finds every collision. A task
holds some hundred thousand images at most, whatever the size of the collection.
"""

import functools
import hashlib
import uuid
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maskrcnn_core.errors import AnnotationError, StorageError
from pipelines import storage
from pipelines.images.parts import IMAGE_EXTENSIONS, Entries, Part
from pipelines.images.source import Source, entries, source_stamp
from pipelines.storage.object_stores import is_beside_s3, object_exists
from pipelines.storage.parquet_seal import seal_of, sealed
from pipelines.storage.run_files import json_object_bytes, read_json_object

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
    ]
)

LIST_AGAIN = "delete manifest.json in the folder _run/manifest, and give the command again: the images are listed anew"

_PIECE_ROWS = 500_000
_PART_ROWS = 250_000
_ROWS_PER_GROUP = 4_096

Tasks = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterator[Any]]
"""Calls a function with each tuple of arguments, in any order and place, and yields what it returns. The sequence may
grow until the last result has been taken."""


@dataclass(frozen=True)
class Manifest:
    """The images of a run.

    Attributes:
        folder: where it lies.
        parts: rows of part-00000, part-00001, ...
        digest: 32 hexadecimal digits; equal digests mean the same ids and uris.
        images, kind, stamp: the source that it was made from, as in `Source`.
        attempt: part of its files' names; empty in those of earlier releases.
        image_root: folder that the names of a COCO json were relative to.
    """

    folder: str
    parts: tuple[int, ...]
    digest: str
    images: str
    kind: str
    stamp: str
    attempt: str = ""
    image_root: str = ""

    def __len__(self) -> int:
        return sum(self.parts)

    def read(self, part: int, start: int = 0, stop: int | None = None) -> pa.Table:
        """Rows start..stop of one part, `MANIFEST_SCHEMA`.

        Raises:
            StorageError: the part is not there, or damaged.
        """
        uri = self.part_uri(part)
        # A part is some ten megabytes, of which a process reads many chunks one after the other.
        content = _part_content(uri) if self.attempt else storage.read_bytes(uri)
        try:
            with pq.ParquetFile(pa.BufferReader(content)) as file:
                end = file.metadata.num_rows if stop is None else stop
                groups = range(start // _ROWS_PER_GROUP, -(-end // _ROWS_PER_GROUP))
                table = file.read_row_groups(list(groups))
            return table.slice(start - groups.start * _ROWS_PER_GROUP, end - start)
        except Exception as error:  # whatever Arrow makes of a torn file
            raise StorageError(f"{uri}: is damaged ({' '.join(str(error).split())[:100]}); {LIST_AGAIN}") from error

    def part_uri(self, part: int) -> str:
        """Where a part lies."""
        return _part_uri(self.folder, part, self.attempt)

    def tables(self) -> Iterator[pa.Table]:
        """One part after the other."""
        return (self.read(part) for part in range(len(self.parts)))


@dataclass(frozen=True)
class _Piece:
    """One sorted file of the first round.

    Attributes:
        rows: of each row group; ids: the first one of each.
        digest: sum over its rows.
        others: names that are no images.
    """

    uri: str
    rows: tuple[int, ...]
    ids: tuple[int, ...]
    digest: int
    others: int


def one_by_one(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """`Tasks` in this process."""
    return (function(*some) for some in arguments)


def build_manifest(source: Source, folder: str, tasks: Tasks = one_by_one) -> Manifest:
    """List the images of a source and write them as a manifest; see `draft_manifest` and `publish_manifest`."""
    return publish_manifest(draft_manifest(source, folder, tasks))


def draft_manifest(source: Source, folder: str, tasks: Tasks = one_by_one) -> Manifest:
    """List the images of a source and write them as a manifest that nobody sees yet.

    Args:
        source: of `open_source`.
        folder: where it goes; nothing of it is left there if this fails.
        tasks: how the work is spread.

    Raises:
        StorageError: nothing in the source is an image, or it cannot be listed.
        AnnotationError: the source is malformed, or two images have one id.
    """
    attempt = uuid.uuid4().hex[:12]
    pieces_folder = storage.join(folder, f"pieces-{attempt}")
    number_of_parts = 0
    try:
        pieces = _list_all(source.parts, pieces_folder, tasks)
        total = sum(sum(piece.rows) for piece in pieces)
        if total == 0:
            raise StorageError(_no_images(source, sum(piece.others for piece in pieces)))
        cuts = _cuts(pieces, max(1, -(-total // _PART_ROWS)))
        number_of_parts = len(cuts)
        files = tuple(piece.uri for piece in pieces if piece.rows)
        uris = [_part_uri(folder, number, attempt) for number in range(number_of_parts)]
        ranges = [(files, *cut, uris[number], number, source.images) for number, cut in enumerate(cuts)]
        rows = dict(tasks(_merge_range, ranges))
        return Manifest(
            folder,
            tuple(rows[number] for number in range(number_of_parts)),
            f"{sum(piece.digest for piece in pieces) % 2**128:032x}",
            source.images,
            source.kind,
            source.stamp,
            attempt,
            storage.absolute(source.parts[0].root) if source.kind == "coco" else "",
        )
    except BaseException:
        _discard(folder, number_of_parts, attempt)
        raise
    finally:
        storage.delete_folder(pieces_folder)


def publish_manifest(draft: Manifest) -> Manifest:
    """Make a draft the manifest of its folder; where another process was faster, drop it and take what is there.

    Raises:
        StorageError: the folder cannot be written.
    """
    if storage.create_bytes(storage.join(draft.folder, "manifest.json"), json_object_bytes(asdict(draft))):
        return draft
    discard_manifest(draft)
    published = open_manifest(draft.folder)
    assert published is not None
    return published


def discard_manifest(draft: Manifest) -> None:
    """Delete the files of a draft that has not been published."""
    _discard(draft.folder, len(draft.parts), draft.attempt)


def _discard(folder: str, parts: int, attempt: str) -> None:
    for number in range(parts):
        storage.delete_file(_part_uri(folder, number, attempt))


def open_manifest(folder: str) -> Manifest | None:
    """The manifest in a folder, or None where there is none that was finished.

    Raises:
        StorageError: it is damaged.
    """
    uri = storage.join(folder, "manifest.json")
    if not storage.exists(uri):
        return None
    texts = ("digest", "images", "kind", "stamp")
    content = read_json_object(uri, {"parts": list, **dict.fromkeys(texts, str)}, LIST_AGAIN)
    parts = tuple(content["parts"])
    if not parts or any(type(rows) is not int or rows < 1 for rows in parts):
        raise StorageError(f"{uri}: parts is {str(parts)[:60]}, expected the rows of each; {LIST_AGAIN}")
    return Manifest(
        folder,
        parts,
        digest=content["digest"],
        images=content["images"],
        kind=content["kind"],
        stamp=content["stamp"],
        attempt=str(content.get("attempt", "")),
        image_root=str(content.get("image_root", "")),
    )


def changes_since(manifest: Manifest, images: str) -> str | None:
    """What makes a manifest another than the one that `images` (absolute) would give now; None where nothing shows.

    On S3 a prefix is not listed again: objects that came later are not seen.
    """
    if manifest.images != images:
        return f"images was {manifest.images!r}, now {images!r}"
    kind: Any = manifest.kind
    if kind != "glob" and not (object_exists(images) if is_beside_s3(images) else storage.exists(images)):
        return f"{images!r} is no longer there"
    if manifest.stamp and source_stamp(images, kind) != manifest.stamp:
        return f"{images!r} has changed since its images were listed"
    return None


def stable_image_id(uri: str) -> int:
    """63-bit id of a uri: the same on every machine and in every run (BLAKE2b, 8 bytes, top bit dropped)."""
    return int.from_bytes(hashlib.blake2b(uri.encode(), digest_size=8).digest(), "big") >> 1


# ---- first round: parts of the source to sorted pieces ---------------------------------------------------------------


def _list_all(parts: Sequence[Part], folder: str, tasks: Tasks) -> list[_Piece]:
    """Pieces of all parts; what a task leaves is listed as soon as its result is here."""
    arguments = [(part, number, folder) for number, part in enumerate(parts)]
    pieces: list[_Piece] = []
    for some, left in tasks(_list_part, arguments):
        pieces += some
        arguments += [(part, number, folder) for number, part in enumerate(left, len(arguments))]
    return pieces


def _list_part(part: Part, number: int, folder: str) -> tuple[list[_Piece], list[Part]]:
    """Pieces of what was listed, and what was left to others."""
    tables: list[pa.Table] = []
    pieces: list[_Piece] = []
    left: list[Part] = []
    others = 0

    def flush() -> None:
        uri = storage.join(folder, f"{number:06d}-{len(pieces):04d}.parquet")
        pieces.append(_write_piece(uri, pa.concat_tables([*tables, MANIFEST_SCHEMA.empty_table()]), others))
        tables.clear()

    for some in entries(part):
        others += some.others
        left += some.left
        tables.append(_table(some, part))
        if sum(table.num_rows for table in tables) >= _PIECE_ROWS:
            flush()
    flush()
    return pieces, left


def _table(some: Entries, part: Part) -> pa.Table:
    ids = [stable_image_id(uri) for uri in some.uris] if some.ids is None else some.ids
    given = (ids, some.uris, some.sizes, some.etags, some.widths, some.heights)
    try:
        columns = [
            pa.array([None] * len(ids) if values is None else values, field.type)
            for values, field in zip(given, MANIFEST_SCHEMA, strict=True)
        ]
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise AnnotationError(f"images: {part.path!r} has an id or size of the wrong type: {error}") from error
    return pa.table(columns, schema=MANIFEST_SCHEMA)


def _write_piece(uri: str, table: pa.Table, others: int) -> _Piece:
    table = table.sort_by("image_id")
    ids = table.column("image_id").to_numpy()
    if len(ids) == 0:
        return _Piece(uri, (), (), 0, others)
    _write_parquet(uri, table)
    starts = range(0, len(ids), _ROWS_PER_GROUP)
    rows = tuple(min(_ROWS_PER_GROUP, len(ids) - start) for start in starts)
    return _Piece(uri, rows, tuple(int(ids[start]) for start in starts), _digest(table), others)


def _digest(table: pa.Table) -> int:
    """A sum over the rows, so that neither their order nor how they were listed matters."""
    total = 0
    for image_id, uri in zip(table.column("image_id").to_pylist(), table.column("uri").to_pylist(), strict=True):
        total += int.from_bytes(hashlib.blake2b(f"{image_id}\t{uri}".encode(), digest_size=16).digest(), "big")
    return total


def _write_parquet(uri: str, table: pa.Table) -> None:
    storage.write_bytes_atomically(uri, sealed(table, row_group_size=_ROWS_PER_GROUP))


@functools.lru_cache(maxsize=2)
def _part_content(uri: str) -> bytes:
    """A part of a manifest, proved to be what was written. Its name is used once."""
    content = storage.read_bytes(uri)
    seal = seal_of(content)
    if seal is None or seal[0] != seal[1]:
        raise StorageError(f"{uri}: other content than when it was written; {LIST_AGAIN}")
    return content


def _no_images(source: Source, others: int) -> str:
    seen = f"{others} other files" if others else ("no match" if source.kind == "glob" else "it is empty")
    return f"images: no images in {source.images!r} ({seen}); expected files with {', '.join(IMAGE_EXTENSIONS)}"


# ---- second round: id ranges of all pieces to parts ------------------------------------------------------------------


def _cuts(pieces: Iterable[_Piece], wanted: int) -> list[tuple[int, int]]:
    """Ranges low <= id < high of about equal numbers of rows, which cover all ids."""
    groups = sorted((first, rows) for piece in pieces for first, rows in zip(piece.ids, piece.rows, strict=True))
    weights = np.cumsum([rows for _, rows in groups])
    firsts = [first for first, _ in groups]
    edges = [firsts[int(np.searchsorted(weights, weights[-1] * k / wanted))] for k in range(1, wanted)]
    lows = [-(2**63), *sorted(set(edges) - {firsts[0]})]
    return list(zip(lows, [*lows[1:], 2**63], strict=True))


def _merge_range(files: tuple[str, ...], low: int, high: int, uri: str, number: int, images: str) -> tuple[int, int]:
    tables = [table for uri in files if (table := _read_range(uri, low, high)).num_rows]
    table = pa.concat_tables(tables).sort_by("image_id")
    _require_unique(table, images)
    _write_parquet(uri, table)
    return number, table.num_rows


def _read_range(uri: str, low: int, high: int) -> pa.Table:
    filesystem, path = storage.filesystem_and_path(uri)

    def read() -> pa.Table:
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            groups = [file.metadata.row_group(index).column(0).statistics for index in range(file.num_row_groups)]
            first = bisect_left([statistics.max for statistics in groups], low)
            last = bisect_right([statistics.min for statistics in groups], high - 1)
            return file.read_row_groups(list(range(first, max(first, last))))

    table = storage.patiently(uri, read)
    ids = table.column("image_id")
    return table.filter(pc.and_(pc.greater_equal(ids, low), pc.less_equal(ids, high - 1)))


def _require_unique(table: pa.Table, images: str) -> None:
    ids = table.column("image_id").to_numpy()
    same = np.flatnonzero(ids[1:] == ids[:-1])
    if len(same):
        pair = table.slice(int(same[0]), 2).column("uri").to_pylist()
        raise AnnotationError(
            f"images: {images!r} has image id {ids[same[0]]} twice, for {pair[0]!r} and {pair[1]!r}; "
            "each image needs an id of its own (a manifest .parquet can set image_id)"
        )


def _part_uri(folder: str, number: int, attempt: str) -> str:
    return storage.join(folder, f"part-{number:05d}{f'-{attempt}' if attempt else ''}.parquet")
