"""Labels in many files, shown by tasks: the page that one process makes."""

import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipelines.report.run as reporting
from maskrcnn_core.errors import StorageError
from maskrcnn_core.records.labels import record_schema, records_to_table
from maskrcnn_core.report.content import ExampleKind
from maskrcnn_core.report.settings import PicturesConfig
from pipelines.labels.chunks import write_labels
from pipelines.labels.files import label_files
from pipelines.labels.parts import HERE
from pipelines.report.config import ReportRun
from pipelines.report.rows import Galleries, Place, RowScan, scan_labels
from pipelines.report.run import write_report
from tests.generated_labels import CATEGORIES, failed_record, random_record, write_run
from tests.pipelines.exporting.test_memory import growth
from tests.pipelines.imitated_tasks import imitated_readers, imitated_readers_for
from tests.pipelines.label_runs import write_label_run
from tests.pipelines.report.test_run import candidate, truth_of

Files = tuple[Path, Path, Path]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A run of one row a file, its annotations, its images."""
    run, annotations, images = write_label_run(tmp_path_factory.mktemp("report"), num_images=8)
    table = pa.concat_tables([pq.read_table(file) for file in label_files(str(run))])
    for file in label_files(str(run)):
        Path(file).unlink()
    for row in range(len(table)):
        write_labels(table.slice(row, 1).combine_chunks(), str(run / "labels" / f"labels-00000-{row:07d}.parquet"))
    return run, annotations, images


def page(run: Path, output: Path, truth: object) -> str:
    pictures = PicturesConfig(per_gallery=2, side=64)
    summary = write_report(ReportRun(str(run), str(output), pictures=pictures), truth)  # type: ignore[arg-type]
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "now", Path(summary.page).read_text())


@pytest.mark.parametrize("judged", [False, True])
def test_tasks_make_the_page_of_one_process(
    judged: bool, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = truth_of(files) if judged else None
    here = page(files[0], tmp_path / "page", truth)
    monkeypatch.setattr(reporting, "readers_for", imitated_readers_for)
    assert page(files[0], tmp_path / "page", truth) == here
    assert here.count("base64,") > 3


@pytest.mark.parametrize("files_at_once", [1, 2, 3, 100])
@pytest.mark.parametrize("objects", [1, 5])
def test_how_files_are_parted_changes_nothing(files_at_once: int, objects: int, tmp_path: Path) -> None:
    """Also where many candidates are equal: the first of them stays."""
    records = [random_record(seed % 5, most_objects=objects) for seed in range(23)]
    write_run(tmp_path / "run", [*records[:4], failed_record(), *records[4:]], rows_per_file=2)
    files = label_files(str(tmp_path / "run"))
    kinds: tuple[ExampleKind, ...] = ("crowded", "sure", "unsure")

    def scanned(scan: RowScan) -> list[object]:
        counts = [scan.tally, scan.models, scan.scores(), scan.sizes(), scan.per_image(), scan.categories()]
        return [*counts, *map(scan.galleries.chosen, kinds)]

    whole, parted = (RowScan(PicturesConfig(per_gallery=3), None, {}) for _ in range(2))
    for file in files:
        scan_labels([file], whole, {})
    scan_labels(files, parted, {}, imitated_readers(files_at_once))
    assert scanned(parted) == scanned(whole)
    assert all(scanned(parted)[-3:])


def test_of_equals_the_earlier_stays_when_galleries_are_joined() -> None:
    whole, joined = Galleries(2, 1), Galleries(2, 1)
    interests = [0.5, 0.5, 0.9, 0.5, 0.9, 0.9, 0.1]
    for start in range(0, len(interests), 3):
        part = Galleries(2, 1)
        for row in range(start, min(start + 3, len(interests))):
            for galleries in (whole, part):
                galleries.offer([candidate(1, interests[row])], Place("a", row))
        joined.join(part)
    assert joined.chosen("right") == whole.chosen("right")
    assert [one.place.row for one in joined.chosen("right")] == [2, 4]


def test_a_torn_file_is_named(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "readers_for", imitated_readers_for)
    write_run(tmp_path / "run", [random_record(seed) for seed in range(6)], rows_per_file=1)
    torn = Path(label_files(str(tmp_path / "run"))[3])
    torn.write_bytes(b"PAR1")
    with pytest.raises(StorageError, match=f"{torn.name}: cannot be read as Parquet"):
        write_report(ReportRun(str(tmp_path / "run"), str(tmp_path / "page")))


@pytest.mark.alone
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    records = [random_record(seed) for seed in range(20)]
    table = records_to_table(list(range(20)), ["x"] * 20, records, "model", record_schema(CATEGORIES))
    for name, count in (("few", 5), ("many", 60)):
        for number in range(count):
            write_labels(table, str(tmp_path / name / "labels" / f"labels-00000-{number:07d}.parquet"))

    def scan(name: str) -> None:
        readers = replace(HERE, files_at_once=2)
        scan_labels(label_files(str(tmp_path / name)), RowScan(PicturesConfig(), None, {}), {}, readers)

    assert growth(lambda: scan("few"), lambda: scan("many")) < 300_000
