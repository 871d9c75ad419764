"""A detector that answers: encoded images in, records out, new weights in place, health. What a replica runs.

    decoders   threads    bytes to pixels, as many at once as there is room for
    feed       a thread   pixels to records (`detector_feed`)

New weights are loaded and tried beside the old ones, which answer until then: each answer is of one or the other.
"""

import asyncio
import io
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskrcnn_core.data.decode import decode_image, image_size
from maskrcnn_core.errors import CheckpointError, ImageError
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.records.labels import ImageRecord
from pipelines.serving.detector_feed import Detected, DetectorFeed, DetectorLost, Predicting
from pipelines.serving.room import Room

Update = Literal["none", "loading", "refused"]
LoadPredictor = Callable[[str, PredictorSettings], Predicting]

logger = logging.getLogger("maskrcnn.serving")

# Decoded images under way in a replica, pixels: 400 MB. One image is always taken.
_MOST_PIXELS = 128_000_000

_MOST_DECODERS = 8

# An image that has been in the detector for so long hangs; the first one may have kernels compiled for it.
_PATIENCE_SECONDS = 300.0

# What a new detector has to answer before it is given requests: landscape, portrait, square.
_WARM_UP_SIZES = ((96, 128), (128, 96), (128, 128))


@dataclass(frozen=True)
class ServedModel:
    """What clients are told of a model.

    Attributes:
        preset: its parts in words.
        fingerprint: of weights and settings.
        categories: (id, name) in label order.
        keypoints: their names; None without a keypoint head.
        has_masks: whether detections have masks.
        update: what became of the newest weights: they answer (`none` is under way), are being loaded, or were refused.
    """

    preset: str
    fingerprint: str
    categories: tuple[tuple[int, str], ...]
    keypoints: tuple[str, ...] | None
    has_masks: bool
    update: Update = "none"


class DetectorService:
    """Answers with the detector of one checkpoint at a time.

    Args:
        load: makes a detector of a checkpoint.
        settings: of the detector.
        threads: CPU threads of the detector; 0 = torch's own number.
        wait: as of `DetectorFeed`.
    """

    def __init__(self, load: LoadPredictor, settings: PredictorSettings, *, threads: int, wait: float) -> None:
        self._load, self._settings, self._threads, self._wait = load, settings, threads, wait
        self._decoders = ThreadPoolExecutor(min(_MOST_DECODERS, max(2, threads)), "decode")
        self._room = Room(_MOST_PIXELS)
        self._feed: DetectorFeed | None = None
        self._changing = asyncio.Lock()
        self._update: Update = "none"
        self._updates: set[asyncio.Task[None]] = set()

    @property
    def answers(self) -> bool:
        """Whether it has a detector."""
        return self._feed is not None

    async def use(self, checkpoint: str) -> None:
        """Answer with this checkpoint from now on, once it has been loaded and has answered; until then with the one
        before.

        Raises:
            CheckpointError: it cannot be used, or fails on a test image.
        """
        async with self._changing:
            feed = await asyncio.to_thread(self._opened, checkpoint)
            before, self._feed = self._feed, feed
            if before is not None:
                await asyncio.to_thread(before.close)

    def use_soon(self, checkpoint: str) -> None:
        """The same without waiting for it, where a detector answers already: that one goes on where the new one is no
        good, and `describe` says so."""
        self._update = "loading"
        update = asyncio.create_task(self._updated(checkpoint))
        self._updates.add(update)
        update.add_done_callback(self._updates.discard)

    async def _updated(self, checkpoint: str) -> None:
        try:
            await self.use(checkpoint)
        except Exception:
            logger.exception("new weights are refused; those from before go on")
            self._update = "refused"
        else:
            self._update = "none"

    async def detect(self, content: bytes) -> Detected:
        """What the detector finds in an image file; its record says so where it is none.

        Raises:
            DetectorLost: the detector breaks, or there is none yet.
        """
        arrived = time.monotonic()
        async with AsyncExitStack() as stack:
            pixels: Tensor | ImageError
            decode_seconds = 0.0
            try:
                height, width = image_size(content, apply_exif=self._settings.apply_exif)
                await stack.enter_async_context(self._room.of(min(height * width, self._settings.max_pixels)))
                begun = time.monotonic()
                pixels = await asyncio.get_running_loop().run_in_executor(
                    self._decoders,
                    partial(
                        decode_image,
                        content,
                        max_pixels=self._settings.max_pixels,
                        apply_exif=self._settings.apply_exif,
                    ),
                )
                decode_seconds = time.monotonic() - begun
            except ImageError as error:
                pixels = ImageError(error.status, str(error))
            return await self._asked(pixels, arrived, decode_seconds)

    async def _asked(self, pixels: Tensor | ImageError, arrived: float, decode_seconds: float) -> Detected:
        # A feed that is closed meanwhile has a successor.
        for _ in range(2):
            feed = self._feed
            if feed is None:
                break
            try:
                answer = feed.ask(pixels, arrived=arrived, decode_seconds=decode_seconds)
            except DetectorLost:
                continue
            return await asyncio.wrap_future(answer)
        raise DetectorLost("no detector is there")

    def describe(self) -> ServedModel:
        """The model that answers now.

        Raises:
            DetectorLost: none yet.
        """
        if self._feed is None:
            raise DetectorLost("no detector is there yet")
        predictor = self._feed.predictor
        config = predictor.config
        heads = [head for head in ("mask", "keypoint") if getattr(config, f"{head}_head").enabled]
        return ServedModel(
            preset=" ".join([*(heads or ["box"]), "R-CNN,", f"{config.backbone.name},", config.pyramid.kind]),
            fingerprint=predictor.fingerprint,
            categories=tuple((category.id, category.name) for category in predictor.categories),
            keypoints=tuple(config.keypoint_head.names) if config.keypoint_head.enabled else None,
            has_masks=config.mask_head.enabled,
            update=self._update,
        )

    def check_health(self) -> None:
        """Raises where the detector hangs, fails on everything or has ended: the replica is to be replaced."""
        if self._feed is not None and not self._feed.is_well(_PATIENCE_SECONDS):
            raise DetectorLost("the detector hangs, or fails on everything")

    def close(self) -> None:
        """Answers what has been asked, and ends."""
        if self._feed is not None:
            self._feed.close()
        self._decoders.shutdown()

    def _opened(self, checkpoint: str) -> DetectorFeed:
        """A detector that has answered."""
        feed = DetectorFeed(partial(self._loaded, checkpoint), self._wait)
        try:
            for size in _WARM_UP_SIZES:
                pixels = decode_image(_test_image(*size), max_pixels=self._settings.max_pixels, apply_exif=True)
                detected = feed.ask(pixels, arrived=time.monotonic(), decode_seconds=0.0).result()
                _require_ok(checkpoint, detected.record)
        except BaseException:
            feed.close()
            raise
        return feed

    def _loaded(self, checkpoint: str) -> Any:
        if self._threads:  # Ray starts its workers with OMP_NUM_THREADS=1
            torch.set_num_threads(self._threads)
        return self._load(checkpoint, self._settings)


def _require_ok(checkpoint: str, record: ImageRecord) -> None:
    if record.status != "ok":
        raise CheckpointError(f"{checkpoint}: its detector fails on a test image: {record.error}")


def _test_image(height: int, width: int) -> bytes:
    """A picture on which every detector that works does."""
    shades = (np.arange(height * width) % 251).astype(np.uint8).reshape(height, width)
    content = io.BytesIO()
    Image.fromarray(shades).convert("RGB").save(content, "PNG")
    return content.getvalue()
