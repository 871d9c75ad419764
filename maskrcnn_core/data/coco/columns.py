"""Annotations as Arrow columns: in memory, or memory-mapped from a folder, which all processes of a machine share.

    FOLDER/info.json        `ColumnsInfo`
    FOLDER/images.arrow     a row an image, in file order
    FOLDER/objects.arrow    a row an annotation, in file order
    FOLDER/places.arrow     of each image: where its objects begin, and how many there are ...
    FOLDER/order.arrow      ... in this list of objects by image; not there where they lie by image already

A process holds none of it but what it looks at: the pages are the system's, and the same for everyone.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from maskrcnn_core.data.coco.column_schema import ORDER, PLACES, ColumnsInfo
from maskrcnn_core.data.coco.object_batches import MappedBatch, ObjectBatch
from maskrcnn_core.data.coco.sections import CocoDict
from maskrcnn_core.errors import AnnotationError, StorageError

INFO_FILE, IMAGES_FILE, OBJECTS_FILE = "info.json", "images.arrow", "objects.arrow"
PLACES_FILE, ORDER_FILE = "places.arrow", "order.arrow"
_IMAGES_AT_ONCE = 10_000
_FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")


class AnnotationColumns:
    """Random access to images and their clean annotations.

    Args:
        info: what is known beside the columns.
        images, objects: tables of `column_schema`.
        firsts, numbers: of each image, the place of its first object in `order`, and how many it has.
        order: rows of `objects` by image; None = they lie by image.
        folder: that they are memory-mapped from; None = in memory.
        opened_by: a function and its arguments that open the same columns on any machine; None = there is none.
    """

    def __init__(
        self,
        info: ColumnsInfo,
        images: pa.Table,
        objects: pa.Table,
        firsts: NDArray[np.int64],
        numbers: NDArray[np.int32],
        order: NDArray[np.int64] | None,
        folder: Path | None = None,
        opened_by: tuple[Callable[..., Any], tuple[Any, ...]] | None = None,
    ) -> None:
        self.info, self.images, self.objects, self.folder = info, images, objects, folder
        self.opened_by = opened_by
        self._firsts, self._numbers, self._order = firsts, numbers, order
        self._batches = [MappedBatch(batch) for batch in objects.to_batches()]
        self._begins = np.cumsum([0, *(len(batch) for batch in self._batches)]).tolist()

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the same files: by `opened_by`, or those of the folder, which are on this machine."""
        if self.opened_by is not None:
            return self.opened_by
        if self.folder is not None:
            return open_columns, (str(self.folder),)
        return AnnotationColumns, (self.info, self.images, self.objects, self._firsts, self._numbers, self._order)

    def __len__(self) -> int:
        return len(self._firsts)

    @functools.cached_property
    def image_ids(self) -> NDArray[np.int64]:
        """[images]."""
        return _numbers(self.images, "id")

    @functools.cached_property
    def sizes(self) -> NDArray[np.int32]:
        """[images, 2]: height and width as stored, pixels; 0 where they are not known."""
        return np.stack([_numbers(self.images, "height"), _numbers(self.images, "width")], axis=1)

    @property
    def numbers_of_objects(self) -> NDArray[np.int32]:
        """[images]."""
        return self._numbers

    def file_name(self, image: int) -> str:
        """Of the image at this position."""
        name: str = self.images.column("file_name")[image].as_py()
        return name

    def image_entry(self, image: int) -> CocoDict:
        """The clean entry of the image at this position (`sections`)."""
        return self._image_entry(self.images.slice(image, 1).to_pylist()[0])

    def image_entries(self) -> Iterator[CocoDict]:
        """Those of all images, in file order."""
        return (
            self._image_entry(row) for batch in self.images.to_batches(_IMAGES_AT_ONCE) for row in batch.to_pylist()
        )

    def _image_entry(self, row: CocoDict) -> CocoDict:
        entry: CocoDict = {"id": row["id"]}
        if row["file_name"]:
            entry |= {"file_name": row["file_name"]} | ({"named_by_url": True} if self.info.named_by_url else {})
        entry |= {"width": row["width"], "height": row["height"]} if row["width"] else {}
        return entry | {name: row[name] for name in _FEDERATED if row[name] is not None}

    def entries(self, image: int) -> list[CocoDict]:
        """Clean annotations of the image at this position, in file order (`annotations.read_annotation`).

        Where the size of the image is not known an annotation has its JSON, `unread`, and its ids; the rest is void.
        """
        first = int(self._firsts[image])
        last = first + int(self._numbers[image])
        rows: Sequence[int] = range(first, last) if self._order is None else self._order[first:last].tolist()
        size = [int(side) for side in self.sizes[image]]
        return [self._entry(row, size) for row in rows]

    def part(self, images: NDArray[np.int64]) -> AnnotationColumns:
        """The columns of the images at some positions alone, in memory."""
        numbers = self._numbers[images]
        ends = np.cumsum(numbers, dtype=np.int64)
        # The rows of each image one after the other: those before, and the place within the image.
        rows = np.repeat(self._firsts[images] - (ends - numbers), numbers) + np.arange(ends[-1] if len(ends) else 0)
        rows = rows if self._order is None else self._order[rows]
        return AnnotationColumns(
            self.info, self.images.take(images), self._objects_at(rows), ends - numbers, numbers, None
        )

    def _objects_at(self, rows: NDArray[np.int64]) -> pa.Table:
        """These rows, in this order; batch by batch, since Arrow would first join all batches of lists."""
        ascending = np.argsort(rows, kind="stable")
        cuts = np.searchsorted(rows[ascending], self._begins)
        taken = [
            batch.rows(rows[ascending[begin:end]] - start)
            for batch, start, (begin, end) in zip(self._batches, self._begins, pairwise(cuts), strict=False)
            if end > begin
        ]
        if not taken:
            return self.objects.slice(0, 0)
        back = np.empty_like(ascending)
        back[ascending] = np.arange(len(ascending))
        return pa.Table.from_batches(taken).combine_chunks().take(back).combine_chunks()

    def batches(self) -> Iterator[ObjectBatch]:
        """The numbers of all objects, in file order."""
        return (batch.as_numbers() for batch in self._batches)

    def objects_by_image(self) -> Iterator[tuple[NDArray[np.int64], ObjectBatch]]:
        """The same with the position of each object's image, for counting: [objects]."""
        by_id = np.argsort(self.image_ids, kind="stable")
        ids = self.image_ids[by_id]
        for batch in self.batches():
            yield by_id[np.searchsorted(ids, batch.image_ids)], batch

    def _entry(self, row: int, size: list[int]) -> CocoDict:
        number = bisect_right(self._begins, row) - 1
        return self._batches[number].entry(row - self._begins[number], size)


def places_of_objects(
    image_ids: NDArray[np.int64], of_objects: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64] | None]:
    """Where the objects of each image are.

    Args:
        image_ids: [images], different ones.
        of_objects: [objects], the image id of each; all are known.

    Returns:
        [images] the place of the first one and [images] their number, in [objects] the objects by image, in file order
        within an image; None instead of it where they lie like this.
    """
    by_id = np.argsort(image_ids, kind="stable")
    images = by_id[np.searchsorted(image_ids[by_id], of_objects)].astype(
        np.int64 if len(image_ids) > 2**31 else np.int32
    )
    numbers = np.bincount(images, minlength=len(image_ids)).astype(np.int32)
    firsts = np.cumsum(numbers, dtype=np.int64) - numbers
    if not (np.diff(images) < 0).any():
        return firsts, numbers, None
    return firsts, numbers, np.argsort(images, kind="stable").astype(np.int64)


def write_folder(
    folder: Path,
    info: ColumnsInfo,
    images: pa.Table,
    firsts: NDArray[np.int64],
    numbers: NDArray[np.int32],
    order: NDArray[np.int64] | None,
) -> None:
    """All files but the objects', the information last."""
    _write(folder / IMAGES_FILE, images)
    _write(folder / PLACES_FILE, pa.Table.from_arrays([pa.array(firsts), pa.array(numbers)], schema=PLACES))
    if order is not None:
        _write(folder / ORDER_FILE, pa.Table.from_arrays([pa.array(order)], schema=ORDER))
    (folder / INFO_FILE).write_bytes(info.to_json())


def open_columns(folder: str, opened_by: tuple[Callable[..., Any], tuple[Any, ...]] | None = None) -> AnnotationColumns:
    """The columns in a local folder, memory-mapped.

    Args:
        opened_by: as of `AnnotationColumns`.

    Raises:
        StorageError: there are none.
        AnnotationError: they are of another version.
    """
    path = Path(folder)
    try:
        info = ColumnsInfo.from_json((path / INFO_FILE).read_bytes())
        images, objects, places = (_mapped(path / name) for name in (IMAGES_FILE, OBJECTS_FILE, PLACES_FILE))
        order = _numbers(_mapped(path / ORDER_FILE), "object") if (path / ORDER_FILE).exists() else None
    except AnnotationError as error:
        raise AnnotationError(f"{folder}: {error}") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise StorageError(f"{folder}: no annotation columns ({error}); remove the folder, it is made again") from None
    first, number = _numbers(places, "first"), _numbers(places, "number")
    return AnnotationColumns(info, images, objects, first, number, order, path, opened_by)


def _mapped(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _write(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def _numbers(table: pa.Table, name: str) -> NDArray[Any]:
    """A column of numbers, over the file's memory where it is one piece."""
    column = table.column(name)
    if column.num_chunks == 1:
        return column.chunk(0).to_numpy()  # type: ignore[no-any-return]
    return column.to_numpy()  # type: ignore[no-any-return]
