"""Proof that a labelling run is whole: its label files against its manifest and its own book-keeping.

    books of the run ────────────────────> torn, of another run              (run_checks)
    manifest files ─> ids ─┐
                           ├─ by bucket ─> missing, unknown, repeated       (id_matching)
    label files ──> ids ───┘
            ├─────> bytes ─> another digest than when they were written     (parquet_seal)
            └─────> rows ──> broken rules, counts, models                   (record_checks)

Files are read a batch of rows at a time, in Ray tasks of several files each; a small run is read in this process.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from maskrcnn_core.errors import StorageError, UserError
from maskrcnn_core.records.checks import (
    NOTHING_FOUND,
    Findings,
    RowCounts,
    check_rows,
    count_rows,
    one,
)
from maskrcnn_core.records.labels import RECORD_FIELDS, SCHEMA_VERSION, VERSION_KEY, schema_categories
from pipelines import storage
from pipelines.labels.chunks import SEALED_KEY
from pipelines.storage.parquet_seal import seal_of
from pipelines.storage.s3_settings import applied, settings_environment
from pipelines.verification.checks import RunFiles, find_run
from pipelines.verification.config import VerifyRun
from pipelines.verification.id_matching import IdPart, match_bucket, split_ids

_Int64 = npt.NDArray[np.int64]

# A batch with 100 masks an image takes some 60 MB while its run lengths are counted.
_ROWS_PER_BATCH = 256

_IDS_PER_BUCKET = 20_000_000

# Ray starts in some ten seconds, in which one process verifies about as many rows.
_INLINE_ROWS = 50_000

# Ray keeps results below 100 kB in the driver's own memory: tasks with a million rows have larger ones, and a task for
# each few thousand balances the cluster while there are few.
_MOST_ROWS_PER_TASK = 1_000_000
_LEAST_ROWS_PER_TASK = 5_000
_TASKS_WANTED = 200


@dataclass(frozen=True)
class FileReport:
    """What some label files hold, and what is wrong with them.

    Attributes:
        findings: broken rules.
        counts: rows, objects, masks.
        models: fingerprints in the rows.
        tables: category tables of the files, as JSON; one where all agree.
        kinds: `detections`, `proposals`.
        unsealed: files without a digest, which an earlier release wrote: what is in them cannot be proved.
    """

    findings: Findings = NOTHING_FOUND
    counts: RowCounts = field(default_factory=RowCounts)
    models: frozenset[str] = frozenset()
    tables: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()
    unsealed: int = 0

    def __add__(self, other: "FileReport") -> "FileReport":
        return FileReport(
            self.findings + other.findings,
            self.counts + other.counts,
            self.models | other.models,
            self.tables | other.tables,
            self.kinds | other.kinds,
            self.unsealed + other.unsealed,
        )


@dataclass(frozen=True)
class VerificationSummary:
    """What a verification found.

    Attributes:
        output: folder of the run.
        images: in the manifest.
        files: label files.
        counts: rows by status, objects and masks.
        kinds: what the rows hold, `detections` or `proposals`; more than one is an offence.
        models: fingerprints in the rows, sorted.
        findings: what is wrong; empty where the run is whole.
        unsealed: label files without a digest; see `FileReport`.
    """

    output: str
    images: int
    files: int
    counts: RowCounts
    kinds: tuple[str, ...]
    models: tuple[str, ...]
    findings: Findings
    unsealed: int = 0

    @property
    def passed(self) -> bool:
        """Nothing is wrong."""
        return not self.findings.counts

    @property
    def rows(self) -> int:
        """Label rows read."""
        return sum(self.counts.statuses.values())

    def to_json(self) -> dict[str, Any]:
        """The summary as plain JSON values."""
        return {
            "passed": self.passed,
            "output": self.output,
            "images": self.images,
            "rows": self.rows,
            "files": self.files,
            "files_without_digest": self.unsealed,
            "statuses": dict(self.counts.statuses),
            "objects": self.counts.objects,
            "masks": self.counts.masks,
            "kinds": list(self.kinds),
            "models": list(self.models),
            "offences": dict(self.findings.counts),
            "first_offenders": [asdict(offence) for offence in self.findings.first],
        }


def verify(run: VerifyRun) -> VerificationSummary:
    """Check a run's label files against its manifest, and write the findings as JSON where `run.output` says so.

    Raises:
        StorageError: there is no run at `run.labels`, or its manifest cannot be read.
    """
    with applied(run.storage):
        return _verify(run)


def _verify(run: VerifyRun) -> VerificationSummary:
    if run.output and storage.is_folder(run.output):
        raise StorageError(f"output: {run.output!r} is a folder; expected the name of a JSON file")
    files = find_run(run.labels)
    images = files.images
    if images <= _INLINE_ROWS:
        report = _verify_here(files)
    else:
        from pipelines.cluster.connection import connect

        with connect(run.cluster, environment=settings_environment(run.storage)):
            report = _verify_on_cluster(files, images)
    summary = VerificationSummary(
        output=files.output,
        images=images,
        files=len(files.labels),
        counts=report.counts,
        kinds=tuple(sorted(report.kinds)),
        models=tuple(sorted(report.models)),
        findings=files.findings + _run_findings(files, report) + report.findings,
        unsealed=report.unsealed,
    )
    if run.output:
        storage.write_bytes_atomically(run.output, json.dumps(summary.to_json(), indent=2).encode() + b"\n")
    return summary


def _run_findings(files: RunFiles, report: FileReport) -> Findings:
    """What the files of a run should agree about."""
    findings = NOTHING_FOUND
    if files.tally is None:
        findings += one("unfinished", "no _run/_SUCCESS", "a finished run; give the jobs.label command again")
    elif "statuses" in files.tally and files.tally["statuses"] != report.counts.statuses:
        got, closed = dict(report.counts.statuses), files.tally["statuses"]
        findings += one("counts", f"rows by status {got}", f"{closed}, as when the run was finished")
    for check, values in (("models", report.models), ("category tables", report.tables), ("kinds", report.kinds)):
        if len(values) > 1:
            findings += one(check, f"{len(values)}: {', '.join(sorted(values))!s:.200}", "the same in all files")
    return findings


def _verify_here(files: RunFiles) -> FileReport:
    """The whole verification in this process."""
    report, parts = check_label_files(files.labels, range(len(files.labels)), files.model, 1, files.seals)
    wanted = [_manifest_ids(uri) for uri in files.manifest]
    return report + FileReport(match_bucket(wanted, parts, files.labels))


def _verify_on_cluster(files: RunFiles, images: int) -> FileReport:
    """The same by Ray tasks; parts of ids go from one to the other and never come here."""
    # Imported here: a small run is verified in less time than this import takes.
    import ray
    import ray.exceptions

    num_buckets = math.ceil(images / _IDS_PER_BUCKET)
    rows_per_task = min(max(images // _TASKS_WANTED, _LEAST_ROWS_PER_TASK), _MOST_ROWS_PER_TASK)
    files_per_task = max(1, round(rows_per_task * len(files.labels) / images))
    check = ray.remote(num_cpus=1, num_returns=1 + num_buckets)(_check_task)
    read = ray.remote(num_cpus=1, num_returns=num_buckets)(_manifest_task)
    match = ray.remote(num_cpus=1)(_match_task)
    names = ray.put(files.labels)
    checked = []
    for start in range(0, len(files.labels), files_per_task):
        numbers = range(start, min(start + files_per_task, len(files.labels)))
        some = [files.labels[n] for n in numbers]
        seals = {uri: files.seals[uri] for uri in some if uri in files.seals}
        checked.append(check.remote(some, numbers, files.model, num_buckets, seals))
    wanted = [_as_list(read.remote(uri, num_buckets)) for uri in files.manifest]
    matched = [
        match.remote(
            names,
            len(wanted),
            *(parts[bucket] for parts in wanted),
            *(parts[1 + bucket] for parts in checked),
        )
        for bucket in range(num_buckets)
    ]
    report = FileReport()
    try:
        for reports in (parts[0] for parts in checked):
            report += ray.get(reports)
        for findings in ray.get(matched):
            report += FileReport(findings)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    return report


def _as_list(references: Any) -> list[Any]:
    """Ray gives a single result bare."""
    return references if isinstance(references, list) else [references]


def _check_task(
    uris: list[str], numbers: Sequence[int], model: str | None, num_buckets: int, seals: Mapping[str, str]
) -> tuple[Any, ...]:
    report, parts = check_label_files(uris, numbers, model, num_buckets, seals)
    return (report, *parts)


def _manifest_task(uri: str, num_buckets: int) -> Any:
    parts = [part.ids for part in split_ids([_manifest_ids(uri)], [0], num_buckets)]
    return parts if num_buckets > 1 else parts[0]


def _match_task(names: Sequence[str], num_wanted: int, *parts: Any) -> Findings:
    return match_bucket(parts[:num_wanted], parts[num_wanted:], names)


def _manifest_ids(uri: str) -> _Int64:
    try:
        content = storage.read_bytes(uri)
        seal = seal_of(content)
        if seal is not None and seal[0] != seal[1]:
            raise StorageError("other content than when it was written")
        table = pq.read_table(pa.BufferReader(content), columns=["image_id"])
        ids: _Int64 = table.column("image_id").cast(pa.int64()).to_numpy()
    except Exception as error:  # whatever Arrow makes of a torn file
        reason = " ".join(str(error).split())[:200]
        raise StorageError(f"labels: cannot read image_id in the run's manifest {uri!r}: {reason}") from error
    return ids


def check_label_files(
    uris: Sequence[str],
    numbers: Sequence[int],
    model: str | None,
    num_buckets: int,
    seals: Mapping[str, str] | None = None,
) -> tuple[FileReport, list[IdPart]]:
    """Check the rows of some label files, and their ids by bucket.

    Args:
        uris: the files.
        numbers: number of each file within the run.
        model: fingerprint of the run; None = any.
        num_buckets: parts to split the ids into.
        seals: digests by uri that the run wrote down when it was finished, as far as it did.
    """
    report, ids_per_file = FileReport(), []
    for uri in uris:
        file_report, ids = _check_file(uri, model, (seals or {}).get(uri, ""))
        named = tuple(replace(offence, file=uri) for offence in file_report.findings.first)
        report += replace(file_report, findings=Findings(file_report.findings.counts, named))
        ids_per_file.append(ids)
    return report, split_ids(ids_per_file, list(numbers), num_buckets)


def _check_file(uri: str, model: str | None, expected_seal: str) -> tuple[FileReport, _Int64]:
    """Everything about one file; one that is damaged is an offence, not an error."""
    report, ids = FileReport(), [np.empty(0, np.int64)]
    try:
        # Whole, since a connection that breaks in the middle is no fault of the file: reading is tried again.
        content = storage.read_bytes(uri)
        report += _check_seal(content, expected_seal)
        if report.findings.counts:
            return report, ids[0]  # what damage has made of the rows, nobody wants to know
        for part, part_ids in _read_rows(content, model):
            report += part
            ids.append(part_ids)
    except Exception as error:  # whatever Arrow, or a rule, makes of content that is none of ours
        damage = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        report += FileReport(one("unreadable file", damage, "a Parquet file of label rows"))
    return report, np.concatenate(ids)


def _check_seal(content: bytes, expected: str) -> FileReport:
    """The file is, bit by bit, what was written, and the one that the run had when it was finished."""
    seal = seal_of(content)
    if seal is None:
        claims = expected or SEALED_KEY in (pq.read_metadata(pa.BufferReader(content)).metadata or {})
        missing = one("content", "no SHA-256 in the file", "the one that was written into it")
        return FileReport(missing) if claims else FileReport(unsealed=1)
    written, computed = seal
    if written != computed:
        return FileReport(one("content", f"SHA-256 {computed:.16}...", f"{written:.16}..., as when it was written"))
    if expected and written != expected:
        return FileReport(one("content", f"SHA-256 {written:.16}...", f"{expected:.16}..., as in the finished run"))
    return FileReport()


def _read_rows(content: bytes, model: str | None) -> Iterator[tuple[FileReport, _Int64]]:
    """What is found in the schema, then in some rows after the other."""
    with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
        schema = FileReport(_check_schema(file.schema_arrow))
        yield schema, np.empty(0, np.int64)
        if schema.findings.counts:
            return
        kind = "proposals" if "proposals" in file.schema_arrow.names else "detections"
        categories = schema_categories(file.schema_arrow)
        table = json.dumps([[category.id, category.name] for category in categories])
        yield FileReport(tables=frozenset([table]), kinds=frozenset([kind])), np.empty(0, np.int64)
        for batch in file.iter_batches(batch_size=_ROWS_PER_BATCH):
            models = frozenset(str(name) for name in batch.column("model").unique().to_pylist())
            ids = batch.column("image_id")
            yield (
                FileReport(check_rows(batch, categories, model), count_rows(batch), models),
                ids.drop_null().to_numpy(),
            )


def _check_schema(schema: pa.Schema) -> Findings:
    """Columns and types of label records, or of proposal records, in this release's version."""
    expected = pa.schema(RECORD_FIELDS)
    if "proposals" in schema.names:
        from maskrcnn_core.records.proposals import proposal_schema  # takes torch with it

        expected = proposal_schema()
    findings = NOTHING_FOUND
    for column in expected:
        times = schema.names.count(column.name)
        if times != 1:
            got = f"no column {column.name!r}" if times == 0 else f"{times} columns {column.name!r}"
            findings += one("schema", got, "the columns of label records")
        elif schema.field(column.name).type != column.type:
            findings += one("schema", f"{column.name} of type {schema.field(column.name).type!s:.80}", str(column.type))
    version = (schema.metadata or {}).get(VERSION_KEY, b"none").decode(errors="replace")
    if version != SCHEMA_VERSION:
        findings += one("schema version", f"{version:.40}", f"{SCHEMA_VERSION}, as this release reads")
    return findings
