"""The conventions, written once, and the four structures that cross module boundaries.

Conventions
    Boxes       float32 x1, y1, x2, y2 in absolute pixels, continuous coordinates: pixel (row i, column j) covers
                [j, j + 1] x [i, i + 1]. Width is x2 - x1.
    Sizes       (height, width).
    Labels      0 .. K-1 inside the core; K is background. COCO category ids only at the edges (data, records).
    Frames      *input*: the resized image that the network sees; *original*: the image file; *roi*: a region's grid.
    Shapes      N images, L levels, A anchors, R regions, D detections, G ground truth, K classes, P keypoints.
    Padding     every per-image list is padded to the batch's longest; a count or a boolean tells what is real.
    Fixed sizes A GPU must not wait for a number before it knows the next shape, and records a computation only where no
                shape depends on data. Functions with an argument `fixed_size` then fill all slots; on a CPU they
                compute what is real. `Detector.features` decides by the device, once, and hands it down.
    Fillers     A slot that is not real is computed like any other on a GPU, so what it holds must be harmless: finite,
                and of little work. A box in it is the unit box (0, 0, 1, 1), never a zero one, that something may be
                divided by; a change of frame scales and mirrors it like any box. Everything else in it is zero: label,
                score, mask, keypoints. A real region that only fills a batch up (a negative among the positives)
                belongs to no object: whoever relates it to one gets the unit box in place of both (`real_or_unit`).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

_Structure = TypeVar("_Structure", bound=Any)


def tensors_of(structure: Any) -> dict[str, Tensor]:
    """The tensors of a structure, by field, in the fields' order; fields that are None are left out."""
    values = {field.name: getattr(structure, field.name) for field in fields(structure)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def map_tensors(structure: _Structure, change: Callable[[Tensor], Tensor]) -> _Structure:
    """The same structure with each of its tensors changed; fields that are None stay."""
    return replace(structure, **{name: change(tensor) for name, tensor in tensors_of(structure).items()})


def _move(structure: _Structure, device: torch.device | str) -> _Structure:
    moved = map_tensors(structure, lambda tensor: tensor.to(device, non_blocking=True))
    if torch.device(device).type == "cpu":
        # A copy from a GPU goes on in the background, into page-locked memory: all of them are waited for at once.
        for gpu in {tensor.device for tensor in tensors_of(structure).values() if tensor.is_cuda}:
            torch.cuda.current_stream(gpu).synchronize()
    return moved


def valid_slots(count: Tensor, slots: int) -> Tensor:
    """[N, slots] bool: which of the padded slots are real, from `count` [N]."""
    return torch.arange(slots, device=count.device) < count[:, None]


def real_or_unit(boxes: Tensor, real: Tensor) -> Tensor:
    """The boxes [..., 4] where `real` [...], the unit box elsewhere (see the conventions, "Fillers")."""
    unit = boxes.new_zeros(4)
    unit[2:] = 1.0  # made there: a copy from the host would be waited for
    return torch.where(real[..., None], boxes, unit)


@dataclass(frozen=True)
class ImageBatch:
    """Images as the network sees them.

    Attributes:
        pixels: [N, 3, H, W] float32, or bfloat16 where the network rounds them to it; normalised; zero right of and
            below each image. H, W fit the size divisor.
        input_sizes: [N, 2] int64, (height, width) of each resized image within `pixels`.
        original_sizes: [N, 2] int64, (height, width) of each image file.
        letterboxed: each image lies in the middle of its size, with grey around it (`data.letterbox`).
    """

    pixels: Tensor
    input_sizes: Tensor
    original_sizes: Tensor
    letterboxed: bool = False

    def __len__(self) -> int:
        return self.pixels.shape[0]

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return _move(self, device)


@dataclass(frozen=True)
class ImageFeatures:
    """Per-image computation of a batch, that everything per position and per region starts from.

    Attributes:
        maps: pyramid levels, each [N, C, H_l, W_l], finest first.
        strides: input pixels a cell of each level.
        input_sizes: [N, 2] (height, width) of the images in the padded batch.
        pixels: [N, 3, H, W] the padded batch itself.
        fixed_size: no shape that is computed from here on may depend on data (see the conventions, "Fixed sizes").
    """

    maps: list[Tensor]
    strides: tuple[int, ...]
    input_sizes: Tensor
    pixels: Tensor
    fixed_size: bool = False

    @property
    def input_shape(self) -> tuple[int, int]:
        """(height, width) of the padded batch."""
        return self.pixels.shape[-2], self.pixels.shape[-1]


@dataclass(frozen=True)
class DenseOutputs:
    """What a dense head says of every anchor, level by level; A_l anchors, position-major.

    Attributes:
        logits: [N, A_l, K] of each level; K = 1: an object or none.
        deltas: [N, A_l, 4] of each level, in the code of a `BoxCoding`.
        objectness: [N, A_l] of each level, where the head tells "an object" apart from "which"; else None.
        masks: [N, K, 5, S, S] of each class over the whole input, where the head draws boxes (DetectorNet); else None.
    """

    logits: list[Tensor]
    deltas: list[Tensor]
    objectness: list[Tensor] | None = None
    masks: Tensor | None = None


@dataclass(frozen=True)
class Targets:
    """Ground truth of a batch, in the input frame.

    Attributes:
        boxes: [N, G, 4] float32.
        labels: [N, G] int64 in 0 .. K-1.
        valid: [N, G] bool, true for an object to learn.
        crowd: [N, G] bool, true for a region to ignore: never positive, and what lies in it is no negative.
            A slot is valid, crowd or padding.
        masks: [N, G, Sh, Sw] uint8 or None: coverage 0..255 of the object on a grid over `mask_boxes`.
        mask_boxes: [N, G, 4] float32 or None: the input-frame rectangle that each mask's grid covers; of a crowd, that
            has no mask, the unit box.
        keypoints: [N, G, P, 3] float32 or None: x, y in the input frame, visibility 0, 1 or 2.
        seeds: [N] int64 or None: what the random draws of each image's anchors and regions depend on; None = torch's
            default generator.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    crowd: Tensor
    masks: Tensor | None = None
    mask_boxes: Tensor | None = None
    keypoints: Tensor | None = None
    seeds: Tensor | None = None

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return _move(self, device)


def with_a_slot(targets: Targets) -> Targets:
    """The same targets with G >= 1, so that reductions over objects have something to reduce."""
    if targets.boxes.shape[1] > 0:
        return targets
    padded = map_tensors(
        replace(targets, seeds=None), lambda tensor: tensor.new_zeros(tensor.shape[0], 1, *tensor.shape[2:])
    )
    mask_boxes = None if padded.mask_boxes is None else real_or_unit(padded.mask_boxes, padded.valid)
    return replace(padded, boxes=real_or_unit(padded.boxes, padded.valid), mask_boxes=mask_boxes, seeds=targets.seeds)


@dataclass(frozen=True)
class Proposals:
    """Regions that the heads look at, in the input frame, best first.

    Attributes:
        boxes: [N, R, 4] float32.
        scores: [N, R] float32, objectness in [0, 1].
        count: [N] int64, how many of the R slots are real.
    """

    boxes: Tensor
    scores: Tensor
    count: Tensor

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return _move(self, device)

    @property
    def valid(self) -> Tensor:
        """[N, R] bool."""
        return valid_slots(self.count, self.boxes.shape[1])


@dataclass(frozen=True)
class Detections:
    """What was found, best first.

    Attributes:
        boxes: [N, D, 4] float32, in the frame that the producing function names.
        scores: [N, D] float32 in [0, 1].
        labels: [N, D] int64 in 0 .. K-1.
        count: [N] int64, how many of the D slots are real.
        masks: [N, D, S, S] float32 or None: probability of the object on an S x S grid over its box (roi frame).
        keypoints: [N, D, P, 3] float32 or None: x, y in the frame of `boxes`, score; zeros where the label has none.
        mask_boxes: [N, D, 4] float32 or None: what the masks cover where that is not `boxes`.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    count: Tensor
    masks: Tensor | None = None
    keypoints: Tensor | None = None
    mask_boxes: Tensor | None = None

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return _move(self, device)

    @property
    def valid(self) -> Tensor:
        """[N, D] bool."""
        return valid_slots(self.count, self.boxes.shape[1])
