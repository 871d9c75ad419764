import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from maskrcnn_core.errors import StorageError
from maskrcnn_core.evaluation.annotations import read_document
from maskrcnn_core.evaluation.coco import evaluate_coco
from maskrcnn_core.records.detections import DetectionRecord
from maskrcnn_core.records.labels import ImageRecord, record_from_row
from maskrcnn_core.report.content import ExampleKind
from maskrcnn_core.report.examples import Candidate, match_objects
from maskrcnn_core.report.settings import PicturesConfig
from pipelines.labels.files import label_files
from pipelines.report.config import ReportRun
from pipelines.report.rows import Galleries, Place, RowScan, read_row, scan_labels
from pipelines.report.run import GroundTruth, write_report
from tests.pipelines.label_runs import write_label_run


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Label run, annotation file, images."""
    return write_label_run(tmp_path_factory.mktemp("labels"))


def truth_of(files: tuple[Path, Path, Path]) -> GroundTruth:
    document = json.loads(files[1].read_text())
    table = pq.read_table(files[0] / "labels")
    return GroundTruth(str(files[1]), read_document(document), evaluate_coco(document, table))


def rows(files: tuple[Path, Path, Path]) -> list[dict]:
    return [row for part in sorted((files[0] / "labels").iterdir()) for row in pq.read_table(part).to_pylist()]


def test_page_with_ground_truth(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    run = ReportRun(str(files[0]), str(tmp_path / "page"), pictures=PicturesConfig(per_gallery=3, side=96))
    summary = write_report(run, truth_of(files), "the command")
    page = Path(summary.page).read_text()
    assert summary.page == str(tmp_path / "page" / "index.html")
    assert [file.name for file in (tmp_path / "page").iterdir()] == ["index.html"]
    assert (summary.images, summary.left_out) == (7, "")
    assert [page.count(f'data-kind="{kind}"') for kind in ("right", "missed", "wrong", "mask")] == [3, 3, 3, 3]
    assert page.count("data:image/webp;base64,") == 2 * summary.examples == 24
    assert "the command" in page
    assert "fingerprint" in page
    assert "gone.jpg" in page
    assert "no such file" in page


def test_page_without_ground_truth(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    summary = write_report(ReportRun(str(files[0] / "labels"), str(tmp_path), pictures=PicturesConfig(per_gallery=2)))
    page = Path(summary.page).read_text()
    assert [page.count(f'data-kind="{kind}"') for kind in ("crowded", "sure", "unsure", "right")] == [2, 2, 2, 0]
    assert "Box AP" not in page


def test_counts_are_those_of_the_rows(files: tuple[Path, Path, Path]) -> None:
    document = json.loads(files[1].read_text())
    objects = {
        image["id"]: [entry for entry in document["annotations"] if entry["image_id"] == image["id"]]
        for image in document["images"]
    }
    scan = RowScan(PicturesConfig(), objects, {entry["id"]: entry["name"] for entry in document["categories"]})
    scan_labels(label_files(str(files[0])), scan, {})
    records = {row["image_id"]: record_from_row(row) for row in rows(files)}
    found = [(one, matched) for image_id in objects for one, matched in _matches(records[image_id], objects[image_id])]
    assert dict(scan.tally.statuses) == {"ok": 6, "missing": 1}
    assert scan.tally.detections == len(found) > 20
    right, wrong = (sum(counts) for _, counts in scan.scores().series)
    assert (right, wrong) == (sum(matched for _, matched in found), sum(not matched for _, matched in found))
    assert right > 10
    assert wrong >= 6
    assert [sum(counts) for _, counts in scan.sizes().series] == [len(found), len(document["annotations"])]
    for category in scan.categories():
        own = [one for one, _ in found if one.category_id == category.id]
        assert category.detections == len(own)
        assert category.confident == sum(one.score >= 0.5 for one in own)
        assert category.objects == sum(entry["category_id"] == category.id for entry in document["annotations"])
    assert sum(scan.per_image().series[0][1]) == 6


def _matches(record: ImageRecord, objects: Sequence[Mapping[str, Any]]) -> Iterator[tuple[DetectionRecord, bool]]:
    matched = match_objects(record.detections, objects)
    return zip(record.detections, (matched.object_of >= 0).tolist(), strict=True)


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_the_size_of_the_parts_changes_nothing(
    at_once: int, files: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def scanned() -> list:
        scan = RowScan(PicturesConfig(per_gallery=2), None, {})
        scan_labels(label_files(str(files[0])), scan, {})
        kinds: tuple[ExampleKind, ...] = ("crowded", "sure", "unsure")
        return [scan.scores(), scan.sizes(), scan.per_image(), scan.categories(), *map(scan.galleries.chosen, kinds)]

    whole = scanned()
    monkeypatch.setattr("pipelines.report.rows._ROWS_AT_ONCE", at_once)
    assert scanned() == whole


def test_rows_are_found_again(files: tuple[Path, Path, Path]) -> None:
    for part in sorted((files[0] / "labels").iterdir()):
        for number, row in enumerate(pq.read_table(part).to_pylist()):
            assert read_row(Place(str(part), number), {}) == row
    with pytest.raises(StorageError, match="row 99 is gone"):
        read_row(Place(str(part), 99), {})


def candidate(category_id: int, interest: float) -> Candidate:
    return Candidate("right", category_id, interest, None, f"{category_id} {interest}", "")


def test_every_category_gets_a_turn_and_no_image_fills_a_gallery() -> None:
    galleries = Galleries(per_gallery=4, per_image=2)
    galleries.offer([candidate(1, value / 10) for value in range(9)], Place("a", 0))
    galleries.offer([candidate(1, 0.75)], Place("a", 1))
    galleries.offer([candidate(2, 0.1)], Place("a", 2))
    chosen = [(one.candidate.category_id, one.candidate.interest) for one in galleries.chosen("right")]
    assert chosen == [(1, 0.8), (1, 0.75), (1, 0.7), (2, 0.1)]  # not 0.6: the third of one image


def test_galleries_do_not_grow_with_the_images() -> None:
    galleries = Galleries(per_gallery=3, per_image=2)
    for number in range(200):
        galleries.offer([candidate(1, (number * 37 % 200) / 200)], Place("a", number))
    assert [len(heap) for heap in galleries._heaps.values()] == [3]
    assert [one.candidate.interest for one in galleries.chosen("right")] == [0.995, 0.99, 0.985]


def test_pictures_are_bounded_in_size(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    pictures = PicturesConfig(per_gallery=4, max_megabytes=0.1, side=160)
    summary = write_report(ReportRun(str(files[0]), str(tmp_path), pictures=pictures), truth_of(files))
    page = Path(summary.page).read_text()
    assert 0 < sum(len(one) for one in re.findall(r"base64,([^\"]*)", page)) <= 100_000
    assert "did not fit into 0.1 megabytes" in summary.left_out
    assert "did not fit into 0.1 megabytes" in page
    none = write_report(ReportRun(str(files[0]), str(tmp_path), pictures=PicturesConfig(per_gallery=0)))
    assert none.examples == 0


def test_images_that_moved(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    run, annotations, images = write_label_run(tmp_path / "here", num_images=2)
    shutil.move(images, tmp_path / "there")
    pictures = PicturesConfig(per_gallery=2)
    gone = write_report(ReportRun(str(run), str(tmp_path / "page"), pictures=pictures))
    assert gone.examples == 0
    assert "examples have no picture because their image cannot be read" in gone.left_out
    assert "--images" in gone.left_out
    moved = ReportRun(str(run), str(tmp_path / "page"), images=str(tmp_path / "there"), pictures=pictures)
    assert write_report(moved).examples > 0
    truth = truth_of((run, annotations, images))
    assert write_report(moved, truth).left_out == ""


def test_mistakes(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such file or folder"):
        write_report(ReportRun(str(tmp_path / "none"), str(tmp_path / "page")))
    with pytest.raises(StorageError, match="is a file; expected the name of a folder"):
        write_report(ReportRun(str(files[0]), str(files[1])))
    pq.write_table(pq.read_table(files[0] / "labels").drop(["uri"]), tmp_path / "bare.parquet")
    with pytest.raises(StorageError, match="column 'uri' is missing"):
        write_report(ReportRun(str(tmp_path / "bare.parquet"), str(tmp_path / "page")))
    assert not (tmp_path / "page").exists()
