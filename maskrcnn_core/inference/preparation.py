"""Encoded images -> batches of network input: decoded, grouped by padded shape up to a budget of pixels, resized.

Images are resized on the host as they are decoded or, where a batch is asked for on a device (`device_preparation`),
all of its images there; their shapes are known from the sizes alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.data.packing import Size
from maskrcnn_core.data.prefetch import MapAhead
from maskrcnn_core.data.proposals import ImageProposals, pad_proposals
from maskrcnn_core.data.transform import pad_batch, padded_size, prepare_input, resized_size
from maskrcnn_core.errors import ImageError
from maskrcnn_core.inference.device_preparation import PIXELS_AT_ONCE, DevicePreparation, PackedImages, pack_images
from maskrcnn_core.inference.image_source import decoded
from maskrcnn_core.inference.settings import Mark, PredictorSettings, no_mark
from maskrcnn_core.structures import ImageBatch, Proposals

Failed = Callable[[int, ImageError], None]
"""What to do with an image (its index in the request) that cannot be prepared."""

# More decoders than this get ahead of any network, and each holds decoded images.
_MOST_DECODERS = 8


@dataclass(frozen=True)
class PreparedImage:
    """An image ready for a batch.

    Attributes:
        index: in the request.
        input_sizes: (height, width) in each size of the image pyramid; mostly one.
        views: [3, h, w] float32 for each of them; empty where the device makes them, of `pixels`.
        original_size: (height, width).
        proposals: in the original frame; None = the detector's own.
        pixels: [3, H, W] uint8 RGB, for the device to resize; None where there are views.
    """

    index: int
    input_sizes: tuple[Size, ...]
    views: tuple[Tensor, ...]
    original_size: Size
    proposals: ImageProposals | None = None
    pixels: Tensor | None = None


@dataclass(frozen=True)
class PreparedBatch:
    """Images whose views have one padded shape each, on the host.

    Attributes:
        items: the images.
        views: all of them in each of their sizes, or what the device makes these of (`Preparation.views`).
        proposals: of the images, in the original frame; None = the detector's own.
    """

    items: list[PreparedImage]
    views: list[ImageBatch] | PackedImages
    proposals: Proposals | None = None


class Preparation:
    """Makes batches the way a model and the settings ask for.

    Args:
        rule: the model's input.
        settings: limits, views, and the device: for a GPU, batches lie in pinned memory, which it reads by itself while
            the host goes on.
        on_device: resizes on the device; None = the host does.
        mark: told of each stage.
    """

    def __init__(
        self,
        rule: InputConfig,
        settings: PredictorSettings,
        on_device: DevicePreparation | None = None,
        mark: Mark = no_mark,
    ) -> None:
        self._rule, self._settings, self._on_device, self._mark = rule, settings, on_device, mark
        on_gpu = torch.device(settings.device).type == "cuda"
        self._pinned = on_gpu
        most = min(_MOST_DECODERS, torch.get_num_threads()) if on_gpu else 1
        self._decoders = MapAhead(settings.decode_threads or most, "decode")

    def batches(
        self,
        encoded: Sequence[bytes | Tensor | ImageError],
        proposals: Sequence[ImageProposals | ImageError | None],
        failed: Failed,
    ) -> Iterator[list[PreparedImage]]:
        """Images grouped by padded shape up to the pixel budget; what cannot be prepared goes to `failed`.

        Args:
            encoded, proposals: one of each for an image.
            failed: called in the thread that iterates.
        """
        waiting: dict[tuple[object, ...], list[PreparedImage]] = {}
        requests = zip(range(len(encoded)), encoded, proposals, strict=True)
        for index, prepared in enumerate(self._decoders(lambda request: self.prepare(*request), requests)):
            try:
                item = prepared()
            except ImageError as error:
                failed(index, error)
                continue
            except Exception as error:  # such as no memory for the resized pixels
                failed(index, ImageError("failed", reason_of(error)))
                continue
            shapes = [padded_size(size, self._rule.divisor) for size in item.input_sizes]
            key = (item.pixels is None, *shapes)
            group = waiting.setdefault(key, [])
            group.append(item)
            pixels = sum(height * width for height, width in shapes) * (1 + self._settings.test_flip)
            if (len(group) + 1) * pixels > self._settings.batch_limit:
                yield _by_size(waiting.pop(key))
        for group in waiting.values():
            yield from map(_by_size, self._in_common_sizes(group))

    def _in_common_sizes(self, group: list[PreparedImage]) -> Iterator[list[PreparedImage]]:
        """A batch that is not full, on a GPU cut to powers of two: for every shape that cuDNN has not seen it spends a
        tenth of a second on plans."""
        while group:
            count = 1 << (len(group).bit_length() - 1) if self._pinned else len(group)
            yield group[:count]
            group = group[count:]

    def prepare(
        self, index: int, content: bytes | Tensor | ImageError, proposals: ImageProposals | ImageError | None = None
    ) -> PreparedImage:
        """One image, decoded and, unless the device does it, resized to each of its views.

        Raises:
            ImageError: it cannot be used, or is an error already.
        """
        for given in (content, proposals):
            if isinstance(given, ImageError):
                # Not itself: the traceback would keep all that is here alive for as long as the caller keeps it.
                raise ImageError(given.status, str(given))
        assert not isinstance(content, ImageError)
        assert not isinstance(proposals, ImageError)
        image = decoded(content, max_pixels=self._settings.max_pixels, apply_exif=self._settings.apply_exif)
        self._mark("decode", image.nbytes + (content.nbytes if isinstance(content, Tensor) else len(content)))
        height, width = image.shape[-2:]
        if proposals is not None and proposals.size != (height, width):
            raise ImageError(
                "failed",
                f"the image has {width} x {height} pixels (width x height), its proposals were made at "
                f"{proposals.size[1]} x {proposals.size[0]}; make them with the same label.exif_orientation",
            )
        sides = self._settings.test_short_sides or (self._rule.short_side,)
        sizes = tuple(self._input_size(height, width, side) for side in sides)
        if self._on_device is not None and height * width <= PIXELS_AT_ONCE:
            return PreparedImage(index, sizes, (), (height, width), proposals, pixels=image)
        return PreparedImage(
            index, sizes, tuple(self._resized(image, size) for size in sizes), (height, width), proposals
        )

    def padded(self, items: list[PreparedImage]) -> PreparedBatch:
        """Images of one padded shape as a batch: all of them resized, or none."""
        given = [item.proposals for item in items if item.proposals is not None]
        assert len(given) in (0, len(items))
        proposals = pad_proposals(given) if given else None
        if proposals is not None and self._pinned:
            boxes, scores, count = (part.pin_memory() for part in (proposals.boxes, proposals.scores, proposals.count))
            proposals = Proposals(boxes, scores, count)
        images = [item.pixels for item in items if item.pixels is not None]
        if images:
            assert len(images) == len(items)
            packed = pack_images(images, [item.input_sizes for item in items], pinned=self._pinned)
            self._mark("pack", 2 * packed.pixels.nbytes)
            return PreparedBatch(items, packed, proposals)
        sizes = [item.original_size for item in items]
        views = [
            pad_batch(pixels, sizes, self._rule.divisor, pinned=self._pinned)
            for pixels in zip(*(item.views for item in items), strict=True)
        ]
        self._mark("pad", sum(2 * view.nbytes for item in items for view in item.views))
        return PreparedBatch(items, views, proposals)

    def views(self, batch: PreparedBatch) -> list[ImageBatch]:
        """The images in each of their sizes: on the host, or made on the device, without waiting for it."""
        if isinstance(batch.views, list):
            return batch.views
        assert self._on_device is not None
        return self._on_device.batches(batch.views)

    def _input_size(self, height: int, width: int, short_side: int) -> Size:
        """Of an image in a view. The limit of the longer side grows in proportion to the shorter one."""
        rule = self._rule
        long_side = round(rule.long_side * short_side / rule.short_side)
        return resized_size(height, width, short_side, long_side, rule.resize)

    def _resized(self, image: Tensor, size: Size) -> Tensor:
        """[3, H, W] uint8 -> network input [3, *size]."""
        pixels = prepare_input(image, size, self._rule)
        self._mark("resize, normalise", image.nbytes + pixels.nbytes)
        return pixels


def _by_size(items: list[PreparedImage]) -> list[PreparedImage]:
    """Those that the device resizes with equal sizes side by side, where they can be resized together."""
    return sorted(items, key=lambda item: (0, 0) if item.pixels is None else item.original_size)


def reason_of(error: Exception) -> str:
    """Kind and first line of an error."""
    first = str(error).splitlines()[0] if str(error) else "no message"
    return f"{type(error).__name__}: {first}"
