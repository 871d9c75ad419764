"""COCO metrics of a detector in training: every worker predicts its share of the images, the first one scores."""

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from maskrcnn_core.config import ModelConfig
from maskrcnn_core.data.coco import CocoDataset, CocoImage
from maskrcnn_core.data.files import Folder, read_bytes
from maskrcnn_core.data.proposals import ImageProposals, ProposalFiles
from maskrcnn_core.errors import ImageError
from maskrcnn_core.evaluation.coco import NOT_DEFINED, evaluate_coco, stat_names
from maskrcnn_core.evaluation.proposals import (
    RecallCounts,
    annotated_boxes,
    count_recall,
    no_recall,
    recall_metrics,
    summarize_recall,
)
from maskrcnn_core.evaluation.scoring_states import IouType
from maskrcnn_core.inference.predictor import Predictor
from maskrcnn_core.inference.records import ImageRecord, record_schema, records_to_table
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.model.region_detector import RegionDetector
from maskrcnn_core.train_config import DatasetConfig
from maskrcnn_core.training.loader import prefetch

_IMAGES_PER_READ = 8
_Part = TypeVar("_Part")


@dataclass(frozen=True)
class Scores:
    """COCO metrics of one validation.

    Attributes:
        metrics: `bbox/AP`, `segm/AP50` and so on, 0 to 1; undefined ones are left out.
        score: mask AP; without masks keypoint AP, without these box AP; AR@1000 of an RPN alone; None where it is
            undefined.
        images, failed_images: predicted, and of these without a prediction.
    """

    metrics: dict[str, float]
    score: float | None
    images: int
    failed_images: int


def validate(
    detector: RegionDetector,
    config: ModelConfig,
    dataset: CocoDataset,
    source: DatasetConfig,
    *,
    device: torch.device,
    precision: str,
    max_pixels: int,
    rank: int = 0,
    world_size: int = 1,
    proposals: ProposalFiles | None = None,
) -> Scores | None:
    """Predict this rank's share of the images; on rank 0 score all of them.

    Every rank has to call it. The detector stays as it is: the prediction runs on a copy.

    Args:
        proposals: of the images, where the model has no RPN.

    Returns:
        The scores on rank 0, None on the others.
    """
    settings = PredictorSettings(
        device=str(device),
        precision=precision,
        max_pixels=max_pixels,
        apply_exif=False,  # COCO annotates images as stored
        record="detections" if config.box_head.enabled else "proposals",
        proposals="" if proposals is None else proposals.fingerprint,
    )
    predictor = Predictor(copy.deepcopy(detector), config, settings)
    share = dataset.images[rank::world_size]
    chunks = prefetch(_read_in_chunks(share, Folder(source.images)), depth=2)
    if not config.box_head.enabled:
        parts = _gathered(_recall_of_share(predictor, share, chunks, source), world_size)
        return _recall_scores(parts) if rank == 0 else None
    records: list[ImageRecord] = []
    for encoded in chunks:
        images = share[len(records) : len(records) + len(encoded)]
        records += predictor.predict(encoded, _proposals_of(images, proposals, predictor.max_proposals))
    found = [(image.image_id, image.file_name, record) for image, record in zip(share, records, strict=True)]
    entries = [entry for part in _gathered(found, world_size) for entry in part]
    return _score(entries, config, source) if rank == 0 else None


def _gathered(part: _Part, world_size: int) -> list[_Part]:
    """Every rank's part, on every rank."""
    if world_size == 1:
        return [part]
    parts: list[Any] = [None] * world_size
    dist.all_gather_object(parts, part)
    return parts


def _proposals_of(
    images: Sequence[CocoImage], proposals: ProposalFiles | None, limit: int
) -> list[ImageProposals | ImageError] | None:
    return None if proposals is None else [proposals.read(image.image_id, limit) for image in images]


def _recall_of_share(
    predictor: Predictor, share: Sequence[CocoImage], chunks: Iterator[list[bytes | ImageError]], source: DatasetConfig
) -> tuple[RecallCounts, int, int]:
    """Counts over this rank's images, their number and how many of them failed."""
    objects = annotated_boxes(json.loads(read_bytes(source.annotations)))
    counts, done, failed = no_recall(), 0, 0
    for encoded in chunks:
        records = predictor.propose(encoded)
        images = share[done : done + len(records)]
        counts += count_recall(
            (record.boxes, record.scores, objects[image.image_id])
            for image, record in zip(images, records, strict=True)
        )
        done += len(records)
        failed += sum(record.status != "ok" for record in records)
    return counts, done, failed


def _recall_scores(parts: Sequence[tuple[RecallCounts, int, int]]) -> Scores:
    counts = sum((part[0] for part in parts), no_recall())
    metrics = recall_metrics(summarize_recall(counts))
    return Scores(
        metrics={f"proposals/{name}": value for name, value in metrics.items()},
        score=metrics.get("AR@1000"),
        images=sum(part[1] for part in parts),
        failed_images=sum(part[2] for part in parts),
    )


def _read_in_chunks(images: Sequence[CocoImage], folder: Folder) -> Iterator[list[bytes | ImageError]]:
    for start in range(0, len(images), _IMAGES_PER_READ):
        yield [_read(image, folder) for image in images[start : start + _IMAGES_PER_READ]]


def _read(image: CocoImage, folder: Folder) -> bytes | ImageError:
    try:
        return folder.read(image.file_name)
    except FileNotFoundError:
        return ImageError("missing", f"{folder.path(image.file_name)}: no such file")
    except OSError as error:
        return ImageError("unreadable", f"{folder.path(image.file_name)}: {error}")


def _score(entries: Sequence[tuple[int, str, ImageRecord]], config: ModelConfig, source: DatasetConfig) -> Scores:
    image_ids, uris, records = zip(*entries, strict=True)
    labels = records_to_table(image_ids, uris, records, "training", record_schema(config.categories))
    iou_types: list[IouType] = ["bbox"]
    iou_types += ["segm"] if config.mask_head.enabled else []
    iou_types += ["keypoints"] if config.keypoint_head.enabled else []
    scores = evaluate_coco(json.loads(read_bytes(source.annotations)), labels, iou_types)
    metrics = {
        f"{kind}/{name}": value
        for kind, stats in scores.stats.items()
        for name, value in zip(stat_names(kind), stats, strict=True)
        if value != NOT_DEFINED
    }
    return Scores(
        metrics=metrics,
        score=metrics.get(next(f"{kind}/AP" for kind in ("segm", "keypoints", "bbox") if kind in scores.stats)),
        images=len(records),
        failed_images=sum(record.status != "ok" for record in records),
    )
