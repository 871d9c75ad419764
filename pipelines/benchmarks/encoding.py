"""From soft masks on their boxes to COCO run lengths: torchvision and pycocotools against ours.

The peer pastes each mask into an image of its own (`paste_masks_in_image`), thresholds, and run-length encodes the
pixels. Ours resamples only the pixels of the box and never makes an image. Both give the same bytes, or nothing is
measured.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pycocotools.mask
import torch
from numpy.typing import NDArray
from torchvision.models.detection.roi_heads import paste_masks_in_image

from maskrcnn_core.masks import encode_masks
from pipelines.benchmarks.config import EncodingRun
from pipelines.benchmarks.peer import machine, use_threads, write_figures

_SIDE = 28
_SMALLEST, _LARGEST = 16.0, 600.0  # sides of the boxes, pixels: about COCO's range at this image size


@dataclass(frozen=True)
class EncodingComparison:
    """Two ways from masks to run lengths.

    Attributes:
        names: the peer's and ours.
        seconds: medians for all masks of an image.
        ratio: how many times as fast ours is: median of the rounds' ratios.
        masks: of the image; characters: of their run lengths together.
        machine: what it ran on.
    """

    names: tuple[str, str]
    seconds: tuple[float, float]
    ratio: float
    masks: int
    characters: int
    machine: str


def benchmark_encode(run: EncodingRun) -> EncodingComparison:
    """Measure it on blobs of all sizes.

    Raises:
        RuntimeError: the run lengths differ, so that the times would compare different things.
    """
    use_threads(run.threads)
    masks, boxes = blobs(run.masks, run.height, run.width)
    tensors = torch.from_numpy(masks)[:, None], torch.from_numpy(boxes)

    def theirs() -> list[str]:
        pasted = (paste_masks_in_image(*tensors, (run.height, run.width))[:, 0] > 0.5).numpy().astype(np.uint8)
        return [pycocotools.mask.encode(np.asfortranarray(mask))["counts"].decode() for mask in pasted]

    def ours() -> list[str]:
        return encode_masks(masks, boxes, run.height, run.width, rule="torchvision")

    expected, encoded = theirs(), ours()
    if encoded != expected:
        differing = sum(one != other for one, other in zip(encoded, expected, strict=True))
        raise RuntimeError(f"{differing} of {len(expected)} run lengths differ from torchvision's and pycocotools'")
    rounds = [(_seconds(theirs), _seconds(ours)) for _ in range(run.rounds)]
    result = EncodingComparison(
        names=("torchvision's pasting, pycocotools' encoding", "ours"),
        seconds=(statistics.median(pair[0] for pair in rounds), statistics.median(pair[1] for pair in rounds)),
        ratio=statistics.median(one / other for one, other in rounds),
        masks=len(masks),
        characters=sum(map(len, encoded)),
        machine=machine(),
    )
    write_figures(result, run.output)
    return result


def blobs(number: int, height: int, width: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Soft masks [number, 28, 28] of lobed discs, and their boxes [number, 4] of all sizes, some over the border."""
    dice = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(-1, 1, _SIDE), np.linspace(-1, 1, _SIDE))
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    lobes, phase = dice.integers(2, 7, (number, 1, 1)), dice.uniform(0, 2 * np.pi, (number, 1, 1))
    edge = 0.75 + 0.2 * np.sin(lobes * angle + phase)
    masks = 1.0 / (1.0 + np.exp(12.0 * (radius - edge)))
    sides = np.exp(dice.uniform(np.log(_SMALLEST), np.log(_LARGEST), (number, 2)))
    corner = dice.uniform(0, 1, (number, 2)) * (width, height) - sides / 2
    boxes = np.concatenate((corner, corner + sides), axis=1).clip(0, (width, height, width, height))
    return masks.astype(np.float32), boxes.astype(np.float32)


def _seconds(way: Callable[[], object]) -> float:
    started = time.perf_counter()
    way()
    return time.perf_counter() - started
