"""Encoded images -> batches of network input: decoded, resized, grouped by padded shape up to a budget of pixels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn_core.config import InputConfig
from maskrcnn_core.data.proposals import ImageProposals
from maskrcnn_core.data.transform import pad_batch, prepare_image, resized_size
from maskrcnn_core.errors import ImageError
from maskrcnn_core.inference.image_source import decoded
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.structures import ImageBatch

Failed = Callable[[int, ImageError], None]
"""What to do with an image (its place in the request) that cannot be prepared."""


@dataclass(frozen=True)
class PreparedImage:
    """An image ready for a batch.

    Attributes:
        place: in the request.
        views: [3, h, w] float32 for each size of the image pyramid; mostly one.
        original_size: (height, width).
        proposals: in the original frame; None = the detector's own.
    """

    place: int
    views: tuple[Tensor, ...]
    original_size: tuple[int, int]
    proposals: ImageProposals | None = None


@dataclass(frozen=True)
class PreparedBatch:
    """Images whose views have one padded shape each.

    Attributes:
        items: the images.
        views: all of them in each of their sizes.
    """

    items: list[PreparedImage]
    views: list[ImageBatch]


class Preparation:
    """Makes batches the way a model and the settings ask for.

    Args:
        rule: the model's input.
        settings: limits, views, and the device: for a GPU, batches lie in pinned memory, which it reads by itself while
            the host goes on.
    """

    def __init__(self, rule: InputConfig, settings: PredictorSettings) -> None:
        self._rule, self._settings = rule, settings
        self._pinned = torch.device(settings.device).type == "cuda"

    def batches(
        self,
        encoded: Sequence[bytes | Tensor | ImageError],
        proposals: Sequence[ImageProposals | ImageError | None],
        failed: Failed,
    ) -> Iterator[list[PreparedImage]]:
        """Images grouped by padded shape up to the pixel budget; what cannot be prepared goes to `failed`."""
        waiting: dict[tuple[tuple[int, int], ...], list[PreparedImage]] = {}
        for place, (content, given) in enumerate(zip(encoded, proposals, strict=True)):
            try:
                item = self.prepare(place, content, given)
            except ImageError as error:
                failed(place, error)
                continue
            except (RuntimeError, MemoryError, ValueError) as error:  # such as no memory for the resized pixels
                failed(place, ImageError("failed", reason_of(error)))
                continue
            shapes = tuple(self._padded_shape(view) for view in item.views)
            group = waiting.setdefault(shapes, [])
            group.append(item)
            pixels = sum(height * width for height, width in shapes) * (1 + self._settings.test_flip)
            if (len(group) + 1) * pixels > self._settings.batch_limit:
                yield waiting.pop(shapes)
        yield from waiting.values()

    def prepare(
        self, place: int, content: bytes | Tensor | ImageError, proposals: ImageProposals | ImageError | None = None
    ) -> PreparedImage:
        """One image, decoded and resized to each of its views.

        Raises:
            ImageError: it cannot be used, or is an error already.
        """
        for given in (content, proposals):
            if isinstance(given, ImageError):
                raise given
        assert not isinstance(content, ImageError)
        assert not isinstance(proposals, ImageError)
        image = decoded(content, max_pixels=self._settings.max_pixels, apply_exif=self._settings.apply_exif)
        sides = self._settings.test_short_sides or (self._rule.short_side,)
        views = tuple(self._resized(image, side) for side in sides)
        height, width = image.shape[-2:]
        if proposals is not None and proposals.size != (height, width):
            raise ImageError(
                "failed",
                f"the image has {width} x {height} pixels (width x height), its proposals were made at "
                f"{proposals.size[1]} x {proposals.size[0]}; make them with the same label.exif_orientation",
            )
        return PreparedImage(place, views, (height, width), proposals)

    def padded(self, items: list[PreparedImage]) -> PreparedBatch:
        """Images of one padded shape as a batch."""
        sizes = [item.original_size for item in items]
        views = [
            pad_batch(pixels, sizes, self._rule.divisor, pinned=self._pinned)
            for pixels in zip(*(item.views for item in items), strict=True)
        ]
        return PreparedBatch(items, views)

    def _resized(self, image: Tensor, short_side: int) -> Tensor:
        """[3, H, W] uint8 -> network input. The limit of the longer side grows in proportion to the shorter one."""
        rule = self._rule
        long_side = round(rule.long_side * short_side / rule.short_side)
        size = resized_size(image.shape[-2], image.shape[-1], short_side, long_side, rule.resize)
        return prepare_image(
            image,
            size=size,
            mean=rule.mean,
            std=rule.std,
            channels=rule.channels,
            scale=rule.scale,
            resize=rule.resize,
        )

    def _padded_shape(self, pixels: Tensor) -> tuple[int, int]:
        divisor = self._rule.divisor
        height, width = pixels.shape[-2:]
        return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def reason_of(error: Exception) -> str:
    """Kind and first line of an error."""
    first = str(error).splitlines()[0] if str(error) else "no message"
    return f"{type(error).__name__}: {first}"
