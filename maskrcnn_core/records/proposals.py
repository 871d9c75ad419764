"""The record of a proposals run: one row per image, as `labels` has for detections."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from maskrcnn_core.records.labels import RECORD_FIELDS, SCHEMA_VERSION, VERSION_KEY, rows_of_images
from maskrcnn_core.records.schema import PROPOSALS_KIND, PROPOSALS_TYPE, RECORD_KEY


@dataclass(frozen=True)
class ProposalRecord:
    """What the RPN found in one image, or why it found nothing.

    Attributes:
        status, error, width, height: as in `labels.ImageRecord`.
        boxes: [R, 4] float32: x, y, width, height in original pixels, best first; [0, 4] where the image failed.
        scores: [R] float32 objectness, 0 to 1.
    """

    status: str
    error: str | None
    width: int | None
    height: int | None
    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]


def failed_proposals(status: str, error: str, width: int | None = None, height: int | None = None) -> ProposalRecord:
    """The record of an image that failed."""
    return ProposalRecord(status, error, width, height, np.empty((0, 4), np.float32), np.empty(0, np.float32))


def proposal_schema() -> pa.Schema:
    """The Arrow schema of proposals; the metadata says the version and that these are no detections."""
    fields = [
        pa.field("proposals", PROPOSALS_TYPE, nullable=False) if field.name == "detections" else field
        for field in RECORD_FIELDS
    ]
    return pa.schema(fields, metadata={VERSION_KEY: SCHEMA_VERSION.encode(), RECORD_KEY: PROPOSALS_KIND})


def proposals_to_table(
    image_ids: Sequence[int], uris: Sequence[str], records: Sequence[ProposalRecord], model: str
) -> pa.Table:
    """Rows of `schema`, one for each image, in order.

    Args:
        image_ids, uris, records: equally long.
        model: fingerprint of weights and settings.
    """
    return rows_of_images(image_ids, uris, records, _proposals_array(records), model, proposal_schema())


def _proposals_array(records: Sequence[ProposalRecord]) -> pa.Array:
    """Built from whole columns: a thousand boxes an image are too many for Python objects."""
    counts = [len(record.scores) for record in records]
    boxes = np.concatenate([np.empty((0, 4), np.float32), *(record.boxes for record in records)])
    scores = np.concatenate([np.empty(0, np.float32), *(record.scores for record in records)])
    corners = pa.ListArray.from_arrays(
        pa.array(np.arange(0, 4 * len(boxes) + 1, 4, dtype=np.int32)), pa.array(boxes.reshape(-1))
    )
    structs = pa.StructArray.from_arrays(
        [corners, pa.array(scores)], fields=[PROPOSALS_TYPE.value_type.field(index) for index in range(2)]
    )
    offsets = pa.array(np.cumsum([0, *counts]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, structs, type=PROPOSALS_TYPE)
