"""The output folder of a labelling run.

    OUTPUT/labels/*.parquet       the labels, each file whole from the moment it is visible
    OUTPUT/_run/run.json          what the run is: model fingerprint, images, settings
    OUTPUT/_run/manifest.parquet  every image of the run
    OUTPUT/_run/todo/*.parquet    what the last start had left to do
    OUTPUT/_run/_SUCCESS          written last, with the counts

The label files themselves say what is done: no second book has to agree with them, and a file that is deleted is
simply labelled again.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maskrcnn_core.data.proposal_schema import is_proposals_schema
from maskrcnn_core.data.proposals import ROWS_PER_GROUP
from maskrcnn_core.errors import StorageError
from maskrcnn_core.inference.records import SCHEMA_VERSION
from pipelines import storage
from pipelines.manifest import Manifest

SHOWN_FAILURES = 10
_TODO_ROWS_PER_FILE = 20_000
_READ_THREADS = 8


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
        """Inverse of `to_json`."""
        content = json.loads(text)
        failures = tuple(FailedImage(**failure) for failure in content["failures"])
        return cls(content["statuses"], content["detections"], failures)


NOTHING = Tally({}, 0)


@dataclass(frozen=True)
class RunIdentity:
    """What must be the same for two starts to be one run.

    Attributes:
        model: fingerprint of weights and settings, as in the label rows.
        manifest: digest of the images.
        settings: readable values that explain a difference; compared as well.
    """

    model: str
    manifest: str
    settings: Mapping[str, Any]
    schema_version: str = SCHEMA_VERSION


def labels_folder(output: str) -> str:
    """Where the label files lie."""
    return storage.join(output, "labels")


def claim(output: str, identity: RunIdentity) -> Literal["new", "resumed", "finished"]:
    """Looks whether `output` is free for this run, before any work.

    Raises:
        StorageError: it holds labels of another run.
    """
    place = storage.join(output, "_run", "run.json")
    if storage.exists(place):
        _require_same(output, json.loads(storage.read_bytes(place)), identity)
        return "finished" if storage.exists(storage.join(output, "_run", "_SUCCESS")) else "resumed"
    if _label_files(output):
        raise StorageError(
            f"output: {output!r} holds labels of unknown origin (labels/*.parquet without _run/run.json); "
            "choose another --output, or delete its labels folder"
        )
    return "new"


def open_run(output: str, identity: RunIdentity, manifest: Manifest) -> None:
    """Writes down what the run is; call it once, when `claim` said new."""
    storage.write_bytes_atomically(storage.join(output, "_run", "manifest.parquet"), _parquet(manifest.table))
    content = json.dumps(asdict(identity), indent=2).encode()
    storage.write_bytes_atomically(storage.join(output, "_run", "run.json"), content)


def close_run(output: str, tally: Tally) -> None:
    """Marks the run as finished."""
    storage.write_bytes_atomically(storage.join(output, "_run", "_SUCCESS"), tally.to_json().encode())


def finished_tally(output: str) -> Tally:
    """The counts of a finished run."""
    return Tally.from_json(storage.read_bytes(storage.join(output, "_run", "_SUCCESS")).decode())


def _require_same(output: str, stored: Mapping[str, Any], identity: RunIdentity) -> None:
    wanted = json.loads(json.dumps(asdict(identity)))
    if stored == wanted:
        return
    before, now = stored.get("settings", {}), wanted["settings"]
    changed = [
        f"{name} was {before.get(name)!r}, now {now.get(name)!r}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if stored.get("manifest") != wanted["manifest"] and not changed:
        changed.append("the list of images changed")
    if stored.get("model") != wanted["model"] and not changed:
        changed.append(f"the model was {stored.get('model')}, now {wanted['model']}")
    raise StorageError(
        f"output: {output!r} holds another run ({'; '.join(changed) or 'another label format'}); "
        "choose another --output, repeat the former command to continue that run, or delete the folder"
    )


def read_labelled(output: str) -> tuple[npt.NDArray[np.int64], Tally]:
    """Sorted ids of all images that have a row, and the counts over these rows."""
    files = _label_files(output)
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        parts = list(pool.map(_read_file, files))
    ids = np.sort(np.concatenate([ids for ids, _ in parts])) if parts else np.empty(0, np.int64)
    return ids, sum((tally for _, tally in parts), NOTHING)


def _label_files(output: str) -> list[str]:
    folder = labels_folder(output)
    return storage.list_files(folder, ".parquet") if storage.is_folder(folder) else []


def _read_file(uri: str) -> tuple[npt.NDArray[np.int64], Tally]:
    filesystem, path = storage.filesystem_and_path(uri)
    try:
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            # One leaf of the detections is enough to count them; masks stay on disk.
            is_proposals = "proposals" in file.schema_arrow.names
            leaf = "proposals.list.element.score" if is_proposals else "detections.list.element.category_id"
            table = file.read(columns=["image_id", "uri", "status", "error", leaf])
    except (pa.ArrowInvalid, OSError) as error:
        raise StorageError(
            f"output: cannot read the labels {uri!r}: {error}; delete the file to label it again"
        ) from error
    return table.column("image_id").to_numpy(), tally_rows(table)


def tally_rows(table: pa.Table) -> Tally:
    """Counts over label rows with columns image_id, uri, status, error and detections or proposals."""
    counted = table.column("status").value_counts().to_pylist()
    statuses = {entry["values"]: entry["counts"] for entry in counted}
    found = table.column("proposals" if "proposals" in table.column_names else "detections")
    detections = pc.sum(pc.list_value_length(found)).as_py() or 0
    failed = table.select(["image_id", "uri", "status", "error"]).filter(pc.field("status") != "ok")
    failures = [FailedImage(**row) for row in failed.sort_by("image_id").slice(0, SHOWN_FAILURES).to_pylist()]
    return Tally(statuses, detections, tuple(failures))


def write_todo(output: str, manifest: Manifest, done: npt.NDArray[np.int64]) -> tuple[str, int]:
    """Writes the images without a row as Parquet, and returns the folder and their number."""
    folder = storage.join(output, "_run", "todo")
    filesystem, path = storage.filesystem_and_path(folder)
    filesystem.delete_dir_contents(path, missing_dir_ok=True)
    mask = np.isin(manifest.table.column("image_id").to_numpy(), done, invert=True)
    todo = manifest.table.filter(pa.array(mask)).select(["image_id", "uri"])
    for index, part in enumerate(_slices(todo, _TODO_ROWS_PER_FILE)):
        storage.write_bytes_atomically(storage.join(folder, f"part-{index:06d}.parquet"), _parquet(part))
    return folder, todo.num_rows


def _slices(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, rows):
        yield table.slice(start, rows)


def write_labels(table: pa.Table, output: str) -> Tally:
    """Writes label rows as one file.

    The name follows from the image ids: a second attempt at the same rows replaces the first one's file.
    """
    ids = np.sort(table.column("image_id").to_numpy())
    name = f"labels-{ids[0]:019d}-{hashlib.sha256(ids.tobytes()).hexdigest()[:16]}.parquet"
    storage.write_bytes_atomically(storage.join(labels_folder(output), name), _parquet(table))
    return tally_rows(table)


def write_batch(rows: pa.Table, output: str) -> pa.Table:
    """`write_labels` for `map_batches`: the counts go on, as one row of JSON, instead of the rows."""
    return pa.table({"tally": [write_labels(rows, output).to_json()]})


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    # Proposals are read image by image.
    rows = ROWS_PER_GROUP if is_proposals_schema(table.schema) else None
    pq.write_table(table, sink, compression="zstd", row_group_size=rows)
    content: bytes = sink.getvalue().to_pybytes()
    return content
