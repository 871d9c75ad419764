"""COCO metrics of a detector in training: every worker predicts its share of the images, the first one scores."""

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from maskrcnn_core.config import DatasetConfig, ModelConfig
from maskrcnn_core.data.coco import CocoDataset, CocoImage
from maskrcnn_core.data.files import Folder, read_bytes
from maskrcnn_core.errors import ImageError
from maskrcnn_core.evaluation.coco import NOT_DEFINED, STAT_NAMES, evaluate_coco
from maskrcnn_core.evaluation.results import IouType
from maskrcnn_core.inference.predictor import Predictor, PredictorSettings
from maskrcnn_core.inference.records import ImageRecord, record_schema, records_to_table
from maskrcnn_core.model.region_detector import RegionDetector
from maskrcnn_core.training.loader import prefetch

_IMAGES_PER_READ = 8


@dataclass(frozen=True)
class Scores:
    """COCO metrics of one validation.

    Attributes:
        metrics: `bbox/AP`, `segm/AP50` and so on, 0 to 1; undefined ones are left out.
        score: mask AP, or box AP where there are no masks; None where it is undefined.
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
) -> Scores | None:
    """Predict this rank's share of the images; on rank 0 score all of them.

    Every rank has to call it. The detector stays as it is: the prediction runs on a copy.

    Returns:
        The scores on rank 0, None on the others.
    """
    settings = PredictorSettings(
        device=str(device),
        precision=precision,
        max_pixels=max_pixels,
        apply_exif=False,  # COCO annotates images as stored
    )
    predictor = Predictor(copy.deepcopy(detector), config, settings)
    share = dataset.images[rank::world_size]
    records: list[ImageRecord] = []
    for encoded in prefetch(_read_in_chunks(share, Folder(source.images)), depth=2):
        records += predictor.predict(encoded)
    found = [(image.image_id, image.file_name, record) for image, record in zip(share, records, strict=True)]
    gathered: list[Any] = [found]
    if world_size > 1:
        gathered = [None] * world_size
        dist.all_gather_object(gathered, found)
    return _score([entry for part in gathered for entry in part], config, source) if rank == 0 else None


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
    iou_types: tuple[IouType, ...] = ("bbox", "segm") if config.mask_head.enabled else ("bbox",)
    scores = evaluate_coco(json.loads(read_bytes(source.annotations)), labels, iou_types)
    metrics = {
        f"{kind}/{name}": value
        for kind, stats in scores.stats.items()
        for name, value in zip(STAT_NAMES, stats, strict=True)
        if value != NOT_DEFINED
    }
    return Scores(
        metrics=metrics,
        score=metrics.get("segm/AP" if "segm" in scores.stats else "bbox/AP"),
        images=len(records),
        failed_images=sum(record.status != "ok" for record in records),
    )
