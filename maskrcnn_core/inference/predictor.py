"""Bytes in, records out: the one path that labelling, serving, evaluation and benchmarks call.

An encoded image is decoded, resized, batched with others of the same padded shape, detected, and its masks are
pasted and run-length encoded. Whatever goes wrong with one image becomes its record and costs no other image.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maskrcnn_core.boxes import clip_boxes, scale_boxes
from maskrcnn_core.config import Category, ModelConfig
from maskrcnn_core.data.decode import decode_image
from maskrcnn_core.data.transform import pad_batch, prepare_image, resized_size
from maskrcnn_core.errors import CheckpointError, ImageError
from maskrcnn_core.inference.records import DetectionRecord, ImageRecord
from maskrcnn_core.masks import encode_mask
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.frozen_norm import fold
from maskrcnn_core.model.region_detector import RegionDetector
from maskrcnn_core.structures import Detections, ImageBatch
from maskrcnn_core.weights.checkpoint import check_weights, config_to_dict, fingerprint, load_checkpoint, load_config


@dataclass(frozen=True)
class PredictorSettings:
    """How a predictor runs; those fields that change results are part of its fingerprint.

    Attributes:
        device: torch device.
        precision: `float32` or `bfloat16` (autocast).
        batch_pixels: upper limit of padded input pixels in a batch; one image is always taken.
        max_pixels: larger images fail as `too_large`.
        apply_exif: turn images by their EXIF orientation.
        min_score, max_detections: replace the checkpoint's; None keeps it.
    """

    device: str = "cpu"
    precision: str = "float32"
    batch_pixels: int = 2_000_000
    max_pixels: int = 178_956_970
    apply_exif: bool = True
    min_score: float | None = None
    max_detections: int | None = None


@dataclass(frozen=True)
class _Prepared:
    """An image ready for a batch: its place in the request, pixels [3, h, w] float32 and original (height, width)."""

    place: int
    pixels: Tensor
    original_size: tuple[int, int]


class Predictor:
    """A detector with everything around it.

    Args:
        detector: weights loaded; it is copied into inference form (affines folded, channels last) in place.
        config: its configuration.
        settings: how to run it.
        weights_fingerprint: of the checkpoint; empty for a detector that was never saved.

    Attributes:
        fingerprint: of the weights and the settings that change results, 32 hexadecimal digits.
        categories: in label order.
    """

    def __init__(
        self,
        detector: RegionDetector,
        config: ModelConfig,
        settings: PredictorSettings | None = None,
        weights_fingerprint: str = "",
    ) -> None:
        self.settings = settings or PredictorSettings()
        self.config = with_overrides(config, self.settings)
        self.categories = config.categories
        self.fingerprint = combined_fingerprint(weights_fingerprint, self.settings)
        self._device = torch.device(self.settings.device)
        fold(detector)
        detector.detection = replace(
            detector.detection,
            min_score=self.config.box_head.min_score,
            max_detections=self.config.box_head.max_detections,
        )
        detector = detector.to(self._device).to(memory_format=torch.channels_last)
        self._detector = detector.eval().requires_grad_(False)

    def predict(self, encoded: Sequence[bytes | Tensor | ImageError]) -> list[ImageRecord]:
        """Label images.

        Args:
            encoded: image files as bytes, or decoded images [3, H, W] uint8 RGB; an error in place of one becomes its
                record.

        Returns:
            One record for each, in order. Never raises for an image.
        """
        records: dict[int, ImageRecord] = {}
        for batch in self._batches(encoded, records):
            for item, record in zip(batch, self._label_or_fail(batch), strict=True):
                records[item.place] = record
        return [records[place] for place in range(len(encoded))]

    def _batches(
        self, encoded: Sequence[bytes | Tensor | ImageError], records: dict[int, ImageRecord]
    ) -> Iterable[list[_Prepared]]:
        """Images grouped by padded shape up to the pixel budget; what cannot be prepared goes to `records`."""
        waiting: dict[tuple[int, int], list[_Prepared]] = {}
        for place, content in enumerate(encoded):
            try:
                item = self._prepare(place, content)
            except ImageError as error:
                records[place] = _failure(error)
                continue
            except (RuntimeError, MemoryError, ValueError) as error:  # such as no memory for the resized pixels
                records[place] = _failure(ImageError("failed", _reason(error)))
                continue
            shape = self._padded_shape(item)
            group = waiting.setdefault(shape, [])
            group.append(item)
            if (len(group) + 1) * shape[0] * shape[1] > self.settings.batch_pixels:
                yield waiting.pop(shape)
        yield from waiting.values()

    def _prepare(self, place: int, content: bytes | Tensor | ImageError) -> _Prepared:
        if isinstance(content, ImageError):
            raise content
        if isinstance(content, Tensor):
            image = content
        else:
            image = decode_image(content, max_pixels=self.settings.max_pixels, apply_exif=self.settings.apply_exif)
        height, width = image.shape[-2:]
        rule = self.config.input
        size = resized_size(height, width, rule.short_side, rule.long_side)
        pixels = prepare_image(image, size=size, mean=rule.mean, std=rule.std, channels=rule.channels, scale=rule.scale)
        return _Prepared(place, pixels, (height, width))

    def _padded_shape(self, item: _Prepared) -> tuple[int, int]:
        divisor = self.config.input.divisor
        height, width = item.pixels.shape[-2:]
        return -(-height // divisor) * divisor, -(-width // divisor) * divisor

    def _label_or_fail(self, batch: list[_Prepared]) -> list[ImageRecord]:
        """Records of a batch; if it fails, image by image, so that only the culprit is lost."""
        try:
            return self._label(batch)
        except (RuntimeError, MemoryError, ValueError) as error:
            if len(batch) > 1:
                return [record for item in batch for record in self._label_or_fail([item])]
            height, width = batch[0].original_size
            return [ImageRecord("failed", _reason(error), width, height)]

    @torch.inference_mode()
    def _label(self, batch: list[_Prepared]) -> list[ImageRecord]:
        images = pad_batch(
            [item.pixels for item in batch], [item.original_size for item in batch], self.config.input.divisor
        )
        detections = self.detect(images)
        return [
            self._record(detections, index, height, width)
            for index, (height, width) in enumerate(item.original_size for item in batch)
        ]

    @torch.inference_mode()
    def detect(self, images: ImageBatch) -> Detections:
        """Detections on the host, boxes in the original frame, clipped to the image."""
        images = images.to(self._device)
        images = replace(images, pixels=images.pixels.contiguous(memory_format=torch.channels_last))
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            found = self._detector.detect(images)
        boxes = clip_boxes(scale_boxes(found.boxes, images.input_sizes, images.original_sizes), images.original_sizes)
        return replace(found, boxes=boxes).to("cpu")

    def _record(self, detections: Detections, index: int, height: int, width: int) -> ImageRecord:
        count = int(detections.count[index])
        boxes = detections.boxes[index, :count].numpy()
        scores = detections.scores[index, :count].tolist()
        labels = detections.labels[index, :count].tolist()
        counts: list[str | None] = [None] * count
        if detections.masks is not None:
            rule, threshold = self.config.mask_head.paste, self.config.mask_head.threshold
            masks = detections.masks[index, :count].float().numpy()
            counts = [
                encode_mask(mask, box, height, width, rule=rule, threshold=threshold)
                for mask, box in zip(masks, boxes, strict=True)
            ]
        sides = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1).tolist()
        return ImageRecord(
            status="ok",
            error=None,
            width=width,
            height=height,
            detections=tuple(
                DetectionRecord(
                    category_id=self.categories[label].id,
                    category=self.categories[label].name,
                    score=score,
                    bbox=(x, y, w, h),
                    rle_counts=rle,
                )
                for label, score, (x, y, w, h), rle in zip(labels, scores, sides, counts, strict=True)
            ),
        )


def load_predictor(
    checkpoint: str,
    *,
    device: str = "cpu",
    precision: str = "float32",
    batch_pixels: int = 2_000_000,
    max_pixels: int = 178_956_970,
    apply_exif: bool = True,
    min_score: float | None = None,
    max_detections: int | None = None,
) -> Predictor:
    """The predictor of a checkpoint folder (arguments as in `PredictorSettings`).

    Raises:
        CheckpointError: the folder is missing, damaged, or its weights do not fit its configuration.
    """
    settings = PredictorSettings(device, precision, batch_pixels, max_pixels, apply_exif, min_score, max_detections)
    config, state = load_checkpoint(checkpoint)
    detector = build_detector(config, load_pretrained=False)
    try:
        detector.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError(
            f"{checkpoint}: the weights do not fit config.json ({first}); both must come from the same run"
        ) from error
    return Predictor(detector, config, settings, fingerprint(checkpoint))


def describe_checkpoint(
    checkpoint: str,
    *,
    device: str = "cpu",
    precision: str = "float32",
    batch_pixels: int = 2_000_000,
    max_pixels: int = 178_956_970,
    apply_exif: bool = True,
    min_score: float | None = None,
    max_detections: int | None = None,
) -> tuple[str, tuple[Category, ...]]:
    """The fingerprint and categories that `load_predictor` would have, without building the network.

    Raises:
        CheckpointError: the folder is missing or damaged.
    """
    settings = PredictorSettings(device, precision, batch_pixels, max_pixels, apply_exif, min_score, max_detections)
    if not Path(checkpoint).is_dir():
        raise CheckpointError(f"{checkpoint}: no such checkpoint folder")
    config = load_config(checkpoint)
    check_weights(checkpoint)
    return combined_fingerprint(fingerprint(checkpoint), settings), config.categories


def with_overrides(config: ModelConfig, settings: PredictorSettings) -> ModelConfig:
    """The model's configuration with the settings that replace parts of it."""
    box_head = config.box_head
    if settings.min_score is not None:
        box_head = replace(box_head, min_score=settings.min_score)
    if settings.max_detections is not None:
        box_head = replace(box_head, max_detections=settings.max_detections)
    return replace(config, box_head=box_head)


def combined_fingerprint(weights_fingerprint: str, settings: PredictorSettings) -> str:
    """32 hexadecimal digits over the weights and the settings that change results (not the device or batching)."""
    deciding = config_to_dict(settings)
    del deciding["device"], deciding["batch_pixels"]
    document = json.dumps({"weights": weights_fingerprint, "settings": deciding}, sort_keys=True)
    return hashlib.sha256(document.encode()).hexdigest()[:32]


def _failure(error: ImageError) -> ImageRecord:
    return ImageRecord(error.status, " ".join(str(error).split()), None, None)


def _reason(error: Exception) -> str:
    """Kind and first line of an error."""
    first = str(error).splitlines()[0] if str(error) else "no message"
    return f"{type(error).__name__}: {first}"
