"""The label files of a run, one by one: rows with their counts and a digest in the metadata."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maskrcnn_core.errors import StorageError
from maskrcnn_core.records.schema import ROWS_PER_GROUP, is_proposals_schema
from pipelines import storage
from pipelines.storage.parquet_seal import seal_in, sealed

SHOWN_FAILURES = 10
SEALED_KEY = b"maskrcnn.sealed"
"""In the metadata of files that hold their own digest (`parquet_seal`)."""

_TALLY_KEY = b"maskrcnn.tally"
_READ_THREADS = 32

# Columns of label rows whose values come again and again. The others (scores, boxes, keypoints, masks, URIs) hardly
# ever repeat one: dictionaries of them take most of the time of writing, and make the file larger.
_REPEATING = (
    *("width", "height", "status", "error", "model"),
    *("detections.list.element.category_id", "detections.list.element.category"),
    "detections.list.element.segmentation.size.list.element",
)


def labels_folder(output: str) -> str:
    """Where the label files lie."""
    return storage.join(output, "labels")


@dataclass(frozen=True, order=True)
class Chunk:
    """Rows start..stop of one part of the manifest: what one task labels and one file holds."""

    part: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"labels-{self.part:05d}-{self.start:07d}.parquet"

    def uri(self, output: str) -> str:
        """Of its file in the output of a run."""
        return storage.join(labels_folder(output), self.name)


@dataclass(frozen=True)
class FailedImage:
    """An image without labels, and why."""

    image_id: int
    uri: str
    status: str
    error: str


@dataclass(frozen=True)
class Tally:
    """Counts over label rows.

    Attributes:
        statuses: number of images by record status.
        detections: objects, or proposals, in them.
        failures: those of the lowest image ids, at most `SHOWN_FAILURES`.
    """

    statuses: Mapping[str, int]
    detections: int
    failures: tuple[FailedImage, ...] = ()

    @property
    def images(self) -> int:
        """Rows counted."""
        return sum(self.statuses.values())

    @property
    def failed(self) -> int:
        """Rows whose status is not ok."""
        return self.images - self.statuses.get("ok", 0)

    def __add__(self, other: "Tally") -> "Tally":
        names = sorted({*self.statuses, *other.statuses})
        statuses = {name: self.statuses.get(name, 0) + other.statuses.get(name, 0) for name in names}
        failures = sorted((*self.failures, *other.failures), key=lambda failure: failure.image_id)
        return Tally(statuses, self.detections + other.detections, tuple(failures[:SHOWN_FAILURES]))

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of `to_json`.

        Raises:
            ValueError: it is something else.
        """
        content = json.loads(text)
        try:
            failures = tuple(FailedImage(**failure) for failure in content["failures"])
            statuses, detections = content["statuses"], content["detections"]
        except (TypeError, KeyError) as error:
            raise ValueError(f"counts of another shape ({error})") from error
        if not isinstance(statuses, dict) or any(type(count) is not int for count in [detections, *statuses.values()]):
            raise ValueError("counts that are no numbers")
        return cls(statuses, detections, failures)


NOTHING = Tally({}, 0)


@dataclass(frozen=True)
class LabelFile:
    """What is known of a label file without its rows.

    Attributes:
        tally: counts over its rows.
        sha256: the digest that it holds; empty for a file of an earlier release.
        size: bytes.
    """

    tally: Tally
    sha256: str
    size: int


def write_labels(table: pa.Table, uri: str) -> LabelFile:
    """Writes the label rows of a chunk; the file appears whole, or not at all. Its counts and its digest stand in its
    metadata."""
    tally = tally_rows(table)
    metadata = {**(table.schema.metadata or {}), _TALLY_KEY: tally.to_json().encode(), SEALED_KEY: b"1"}
    table = table.replace_schema_metadata(metadata)
    # Proposals are read image by image.
    rows = ROWS_PER_GROUP if is_proposals_schema(table.schema) else None
    content = sealed(table, row_group_size=rows, repeating=_REPEATING)
    storage.write_bytes_atomically(uri, content)
    return LabelFile(tally, seal_in(pq.read_metadata(pa.BufferReader(content)).metadata), len(content))


def read_footer(uri: str) -> LabelFile:
    """What the footer of one label file says.

    Raises:
        StorageError: it is no label file, or damaged.
    """
    filesystem, path = storage.filesystem_and_path(uri)

    def read() -> tuple[dict[bytes, bytes], int]:
        with filesystem.open_input_file(path) as file:
            return pq.read_metadata(file).metadata or {}, file.size()

    try:
        metadata, size = storage.patiently(uri, read)
        tally = Tally.from_json(metadata[_TALLY_KEY].decode()) if _TALLY_KEY in metadata else None
    except Exception as error:  # whatever Arrow makes of a damaged footer
        raise _damaged(uri, error) from error
    if tally is None:
        raise StorageError(f"output: {uri!r} has no counts in its metadata; delete the file to label it again")
    return LabelFile(tally, seal_in(metadata), size)


def are_readable(uris: Sequence[str]) -> list[bool]:
    """Whether each of many files is a whole label file, as far as its footer tells."""

    def is_readable(uri: str) -> bool:
        try:
            read_footer(uri)
        except StorageError:
            storage.read_bytes(uri)  # a file that cannot be reached is not a torn one
            return False
        return True

    with ThreadPoolExecutor(_READ_THREADS) as pool:
        return list(pool.map(is_readable, uris))


def read_footers(uris: Sequence[str]) -> list[LabelFile]:
    """`read_footer` of many files at once."""
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        return list(pool.map(read_footer, uris))


def read_rows(uri: str) -> pa.Table:
    """The rows of one label file.

    Raises:
        StorageError: it is damaged.
    """
    filesystem, path = storage.filesystem_and_path(uri)
    try:
        return storage.patiently(uri, lambda: pq.read_table(path, filesystem=filesystem))
    except Exception as error:
        raise _damaged(uri, error) from error


def _damaged(uri: str, error: Exception) -> StorageError:
    """What to say of a file that cannot be read as Parquet. Where it cannot be read at all, that is raised: the file
    may be good."""
    storage.read_bytes(uri)
    reason = " ".join(str(error).split())[:200]
    return StorageError(f"output: cannot read the labels {uri!r}: {reason}; delete the file to label it again")


def tally_rows(table: pa.Table) -> Tally:
    """Counts over label rows with columns image_id, uri, status, error and detections or proposals."""
    counted = table.column("status").value_counts().to_pylist()
    statuses = {entry["values"]: entry["counts"] for entry in counted}
    lists = table.column("proposals" if "proposals" in table.column_names else "detections")
    detections = pc.sum(pc.list_value_length(lists)).as_py() or 0
    failed = table.select(["image_id", "uri", "status", "error"]).filter(pc.field("status") != "ok")
    failures = [FailedImage(**row) for row in failed.sort_by("image_id").slice(0, SHOWN_FAILURES).to_pylist()]
    return Tally(statuses, detections, tuple(failures))
