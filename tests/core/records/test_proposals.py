import numpy as np
import pyarrow as pa
import torch

from maskrcnn_core.inference.encoding import proposal_record
from maskrcnn_core.records.proposals import (
    ProposalRecord,
    failed_proposals,
    proposal_schema,
    proposals_to_table,
)
from maskrcnn_core.structures import Proposals


def test_rows_by_eye() -> None:
    boxes = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)
    records = [
        ProposalRecord("ok", None, 20, 10, boxes, np.array([0.75, 0.5], np.float32)),
        ProposalRecord("ok", None, 30, 40, np.empty((0, 4), np.float32), np.empty(0, np.float32)),
        failed_proposals("unreadable", "damaged"),
    ]
    table = proposals_to_table([7, 8, 9], ["a", "b", "c"], records, "print")
    assert table.schema == proposal_schema()
    assert table.schema.metadata == {b"maskrcnn.schema_version": b"1", b"maskrcnn.record": b"proposals"}
    table.validate(full=True)
    assert table.to_pylist() == [
        {
            "image_id": 7,
            "uri": "a",
            "width": 20,
            "height": 10,
            "status": "ok",
            "error": None,
            "proposals": [
                {"bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.75},
                {"bbox": [5.0, 6.0, 7.0, 8.0], "score": 0.5},
            ],
            "model": "print",
        },
        {
            "image_id": 8,
            "uri": "b",
            "width": 30,
            "height": 40,
            "status": "ok",
            "error": None,
            "proposals": [],
            "model": "print",
        },
        {
            "image_id": 9,
            "uri": "c",
            "width": None,
            "height": None,
            "status": "unreadable",
            "error": "damaged",
            "proposals": [],
            "model": "print",
        },
    ]


def test_no_images_give_a_table_of_the_same_schema() -> None:
    table = proposals_to_table([], [], [], "print")
    assert table.num_rows == 0
    assert table.schema == proposal_schema()
    assert pa.concat_tables(
        [table, proposals_to_table([1], ["a"], [failed_proposals("missing", "gone")], "p")]
    ).num_rows


def test_a_proposal_at_the_least_score_is_kept() -> None:
    boxes = torch.tensor([[[0.0, 0, 4, 4], [1, 1, 5, 5], [2, 2, 6, 6], [0, 0, 1, 1]]])
    proposals = Proposals(boxes, torch.tensor([[0.75, 0.5, 0.25, 0.0]]), torch.tensor([3]))
    assert proposal_record(proposals, 0, (9, 9), 0.5).scores.tolist() == [0.75, 0.5]
    assert proposal_record(proposals, 0, (9, 9), 0.0).scores.tolist() == [0.75, 0.5, 0.25]  # never an empty slot
    assert len(proposal_record(proposals, 0, (9, 9), 0.9).scores) == 0
