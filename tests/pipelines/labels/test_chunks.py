"""A label file: the rows as they were given, with dictionaries only where values repeat."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from maskrcnn_core.records.labels import record_schema, records_to_table
from maskrcnn_core.records.proposals import ProposalRecord, failed_proposals, proposals_to_table
from pipelines.labels.chunks import Tally, read_footer, read_rows, write_labels
from tests.generated_labels import CATEGORIES, MODEL, failed_record, random_record

PROPOSALS = ProposalRecord("ok", None, 20, 10, np.ones((3, 4), np.float32), np.full(3, 0.5, np.float32))


def with_dictionaries(file: Path) -> set[str]:
    group = pq.ParquetFile(file).metadata.row_group(0)
    columns = (group.column(index) for index in range(group.num_columns))
    return {
        column.path_in_schema.removeprefix("detections.list.element.")
        for column in columns
        if column.has_dictionary_page
    }


@pytest.mark.parametrize("failed", [set(), {0}, {1, 3}, {0, 1, 2, 3}])
def test_rows_come_back_as_they_were(failed: set[int], tmp_path: Path) -> None:
    file = tmp_path / "labels.parquet"
    records = [failed_record() if index in failed else random_record(index + 1) for index in range(4)]
    table = records_to_table(range(4), [*"abcd"], records, MODEL, record_schema(CATEGORIES))
    written = write_labels(table, str(file))
    tally = written.tally
    assert read_rows(str(file)).equals(table)
    assert read_footer(str(file)) == written
    assert (tally.images, tally.failed) == (4, len(failed))
    assert tally.detections == sum(len(record.detections) for record in records)
    assert with_dictionaries(file) <= {
        *("width", "height", "status", "error", "model", "category_id", "category"),
        "segmentation.size.list.element",
    }
    assert with_dictionaries(file) >= {"status", "model"}


def test_a_chunk_without_images(tmp_path: Path) -> None:
    file = tmp_path / "labels.parquet"
    table = records_to_table([], [], [], MODEL, record_schema(CATEGORIES))
    assert write_labels(table, str(file)).tally == Tally({}, 0)
    assert read_rows(str(file)).equals(table)


def test_proposals(tmp_path: Path) -> None:
    file = tmp_path / "labels.parquet"
    table = proposals_to_table([1, 2], ["a", "b"], [PROPOSALS, failed_proposals("missing", "gone")], MODEL)
    assert write_labels(table, str(file)).tally.detections == 3
    assert read_rows(str(file)).equals(table)
    assert with_dictionaries(file) == {"width", "height", "status", "error", "model"}
