"""What the detector gives, one image of a batch at a time, as records: pasted, run-length encoded, in COCO's form."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from maskrcnn_core.config import ModelConfig
from maskrcnn_core.inference.device_masks import encode_on_device
from maskrcnn_core.inference.proposal_records import ProposalRecord
from maskrcnn_core.inference.records import DetectionRecord, ImageRecord
from maskrcnn_core.keypoints import pixel_offset
from maskrcnn_core.masks import encode_masks
from maskrcnn_core.structures import Detections, Proposals


def image_record(detections: Detections, index: int, size: tuple[int, int], config: ModelConfig) -> ImageRecord:
    """The label record of one image.

    Args:
        detections: of a batch, on the host, in the original frame.
        index: of the image in the batch; size: its (height, width).
        config: of the detector: categories, how masks are pasted, which categories have keypoints.
    """
    count = int(detections.count[index])
    counts: list[str | None] = [None] * count
    if detections.masks is not None:
        covered = detections.boxes if detections.mask_boxes is None else detections.mask_boxes
        counts = [
            *encode_masks(
                detections.masks[index, :count].float().numpy(),
                covered[index, :count].numpy(),
                *size,
                rule=config.mask_head.paste,
                threshold=config.mask_head.threshold,
            )
        ]
    return _record(detections, index, size, counts, config)


def records_with_device_masks(
    detections: Detections, sizes: Sequence[tuple[int, int]], config: ModelConfig
) -> list[ImageRecord]:
    """`image_record` of each image of a batch whose detections, with masks, are on a device: the masks stay there, and
    only their runs and everything else are copied.

    Args:
        sizes: (height, width) of the images.
    """
    masks = detections.masks
    assert masks is not None
    found = replace(detections, masks=None).to("cpu")
    images, slots = found.valid.numpy().nonzero()
    covered = found.boxes if found.mask_boxes is None else found.mask_boxes
    encoded = encode_on_device(
        masks.flatten(0, 1),
        images * masks.shape[1] + slots,
        covered.numpy()[images, slots],
        np.array(sizes, dtype=np.int64).reshape(-1, 2)[images],
        rule=config.mask_head.paste,
        threshold=config.mask_head.threshold,
    )
    ends = np.cumsum(found.count.numpy()).tolist()
    return [
        _record(found, index, size, encoded[end - int(found.count[index]) : end], config)
        for index, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]


def _record(
    detections: Detections, index: int, size: tuple[int, int], counts: Sequence[str | None], config: ModelConfig
) -> ImageRecord:
    height, width = size
    count = len(counts)
    boxes = detections.boxes[index, :count].numpy()
    scores = detections.scores[index, :count].tolist()
    labels = detections.labels[index, :count].tolist()
    keypoints = _keypoint_lists(detections, index, labels, config)
    sides = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1).tolist()
    return ImageRecord(
        status="ok",
        error=None,
        width=width,
        height=height,
        detections=tuple(
            DetectionRecord(
                category_id=config.categories[label].id,
                category=config.categories[label].name,
                score=score,
                bbox=(x, y, w, h),
                rle_counts=rle,
                keypoints=points,
            )
            for label, score, (x, y, w, h), rle, points in zip(labels, scores, sides, counts, keypoints, strict=True)
        ),
    )


def _keypoint_lists(
    detections: Detections, index: int, labels: Sequence[int], config: ModelConfig
) -> list[tuple[float, ...] | None]:
    """Keypoints of an image's detections as COCO writes them, None where the category has none."""
    if detections.keypoints is None:
        return [None] * len(labels)
    settings = config.keypoint_head
    points = detections.keypoints[index, : len(labels)].float().numpy().copy()
    points[..., :2] -= pixel_offset(settings.decode)
    with_keypoints = [config.categories[label].name in settings.categories for label in labels]
    flat = points.reshape(len(labels), points.shape[1] * points.shape[2]).tolist()
    return [tuple(values) if wanted else None for wanted, values in zip(with_keypoints, flat, strict=True)]


def proposal_record(found: Proposals, index: int, size: tuple[int, int], min_score: float) -> ProposalRecord:
    """The proposal record of one image (arguments as `image_record`); proposals below `min_score` are left out."""
    height, width = size
    count = int(found.count[index])
    scores = found.scores[index, :count].numpy()
    count = int((scores >= min_score).sum())  # best first
    boxes = found.boxes[index, :count].numpy()
    sides = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)
    return ProposalRecord("ok", None, width, height, sides, scores[:count])
