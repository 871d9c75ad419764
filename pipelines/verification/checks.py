"""What lies in the folder of a labelling run, and whether its own books can be read and agree with each other.

Whether the rows are right is `run`'s part.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow.parquet as pq

from maskrcnn_core.errors import StorageError
from maskrcnn_core.records.row_findings import NOTHING_FOUND, Findings, one
from pipelines import storage
from pipelines.images.manifest import Manifest, open_manifest
from pipelines.labels import run_folder
from pipelines.labels.chunks import labels_folder
from pipelines.labels.run_folder import FinishedFile
from pipelines.storage.run_files import read_json_object

_READ_THREADS = 16

_Book = TypeVar("_Book")


@dataclass(frozen=True)
class RunFiles:
    """What lies in the folder of a run.

    Attributes:
        output: the folder.
        manifest: uris of its manifest's files that can be read.
        images: rows of these.
        labels: uris of its label files.
        model: fingerprint in run.json; None where that says none.
        tally: content of _SUCCESS; None where the run was not closed.
        seals: digest of each label file by uri, as the finished run wrote it down.
        findings: what is wrong with the books.
    """

    output: str
    manifest: tuple[str, ...]
    images: int
    labels: tuple[str, ...]
    model: str | None
    tally: dict[str, Any] | None
    seals: Mapping[str, str] = field(default_factory=dict)
    findings: Findings = NOTHING_FOUND


class _Books:
    """Reads one after the other; what cannot be read becomes a finding."""

    def __init__(self) -> None:
        self.findings = NOTHING_FOUND

    def read(self, action: Callable[[], _Book]) -> _Book | None:
        """What `action` gives; None where the file that it reads is damaged."""
        try:
            return action()
        except StorageError as error:
            self.findings += one("run file", str(error)[:300], "a file as the run wrote it")
            return None


def find_run(uri: str) -> RunFiles:
    """The run that a uri names: its folder, or the labels/ folder in it.

    Raises:
        StorageError: nothing is there, or it is no run.
    """
    if not storage.exists(uri):
        raise StorageError(f"labels: no such folder {uri!r}; expected the --output of python -m jobs.label")
    output = uri.rstrip("/")
    if not storage.exists(storage.join(output, "_run")) and output.rsplit("/", 1)[-1] == "labels":
        output = output.removesuffix("labels").rstrip("/") or "."
    books = _Books()
    manifest = books.read(lambda: open_manifest(run_folder.manifest_folder(output)))
    parts = _manifest_files(output, manifest)
    if not parts and not books.findings.counts:
        raise StorageError(
            f"labels: {uri!r} has no _run/manifest that says which images it should hold; "
            "expected the --output of python -m jobs.label, with its _run folder"
        )
    rows = _rows_of(parts, books)
    folder = labels_folder(output)
    sizes = storage.file_sizes(folder, ".parquet") if storage.is_folder(folder) else {}
    model, tally = _read_identity(output, books), _read_success(output, books)
    known = books.read(lambda: run_folder.finished_files(output)) if tally is not None else None
    if manifest is not None:
        _check_chunks(output, manifest, [uri.rsplit("/", 1)[-1] for uri in sizes], books)
    findings = books.findings + _check_sizes(sizes, known or {})
    seals = {uri: known[name].sha256 for uri in sizes if known and (name := uri.rsplit("/", 1)[-1]) in known}
    return RunFiles(output, tuple(rows), sum(rows.values()), tuple(sorted(sizes)), model, tally, seals, findings)


def _manifest_files(output: str, manifest: Manifest | None) -> list[str]:
    """Those that manifest.json names; without one all that are there."""
    if manifest is not None:
        return [manifest.part_uri(part) for part in range(len(manifest.parts))]
    single, folder = storage.join(output, "_run", "manifest.parquet"), run_folder.manifest_folder(output)
    if storage.is_folder(folder):
        return [uri for uri in storage.list_files(folder, ".parquet") if "/pieces" not in uri]
    return [single] if storage.exists(single) else []


def _rows_of(parts: Sequence[str], books: _Books) -> dict[str, int]:
    """Rows of each file of the manifest that can be read."""

    def rows(uri: str) -> int:
        filesystem, path = storage.filesystem_and_path(uri)
        try:
            return int(storage.patiently(uri, lambda: pq.read_metadata(path, filesystem=filesystem)).num_rows)
        except Exception as error:  # whatever Arrow makes of a torn file
            reason = " ".join(str(error).split())[:200]
            raise StorageError(f"cannot read the run's manifest {uri!r}: {reason}") from error

    with ThreadPoolExecutor(_READ_THREADS) as pool:
        counting = {uri: pool.submit(rows, uri) for uri in parts}
        counted = {uri: books.read(future.result) for uri, future in counting.items()}
    return {uri: count for uri, count in counted.items() if count is not None}


def _read_identity(output: str, books: _Books) -> str | None:
    uri = storage.join(output, "_run", "run.json")
    mend = "without it nobody can say which model the run is of"
    content = books.read(lambda: read_json_object(uri, {"model": str}, mend))
    return None if content is None else str(content["model"])


def _read_success(output: str, books: _Books) -> dict[str, Any] | None:
    """None where there is none; an empty dictionary where it is damaged."""
    uri = storage.join(output, "_run", "_SUCCESS")
    if not storage.exists(uri):
        return None
    return books.read(lambda: read_json_object(uri, {"statuses": dict}, "the counts of the run are lost")) or {}


def _check_chunks(output: str, manifest: Manifest, names: Sequence[str], books: _Books) -> None:
    """Each label file is a chunk of the manifest."""
    plan = books.read(lambda: run_folder.chunk_plan(output, manifest))
    if plan is not None:
        books.read(lambda: run_folder.chunks_done(output, manifest, plan, names))


def _check_sizes(sizes: Mapping[str, int], known: Mapping[str, FinishedFile]) -> Findings:
    """The files are those that were there when the run was finished."""
    findings = NOTHING_FOUND
    present = {uri.rsplit("/", 1)[-1]: (uri, size) for uri, size in sizes.items()}
    for name, file in known.items():
        if name not in present:
            findings += one("file", f"no labels/{name}", "the file, as when the run was finished", file=name)
        elif present[name][1] != file.size:
            uri, size = present[name]
            findings += one("file", f"{size} bytes", f"{file.size}, as when the run was finished", file=uri)
    return findings
