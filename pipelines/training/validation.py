"""COCO metrics of a detector in training: its images are predicted in shares, the scores are those of all shares."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.data.coco.category_names import distinct_names
from maskrcnn_core.data.coco.dataset import CocoDataset, CocoImage, image_entries
from maskrcnn_core.data.decode import decode_image
from maskrcnn_core.data.proposals import ImageProposals, ProposalFiles
from maskrcnn_core.drawing.objects import (
    draw_objects,
    fit_scale,
    objects_from_annotations,
    objects_from_record,
)
from maskrcnn_core.drawing.sheets import contact_sheet
from maskrcnn_core.errors import ImageError
from maskrcnn_core.evaluation.coco import NOT_DEFINED, evaluate_coco, stat_names
from maskrcnn_core.evaluation.proposals import (
    RecallCounts,
    count_recall,
    no_recall,
    object_boxes,
    recall_metrics,
    summarize_recall,
)
from maskrcnn_core.evaluation.scoring_states import IouType
from maskrcnn_core.inference.predictor import Predictor
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.records.labels import ImageRecord, record_schema, records_to_table
from maskrcnn_core.training.loader import prefetch
from pipelines.training.data_config import DatasetConfig
from pipelines.training.image_files import PatientFiles

_IMAGES_PER_READ = 8
_PICTURE_SIDE = 420
_DRAWN_SCORE = 0.5


@dataclass(frozen=True)
class Scores:
    """COCO metrics of one validation.

    Attributes:
        metrics: `bbox/AP`, `segm/AP50` and so on, 0 to 1; undefined ones are left out.
        score: mask AP; without masks keypoint AP, without these box AP; AR@1000 of an RPN alone; None where it is
            undefined.
        images, failed_images: predicted, and of these without a prediction.
        categories: AP of each category that has objects, of the same kind as the score.
    """

    metrics: dict[str, float]
    score: float | None
    images: int
    failed_images: int
    categories: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PredictedShare:
    """What one process found on its images.

    Attributes:
        entries: image id, file name and record of each; empty for an RPN alone.
        recall: counts over the images, their number and how many failed; of an RPN alone.
    """

    entries: list[tuple[int, str, ImageRecord]]
    recall: tuple[RecallCounts, int, int] | None = None


def predict_share(
    detector: Detector,
    config: ModelConfig,
    dataset: CocoDataset,
    paths: DatasetConfig,
    *,
    device: torch.device,
    precision: Literal["float32", "bfloat16"],
    max_pixels: int,
    rank: int = 0,
    world_size: int = 1,
    proposals: ProposalFiles | None = None,
) -> PredictedShare:
    """Predict every `world_size`-th image, from number `rank`.

    Args:
        detector: brought into inference form in place: give a copy of one that goes on learning.
        proposals: of the images, where the model has no RPN.
    """
    settings = PredictorSettings(
        device=str(device),
        precision=precision,
        max_pixels=max_pixels,
        apply_exif=False,  # COCO annotates images as stored
        record=config.finds,
        proposals="" if proposals is None else proposals.fingerprint,
    )
    predictor = Predictor(detector, config, settings)
    share = dataset.images[rank::world_size]
    chunks = prefetch(_read_in_chunks(share, PatientFiles(paths.images)), depth=2)
    if config.finds == "proposals":
        return PredictedShare([], _recall_of_share(predictor, share, chunks))
    records: list[ImageRecord] = []
    for encoded in chunks:
        images = share[len(records) : len(records) + len(encoded)]
        records += predictor.predict(encoded, _proposals_of(images, proposals, predictor.max_proposals))
    return PredictedShare(
        [(image.image_id, image.file_name, record) for image, record in zip(share, records, strict=True)]
    )


def score_shares(shares: Sequence[PredictedShare], config: ModelConfig, dataset: CocoDataset) -> Scores:
    """The metrics of all shares together."""
    if config.finds == "proposals":
        return _recall_scores([share.recall for share in shares if share.recall is not None])
    return _score([entry for share in shares for entry in share.entries], config, dataset)


def draw_pictures(
    share: PredictedShare, dataset: CocoDataset, paths: DatasetConfig, *, number: int, max_pixels: int
) -> NDArray[np.uint8] | None:
    """Ground truth beside predictions of the first images of a share that have objects, on one sheet [H, W, 3]; None
    where there are none."""
    chosen = list(islice(_drawable(share, dataset), number))
    if not chosen:
        return None
    names = distinct_names((category.id, category.name) for category in dataset.categories)
    rows = []
    for annotated, file_name, record in chosen:
        pixels = decode_image(PatientFiles(paths.images).read(file_name), max_pixels=max_pixels, apply_exif=False)
        image = pixels.permute(1, 2, 0).numpy()
        truth = objects_from_annotations(image_entries(annotated), names, *image.shape[:2])
        detections = objects_from_record(record, min_score=_DRAWN_SCORE)
        scale = fit_scale(image, _PICTURE_SIDE)
        caption = f"{file_name}: {len(truth)} objects, {len(detections)} found"
        rows.append((draw_objects(image, truth, scale=scale), draw_objects(image, detections, scale=scale), caption))
    return contact_sheet(rows, cell=_PICTURE_SIDE)


def _drawable(share: PredictedShare, dataset: CocoDataset) -> Iterator[tuple[CocoImage, str, ImageRecord]]:
    """Those images of a share that have objects, with their file names and records."""
    index_of = {image_id: index for index, image_id in enumerate(dataset.columns.image_ids.tolist())}
    for image_id, file_name, record in share.entries:
        image = dataset.images[index_of[image_id]]
        if image.objects and _has_its_size(record, image):
            yield image, file_name, record


def _has_its_size(record: ImageRecord, image: CocoImage) -> bool:
    """Whether an image was predicted, at the size that its annotations are of."""
    return record.status == "ok" and (record.height, record.width) == (image.height, image.width)


def _proposals_of(
    images: Sequence[CocoImage], proposals: ProposalFiles | None, limit: int
) -> list[ImageProposals | ImageError] | None:
    return None if proposals is None else [proposals.read(image.image_id, limit) for image in images]


def _recall_of_share(
    predictor: Predictor, share: Sequence[CocoImage], chunks: Iterator[list[bytes | ImageError]]
) -> tuple[RecallCounts, int, int]:
    """Counts over this rank's images, their number and how many of them failed."""
    counts, done, failed = no_recall(), 0, 0
    for encoded in chunks:
        records = predictor.propose(encoded)
        images = share[done : done + len(records)]
        counts += count_recall(
            (record.boxes, record.scores, object_boxes(image_entries(image)))
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


def _read_in_chunks(images: Sequence[CocoImage], files: PatientFiles) -> Iterator[list[bytes | ImageError]]:
    for start in range(0, len(images), _IMAGES_PER_READ):
        yield [_read(image, files) for image in images[start : start + _IMAGES_PER_READ]]


def _read(image: CocoImage, files: PatientFiles) -> bytes | ImageError:
    try:
        return files.read(image.file_name)
    except FileNotFoundError:
        return ImageError("missing", f"{files.path(image.file_name)}: no such file")
    except ImageError as error:
        return ImageError(error.status, f"{files.path(image.file_name)}: {error}")
    except OSError as error:
        return ImageError("unreadable", f"{files.path(image.file_name)}: {error}")


def _score(entries: Sequence[tuple[int, str, ImageRecord]], config: ModelConfig, dataset: CocoDataset) -> Scores:
    image_ids, uris, records = zip(*entries, strict=True)
    labels = records_to_table(image_ids, uris, records, "training", record_schema(config.categories))
    iou_types: list[IouType] = ["bbox"]
    iou_types += ["segm"] if config.mask_head.enabled else []
    iou_types += ["keypoints"] if config.keypoint_head.enabled else []
    scores = evaluate_coco(dataset.document(), labels, iou_types)
    metrics: dict[str, float] = {
        f"{iou_type}/{name}": value
        for iou_type, stats in scores.stats.items()
        for name, value in zip(stat_names(iou_type), stats, strict=True)
        if value != NOT_DEFINED
    }
    names = distinct_names((category.id, category.name) for category in dataset.categories)
    decisive: Any = next(iou_type for iou_type in ("segm", "keypoints", "bbox") if iou_type in scores.stats)
    return Scores(
        metrics=metrics,
        score=metrics.get(f"{decisive}/AP"),
        images=len(records),
        failed_images=sum(record.status != "ok" for record in records),
        categories={
            names[category.id]: category.ap[decisive]
            for category in scores.per_category
            if category.ap.get(decisive, NOT_DEFINED) != NOT_DEFINED
        },
    )
