"""A detector without weights, for tests of everything around one; it misbehaves as its checkpoint's name says."""

import functools
import hashlib
import io
import itertools
import os
import signal
import time
from collections.abc import Generator, Iterable
from pathlib import Path

import numpy as np
import pycocotools.mask
from PIL import Image
from torch import Tensor

from maskrcnn_core.config.model import Category
from maskrcnn_core.errors import CheckpointError, ImageError
from maskrcnn_core.inference.preparation import Request
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.records.detections import DetectionRecord
from maskrcnn_core.records.labels import ImageRecord
from maskrcnn_core.records.proposals import ProposalRecord, failed_proposals
from pipelines.labelling.detector import Detector
from pipelines.labelling.device_faults import this_device
from pipelines.storage import files

CATEGORIES = (Category(1, "dark"), Category(7, "light"))


class FakePredictor:
    """Finds one object per image, named by the image's brightness; can be told to misbehave by `checkpoint`.

    It looks for objects itself: it takes no proposals, and makes none.
    """

    max_proposals = 0
    idle_since = 0.0

    def __init__(self, checkpoint: str, max_pixels: int, min_score: float | None) -> None:
        self.fingerprint = _fingerprint(checkpoint, min_score)
        self.categories = CATEGORIES
        self._mode = checkpoint.split("/")[-1]
        self._max_pixels = max_pixels
        devices = Path(checkpoint).parent / "broken_devices"  # names, or beginnings of names of Ray's nodes
        broken = devices.read_text().split() if self._mode == "broken_device" else []
        self._is_on_broken_device = any(name in this_device() for name in broken)
        if self._mode == "dies_committing":
            _die_between_writing_and_committing(Path(checkpoint).parent / "deaths")

    def predict_each(self, requests: Iterable[Request | None]) -> Generator[list[tuple[int, ImageRecord]]]:
        for request in filter(None, requests):
            assert request.proposals is None
            yield [(request.key, self._one_or_why_not(request.content))]

    def propose_each(self, requests: Iterable[Request | None]) -> Generator[list[tuple[int, ProposalRecord]]]:
        for request in filter(None, requests):
            yield [(request.key, failed_proposals("failed", "RuntimeError: it makes no proposals"))]

    def _one_or_why_not(self, image: bytes | Tensor | ImageError) -> ImageRecord:
        try:
            return self._one(image)
        except (RuntimeError, ValueError) as error:
            return ImageRecord("failed", f"{type(error).__name__}: {' '.join(str(error).split())}", None, None)

    def _one(self, image: bytes | Tensor | ImageError) -> ImageRecord:
        if self._mode == "broken" or self._is_on_broken_device:
            raise RuntimeError("nothing works\nat all")
        try:
            if isinstance(image, ImageError):
                raise image
            assert isinstance(image, bytes)
            pixels = _decode(image, self._max_pixels)
        except ImageError as error:
            return ImageRecord(error.status, str(error), None, None)
        height, width = pixels.shape[:2]
        if self._mode == "poisoned" and width == 13:
            raise ValueError("cannot digest\n13")
        if self._mode == "deadly" and width == 13:
            os._exit(1)
        if self._mode == "slow":
            time.sleep(0.3)
        if self._mode == "hangs" and width == 13:
            time.sleep(60)
        category = CATEGORIES[int(pixels.mean() > 127)]
        found = DetectionRecord(
            category.id, category.name, 0.5, (0.0, 0.0, float(width), float(height)), _all(height, width)
        )
        return ImageRecord("ok", None, width, height, (found,))


@functools.cache
def _all(height: int, width: int) -> str:
    """Run lengths of a mask that covers the whole image."""
    counts: bytes = pycocotools.mask.encode(np.ones((height, width), np.uint8, order="F"))["counts"]
    return counts.decode()


def _die_between_writing_and_committing(deaths: Path) -> None:
    """In this process each third label file is written in full under its temporary name, and then comes SIGKILL,
    three times in all."""
    written = itertools.count(1)
    replace_file = files.replace_file

    def deadly(temporary: Path, path: Path) -> None:
        number = next(written) if path.name.startswith("labels-") else 0
        deaths.mkdir(exist_ok=True)
        if number == 3 and len(list(deaths.iterdir())) < 3:
            (deaths / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        replace_file(temporary, path)

    files.replace_file = deadly


def _decode(image: bytes, max_pixels: int) -> np.ndarray:
    try:
        opened = Image.open(io.BytesIO(image))
        if opened.width * opened.height > max_pixels:
            raise ImageError("too_large", f"{opened.width} x {opened.height}")
        return np.asarray(opened.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ImageError("unreadable", "no image") from error


def _fingerprint(checkpoint: str, min_score: float | None) -> str:
    return hashlib.sha256(f"{checkpoint} {min_score}".encode()).hexdigest()[:8]


def load_fake(checkpoint: str, settings: PredictorSettings) -> FakePredictor:
    describe_fake(checkpoint, settings)  # what it refuses
    return FakePredictor(checkpoint, settings.max_pixels, settings.min_score)


def describe_fake(checkpoint: str, settings: PredictorSettings) -> tuple[str, tuple[Category, ...]]:
    if "no_such" in checkpoint:
        raise CheckpointError(f"{checkpoint}: no such checkpoint")
    return _fingerprint(checkpoint, settings.min_score), CATEGORIES


FAKE = Detector(load_fake, describe_fake)


def write_images(folder: Path, count: int, *, side: int = 8) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        shade = (40 * index) % 256
        Image.new("RGB", (side, side + index % 3), (shade, shade, shade)).save(folder / f"{index:03d}.png")
