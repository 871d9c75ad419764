import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskrcnn_core.errors import AnnotationError, StorageError
from maskrcnn_core.evaluation.coco import evaluate_coco
from pipelines import storage
from pipelines.evaluation.config import EvaluateConfig, EvaluateRun
from pipelines.evaluation.run import evaluate, load_annotations, write_numbers
from pipelines.labels.files import label_files, read_labels
from tests.core.evaluation.synthetic import found, label_table, random_problem


def test_summary_equals_scoring_in_memory(tmp_path: Path) -> None:
    annotations, labels = random_problem(5)
    (tmp_path / "labels").mkdir()
    pq.write_table(labels.slice(0, 2), tmp_path / "labels/a.parquet")
    pq.write_table(labels.slice(2), tmp_path / "labels/b.parquet")
    (tmp_path / "val.json").write_text(json.dumps(annotations))
    run = EvaluateRun(
        labels=str(tmp_path),
        annotations=str(tmp_path / "val.json"),
        output=str(tmp_path / "scores.json"),
        evaluate=EvaluateConfig(max_detections=20, engine="pycocotools"),
    )
    summary = evaluate(run)
    assert summary.scores == evaluate_coco(annotations, labels, max_detections=20)
    write_numbers(str(tmp_path / "scores.json"), summary)
    assert json.loads((tmp_path / "scores.json").read_text()) == summary.to_json()
    assert tuple(summary.to_json()["stats"]["segm"]) == summary.scores.stats["segm"]


def test_labels_annotations_and_output_on_s3(tmp_path: Path, s3_folder: str) -> None:
    annotations, labels = random_problem(5)
    pq.write_table(labels, tmp_path / "a.parquet")
    storage.write_bytes_atomically(f"{s3_folder}/labels/a.parquet", (tmp_path / "a.parquet").read_bytes())
    storage.write_bytes_atomically(f"{s3_folder}/val.json", json.dumps(annotations).encode())
    run = EvaluateRun(labels=s3_folder, annotations=f"{s3_folder}/val.json", output=f"{s3_folder}/scores.json")
    summary = evaluate(run)
    scores = summary.scores
    assert scores == evaluate_coco(annotations, labels)
    with pytest.raises(StorageError, match="no such file"):  # asking whether it can be written leaves nothing
        storage.read_bytes(f"{s3_folder}/scores.json")
    write_numbers(f"{s3_folder}/scores.json", summary)
    written = json.loads(storage.read_bytes(f"{s3_folder}/scores.json"))
    assert tuple(written["stats"]["bbox"]) == scores.stats["bbox"]


def test_labels_are_found_in_a_run_its_labels_folder_or_one_file(tmp_path: Path) -> None:
    labels = label_table({1: found()})
    (tmp_path / "labels").mkdir()
    (tmp_path / "_run").mkdir()
    pq.write_table(labels, tmp_path / "labels/a.parquet")
    pq.write_table(pa.table({"other": [1]}), tmp_path / "_run/manifest.parquet")
    file = str(tmp_path / "labels/a.parquet")
    for uri in (str(tmp_path), str(tmp_path / "labels"), f"{tmp_path}/", file):
        assert label_files(uri) == [file]
    assert read_labels(str(tmp_path)).column("image_id").to_pylist() == [1]


def test_the_runs_own_files_are_no_labels(tmp_path: Path) -> None:
    (tmp_path / "_run").mkdir()
    pq.write_table(pa.table({"other": [1]}), tmp_path / "_run/manifest.parquet")
    with pytest.raises(StorageError, match=r"no \.parquet files"):
        label_files(str(tmp_path))


def test_the_same_row_in_two_files_is_an_error(tmp_path: Path) -> None:
    annotations, labels = random_problem(5)
    pq.write_table(labels, tmp_path / "a.parquet")
    pq.write_table(labels.slice(1, 1), tmp_path / "b.parquet")
    (tmp_path / "val.json").write_text(json.dumps(annotations))
    with pytest.raises(AnnotationError, match="image_id 2 has more than one label row"):
        evaluate(EvaluateRun(labels=str(tmp_path), annotations=str(tmp_path / "val.json")))


def test_parquet_that_holds_no_labels(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image_id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(StorageError, match="not label records: column 'width' is missing"):
        read_labels(str(tmp_path))


def test_labels_of_another_schema_version(tmp_path: Path) -> None:
    labels = label_table({1: found()})
    pq.write_table(labels.replace_schema_metadata({"maskrcnn.schema_version": "9"}), tmp_path / "a.parquet")
    with pytest.raises(StorageError, match="label schema version 9; this release reads 1"):
        read_labels(str(tmp_path))


def test_annotations_that_are_a_list(tmp_path: Path) -> None:
    (tmp_path / "val.json").write_text("[]")
    with pytest.raises(AnnotationError, match="the top level is a list, expected an object"):
        load_annotations(str(tmp_path / "val.json"))


def test_output_that_is_a_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    run = EvaluateRun(labels="nowhere", annotations="nowhere.json", output=str(tmp_path))
    with pytest.raises(StorageError, match="is a folder; expected the name of a file"):
        evaluate(run)
