"""Resized training images on their way to the device: in one piece, without the padding that a batch has, and in 8 bits
where their values have no more.

A training image is resized on the host, whose arithmetic decides its values. Where these are whole numbers again (the
resize rule `antialias`, a crop of large-scale jitter, an image that keeps its size), they travel as they are and are
normalised where the network is: the same product and the same sum, each rounded once, on every device. Interpolated
values travel normalised, in the type that the network takes. Padding is added on arrival.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.data.packing import Size, pack
from maskrcnn_core.data.transform import normalisation, padded_size, prepare_image, size_table
from maskrcnn_core.structures import ImageBatch


@dataclass(frozen=True)
class PackedInputs:
    """A batch of training images, resized, on the host.

    Attributes:
        values: [B], [h, w, 3] of one image after the other. uint8: 0..255, RGB, not normalised; floating point: as the
            network takes them.
        factor, offset: [3] float32, by which uint8 values are normalised.
        input_sizes, original_sizes: [N, 2] int64, as in `ImageBatch`.
        sizes: the input sizes as numbers.
        channels: order that the network expects.
        divisor: sides of the padded batch are a multiple of it, pixels.
        dtype: of the padded batch.
    """

    values: Tensor
    factor: Tensor
    offset: Tensor
    input_sizes: Tensor
    original_sizes: Tensor
    sizes: tuple[Size, ...]
    channels: str
    divisor: int
    dtype: torch.dtype

    def __len__(self) -> int:
        return len(self.sizes)

    def to(self, device: torch.device | str) -> ImageBatch:
        """The batch on a device, normalised and padded there; a GPU is not waited for."""
        values = self._normalised(device)
        height, width = padded_size(
            (max(height for height, _ in self.sizes), max(width for _, width in self.sizes)), self.divisor
        )
        # In memory channels last, as the convolutions are fastest.
        pixels = torch.zeros(len(self), height, width, 3, dtype=self.dtype, device=device)
        start = 0
        for slot, (height, width) in zip(pixels, self.sizes, strict=True):
            stop = start + height * width * 3
            slot[:height, :width] = values[start:stop].view(height, width, 3)
            start = stop
        tables = (table.to(device, non_blocking=True) for table in (self.input_sizes, self.original_sizes))
        return ImageBatch(pixels.permute(0, 3, 1, 2), *tables)

    def _normalised(self, device: torch.device | str) -> Tensor:
        values = self.values.to(device, non_blocking=True)
        if values.dtype != torch.uint8:
            return values
        factor, offset = (part.to(device, non_blocking=True) for part in (self.factor, self.offset))
        rows = values.view(-1, 3)
        rows = (rows.flip(1) if self.channels == "bgr" else rows).to(torch.float32)
        # A product and then a sum, as `prepare_image` has it: one operation of both would round but once.
        return rows.mul_(factor).add_(offset).view(-1)


def pack_inputs(
    images: Sequence[Tensor], original_sizes: Sequence[Size], rule: InputConfig, dtype: torch.dtype = torch.float32
) -> PackedInputs:
    """Resized training images as one batch.

    Args:
        images: at least one, [3, h, w], in memory [h, w, 3]: uint8 RGB, or float32 normalised.
        original_sizes: (height, width) of each image file, pixels.
        rule: the network's input.
        dtype: what the network takes: float32, or what its first layer would round to.
    """
    sizes = tuple((image.shape[1], image.shape[2]) for image in images)
    if any(image.dtype != torch.uint8 for image in images):
        images = [_normalised(image, rule) if image.dtype == torch.uint8 else image for image in images]
    by_pixel = [image.permute(1, 2, 0) for image in images]
    values = pack(by_pixel, torch.uint8 if images[0].dtype == torch.uint8 else dtype)
    factor, offset = normalisation(rule.mean, rule.std, rule.scale)
    tables = size_table(sizes), size_table(original_sizes)
    return PackedInputs(values, factor, offset, *tables, sizes, rule.channels, rule.divisor, dtype)


def _normalised(image: Tensor, rule: InputConfig) -> Tensor:
    size = (image.shape[1], image.shape[2])
    return prepare_image(
        image, size=size, mean=rule.mean, std=rule.std, channels=rule.channels, scale=rule.scale, resize=rule.resize
    )
