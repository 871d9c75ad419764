"""Training images on their way to the device: in one piece, without the padding that a batch has, and in 8 bits where
that is all there is to them.

The values of a batch are decided by the host's resizing, and are the same to the last bit however they travel:
    8 bits, final        whole numbers: the resize rule `antialias`, a crop of large-scale jitter, an image that keeps
                         its size
    8 bits, as decoded   for a GPU, which resizes as the host would (`transform.resize_on_device`)
    floating point       interpolated and normalised by the host, in the type that the network takes
Values of 8 bits are normalised where the network is: by the same product and the same sum, each rounded once. Padding
is added on arrival.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.data.packing import Size, pack
from maskrcnn_core.data.transform import normalisation, padded_size, resize_on_device, size_table
from maskrcnn_core.structures import ImageBatch


@dataclass(frozen=True)
class InputImage:
    """A training image before it is packed.

    Attributes:
        pixels: [3, H, W], best in memory [H, W, 3]: uint8 RGB, to be resized to `size` and normalised, or else float32,
            of that size and normalised.
        size: (height, width) of the network's input, pixels.
        original_size: the same of the image file.
    """

    pixels: Tensor
    size: Size
    original_size: Size


@dataclass(frozen=True)
class PackedInputs:
    """A batch of training images.

    Attributes:
        pixels: [B] uint8 RGB, [H, W, 3] of one image after the other, of those that travel in 8 bits.
        values: [V] float32 or bfloat16, [h, w, 3] of one after the other, of those that are normalised.
        factor, offset: [3] float32, by which 8 bits are normalised.
        input_sizes, original_sizes: [N, 2] int64, as in `ImageBatch`.
        sizes: the input sizes as numbers.
        stored: of each image the size in which it lies in `pixels`; None = it lies in `values`.
        channels: order that the network expects.
        divisor: sides of the padded batch are a multiple of it, pixels.
    """

    pixels: Tensor
    values: Tensor
    factor: Tensor
    offset: Tensor
    input_sizes: Tensor
    original_sizes: Tensor
    sizes: tuple[Size, ...]
    stored: tuple[Size | None, ...]
    channels: str
    divisor: int

    def __len__(self) -> int:
        return len(self.sizes)

    def to(self, device: torch.device | str) -> ImageBatch:
        """The batch on a device, resized, normalised and padded there; a GPU is not waited for."""
        pixels, values, factor, offset, input_sizes, original_sizes = (
            tensor.to(device, non_blocking=True)
            for tensor in (
                self.pixels,
                self.values,
                self.factor,
                self.offset,
                self.input_sizes,
                self.original_sizes,
            )
        )
        height, width = (max(sides) for sides in zip(*self.sizes, strict=True))
        # In memory channels last, as the convolutions are fastest.
        shape = (len(self), *padded_size((height, width), self.divisor), 3)
        batch = torch.zeros(shape, dtype=self.values.dtype, device=device)
        begin = {True: 0, False: 0}
        for slot, size, stored in zip(batch, self.sizes, self.stored, strict=True):
            height, width = stored or size
            first = begin[stored is None]
            last = begin[stored is None] = first + height * width * 3
            if stored is None:
                image = values[first:last].view(height, width, 3)
            else:
                image = self._normalised(pixels[first:last].view(height, width, 3), size, factor, offset)
            slot[: size[0], : size[1]] = image
        return ImageBatch(batch.permute(0, 3, 1, 2), input_sizes, original_sizes)

    def _normalised(self, pixels: Tensor, size: Size, factor: Tensor, offset: Tensor) -> Tensor:
        """[H, W, 3] uint8 -> [h, w, 3] float32."""
        values = pixels.to(torch.float32) if pixels.shape[:2] == size else resize_on_device(pixels, size)
        if self.channels == "bgr":
            values = values.flip(-1)
        # A product and then a sum, as `prepare_image` has it: one operation of both would round but once.
        return values.mul_(factor).add_(offset)


def pack_inputs(images: Sequence[InputImage], rule: InputConfig, dtype: torch.dtype = torch.float32) -> PackedInputs:
    """Training images as one batch.

    Args:
        images: at least one.
        rule: the network's input.
        dtype: what the network takes: float32, or what its first layer would round to.
    """
    in_bytes = [image.pixels for image in images if image.pixels.dtype == torch.uint8]
    normalised = [image.pixels for image in images if image.pixels.dtype != torch.uint8]
    factor, offset = normalisation(rule.mean, rule.std, rule.scale)
    sizes = tuple(image.size for image in images)
    return PackedInputs(
        pack([pixels.permute(1, 2, 0) for pixels in in_bytes], torch.uint8),
        pack([pixels.permute(1, 2, 0) for pixels in normalised], dtype),
        factor,
        offset,
        size_table(sizes),
        size_table([image.original_size for image in images]),
        sizes,
        tuple(_stored_size(image.pixels) for image in images),
        rule.channels,
        rule.divisor,
    )


def _stored_size(pixels: Tensor) -> Size | None:
    return (pixels.shape[1], pixels.shape[2]) if pixels.dtype == torch.uint8 else None
