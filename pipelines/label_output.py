"""The output folder of a labelling run.

    OUTPUT/labels/labels-PPPPP-RRRRRRR.parquet   the labels of one chunk: rows R.. of part P of the manifest
    OUTPUT/_run/run.json       what the run is: model fingerprint, code, settings, images
    OUTPUT/_run/manifest/      every image of the run (`pipelines.manifest`)
    OUTPUT/_run/chunks.json    rows of a chunk
    OUTPUT/_run/todo/          the chunks that the last start had left to do
    OUTPUT/_run/_SUCCESS       written last, with the counts

Exactly one row for each image follows from the names. A chunk's file is named by its place in the manifest and appears
whole, in one rename or one S3 upload, so that it is the data and the book of what is done at once: no moment lies
between writing and committing. Whoever labels a chunk again (a retried task, a process that outlived its driver)
replaces the file by the same rows; nothing can be lost, doubled or torn, and a file that is deleted is labelled again.

Ray Data's own checkpoints (`CheckpointConfig`) keep row ids in a second place instead: they load all ids of a run in
every filter actor (8 GB for a billion images), skip rows whose files a mode "overwrite" has removed, filter nothing
behind a source that is no file, and are deleted on success, after which a repeated run writes everything twice.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

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
_LAYOUT_VERSION = 2
_TALLY_KEY = b"maskrcnn.tally"
_READ_THREADS = 32


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
        settings: readable values that explain a difference; compared as well.
        code: fingerprint of the code that decides about labels.
    """

    model: str
    settings: Mapping[str, Any]
    code: str
    schema_version: str = SCHEMA_VERSION
    layout_version: int = _LAYOUT_VERSION


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


def labels_folder(output: str) -> str:
    """Where the label files lie."""
    return storage.join(output, "labels")


def manifest_folder(output: str) -> str:
    """Where the manifest lies."""
    return storage.join(output, "_run", "manifest")


def state_of(output: str) -> Literal["new", "begun", "finished"]:
    """Whether `output` is free, or holds a run.

    Raises:
        StorageError: it holds labels of unknown origin.
    """
    if storage.exists(_run_file(output, "run.json")):
        return "finished" if storage.exists(_run_file(output, "_SUCCESS")) else "begun"
    if _label_names(output):
        raise StorageError(
            f"output: {output!r} holds labels of unknown origin (labels/*.parquet without _run/run.json); "
            "choose another --output, or delete its labels folder"
        )
    return "new"


def open_run(output: str, identity: RunIdentity) -> None:
    """Writes down what the run is."""
    storage.write_bytes_atomically(_run_file(output, "run.json"), json.dumps(asdict(identity), indent=2).encode())


def require_same_run(output: str, identity: RunIdentity) -> None:
    """Make sure that the run in `output` has this identity.

    Raises:
        StorageError: it has another; says what differs and what can be done.
    """
    stored = json.loads(storage.read_bytes(_run_file(output, "run.json")))
    wanted = json.loads(json.dumps(asdict(identity)))
    if stored == wanted:
        return
    before, now = stored.get("settings", {}), wanted["settings"]
    changed = [
        f"{name} was {before.get(name)!r}, now {now.get(name)!r}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if stored.get("model") != wanted["model"] and not changed:
        changed.append(f"the model was {stored.get('model')}, now {wanted['model']}")
    if stored.get("code") != wanted["code"] and not changed:
        changed.append(f"the code that decides about labels was {stored.get('code')}, now {wanted['code']}")
    raise StorageError(another_run(output, "; ".join(changed) or "another label format"))


def another_run(output: str, difference: str) -> str:
    """The message that refuses an output folder."""
    return (
        f"output: {output!r} holds another run ({difference}); choose another --output, "
        "repeat the former command to continue that run, or delete the folder"
    )


def chunk_rows(output: str) -> int | None:
    """Rows of a chunk, where that has been settled."""
    place = _run_file(output, "chunks.json")
    return int(json.loads(storage.read_bytes(place))["rows"]) if storage.exists(place) else None


def settle_chunk_rows(output: str, rows: int) -> None:
    """Chunks of this run have so many rows from now on."""
    storage.write_bytes_atomically(_run_file(output, "chunks.json"), json.dumps({"rows": rows}).encode())


def chunks(manifest: Manifest, rows: int) -> Iterator[Chunk]:
    """All chunks of a run, in order."""
    for part, total in enumerate(manifest.parts):
        for start in range(0, total, rows):
            yield Chunk(part, start, min(start + rows, total))


def chunks_done(output: str, manifest: Manifest, rows: int) -> tuple[list[Chunk], list[Chunk]]:
    """Chunks that have a file, and those that have none. Costs one listing of the labels folder.

    Raises:
        StorageError: the folder holds a Parquet file that is no chunk of this run.
    """
    names = set(_label_names(output))
    done: list[Chunk] = []
    todo: list[Chunk] = []
    for chunk in chunks(manifest, rows):
        (done if chunk.name in names else todo).append(chunk)
    if len(done) < len(names):
        strange = min(names - {chunk.name for chunk in done})
        raise StorageError(
            f"output: {storage.join(labels_folder(output), strange)} belongs to no chunk of this run; "
            "expected labels-PART-ROW.parquet only: move the file away"
        )
    return done, todo


def write_todo(output: str, todo: Sequence[Chunk]) -> str:
    """Writes chunks as one Parquet file for Ray Data to read, and returns its folder."""
    folder = _run_file(output, "todo")
    columns = {name: [getattr(chunk, name) for chunk in todo] for name in ("part", "start", "stop")}
    storage.write_bytes_atomically(storage.join(folder, "chunks.parquet"), _parquet(pa.table(columns)))
    return folder


def reopen_run(output: str) -> None:
    """Takes the mark of success away, before rows of a finished run are labelled again."""
    storage.delete_file(_run_file(output, "_SUCCESS"))


def close_run(output: str, tally: Tally) -> None:
    """Marks the run as finished, and clears away what workers that died left half-written."""
    storage.delete_torn_files(labels_folder(output))
    storage.write_bytes_atomically(_run_file(output, "_SUCCESS"), tally.to_json().encode())


def finished_tally(output: str) -> Tally:
    """The counts of a finished run."""
    return Tally.from_json(storage.read_bytes(_run_file(output, "_SUCCESS")).decode())


def write_labels(table: pa.Table, uri: str) -> Tally:
    """Writes the label rows of a chunk; the file appears whole, or not at all. Its counts stand in its metadata."""
    tally = tally_rows(table)
    metadata = {**(table.schema.metadata or {}), _TALLY_KEY: tally.to_json().encode()}
    storage.write_bytes_atomically(uri, _parquet(table.replace_schema_metadata(metadata)))
    return tally


def read_tally(uri: str) -> Tally:
    """The counts of one label file, from its footer.

    Raises:
        StorageError: it is no label file, or damaged.
    """
    filesystem, path = storage.filesystem_and_path(uri)
    try:
        schema = storage.patiently(uri, lambda: pq.read_schema(path, filesystem=filesystem))
        metadata = schema.metadata or {}
    except (pa.ArrowInvalid, OSError) as error:
        raise StorageError(
            f"output: cannot read the labels {uri!r}: {error}; delete the file to label it again"
        ) from error
    if _TALLY_KEY not in metadata:
        raise StorageError(f"output: {uri!r} has no counts in its metadata; delete the file to label it again")
    return Tally.from_json(metadata[_TALLY_KEY].decode())


def read_tallies(uris: Sequence[str]) -> list[Tally]:
    """`read_tally` of many files at once."""
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        return list(pool.map(read_tally, uris))


def read_labels(uri: str) -> pa.Table:
    """The rows of one label file."""
    filesystem, path = storage.filesystem_and_path(uri)
    with storage.naming(uri):
        return storage.patiently(uri, lambda: pq.read_table(path, filesystem=filesystem))


def tally_rows(table: pa.Table) -> Tally:
    """Counts over label rows with columns image_id, uri, status, error and detections or proposals."""
    counted = table.column("status").value_counts().to_pylist()
    statuses = {entry["values"]: entry["counts"] for entry in counted}
    found = table.column("proposals" if "proposals" in table.column_names else "detections")
    detections = pc.sum(pc.list_value_length(found)).as_py() or 0
    failed = table.select(["image_id", "uri", "status", "error"]).filter(pc.field("status") != "ok")
    failures = [FailedImage(**row) for row in failed.sort_by("image_id").slice(0, SHOWN_FAILURES).to_pylist()]
    return Tally(statuses, detections, tuple(failures))


def _run_file(output: str, name: str) -> str:
    return storage.join(output, "_run", name)


def _label_names(output: str) -> list[str]:
    folder = labels_folder(output)
    files = storage.list_files(folder, ".parquet") if storage.is_folder(folder) else []
    return [uri.rsplit("/", 1)[-1] for uri in files]


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    # Proposals are read image by image.
    rows = ROWS_PER_GROUP if is_proposals_schema(table.schema) else None
    pq.write_table(table, sink, compression="zstd", row_group_size=rows)
    content: bytes = sink.getvalue().to_pybytes()
    return content
