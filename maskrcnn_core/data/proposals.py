"""Proposals in Parquet files ("precomputed proposals", Fast R-CNN): one row per image, read image by image.

A row holds `image_id`, `uri`, `width`, `height`, `status`, `error`, `model` as a label record does, and `proposals`: a
list of structs of `bbox` (x, y, width, height in original pixels, as COCO has boxes) and `score`. All proposals of a
large collection do not fit into memory (1000 each for 118,000 images are 2.4 GB), so that a reader keeps only where
each image's row is, some 17 bytes for an image, and reads the small row group around it when it is asked for.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq
import torch
from torch import Tensor

from maskrcnn_core.errors import ImageError, StorageError
from maskrcnn_core.records.schema import ROWS_PER_GROUP
from maskrcnn_core.structures import Proposals, real_or_unit, valid_slots

_INDEX_COLUMNS = ("image_id", "status")
_READ_COLUMNS = ("width", "height", "proposals")
_MOST_GROUP_BYTES = 64 << 20
_MOST_OPEN_FILES = 64
_READ_THREADS = 8
_IDS_SHOWN = 5


@dataclass(frozen=True)
class ImageProposals:
    """Proposals of one image, best first.

    Attributes:
        boxes: [R, 4] float32 xyxy within the image, none without area.
        scores: [R] float32.
        size: (height, width) of the frame that the boxes are in, pixels.
    """

    boxes: Tensor
    scores: Tensor
    size: tuple[int, int]

    def __len__(self) -> int:
        return self.boxes.shape[0]


def resize_proposals(proposals: ImageProposals, size: tuple[int, int], *, flip: bool = False) -> ImageProposals:
    """The same regions where the image is resized to `size` (height, width) and, if `flip`, mirrored left to right."""
    boxes = proposals.boxes
    if flip:
        x1, y1, x2, y2 = boxes.unbind(-1)
        boxes = torch.stack([proposals.size[1] - x2, y1, proposals.size[1] - x1, y2], dim=-1)
    scale_y, scale_x = size[0] / proposals.size[0], size[1] / proposals.size[1]
    scale = torch.tensor([scale_x, scale_y, scale_x, scale_y], dtype=torch.float32)
    return ImageProposals(boxes * scale, proposals.scores, size)


def pad_proposals(images: Sequence[ImageProposals]) -> Proposals:
    """Proposals of a batch: each list padded to the longest, at least one slot (see `structures`, "Fillers")."""
    slots = max([1, *(len(image) for image in images)])
    boxes, scores = torch.zeros(len(images), slots, 4), torch.zeros(len(images), slots)
    for index, image in enumerate(images):
        boxes[index, : len(image)], scores[index, : len(image)] = image.boxes, image.scores
    count = torch.tensor([len(image) for image in images], dtype=torch.int64)
    return Proposals(real_or_unit(boxes, valid_slots(count, slots)), scores, count)


class ProposalFiles:
    """Proposals of many images, read one by one; may be passed to other processes and used by several threads.

    Args:
        files: Parquet files, paths within `filesystem`.
        filesystem: where they lie.
        name: how messages call them, such as the setting and the folder.

    Raises:
        StorageError: a file is no Parquet, holds something else, or two rows have one image id.
    """

    def __init__(self, files: Sequence[str], filesystem: pa.fs.FileSystem, name: str = "proposals") -> None:
        self.name = name
        self._files, self._filesystem = tuple(files), filesystem
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            parts = list(pool.map(self._read_index, self._files))
        ids = np.concatenate([part.ids for part in parts]) if parts else np.empty(0, np.int64)
        order = np.argsort(ids, kind="stable")
        self._ids, self._rows = ids[order], order
        self._usable = np.concatenate([part.usable for part in parts])[order] if parts else np.empty(0, np.bool_)
        groups = [rows for part in parts for rows in part.group_rows]
        self._group_starts = np.cumsum([0, *groups])
        self._groups = [(number, group) for number, part in enumerate(parts) for group in range(len(part.group_rows))]
        self.fingerprint = _digest(part.footer for part in parts)
        self._require_unique()
        self._start_reading()

    def __len__(self) -> int:
        return len(self._ids)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_open", "_last")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_reading()

    def _start_reading(self) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._last: tuple[int, pa.Table] | None = None

    def require(self, image_ids: Iterable[int], *, allow_failed: bool = False) -> None:
        """Make sure that every image can be read.

        Args:
            image_ids: of all images.
            allow_failed: a row that says that the image failed is enough: its `read` says so.

        Raises:
            StorageError: naming the first images without a row, or whose row says that the image failed.
        """
        wanted = np.fromiter(image_ids, np.int64)
        position, present = self._positions(wanted)
        if not present.all():
            missing = wanted[~present]
            raise StorageError(
                f"{self.name}: {len(missing)} of {len(wanted)} images have no row, the first: image id "
                f"{', '.join(map(str, missing[:_IDS_SHOWN].tolist()))}; expected one for each image: write them with "
                "jobs.label --label.record proposals --images ANNOTATIONS.json, so that the rows carry its ids"
            )
        failed = wanted[~self._usable[position]]
        if len(failed) and not allow_failed:
            raise StorageError(
                f"{self.name}: {len(failed)} of {len(wanted)} images have no proposals because they failed (column "
                f"error says why), the first: image id {', '.join(map(str, failed[:_IDS_SHOWN].tolist()))}; mend the "
                "images and write their proposals again, or leave the images out"
            )

    def read(self, image_id: int, limit: int) -> ImageProposals:
        """The best `limit` proposals of an image, in its original frame.

        Raises:
            ImageError: there is no row of this image, or a row without usable proposals.
            StorageError: the file cannot be read any more.
        """
        where = f"image {image_id}: {self.name}"
        position, present = self._positions(np.array([image_id], np.int64))
        if not present[0]:
            raise ImageError("failed", f"{where}: no row of this image")
        if not self._usable[position[0]]:
            raise ImageError("failed", f"{where}: the row says that the image failed when they were made")
        row = int(self._rows[position[0]])
        group = int(np.searchsorted(self._group_starts, row, side="right")) - 1
        table = self._group(group)
        return _row_proposals(table, row - int(self._group_starts[group]), limit, where)

    def _positions(self, image_ids: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Where each id is in the index, and whether it is there."""
        if not len(self._ids):
            return np.zeros(len(image_ids), np.int64), np.zeros(len(image_ids), np.bool_)
        position = np.minimum(np.searchsorted(self._ids, image_ids), len(self._ids) - 1)
        return position, self._ids[position] == image_ids

    def _require_unique(self) -> None:
        twice = np.flatnonzero(self._ids[1:] == self._ids[:-1])
        if len(twice):
            raise StorageError(
                f"{self.name}: image id {self._ids[twice[0]]} has more than one row; give the proposals of one run only"
            )

    def _group(self, group: int) -> pa.Table:
        """A row group; the last one is kept, because images that are labelled together mostly share one."""
        with self._lock:
            if self._last is None or self._last[0] != group:
                number, index = self._groups[group]
                try:
                    table = self._opened(number).read_row_group(index, columns=list(_READ_COLUMNS), use_threads=False)
                except (OSError, pa.ArrowInvalid) as error:
                    raise StorageError(f"{self.name}: {self._files[number]}: cannot be read: {error}") from error
                self._last = (group, table)
            return self._last[1]

    def _opened(self, number: int) -> pq.ParquetFile:
        if number in self._open:
            self._open.move_to_end(number)
        else:
            if len(self._open) >= _MOST_OPEN_FILES:
                self._open.popitem(last=False)[1].close(force=True)
            self._open[number] = pq.ParquetFile(self._filesystem.open_input_file(self._files[number]))
        return self._open[number]

    def _read_index(self, path: str) -> "_FileIndex":
        try:
            with self._filesystem.open_input_file(path) as stream, pq.ParquetFile(stream) as file:
                self._require_proposals(path, file)
                groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
                table = file.read(columns=list(_INDEX_COLUMNS))
                footer = _footer(stream)
        except (OSError, pa.ArrowInvalid) as error:
            raise StorageError(f"{self.name}: {path}: cannot be read as Parquet: {error}") from error
        if table.column("image_id").null_count:
            raise StorageError(f"{self.name}: {path}: a row has no image_id, expected one in each")
        usable = pc.fill_null(pc.equal(table.column("status"), "ok"), False).to_numpy()
        ids = table.column("image_id").to_numpy().astype(np.int64)
        return _FileIndex(ids, usable, tuple(group.num_rows for group in groups), footer)

    def _require_proposals(self, path: str, file: pq.ParquetFile) -> None:
        schema = file.schema_arrow
        missing = [name for name in (*_INDEX_COLUMNS, *_READ_COLUMNS) if name not in schema.names]
        if missing:
            content = "detections" if "detections" in schema.names else f"columns {', '.join(schema.names)}"
            raise StorageError(
                f"{self.name}: {path} holds {content}, expected proposals (column {missing[0]!r} is missing); "
                "jobs.label --label.record proposals writes them"
            )
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group)
            if size.num_rows > ROWS_PER_GROUP and size.total_byte_size > _MOST_GROUP_BYTES:
                raise StorageError(
                    f"{self.name}: {path}: a row group of {size.num_rows} images and {size.total_byte_size >> 20} MiB, "
                    f"expected at most {_MOST_GROUP_BYTES >> 20} MiB, because reading one image reads its whole group; "
                    f"write the file again with row_group_size={ROWS_PER_GROUP}"
                )


@dataclass(frozen=True)
class _FileIndex:
    """Image id and whether there are proposals for each row, rows of each row group, the file's footer."""

    ids: npt.NDArray[np.int64]
    usable: npt.NDArray[np.bool_]
    group_rows: tuple[int, ...]
    footer: bytes


def _footer(stream: Any) -> bytes:
    """A Parquet file's own description: sizes and value ranges of all its parts."""
    size = stream.size()
    stream.seek(size - 8)
    length = int.from_bytes(stream.read(4), "little")
    stream.seek(size - 8 - length)
    content: bytes = stream.read(length)
    return content


def _digest(footers: Iterable[bytes]) -> str:
    """32 hexadecimal digits that change when the proposals do, whatever their files are called."""
    digest = hashlib.sha256()
    for one in sorted(hashlib.sha256(footer).digest() for footer in footers):
        digest.update(one)
    return digest.hexdigest()[:32]


def _row_proposals(table: pa.Table, row: int, limit: int, where: str) -> ImageProposals:
    width, height = (table.column(name)[row].as_py() for name in ("width", "height"))
    structs = table.column("proposals")[row].values
    if not width or not height or structs is None:
        raise ImageError("failed", f"{where}: a row without width, height or proposals")
    scores = pc.struct_field(structs, "score").to_numpy(zero_copy_only=False).astype(np.float32)
    boxes = pc.list_flatten(pc.struct_field(structs, "bbox")).to_numpy(zero_copy_only=False).astype(np.float32)
    if len(boxes) != 4 * len(scores) or not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ImageError("failed", f"{where}: a proposal whose bbox is not 4 finite numbers or whose score is none")
    corners = boxes.reshape(-1, 4).copy()
    corners[:, 2:] += corners[:, :2]
    corners = np.clip(corners, 0.0, np.array([width, height, width, height], np.float32))
    real = (corners[:, 2:] > corners[:, :2]).all(axis=1)
    order = np.flatnonzero(real)
    order = order[np.argsort(-scores[order], kind="stable")][:limit]
    return ImageProposals(torch.from_numpy(corners[order]), torch.from_numpy(scores[order]), (height, width))
