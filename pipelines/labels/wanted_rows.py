"""The label rows of some images among all rows of a run: footers say which row groups can hold them, and of the others
nothing is read.

Label files follow the manifest, which is sorted by id, so that an image is in one file of a run. In files of another
program, whose rows may have any order, more row groups are read; the rows that are kept are the same.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.labels.files import LIGHT_COLUMNS, CategoryNames, OpenLabelFile, columns_schema, open_label_file
from pipelines.labels.parts import Readers

_Int64 = NDArray[np.int64]

_OPEN_AT_ONCE = 16  # S3 lets each wait some 30 milliseconds
_FILES_OF_A_BATCH = 500
_NO_ROWS = columns_schema(LIGHT_COLUMNS).empty_table()


@dataclass(frozen=True)
class GroupRun:
    """Neighbouring row groups of a label file."""

    file: str
    row_groups: tuple[int, ...]


@dataclass(frozen=True)
class WantedRows:
    """What label files hold of the images that are asked for.

    Attributes:
        table: `LIGHT_COLUMNS` of their rows, in the order of the files.
        run_of: [R] index in `runs` of each row.
        runs: row groups that hold some of the rows.
        total: rows of all files, of whatever image.
        models: fingerprints in all rows.
        names: of the categories of all files; none of proposals.
    """

    table: pa.Table
    run_of: _Int64
    runs: tuple[GroupRun, ...]
    total: int
    models: frozenset[str]
    names: CategoryNames

    @property
    def run_of_image(self) -> dict[int, int]:
        """Index in `runs` by image id."""
        return dict(zip(self.table.column("image_id").to_pylist(), self.run_of.tolist(), strict=True))


def wanted_rows(
    files: Sequence[str], ids: Iterable[int], rows_of_a_run: int, readers: Readers, *, proposals: bool = False
) -> WantedRows:
    """Find the rows of some images.

    Args:
        files: uris of label files.
        ids: of the images.
        rows_of_a_run: row groups are put together up to so many rows; one group may have more.
        readers: of the files.
        proposals: the files hold them, and not detections.

    Raises:
        StorageError: a file cannot be read, a row that was looked at is not what it should be, or the files have
            different categories.
    """
    wanted = readers.share(np.array(sorted(ids), np.int64))
    arguments = [(part, wanted, rows_of_a_run, proposals) for part in readers.parts(files)]
    return _joined(readers.in_order(_of_part, arguments))


def first_image_id(files: Iterable[str], *, proposals: bool = False) -> int | None:
    """The image of the first label row of all; None where there is no row."""
    for uri in files:
        with open_label_file(uri, proposals=proposals) as file:
            for _, batch in file.batches(LIGHT_COLUMNS, 1):
                image_id: int = batch.column("image_id")[0].as_py()
                return image_id
    return None


def _of_part(files: Sequence[str], wanted: _Int64, rows_of_a_run: int, proposals: bool) -> WantedRows:
    def read(uri: str) -> WantedRows:
        return _of_file(uri, wanted, rows_of_a_run, proposals)

    with ThreadPoolExecutor(_OPEN_AT_ONCE) as pool:
        return _joined(_in_batches(pool, read, files))


def _in_batches(
    pool: ThreadPoolExecutor, read: Callable[[str], WantedRows], files: Sequence[str]
) -> Iterator[WantedRows]:
    """Some files are under way at once, and not all of them: what waits takes memory."""
    for start in range(0, len(files), _FILES_OF_A_BATCH):
        yield _joined(pool.map(read, files[start : start + _FILES_OF_A_BATCH]))


def _joined(parts: Iterable[WantedRows]) -> WantedRows:
    """Parts one behind the other."""
    tables, run_of, total = [_NO_ROWS], [np.empty(0, np.int64)], 0
    runs: list[GroupRun] = []
    models, names = frozenset[str](), CategoryNames()
    for part in parts:
        if part.runs:
            tables.append(part.table)
            run_of.append(part.run_of + len(runs))
            runs += part.runs
        names.join(part.names)
        total, models = total + part.total, models | part.models
    return WantedRows(pa.concat_tables(tables), np.concatenate(run_of), tuple(runs), total, models, names)


def _of_file(uri: str, wanted: _Int64, rows_of_a_run: int, proposals: bool) -> WantedRows:
    names = CategoryNames()
    with open_label_file(uri, proposals=proposals, pre_buffer=True) as file:
        file.require_columns(LIGHT_COLUMNS)
        if not proposals:
            names.add(file)
        models = _models(file)
        chosen = _groups_with(file, wanted)
        found = []
        for groups in _runs(file.row_groups, rows_of_a_run):
            tables = [file.read(LIGHT_COLUMNS, some) for some in _neighbours(chosen.intersection(groups))]
            rows = pa.concat_tables([_NO_ROWS, *tables])
            rows = rows.filter(pc.is_in(rows.column("image_id"), value_set=pa.array(wanted)))
            if len(rows):
                found.append((GroupRun(uri, groups), rows))
    return WantedRows(
        pa.concat_tables([_NO_ROWS, *(rows for _, rows in found)]),
        np.repeat(np.arange(len(found)), [len(rows) for _, rows in found]),
        tuple(run for run, _ in found),
        sum(file.row_groups),
        models,
        names,
    )


def _groups_with(file: OpenLabelFile, wanted: _Int64) -> set[int]:
    """Row groups that may hold a wanted id, or whose footer does not say."""
    chosen = set()
    for group, span in enumerate(file.ranges("image_id")):
        if span is None or span.nulls:  # reading it says what is wrong
            chosen.add(group)
        elif span.least is not None:
            first, last = np.searchsorted(wanted, span.least), np.searchsorted(wanted, span.most, "right")
            if first < last:
                chosen.add(group)
    return chosen


def _models(file: OpenLabelFile) -> frozenset[str]:
    """Fingerprints in a file's rows: where a row group has one, its footer says which."""
    models: set[str] = set()
    unknown = []
    for group, span in enumerate(file.ranges("model")):
        if span is not None and span.least == span.most:
            models.add(span.least or "")
        else:
            unknown.append(group)
    for some in _neighbours(unknown):
        for _, rows in file.batches(LIGHT_COLUMNS, row_groups=some):
            models.update(rows.column("model").unique().to_pylist())
    return frozenset(filter(None, models))


def _neighbours(groups: Iterable[int]) -> list[list[int]]:
    """Numbers in stretches without a gap."""
    stretches: list[list[int]] = []
    for group in sorted(groups):
        if stretches and stretches[-1][-1] == group - 1:
            stretches[-1].append(group)
        else:
            stretches.append([group])
    return stretches


def _runs(groups: Sequence[int], rows_of_a_run: int) -> Iterator[tuple[int, ...]]:
    """Neighbouring row groups that together hold about so many rows."""
    run: list[int] = []
    rows = 0
    for index, size in enumerate(groups):
        if run and rows + size > rows_of_a_run:
            yield tuple(run)
            run, rows = [], 0
        run.append(index)
        rows += size
    if run:
        yield tuple(run)
