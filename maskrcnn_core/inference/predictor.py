"""Bytes in, records out: the one path that labelling, serving, evaluation and benchmarks call.

An encoded image is decoded, resized, batched with others of the same padded shape, detected, and its masks are
pasted and run-length encoded. Whatever goes wrong with one image becomes its record and costs no other image.
"""

import os
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor

from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.data.proposals import ImageProposals
from maskrcnn_core.errors import ImageError
from maskrcnn_core.inference.batch_stream import BatchPipeline, Steps
from maskrcnn_core.inference.cuda_graphs import CapturedByShape
from maskrcnn_core.inference.device_form import choices, prepared, usable_device
from maskrcnn_core.inference.device_preparation import DevicePreparation
from maskrcnn_core.inference.encoding import image_record, proposal_record, records_with_device_masks
from maskrcnn_core.inference.frames import (
    boxes_in_input,
    boxes_in_original,
    clipped_boxes_in_original,
    keypoints_in_original,
)
from maskrcnn_core.inference.image_result import ImageResult
from maskrcnn_core.inference.image_source import ImageSource, bytes_or_pixels, source_name
from maskrcnn_core.inference.preparation import Preparation, PreparedBatch, PreparedImage, Request
from maskrcnn_core.inference.settings import (
    Mark,
    PredictorSettings,
    check_settings,
    combined_fingerprint,
    no_mark,
    with_overrides,
)
from maskrcnn_core.inference.views import MergeRule, View, detect_in_views, mirrored
from maskrcnn_core.keypoints import mirror_keypoints
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.model.trained import check_fits, load_trained
from maskrcnn_core.records.labels import ImageRecord
from maskrcnn_core.records.proposals import ProposalRecord, failed_proposals
from maskrcnn_core.structures import Detections, ImageBatch, Proposals, tensors_of
from maskrcnn_core.weights.checkpoint import fingerprint, load_checkpoint
from maskrcnn_core.weights.checkpoint_config import load_config


class Predictor:
    """A detector with everything around it.

    Args:
        detector: weights loaded; it is brought into inference form, see `device_form.prepared`.
        config: its configuration.
        settings: how to run it.
        weights_fingerprint: of the checkpoint; empty for a detector that was never saved.
        mark: told of each stage of `predict`. In order, and in one thread, with `prefetch` and `cuda_graphs` false and
            one of `decode_threads`.

    Attributes:
        fingerprint: of the weights and the settings that change results, 32 hexadecimal digits.
        categories: in label order.
        detector: in inference form; boxes in the frame of the network's input.
    """

    def __init__(
        self,
        detector: Detector,
        config: ModelConfig,
        settings: PredictorSettings | None = None,
        weights_fingerprint: str = "",
        *,
        mark: Mark = no_mark,
    ) -> None:
        self.settings = settings or PredictorSettings()
        check_settings(config, self.settings)
        self.config = with_overrides(config, self.settings)
        self.categories = config.categories
        self.fingerprint = combined_fingerprint(weights_fingerprint, self.settings)
        self._mark, self._choices = mark, choices(self.config, self.settings)
        self.detector = prepared(detector, self.config, self.settings, self._choices)
        self._merge_rule = _merge_rule(self.config)
        device, pixel_type, rule = self._choices.device, self._choices.pixel_type, self.config.input
        on_device = self._choices.device_preparation
        preparation = DevicePreparation(rule, device, pixel_type, mark=mark) if on_device else None
        self._preparation = Preparation(rule, self.settings, preparation, mark)
        self._pipeline = BatchPipeline(self._preparation, device, overlapped=self._choices.prefetch)
        recorded = CapturedByShape(self._detections_in, self.detector.kept_grids) if self._choices.cuda_graphs else None
        self._detect = recorded or self._detections_in

    @property
    def max_proposals(self) -> int:
        """How many given proposals of an image `predict` is made for."""
        return self.config.dense.post_nms_test

    @overload
    def __call__(self, images: list[Any] | tuple[Any, ...]) -> list[ImageResult]: ...

    @overload
    def __call__(self, images: ImageSource) -> ImageResult: ...

    def __call__(self, images: Any) -> ImageResult | list[ImageResult]:
        """Detect objects, for a notebook; labelling uses `predict`.

        Args:
            images: one image or a list of them: an encoded file as bytes, a path or URI, an array [H, W, 3] uint8
                RGB, a PIL image, a tensor [3, H, W] uint8 RGB.

        Returns:
            A result, or a list of them in the order of the images.

        Raises:
            ImageError: an image cannot be used; says which and why.
        """
        sources = list(images) if isinstance(images, list | tuple) else [images]

        def failure(index: int, error: ImageError | ImageRecord) -> ImageError:
            number = f"image {index} of {len(sources)}, " if len(sources) > 1 else ""
            reason = error.error if isinstance(error, ImageRecord) else error
            status: Any = error.status
            return ImageError(status, f"{number}{source_name(sources[index])}: {reason}")

        contents = []
        for index, source in enumerate(sources):
            try:
                contents.append(bytes_or_pixels(source, apply_exif=self.settings.apply_exif))
            except ImageError as error:
                raise failure(index, error) from None
        results = []
        for index, record in enumerate(self.predict(contents)):
            if record.status != "ok":
                raise failure(index, record)
            results.append(self._result(sources[index], record))
        return results if isinstance(images, list | tuple) else results[0]

    def _result(self, source: ImageSource, record: ImageRecord) -> ImageResult:
        keypoint_head = self.config.keypoint_head
        return ImageResult(
            record=record,
            categories=self.categories,
            has_masks=self.config.mask_head.enabled,
            num_keypoints=len(keypoint_head.names) if keypoint_head.enabled else None,
            source=source,
            max_pixels=self.settings.max_pixels,
            apply_exif=self.settings.apply_exif,
        )

    def predict(
        self,
        encoded: Sequence[bytes | Tensor | ImageError],
        proposals: Sequence[ImageProposals | ImageError] | None = None,
    ) -> list[ImageRecord]:
        """Label images.

        Args:
            encoded: image files as bytes, or decoded images [3, H, W] uint8 RGB; an error in place of one becomes its
                record.
            proposals: of each image in its original frame, instead of the RPN's; an error becomes the image's record.

        Returns:
            One record for each, in order. Never raises for an image.
        """
        given: Sequence[ImageProposals | ImageError | None] = proposals or [None] * len(encoded)
        return self._pipeline.records(encoded, given, Steps(self._start_label, self._finish_label))

    def predict_each(self, requests: Iterable[Request | None]) -> Generator[list[tuple[int, ImageRecord]]]:
        """Label images as they come, without an end in between: batches go on over whatever the caller groups.

        Args:
            requests: images by keys; None = a pause, where no image is at hand, so that none waits for others of its
                shape. Iterated in another thread beside a GPU; an iterator that waits for images yields None now and
                then. An image waits for at most 512 others.

        Yields:
            Keys and records of a batch as soon as it is done; never raises for an image.
        """
        return self._pipeline.stream(requests, Steps(self._start_label, self._finish_label))

    def propose_each(self, requests: Iterable[Request | None]) -> Generator[list[tuple[int, ProposalRecord]]]:
        """As `predict_each`, of what `propose` makes."""
        for batch in self._pipeline.stream(requests, Steps(self._start_proposals, self._finish_proposals)):
            yield [(key, _as_proposals(record)) for key, record in batch]

    @property
    def idle_since(self) -> float | None:
        """When the last batch was finished, seconds of `time.monotonic`; None while one is under way."""
        return self._pipeline.idle_since

    def propose(self, encoded: Sequence[bytes | Tensor | ImageError]) -> list[ProposalRecord]:
        """The RPN's proposals, where `settings.record` is `proposals`; arguments and order as `predict`."""
        steps = Steps(self._start_proposals, self._finish_proposals)
        records = self._pipeline.records(encoded, [None] * len(encoded), steps)
        return [_as_proposals(record) for record in records]

    @torch.inference_mode()
    def _start_label(self, batch: PreparedBatch) -> tuple[list[PreparedImage], Detections]:
        """The images and the detections in them, on the device."""
        views = self._preparation.views(batch)
        several = len(views) > 1 or self.settings.test_flip
        proposals = batch.proposals
        detections = self._merged(views, proposals) if several else self.detect_on_device(views[0], proposals)
        return batch.items, detections

    @torch.inference_mode()
    def _finish_label(self, started: tuple[list[PreparedImage], Detections]) -> list[ImageRecord]:
        items, detections = started
        sizes = [item.original_size for item in items]
        if detections.masks is not None and self._choices.device_masks:
            return records_with_device_masks(detections, sizes, self.config, self._mark)
        detections = detections.to("cpu")
        self._mark("results to the host", sum(tensor.nbytes for tensor in tensors_of(detections).values()))
        records = [image_record(detections, index, size, self.config) for index, size in enumerate(sizes)]
        self._mark("paste, run lengths", 0.0 if detections.masks is None else detections.masks.nbytes)
        return records

    @torch.inference_mode()
    def _start_proposals(self, batch: PreparedBatch) -> tuple[list[PreparedImage], Proposals]:
        """The images and the regions proposed in them, on the device."""
        images = self._on_device(self._preparation.views(batch)[0])
        with self.arithmetic():
            proposals = self.detector.propose(images)
        boxes = clipped_boxes_in_original(proposals.boxes, images)
        return batch.items, replace(proposals, boxes=boxes)

    @torch.inference_mode()
    def _finish_proposals(self, started: tuple[list[PreparedImage], Proposals]) -> list[ProposalRecord]:
        items, proposals = started
        proposals = proposals.to("cpu")
        least = self.settings.min_score or 0.0
        return [proposal_record(proposals, index, item.original_size, least) for index, item in enumerate(items)]

    @torch.inference_mode()
    def detect(self, images: ImageBatch, proposals: Proposals | None = None) -> Detections:
        """Detections on the host, boxes in the original frame, clipped to the image.

        Args:
            images: of `pad_batch`.
            proposals: in the original frame, instead of the RPN's.
        """
        return self.detect_on_device(images, proposals).to("cpu")

    @torch.inference_mode()
    def detect_in_views(self, sizes: Sequence[ImageBatch], proposals: Proposals | None = None) -> Detections:
        """As `detect`, merged over the images in several sizes and, with `test_flip`, mirrored in each."""
        return self._merged(sizes, proposals).to("cpu")

    @torch.inference_mode()
    def detect_on_device(self, images: ImageBatch, proposals: Proposals | None = None) -> Detections:
        """As `detect`, left on the device."""
        images = self._on_device(images)
        self._mark("to the device", 0.0)
        if proposals is None:
            return self._detect(images)
        proposals = proposals.to(self._choices.device)
        boxes = boxes_in_input(proposals.boxes, images)
        return self._detections_in(images, replace(proposals, boxes=boxes))

    def _detections_in(self, images: ImageBatch, proposals: Proposals | None = None) -> Detections:
        """Detections of a batch on the device, in the original frame; proposals in the input frame."""
        given = () if proposals is None else (proposals,)
        with self.arithmetic():
            detections = self.detector.detect(images, *given)
        self._mark("network", 0.0)
        boxes = clipped_boxes_in_original(detections.boxes, images)
        keypoints = detections.keypoints
        if keypoints is not None:
            keypoints = keypoints_in_original(keypoints, images)
        mask_boxes = detections.mask_boxes
        if mask_boxes is not None:
            mask_boxes = boxes_in_original(mask_boxes, images)
        self._mark("boxes to the image's frame", 0.0)
        return replace(detections, boxes=boxes, keypoints=keypoints, mask_boxes=mask_boxes)

    def _merged(self, sizes: Sequence[ImageBatch], proposals: Proposals | None) -> Detections:
        """`detect_in_views`, on the device."""
        proposals = None if proposals is None else proposals.to(self._choices.device)
        views = []
        for images in map(self._on_device, sizes):
            views.append(View(images))
            if self.settings.test_flip:
                views.append(View(mirrored(images), flipped=True))
        with self.arithmetic():
            detections = detect_in_views(self.detector, views, self._merge_rule, proposals)
        self._mark("network", 0.0)
        return detections

    def _on_device(self, images: ImageBatch) -> ImageBatch:
        images = images.to(self._choices.device)
        pixels = images.pixels.to(self._choices.pixel_type, memory_format=torch.channels_last)
        return replace(images, pixels=pixels)

    def arithmetic(self) -> torch.autocast:
        """The block in which `detector` computes as the settings say."""
        return torch.autocast(self._choices.device.type, torch.bfloat16, enabled=self._choices.half)


def _as_proposals(record: ProposalRecord | ImageRecord) -> ProposalRecord:
    if isinstance(record, ProposalRecord):
        return record
    return failed_proposals(record.status, record.error or "", record.width, record.height)


def load_predictor(checkpoint: str, settings: PredictorSettings | None = None) -> Predictor:
    """The predictor of a checkpoint folder.

    Raises:
        CheckpointError: the folder is missing, damaged, or its weights do not fit its configuration.
        ConfigError: the model cannot do what the settings ask for.
    """
    settings = settings or PredictorSettings()
    usable_device(settings.device)
    config, detector = load_trained(checkpoint)
    return Predictor(detector, config, settings, fingerprint(checkpoint))


def _merge_rule(config: ModelConfig) -> MergeRule:
    detection, keypoint_head = config.detection, config.keypoint_head
    return MergeRule(
        nms_overlap=detection.nms_overlap,
        max_detections=detection.max_detections,
        nms_per_class=detection.nms_per_class,
        mirrored_keypoints=mirror_keypoints(keypoint_head.names) if keypoint_head.enabled else (),
        averages=detection.nms == "average",
    )


def load_detector(
    path: str | os.PathLike[str], device: str | None = None, settings: PredictorSettings | None = None
) -> Predictor:
    """A checkpoint folder as something to call on images.

    Args:
        path: the folder.
        device: torch device; None = the GPU where there is one.
        settings: all the rest.

    Raises:
        CheckpointError: as `load_predictor`.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return load_predictor(os.fspath(path), replace(settings or PredictorSettings(), device=device))


def describe_checkpoint(checkpoint: str, settings: PredictorSettings | None = None) -> tuple[str, tuple[Category, ...]]:
    """The fingerprint and categories that `load_predictor` would have, without building the network.

    Raises:
        CheckpointError: as `load_predictor`, so that a job says so before it starts workers.
        ConfigError: the model cannot do what the settings ask for.
    """
    config = load_config(checkpoint)
    settings = settings or PredictorSettings()
    check_settings(config, settings)
    check_fits(checkpoint, config)
    load_checkpoint(checkpoint)
    return combined_fingerprint(fingerprint(checkpoint), settings), config.categories
