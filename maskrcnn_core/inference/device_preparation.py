"""Decoded images -> batches of network input, resized, normalised and padded on the device.

The numbers of `prepare_image` and `pad_batch` up to rounding, for the resize rules `float` and `float_nearest`:
Pillow's values (`antialias`) exist only on a host. What crosses the bus is a quarter of the bytes or less: 8-bit values
in the size of the file instead of 32-bit ones in that of the network's input. Nothing here waits for the device.

Letters: N images, V views (sizes of the image pyramid).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.data.letterbox import GREY, letterbox
from maskrcnn_core.data.packing import Size, pack
from maskrcnn_core.data.transform import normalisation, padded_size, size_table
from maskrcnn_core.inference.settings import Mark, no_mark
from maskrcnn_core.structures import ImageBatch

# Decoded pixels that become floating point together, 200 MB of them. Photographs have up to some 16 million; what is
# larger is left to the host, which resizes a few rows at a time.
PIXELS_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class PackedImages:
    """Decoded images in one piece of the host's memory, so that one copy brings all of them to a device.

    Attributes:
        pixels: [B] uint8, [3, H, W] RGB of one image after the other.
        sizes: [V + 1, N, 2] int64, (height, width) of each image in each view and, last, as decoded.
        input_sizes: the same of the views as numbers, for each image one of each view.
        original_sizes: and as decoded.
    """

    pixels: Tensor
    sizes: Tensor
    input_sizes: list[tuple[Size, ...]]
    original_sizes: list[Size]


def pack_images(images: Sequence[Tensor], input_sizes: Sequence[tuple[Size, ...]], *, pinned: bool) -> PackedImages:
    """Images [3, H, W] uint8 on the host, and the size of each in each view, for `DevicePreparation.batches`.

    Args:
        images: at least one. Those of one size are resized together where they follow each other.
        input_sizes: for each image one of each view, pixels.
        pinned: in page-locked memory, from which a GPU copies while the host goes on.
    """
    original_sizes: list[Size] = [(image.shape[1], image.shape[2]) for image in images]
    columns = [*zip(*input_sizes, strict=True), original_sizes]
    sizes = size_table([size for column in columns for size in column], pinned=pinned)
    return PackedImages(
        pack(images, torch.uint8, pinned=pinned),
        sizes.view(len(columns), len(images), 2),
        list(input_sizes),
        original_sizes,
    )


class DevicePreparation:
    """Resizes, normalises and pads on a device.

    Args:
        rule: the model's input, of a resize rule other than `antialias`.
        device: where.
        dtype: of the batches: float32, or what the first layer would round them to.
        pixels_at_once: how many decoded pixels become floating point together; one image is always taken.
        mark: told of each stage.
    """

    def __init__(
        self,
        rule: InputConfig,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        pixels_at_once: int = PIXELS_AT_ONCE,
        mark: Mark = no_mark,
    ) -> None:
        assert rule.resize != "antialias"
        self._rule, self._device, self._dtype, self._pixels_at_once = rule, device, dtype, pixels_at_once
        self._mark = mark
        factor, offset = normalisation(rule.mean, rule.std, rule.scale)
        self._factor, self._offset = (values.to(device)[:, None, None] for values in (factor, offset))
        # On a CPU twice as fast and the same values; torch's CUDA kernel would turn three channels back again.
        self._layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format

    def batches(self, packed: PackedImages) -> list[ImageBatch]:
        """The images in each view, on the device.

        Args:
            packed: images that have one padded size in each view.
        """
        pixels = packed.pixels.to(self._device, non_blocking=True)
        sizes = packed.sizes.to(self._device, non_blocking=True)
        self._mark("copy to the device", 2 * pixels.nbytes)
        views = [self._zeros(size, len(packed.original_sizes)) for size in packed.input_sizes[0]]
        start, image = 0, 0
        for (height, width), count in self._runs(packed):
            stop = start + count * 3 * height * width
            values = self._values(pixels[start:stop].view(count, 3, height, width))
            for view, size in zip(views, packed.input_sizes[image], strict=True):
                self._write(values, size, view[image : image + count])
            start, image = stop, image + count
        self._mark("resize, normalise, pad", pixels.nbytes + sum(view.nbytes for view in views))
        letterboxed = self._rule.fit == "letterbox"
        return [ImageBatch(view, sizes[index], sizes[-1], letterboxed) for index, view in enumerate(views)]

    def _runs(self, packed: PackedImages) -> list[tuple[Size, int]]:
        """Decoded sizes, and how many images of each follow each other; no more than are resized at once."""
        runs = []
        for size, members in groupby(packed.original_sizes):
            most = max(self._pixels_at_once // (size[0] * size[1]), 1)
            left = len(list(members))
            runs += [(size, min(most, left - done)) for done in range(0, left, most)]
        return runs

    def _zeros(self, size: Size, count: int) -> Tensor:
        """[N, 3, H, W] of the padded size, channels_last."""
        shape = (count, *padded_size(size, self._rule.divisor), 3)
        return torch.zeros(shape, dtype=self._dtype, device=self._device).permute(0, 3, 1, 2)

    def _values(self, pixels: Tensor) -> Tensor:
        """[n, 3, H, W] uint8 RGB -> float32, channels as the network expects."""
        ordered = pixels.flip(1) if self._rule.channels == "bgr" else pixels
        return ordered.to(torch.float32, memory_format=self._layout)

    def _write(self, values: Tensor, size: Size, slots: Tensor) -> None:
        """[n, 3, H, W] in another size and normalised into the upper left of [n, 3, Hpad, Wpad]."""
        slots = slots[..., : size[0], : size[1]]
        if self._rule.fit == "letterbox":
            size, (top, left) = letterbox((values.shape[2], values.shape[3]), size)
            slots.copy_(GREY * self._factor + self._offset)
            slots = slots[..., top : top + size[0], left : left + size[1]]
        if tuple(values.shape[-2:]) != size:
            values = F.interpolate(values, size=size, mode="bilinear", align_corners=False)
        torch.addcmul(self._offset, values, self._factor, out=slots)
