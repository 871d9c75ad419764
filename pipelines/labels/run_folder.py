"""The output folder of a labelling run.

    OUTPUT/labels/labels-PPPPP-RRRRRRR.parquet   the labels of one chunk: rows R.. of part P of the manifest
    OUTPUT/_run/run.json       what the run is: model fingerprint, code, settings. Who creates it has claimed the folder
    OUTPUT/_run/manifest/      every image of the run (`pipelines.images.manifest`)
    OUTPUT/_run/chunks.json    rows of a chunk, and which manifest they are rows of
    OUTPUT/_run/todo/          the chunks that a start had left to do
    OUTPUT/_run/files.parquet  name, size and SHA-256 of each label file when the run was finished
    OUTPUT/_run/_SUCCESS       written last, with the counts

Exactly one row for each image follows from the names. A chunk's file is named by its place in the manifest and appears
whole, in one rename or one S3 upload, so that it is the data and the book of what is done at once: no moment lies
between writing and committing. Whoever labels a chunk again (a retried task, a process that outlived its driver)
replaces the file by the same rows; nothing can be lost, doubled or torn, and a file that is deleted is labelled again,
also where the run had been finished. Two starts at once share the work: what both would write is created by one of
them, and the other takes that.

Ray Data's own checkpoints (`CheckpointConfig`) keep row ids in a second place instead: they load all ids of a run in
every filter actor (8 GB for a billion images), skip rows whose files a mode "overwrite" has removed, filter nothing
behind a source that is no file, and are deleted on success, after which a repeated run writes everything twice.
"""

import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from maskrcnn_core.errors import StorageError
from maskrcnn_core.records.labels import SCHEMA_VERSION
from pipelines import storage
from pipelines.images.manifest import Manifest
from pipelines.labels.chunk_plan import ChunkPlan
from pipelines.labels.chunks import Chunk, Tally, labels_folder
from pipelines.storage.parquet_seal import seal_of, sealed
from pipelines.storage.run_files import json_object_bytes, read_json_object

_LAYOUT_VERSION = 2
_SIZES = ("rows", "small_rows", "small_images")


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


@dataclass(frozen=True)
class FinishedFile:
    """A label file as it was when its run was finished.

    Attributes:
        name: in the labels folder.
        size: bytes.
        sha256: the digest that it holds; empty for a file of an earlier release.
    """

    name: str
    size: int
    sha256: str


def manifest_folder(output: str) -> str:
    """Where the manifest lies."""
    return storage.join(output, "_run", "manifest")


def identity_uri(output: str) -> str:
    """Of run.json: a folder with it is a run's."""
    return _run_file(output, "run.json")


def state_of(output: str) -> Literal["new", "begun", "finished"]:
    """Whether `output` is free, or holds a run.

    Raises:
        StorageError: it holds labels of unknown origin, or a training run.
    """
    if storage.exists(identity_uri(output)):
        return "finished" if storage.exists(_run_file(output, "_SUCCESS")) else "begun"
    if storage.exists(storage.join(output, "run.json")) or storage.exists(storage.join(output, "checkpoints")):
        raise StorageError(f"output: {output!r} is the folder of a training run; choose another --output")
    if label_sizes(output):
        raise StorageError(
            f"output: {output!r} holds labels of unknown origin (labels/*.parquet without _run/run.json); "
            "choose another --output, or delete its labels folder"
        )
    return "new"


def claim_run(output: str, identity: RunIdentity) -> None:
    """Writes down what the run is; where another process has just done so, makes sure that it is the same run.

    Raises:
        StorageError: it is another.
    """
    if not storage.create_bytes(identity_uri(output), json_object_bytes(asdict(identity))):
        require_same_run(output, identity)


def require_same_run(output: str, identity: RunIdentity) -> None:
    """Make sure that the run in `output` has this identity.

    Raises:
        StorageError: it has another; says what differs and what can be done.
    """
    stored = read_identity(output)
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
        raise StorageError(
            f"output: {output!r} was begun by another release (the code that decides about labels was "
            f"{stored.get('code')}, now {wanted['code']}). What it has labelled stays valid; go on with that release, "
            "or choose another --output"
        )
    raise StorageError(another_run(output, "; ".join(changed) or "another label format"))


def read_identity(output: str) -> dict[str, Any]:
    """What `claim_run` wrote.

    Raises:
        StorageError: it is damaged.
    """
    return read_json_object(
        identity_uri(output),
        {"model": str, "settings": dict},
        f"put it back from a copy, or delete {output!r} and label again",
    )


def another_run(output: str, difference: str) -> str:
    """The message that refuses an output folder."""
    return (
        f"output: {output!r} holds another run ({difference}); choose another --output, "
        "repeat the former command to continue that run, or delete the folder"
    )


def chunk_plan(output: str, manifest: Manifest) -> ChunkPlan | None:
    """Sizes of the run's chunks, where they have been settled.

    Raises:
        StorageError: what has been settled is damaged, or was for another list of images.
    """
    uri = _run_file(output, "chunks.json")
    if not storage.exists(uri):
        return None
    mend = f"delete it together with {labels_folder(output)}, and give the command again"
    content = read_json_object(uri, {"rows": int}, mend)
    sizes = {name: content.get(name, 0) for name in _SIZES}  # files of earlier releases have no small chunks
    if any(type(size) is not int for size in sizes.values()):
        raise StorageError(f"{uri}: got {sizes}, expected whole numbers; {mend}")
    try:
        plan = ChunkPlan(**sizes)
    except ValueError as error:
        raise StorageError(f"{uri}: {error}; {mend}") from error
    if content.get("manifest", manifest.digest) != manifest.digest:
        raise StorageError(
            f"output: the images of {output!r} were listed again and are others than those that its labels are of; "
            "choose another --output, or delete the folder"
        )
    return plan


def settle_chunk_plan(output: str, plan: ChunkPlan, manifest: Manifest) -> ChunkPlan:
    """Chunks of this run have these sizes from now on; returns what another start had settled before, if one had."""
    content = {**asdict(plan), "manifest": manifest.digest}
    storage.create_bytes(_run_file(output, "chunks.json"), json_object_bytes(content))
    return chunk_plan(output, manifest) or plan


def chunks_done(
    output: str, manifest: Manifest, plan: ChunkPlan, names: Collection[str] | None = None
) -> tuple[list[Chunk], list[Chunk]]:
    """Chunks that have a file, and those that have none.

    Args:
        names: of the label files; None = one listing of the labels folder.

    Raises:
        StorageError: the folder holds a Parquet file that is no chunk of this run.
    """
    names = set(label_sizes(output) if names is None else names)
    done: list[Chunk] = []
    todo: list[Chunk] = []
    for chunk in plan.chunks(manifest.parts):
        (done if chunk.name in names else todo).append(chunk)
    if len(done) < len(names):
        strange = min(names - {chunk.name for chunk in done})
        raise StorageError(
            f"output: {storage.join(labels_folder(output), strange)} belongs to no chunk of this run; "
            "expected labels-PART-ROW.parquet only: move the file away"
        )
    return done, todo


def write_todo(output: str, tasks: Sequence[Sequence[Chunk]]) -> str:
    """Writes the chunks of each task as a row of one Parquet file for Ray Data to read, and returns its folder, which
    is to be deleted."""
    folder = _run_file(output, f"todo/{uuid.uuid4().hex}")  # another start has its own
    rows = [[asdict(chunk) for chunk in chunks] for chunks in tasks]
    storage.write_bytes_atomically(storage.join(folder, "tasks.parquet"), sealed(pa.table({"chunks": rows})))
    return folder


def todo_in(tasks: pa.Table) -> list[Chunk]:
    """The chunks of rows that `write_todo` wrote."""
    return [Chunk(**chunk) for task in tasks.column("chunks").to_pylist() for chunk in task]


def reopen_run(output: str) -> None:
    """Takes the mark of success away, before rows of a finished run are labelled again."""
    storage.delete_file(_run_file(output, "_SUCCESS"))


def close_run(output: str, tally: Tally, files: Sequence[FinishedFile]) -> None:
    """Marks the run as finished, and clears away what workers that died left half-written."""
    storage.delete_torn_files(labels_folder(output))
    columns = {
        "name": pa.array([file.name for file in files], pa.string()),
        "size": pa.array([file.size for file in files], pa.int64()),
        "sha256": pa.array([file.sha256 for file in files], pa.string()),
    }
    storage.write_bytes_atomically(_run_file(output, "files.parquet"), sealed(pa.table(columns)))
    storage.write_bytes_atomically(_run_file(output, "_SUCCESS"), json_object_bytes(asdict(tally)))


def finished_tally(output: str) -> Tally:
    """The counts of a finished run.

    Raises:
        StorageError: they are damaged.
    """
    uri = _run_file(output, "_SUCCESS")
    mend = "delete it and give the command again: only what is missing is labelled"
    content = read_json_object(uri, {"statuses": dict, "detections": int, "failures": list}, mend)
    try:
        return Tally.from_json(json.dumps(content))
    except ValueError as error:
        raise StorageError(f"{uri}: {error}; {mend}") from error


def finished_files(output: str) -> dict[str, FinishedFile] | None:
    """The label files of a finished run by name; None where an earlier release finished it, which did not say.

    Raises:
        StorageError: the list is damaged.
    """
    uri = _run_file(output, "files.parquet")
    if not storage.exists(uri):
        return None
    try:
        content = storage.read_bytes(uri)
        if (seal := seal_of(content)) is None or seal[0] != seal[1]:
            raise ValueError("other content than when it was written")
        rows = pq.read_table(pa.BufferReader(content)).to_pylist()
        files = [FinishedFile(str(row["name"]), int(row["size"]), str(row["sha256"])) for row in rows]
    except StorageError:
        raise
    except Exception as error:  # whatever Arrow makes of a torn file
        reason = " ".join(str(error).split())[:100]
        raise StorageError(
            f"{uri}: is damaged ({reason}); delete it and _SUCCESS beside it, and give the command again: only what "
            "is missing is labelled"
        ) from error
    return {file.name: file for file in files}


def _run_file(output: str, name: str) -> str:
    return storage.join(output, "_run", name)


def label_sizes(output: str) -> dict[str, int]:
    """Bytes of each label file by name. Costs one listing."""
    folder = labels_folder(output)
    sizes = storage.file_sizes(folder, ".parquet") if storage.is_folder(folder) else {}
    return {uri.rsplit("/", 1)[-1]: size for uri, size in sizes.items()}
