"""Encoded images -> batches of network input: decoded, grouped by padded shape up to a budget of pixels, resized.

Images are resized on the host as they are decoded or, where a batch is asked for on a device (`device_preparation`),
all of its images there; their shapes are known from the sizes alone.

Images come without end, and each waits for others of its shape, but not for ever: `UnfilledBatches`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.data.packing import Size
from maskrcnn_core.data.prefetch import MapAhead
from maskrcnn_core.data.proposals import ImageProposals, pad_proposals
from maskrcnn_core.data.transform import fitted_size, pad_batch, padded_size, prepare_input
from maskrcnn_core.errors import ImageError
from maskrcnn_core.inference.device_preparation import PIXELS_AT_ONCE, DevicePreparation, PackedImages, pack_images
from maskrcnn_core.inference.image_source import decoded
from maskrcnn_core.inference.settings import Mark, PredictorSettings, no_mark
from maskrcnn_core.inference.unfilled_batches import UnfilledBatches
from maskrcnn_core.structures import ImageBatch, Proposals

# More decoders than this get ahead of any network, and each holds decoded images.
_MOST_DECODERS = 8


@dataclass(frozen=True)
class Request:
    """An image that something is asked about.

    Attributes:
        key: what its record comes back with; another one for every image that is under way at the same time.
        content: an image file as bytes, or a decoded image [3, H, W] uint8 RGB; an error in place of one becomes the
            image's record.
        proposals: of the image in its original frame; an error becomes its record; None = the detector's own.
    """

    key: int
    content: bytes | Tensor | ImageError
    proposals: ImageProposals | ImageError | None = None


@dataclass(frozen=True)
class FailedImage:
    """An image that cannot be prepared: its key, and why."""

    key: int
    error: ImageError


@dataclass(frozen=True)
class PreparedImage:
    """An image ready for a batch.

    Attributes:
        key: of its request.
        input_sizes: (height, width) in each size of the image pyramid; mostly one.
        views: [3, h, w] float32 for each of them; empty where the device makes them, of `pixels`.
        original_size: (height, width).
        proposals: in the original frame; None = the detector's own.
        pixels: [3, H, W] uint8 RGB, for the device to resize; None where there are views.
    """

    key: int
    input_sizes: tuple[Size, ...]
    views: tuple[Tensor, ...]
    original_size: Size
    proposals: ImageProposals | None = None
    pixels: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Memory of its pixels."""
        return sum(view.nbytes for view in self.views) + (0 if self.pixels is None else self.pixels.nbytes)


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
        in_powers: cut batches that are not full to powers of two; None = for a GPU, where cuDNN spends a tenth of a
            second on plans for every shape that it has not seen.
    """

    def __init__(
        self,
        rule: InputConfig,
        settings: PredictorSettings,
        on_device: DevicePreparation | None = None,
        mark: Mark = no_mark,
        *,
        in_powers: bool | None = None,
    ) -> None:
        self._rule, self._settings, self._on_device, self._mark = rule, settings, on_device, mark
        on_gpu = torch.device(settings.device).type == "cuda"
        self._pinned = on_gpu
        self._in_powers = on_gpu if in_powers is None else in_powers
        most = min(_MOST_DECODERS, torch.get_num_threads()) if on_gpu else 1
        self._decoders = MapAhead(settings.decode_threads or most, "decode")

    def batches(self, requests: Iterable[Request | None]) -> Iterator[list[PreparedImage] | FailedImage]:
        """Images grouped by padded shape up to the pixel budget, and those that cannot be prepared.

        Args:
            requests: iterated in the thread that iterates here; None = a pause: no more images are at hand.

        Yields:
            Groups and failures as they come; whatever waits is grouped at a pause and at the end, where an empty group
            follows.
        """
        unfilled: UnfilledBatches[PreparedImage] = UnfilledBatches()
        for item in self._prepared(requests):
            if isinstance(item, FailedImage):
                yield item
            elif item is None:
                yield from self._grouped(unfilled.take_all())
                yield []
            else:
                yield from self._grouped(self._joined(unfilled, item))

    def _joined(self, unfilled: UnfilledBatches[PreparedImage], item: PreparedImage) -> Iterator[list[PreparedImage]]:
        """What goes into batches now that one more image is there."""
        shape = (item.pixels is None, *self._padded_sizes(item))
        yield from unfilled.add(shape, item, item.nbytes, self._most_in_a_batch(item))

    def _padded_sizes(self, item: PreparedImage) -> list[Size]:
        return [padded_size(size, self._rule.divisor) for size in item.input_sizes]

    def _most_in_a_batch(self, item: PreparedImage) -> int:
        """Images of this one's shape."""
        pixels = sum(height * width for height, width in self._padded_sizes(item)) * (1 + self._settings.test_flip)
        return max(1, self._settings.batch_limit // pixels)

    def _grouped(self, groups: Iterable[list[PreparedImage]]) -> Iterator[list[PreparedImage]]:
        for group in groups:
            yield from map(_by_size, self._in_common_sizes(group))

    def _prepared(self, requests: Iterable[Request | None]) -> Iterator[PreparedImage | FailedImage | None]:
        """Each image in order, prepared ahead up to the next pause, which is None, as is the end."""
        bursts = _Bursts(requests)
        while not bursts.is_at_end:
            for prepared in self._decoders(self._prepared_or_failed, bursts.next()):
                yield prepared()
            yield None

    def _prepared_or_failed(self, request: Request) -> PreparedImage | FailedImage:
        try:
            return self.prepare(request.key, request.content, request.proposals)
        except ImageError as error:
            return FailedImage(request.key, ImageError(error.status, str(error)))
        except Exception as error:  # such as no memory for the resized pixels
            return FailedImage(request.key, ImageError("failed", reason_of(error)))

    def _in_common_sizes(self, group: list[PreparedImage]) -> Iterator[list[PreparedImage]]:
        is_cut = self._in_powers and len(group) < self._most_in_a_batch(group[0])
        while group:
            count = 1 << (len(group).bit_length() - 1) if is_cut else len(group)
            yield group[:count]
            group = group[count:]

    def prepare(
        self, key: int, content: bytes | Tensor | ImageError, proposals: ImageProposals | ImageError | None = None
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
            return PreparedImage(key, sizes, (), (height, width), proposals, pixels=image)
        return PreparedImage(
            key, sizes, tuple(self._resized(image, size) for size in sizes), (height, width), proposals
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
        sizes, rule = [item.original_size for item in items], self._rule
        views = [
            pad_batch(pixels, sizes, rule.divisor, letterboxed=rule.fit == "letterbox", pinned=self._pinned)
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
        return fitted_size(height, width, rule, short_side, long_side)

    def _resized(self, image: Tensor, size: Size) -> Tensor:
        """[3, H, W] uint8 -> network input [3, *size]."""
        pixels = prepare_input(image, size, self._rule)
        self._mark("resize, normalise", image.nbytes + pixels.nbytes)
        return pixels


class _Bursts:
    """Requests cut at their pauses."""

    def __init__(self, requests: Iterable[Request | None]) -> None:
        self._requests = iter(requests)
        self.is_at_end = False

    def next(self) -> Iterator[Request]:
        """Up to the next pause, or the end."""
        for request in self._requests:
            if request is None:
                return
            yield request
        self.is_at_end = True


def _by_size(items: list[PreparedImage]) -> list[PreparedImage]:
    """Those that the device resizes with equal sizes side by side, where they can be resized together."""
    return sorted(items, key=lambda item: (0, 0) if item.pixels is None else item.original_size)


def reason_of(error: Exception) -> str:
    """Kind and first line of an error."""
    first = str(error).splitlines()[0] if str(error) else "no message"
    return f"{type(error).__name__}: {first}"
