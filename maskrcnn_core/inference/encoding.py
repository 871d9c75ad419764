"""What the detector gives, one image of a batch at a time, as records: pasted, run-length encoded, in COCO's form."""

from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.inference.device_masks import encode_on_device
from maskrcnn_core.inference.settings import Mark, no_mark
from maskrcnn_core.keypoints import pixel_offset
from maskrcnn_core.masks import encode_masks
from maskrcnn_core.records.detections import DetectionColumns
from maskrcnn_core.records.labels import ImageRecord
from maskrcnn_core.records.proposals import ProposalRecord
from maskrcnn_core.structures import Detections, Proposals, map_tensors, tensors_of


def image_record(detections: Detections, index: int, size: tuple[int, int], config: ModelConfig) -> ImageRecord:
    """The label record of one image.

    Args:
        detections: of a batch, on the host, in the original frame.
        index: of the image in the batch; size: its (height, width).
        config: of the detector: categories, how masks are pasted, which categories have keypoints.
    """
    own = map_tensors(detections, itemgetter(slice(index, index + 1)))
    counts: list[str | None] = [None] * int(own.count)
    if own.masks is not None:
        covered = own.boxes if own.mask_boxes is None else own.mask_boxes
        counts = [
            *encode_masks(
                own.masks[0, : len(counts)].float().numpy(),
                covered[0, : len(counts)].numpy(),
                *size,
                rule=config.mask_head.paste,
                threshold=config.mask_head.threshold,
            )
        ]
    return _records(own, [size], counts, config)[0]


def records_with_device_masks(
    detections: Detections, sizes: Sequence[tuple[int, int]], config: ModelConfig, mark: Mark = no_mark
) -> list[ImageRecord]:
    """`image_record` of each image of a batch whose detections, with masks, are on a device: the masks stay there, and
    only their run lengths and everything else are copied.

    Args:
        sizes: (height, width) of the images.
        mark: told of each stage.
    """
    masks = detections.masks
    assert masks is not None
    on_host = replace(detections, masks=None).to("cpu")
    mark("results to the host", sum(tensor.nbytes for tensor in tensors_of(on_host).values()))
    images, slots = on_host.valid.numpy().nonzero()
    covered = on_host.boxes if on_host.mask_boxes is None else on_host.mask_boxes
    encoded = encode_on_device(
        masks.flatten(0, 1),
        images * masks.shape[1] + slots,
        covered.numpy()[images, slots],
        np.array(sizes, dtype=np.int64).reshape(-1, 2)[images],
        rule=config.mask_head.paste,
        threshold=config.mask_head.threshold,
    )
    mark("masks, run lengths", masks.nbytes)
    records = _records(on_host, sizes, encoded, config)
    mark("records", 0.0)
    return records


def _records(
    detections: Detections, sizes: Sequence[tuple[int, int]], counts: Sequence[str | None], config: ModelConfig
) -> list[ImageRecord]:
    """The records of a batch on the host; `counts` are the run lengths of all its detections, image after image."""
    # The whole batch at once: for one image it takes as long.
    valid = detections.valid.numpy()
    boxes = detections.boxes.numpy()[valid]
    labels = detections.labels.numpy()[valid]
    assert len(counts) == len(labels)
    keypoints, num_values = _keypoint_values(detections, labels, config)
    names = [category.name for category in config.categories]
    columns = DetectionColumns(
        category_ids=np.array([category.id for category in config.categories], np.int64)[labels],
        categories=[names[label] for label in labels.tolist()],
        scores=detections.scores.numpy()[valid],
        boxes=np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1),
        rle_counts=counts,
        keypoints=keypoints,
        num_values=num_values,
    )
    return [
        ImageRecord("ok", None, width, height, own)
        for (height, width), own in zip(sizes, columns.split(detections.count.tolist()), strict=True)
    ]


def _keypoint_values(
    detections: Detections, labels: NDArray[np.int64], config: ModelConfig
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Keypoints of a batch's detections, whose labels are given, as `DetectionColumns` has them: none where the
    category has none."""
    if detections.keypoints is None:
        return np.empty(0, np.float32), np.full(len(labels), -1)
    settings = config.keypoint_head
    points = detections.keypoints.float().numpy()[detections.valid.numpy()]
    points[..., :2] -= pixel_offset(settings.decode)
    of_category = np.array([category.name in settings.categories for category in config.categories], np.bool_)
    present = of_category[labels]
    return points[present].reshape(-1), np.where(present, points.shape[1] * points.shape[2], -1)


def proposal_record(proposals: Proposals, index: int, size: tuple[int, int], min_score: float) -> ProposalRecord:
    """The proposal record of one image (arguments as `image_record`); proposals below `min_score` are left out."""
    height, width = size
    count = int(proposals.count[index])
    scores = proposals.scores[index, :count].numpy()
    count = int((scores >= min_score).sum())  # best first
    boxes = proposals.boxes[index, :count].numpy()
    sides = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)
    return ProposalRecord("ok", None, width, height, sides, scores[:count])
