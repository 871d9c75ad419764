import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from maskrcnn_core.errors import AnnotationError, StorageError
from maskrcnn_core.records.proposals import ProposalRecord, failed_proposals, proposals_to_table
from pipelines.evaluation import proposals as proposal_evaluation
from pipelines.evaluation.config import EvaluateRun
from pipelines.evaluation.proposals import evaluate_proposals, holds_proposals
from pipelines.evaluation.run import evaluate, write_numbers
from pipelines.labels.files import read_labels
from tests.core.evaluation.synthetic import HEIGHT, WIDTH, found, label_table
from tests.core.evaluation.test_proposals import ours, problem


def write_run(folder: Path, seed: int = 3, files: int = 3) -> EvaluateRun:
    """A run's folder of several files, and annotations; the images without proposals have no row, or a failed one."""
    annotations, proposals = problem(seed)
    records = {
        image_id: ProposalRecord("ok", None, WIDTH, HEIGHT, boxes, scores)
        for image_id, (boxes, scores) in proposals.items()
    }
    records[18] = failed_proposals("missing", "no such file")
    records[9999] = records[1]  # of no annotated image
    ids = list(records)
    (folder / "labels").mkdir(parents=True)
    for part in range(files):
        chosen = ids[part::files]
        table = proposals_to_table(chosen, ["x"] * len(chosen), [records[image_id] for image_id in chosen], "model")
        pq.write_table(table, folder / "labels" / f"{part}.parquet", row_group_size=5)
    (folder / "val.json").write_text(json.dumps(annotations))
    return EvaluateRun(labels=str(folder), annotations=str(folder / "val.json"), output=str(folder / "recall.json"))


@pytest.mark.parametrize("rows_at_once", [7, 64])
def test_files_give_the_numbers_of_scoring_in_memory(
    tmp_path: Path, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposal_evaluation, "_ROWS_AT_ONCE", rows_at_once)
    run = write_run(tmp_path)
    annotations, proposals = problem(3)
    summary = evaluate_proposals(run)
    assert summary.stats == ours(annotations, proposals)
    assert min(summary.stats) > 0
    assert summary.proposals == sum(min(1000, len(scores)) for _, scores in proposals.values())
    assert summary.annotations == sum(not entry["iscrowd"] for entry in annotations["annotations"])
    write_numbers(str(tmp_path / "recall.json"), summary)
    written = json.loads((tmp_path / "recall.json").read_text())
    assert written == summary.to_json()
    assert written["stats"] == {"proposals": list(summary.stats)}
    assert written["names"] == ["AR@10", "AR@100", "AR@1000", "ARs@1000", "ARm@1000", "ARl@1000"]
    assert written["images"] == {"annotated": 40, "labelled": 36, "failed": 1, "unlabelled": 3, "unknown": 1}


def test_proposals_are_told_from_detections(tmp_path: Path) -> None:
    run = write_run(tmp_path / "proposals")
    (tmp_path / "detections").mkdir()
    pq.write_table(label_table({1: found()}), tmp_path / "detections" / "a.parquet")
    assert holds_proposals(run.labels)
    assert not holds_proposals(str(tmp_path / "detections"))
    (tmp_path / "text.parquet").write_text("no Parquet")
    assert not holds_proposals(str(tmp_path / "text.parquet"))
    with pytest.raises(StorageError, match="no such file or folder"):
        holds_proposals(str(tmp_path / "nothing"))
    with pytest.raises(StorageError, match=r"not proposals: column 'proposals' is missing"):
        evaluate_proposals(EvaluateRun(labels=str(tmp_path / "detections"), annotations=run.annotations))


def test_whoever_expects_detections_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    message = r"holds proposals, expected detections; label without --label\.record proposals"
    with pytest.raises(StorageError, match=message):
        evaluate(run)
    with pytest.raises(StorageError, match=message):
        read_labels(run.labels)


def test_proposals_and_annotations_that_do_not_belong_together(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    record = ProposalRecord("ok", None, 10, 10, np.empty((0, 4), np.float32), np.empty(0, np.float32))
    pq.write_table(proposals_to_table([1], ["x"], [record], "model"), tmp_path / "other.parquet")
    with pytest.raises(AnnotationError, match="image 1: labelled at 10 x 10 pixels"):
        evaluate_proposals(EvaluateRun(labels=str(tmp_path / "other.parquet"), annotations=run.annotations))
    pq.write_table(proposals_to_table([1], ["x"], [record], "model"), tmp_path / "labels" / "twice.parquet")
    with pytest.raises(AnnotationError, match="image_id 1 has more than one label row"):
        evaluate_proposals(run)
    with pytest.raises(StorageError, match="is a folder; expected the name of a file"):
        evaluate_proposals(EvaluateRun(labels=run.labels, annotations=run.annotations, output=str(tmp_path)))
