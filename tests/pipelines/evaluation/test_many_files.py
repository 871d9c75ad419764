"""Labels in many files: the numbers of scoring in memory, though only what may hold annotated images is read."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipelines.evaluation.run as evaluation
from maskrcnn_core.errors import AnnotationError, StorageError
from maskrcnn_core.evaluation.coco import CocoScores, evaluate_coco
from maskrcnn_core.records.labels import ImageRecord, record_schema, records_to_table
from pipelines import storage
from pipelines.evaluation.config import EvaluateConfig, EvaluateRun
from pipelines.evaluation.proposals import evaluate_proposals
from pipelines.evaluation.run import evaluate
from pipelines.labels.chunks import write_labels
from pipelines.labels.files import LIGHT_COLUMNS, OpenLabelFile, label_files, open_label_file, read_labels
from pipelines.labels.parts import HERE
from pipelines.labels.wanted_rows import wanted_rows
from tests.core.evaluation.synthetic import CATEGORIES, found, random_problem
from tests.pipelines.evaluation.test_proposals import write_run as write_proposals
from tests.pipelines.exporting.test_memory import growth
from tests.pipelines.imitated_tasks import imitated_readers

IMAGES, ROWS = 40, 6


def write_chunks(folder: Path, labels: pa.Table, parts: int = 1, rows: int = ROWS) -> None:
    """The files of a run, as workers write them: sorted by id, parts of the manifest in chunks."""
    labels = labels.sort_by("image_id")
    size = -(-len(labels) // parts)
    for part in range(parts):
        own = labels.slice(part * size, size)
        for start in range(0, len(own), rows):
            uri = folder / "labels" / f"labels-{part:05d}-{start:07d}.parquet"
            write_labels(own.slice(start, rows).combine_chunks(), str(uri))


def problem(wanted: Sequence[int] | None = None) -> tuple[dict[str, Any], pa.Table]:
    """Annotations of some images, of all by default; labels of all but 3, and of one more."""
    annotations, labels = random_problem(5, IMAGES)
    if wanted is not None:
        by_id = {image["id"]: image for image in annotations["images"]}
        annotations["images"] = [by_id.get(number, {"id": number, "width": 150, "height": 120}) for number in wanted]
        annotations["annotations"] = [one for one in annotations["annotations"] if one["image_id"] in wanted]
    return annotations, labels


def scored(folder: Path, annotations: dict[str, Any], **settings: Any) -> CocoScores:
    (folder / "val.json").write_text(json.dumps(annotations))
    return evaluate(EvaluateRun(str(folder), str(folder / "val.json"), evaluate=EvaluateConfig(**settings))).scores


@pytest.fixture(params=["here", "tasks"])
def somewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, and in tasks of two files."""
    if request.param == "tasks":
        monkeypatch.setattr(evaluation, "HERE", imitated_readers(2))


# The ids at the ends of the first files: 1, 2, 4, 5, 6, 7 | 8 ... 13 | 14 ... (3 has no row)
@pytest.mark.parametrize(
    "wanted", [None, [7, 8], [13], [1], [IMAGES], [3, 20], [5000, 20, 300], [4, 9], [40, 1, 14, 19]]
)
@pytest.mark.parametrize("parts", [1, 3])
def test_numbers_are_those_of_scoring_in_memory(
    tmp_path: Path, parts: int, wanted: list[int] | None, somewhere: None
) -> None:
    annotations, labels = problem(wanted)
    write_chunks(tmp_path, labels, parts)
    for images_per_shard in (1, 1000):
        assert scored(tmp_path, annotations, images_per_shard=images_per_shard) == evaluate_coco(
            annotations, labels.sort_by("image_id")
        )


@pytest.mark.parametrize("rows", [1, 1000])
def test_a_file_for_each_row_and_one_for_all(tmp_path: Path, rows: int, somewhere: None) -> None:
    annotations, labels = problem([2, 30, 31])
    write_chunks(tmp_path, labels, rows=rows)
    scores = scored(tmp_path, annotations)
    assert scores == evaluate_coco(annotations, labels.sort_by("image_id"))
    assert scores.coverage.unknown == len(labels) - 3


def test_a_file_that_is_gone_leaves_its_images_unlabelled(tmp_path: Path, somewhere: None) -> None:
    annotations, labels = problem([5, 6, 20])
    write_chunks(tmp_path, labels)
    Path(label_files(str(tmp_path))[0]).unlink()
    scores = scored(tmp_path, annotations)
    assert scores == evaluate_coco(annotations, labels.sort_by("image_id").slice(ROWS))
    assert (scores.coverage.unlabelled, scores.coverage.without_labels) == (2, (5, 6))


@pytest.mark.parametrize("place", [0, 3, -1])
def test_a_torn_file_is_named_wherever_it_is(tmp_path: Path, place: int, somewhere: None) -> None:
    annotations, labels = problem([20])
    write_chunks(tmp_path, labels)
    torn = Path(label_files(str(tmp_path))[place])
    torn.write_bytes(torn.read_bytes()[:-7])
    with pytest.raises(StorageError, match=rf"{torn.name}: cannot be read as Parquet.*jobs\.verify finds such files"):
        scored(tmp_path, annotations)


def test_empty_files_and_runs(tmp_path: Path, somewhere: None) -> None:
    annotations, labels = problem([20, 21])
    write_chunks(tmp_path, labels)
    write_labels(labels.slice(0, 0), str(tmp_path / "labels" / "labels-00000-0000001.parquet"))
    assert scored(tmp_path, annotations) == evaluate_coco(annotations, labels.sort_by("image_id"))
    shutil.rmtree(tmp_path / "labels")
    write_labels(labels.slice(0, 0), str(tmp_path / "labels" / "labels-00000-0000000.parquet"))
    with pytest.raises(AnnotationError, match=r"none of the 0 label rows .*\(2 images\)\. Label with"):
        scored(tmp_path, annotations)


def test_no_annotated_image_is_in_the_run(tmp_path: Path, somewhere: None) -> None:
    annotations, labels = problem([700, 701])
    write_chunks(tmp_path, labels)
    with pytest.raises(AnnotationError) as here:
        scored(tmp_path, annotations)
    with pytest.raises(AnnotationError) as in_memory:
        evaluate_coco(annotations, labels.sort_by("image_id"))
    assert str(in_memory.value) in str(here.value)
    assert "the first row has 1, the first annotated image 700" in str(here.value)


def test_files_of_two_models_are_refused(tmp_path: Path, somewhere: None) -> None:
    annotations, labels = problem([1])
    write_chunks(tmp_path, labels)
    other = records_to_table([9000], ["x"], [found()], "other", record_schema([*CATEGORIES[1:], CATEGORIES[0]]))
    write_labels(other, str(tmp_path / "labels" / "labels-00009-0000000.parquet"))
    run = EvaluateRun(str(tmp_path), str(tmp_path / "val.json"))
    scored(tmp_path, annotations)
    assert evaluate(run).models == ("model", "other")
    renamed = [type(CATEGORIES[0])(2, "lion")]
    other = records_to_table([9000], ["x"], [found()], "other", record_schema(renamed))
    write_labels(other, str(tmp_path / "labels" / "labels-00009-0000000.parquet"))
    with pytest.raises(StorageError, match=r"labels-00009-0000000\.parquet: category 2 is 'lion' here, 'cat' in other"):
        evaluate(run)


def test_one_image_in_two_files(tmp_path: Path, somewhere: None) -> None:
    annotations, labels = problem([20])
    write_chunks(tmp_path, labels)
    write_chunks(tmp_path / "labels" / "copy", labels)
    with pytest.raises(AnnotationError, match="image_id 20 has more than one label row"):
        scored(tmp_path, annotations)


def test_only_what_can_hold_the_images_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, labels = problem()
    write_chunks(tmp_path, labels)
    read: list[str] = []
    batches = OpenLabelFile.batches

    def noted(self: OpenLabelFile, *some: Any, **more: Any) -> Iterator[tuple[int, pa.RecordBatch]]:
        read.append(self.uri)
        return batches(self, *some, **more)

    monkeypatch.setattr(OpenLabelFile, "batches", noted)
    files = label_files(str(tmp_path))
    rows = wanted_rows(files, [8, 20, 9999], 1000, HERE)
    assert rows.table.column("image_id").to_pylist() == [8, 20]
    assert [run.file for run in rows.runs] == [files[1], files[3]] == sorted(read)
    assert (rows.total, rows.models, rows.names.names[7]) == (len(labels), frozenset(["model"]), "dog")


def test_files_of_other_writers(tmp_path: Path) -> None:
    """In no order, ids of another type, no model, and one without statistics."""
    annotations, labels = problem([8, 20, 33])
    shuffled = labels.take(list(range(1, len(labels), 2)) + list(range(0, len(labels), 2)))
    ids = shuffled.column("image_id").cast(pa.string())
    foreign = shuffled.set_column(0, "image_id", ids).drop_columns(["model"])
    (tmp_path / "labels").mkdir()
    pq.write_table(foreign.slice(0, 20), tmp_path / "labels/a.parquet", row_group_size=3)
    pq.write_table(shuffled.slice(20), tmp_path / "labels/b.parquet", row_group_size=7, write_statistics=False)
    assert scored(tmp_path, annotations) == evaluate_coco(annotations, labels)


def test_a_footer_says_what_can_be_relied_on(tmp_path: Path) -> None:
    table = pa.table({"image_id": [5, None, 3, None], "width": [1] * 4, "model": ["b", "a", None, None]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    with open_label_file(str(tmp_path / "a.parquet")) as file:
        ids, models, widths = (file.ranges(name) for name in ("image_id", "model", "width"))
    assert [(one.least, one.most, one.nulls) for one in ids if one] == [(5, 5, 1), (3, 3, 1)]
    assert [(one.least, one.most, one.nulls) for one in models if one] == [("a", "b", 0), (None, None, 2)]
    assert widths == [None, None]  # not of the records' type


def test_proposals_in_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_proposals(tmp_path, files=7)
    here = evaluate_proposals(run)
    monkeypatch.setattr("pipelines.evaluation.proposals._readers", lambda *_: _Entered())
    assert evaluate_proposals(run) == here


class _Entered:
    def __enter__(self) -> Any:
        return imitated_readers(2)

    def __exit__(self, *_: object) -> None:
        return None


def test_a_run_on_s3(tmp_path: Path, s3_folder: str, somewhere: None) -> None:
    annotations, labels = problem([7, 8, 500])
    write_chunks(tmp_path, labels, parts=2)
    for file in label_files(str(tmp_path)):
        name = file.rsplit("/", 1)[-1]
        storage.write_bytes_atomically(f"{s3_folder}/labels/{name}", Path(file).read_bytes())
    (tmp_path / "val.json").write_text(json.dumps(annotations))
    scores = evaluate(EvaluateRun(s3_folder, str(tmp_path / "val.json"))).scores
    assert scores == evaluate_coco(annotations, labels.sort_by("image_id"))


@pytest.mark.alone
def test_memory_does_not_grow_with_the_images_of_the_run(tmp_path: Path) -> None:
    """Ten times the label rows and the same annotated images; all rows of the larger run would be 3 MB and more."""
    failed = ImageRecord("unreadable", "damaged", None, None)

    def write(folder: Path, files: int) -> EvaluateRun:
        for number in range(files):
            ids = list(range(number * 1000, number * 1000 + 1000))
            table = records_to_table(ids, ["x"] * 1000, [failed] * 999 + [found()], "model", record_schema(CATEGORIES))
            write_labels(table, str(folder / "labels" / f"labels-00000-{number * 1000:07d}.parquet"))
        annotations = {
            "images": [{"id": 999}, {"id": 1999}],
            "annotations": [],
            "categories": [{"id": 2, "name": "cat"}],
        }
        (folder / "val.json").write_text(json.dumps(annotations))
        return EvaluateRun(str(folder), str(folder / "val.json"))

    few, many = write(tmp_path / "few", 4), write(tmp_path / "many", 40)
    assert evaluate(many).scores.coverage.unknown == 39_998
    assert growth(lambda: evaluate(few), lambda: evaluate(many)) < 500_000
    assert growth(lambda: _all_ids(few), lambda: _all_ids(many)) > 500_000  # what holds all ids would be seen


def _all_ids(run: EvaluateRun) -> dict[int, str]:
    return dict.fromkeys(read_labels(run.labels).select(list(LIGHT_COLUMNS)).column("image_id").to_pylist(), "home")
