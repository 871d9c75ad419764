"""One batch of images from files to rows, with every stage marked on a clock, as `benchmark_stages` needs it.

The stages are those of `Predictor.predict` and the label job, one after the other in one thread.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from maskrcnn_core.boxes import clip_boxes, scale_boxes
from maskrcnn_core.config import MAX_PIXELS, InputConfig
from maskrcnn_core.data.decode import decode_image
from maskrcnn_core.data.transform import pad_batch, prepare_image, resized_size
from maskrcnn_core.inference import output
from maskrcnn_core.inference.device_masks import encode_on_device
from maskrcnn_core.inference.device_preparation import DevicePreparation, Size, pack
from maskrcnn_core.inference.predictor import Predictor
from maskrcnn_core.inference.records import ImageRecord, record_schema, records_to_table
from maskrcnn_core.keypoints import scale_keypoints
from maskrcnn_core.model.region_detector import RegionDetector
from maskrcnn_core.structures import Detections, ImageBatch

IN_FRAME = "boxes to the image's frame"

# Parts of the detector in the order in which they run: attribute, name of its stage, name of what follows it.
PARTS = (
    ("trunk", "trunk", "trunk"),
    ("pyramid", "pyramid", "pyramid"),
    ("rpn_head", "RPN head", "proposals (top k, NMS)"),
    ("box_transform", "RoIAlign for boxes", "RoIAlign for boxes"),
    ("region_stage", "region stage", "region stage"),
    ("box_head", "box head", "detections (softmax, NMS)"),
    ("mask_transform", "RoIAlign for masks", "RoIAlign for masks"),
    ("mask_head", "mask head", "masks into slots"),
    ("keypoint_transform", "RoIAlign for keypoints", "RoIAlign for keypoints"),
    ("keypoint_head", "keypoint head", "keypoint decoding"),
)


@dataclass
class Work:
    """What was counted for a stage of one batch: seconds, and bytes read and written at least."""

    seconds: float = 0.0
    bytes: float = 0.0


@dataclass
class Clock:
    """Adds the time since the last mark to a stage."""

    device: torch.device
    work: dict[str, Work] = field(default_factory=dict)
    last: float = 0.0

    def start(self) -> None:
        """The first stage begins."""
        self.last = self._now()

    def mark(self, name: str, moved: float = 0.0) -> None:
        """What was done since the last mark belongs to a stage, which moved so many bytes."""
        now = self._now()
        work = self.work.setdefault(name, Work())
        work.seconds += now - self.last
        work.bytes += moved
        self.last = self._now()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def preparation_of(predictor: Predictor) -> DevicePreparation | None:
    """What a predictor prepares images with that prepares them and draws masks on the device; None = the host does."""
    settings, rule = predictor.settings, predictor.config.input
    on_gpu = torch.device(settings.device).type == "cuda"
    wanted = (settings.device_preparation, settings.device_masks)
    if rule.resize == "antialias" or not all(on_gpu if choice is None else choice for choice in wanted):
        return None
    half = on_gpu and settings.precision == "bfloat16"
    return DevicePreparation(rule, torch.device(settings.device), torch.bfloat16 if half else torch.float32)


@torch.inference_mode()
def one_batch(
    predictor: Predictor, preparation: DevicePreparation | None, contents: Sequence[bytes], clock: Clock
) -> list[ImageRecord]:
    """From files to their rows, as `Predictor.predict` and the label job go.

    Args:
        preparation: of `preparation_of`.
        contents: images of one padded shape.
    """
    clock.start()
    images = []
    for content in contents:
        images.append(decoded_image(content))
        clock.mark("decode", len(content) + images[-1].nbytes)
    if preparation is None:
        records = _through_the_host(predictor, images, clock)
    else:
        records = _through_the_device(predictor, preparation, images, clock)
    categories = record_schema(predictor.config.categories)
    records_to_table([*range(len(records))], ["image"] * len(records), records, predictor.fingerprint, categories)
    clock.mark("rows")
    return records


def _through_the_host(predictor: Predictor, images: Sequence[Tensor], clock: Clock) -> list[ImageRecord]:
    """The host prepares the images and draws the masks."""
    rule = predictor.config.input
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    prepared = []
    for image in images:
        pixels = prepare_image(
            image,
            size=input_size(image, rule),
            mean=rule.mean,
            std=rule.std,
            channels=rule.channels,
            scale=rule.scale,
            resize=rule.resize,
        )
        prepared.append(pixels)
        clock.mark("resize, normalise", image.nbytes + pixels.nbytes)
    batch = pad_batch(prepared, sizes, rule.divisor)
    clock.mark("pad", sum(2 * pixels.nbytes for pixels in prepared))
    with _hooked(predictor.detector, clock, "to the device"):
        found = predictor.detect(batch)
    clock.mark(IN_FRAME)
    records = [output.image_record(found, index, size, predictor.config) for index, size in enumerate(sizes)]
    clock.mark("paste, run lengths", 0.0 if found.masks is None else found.masks.nbytes)
    return records


def _through_the_device(
    predictor: Predictor, preparation: DevicePreparation, images: Sequence[Tensor], clock: Clock
) -> list[ImageRecord]:
    """The device prepares the images and draws the masks."""
    batch = prepared_on_device(predictor, preparation, images, clock)
    with _hooked(predictor.detector, clock, "resize, normalise, pad"):
        found = found_in(predictor, batch)
    clock.mark(IN_FRAME)
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    on_host = replace(found, masks=None).to("cpu")
    clock.mark("results to the host", _bytes_of([*vars(on_host).values()]))
    if found.masks is None:
        records = [output.image_record(on_host, index, size, predictor.config) for index, size in enumerate(sizes)]
    else:
        with _masks_marked(clock):
            records = output.records_with_device_masks(replace(on_host, masks=found.masks), sizes, predictor.config)
    clock.mark("records")
    return records


@torch.inference_mode()
def prepared_on_device(
    predictor: Predictor, preparation: DevicePreparation, images: Sequence[Tensor], clock: Clock
) -> ImageBatch:
    """The images on the device, those of one size side by side."""
    device = torch.device(predictor.settings.device)
    sizes = [(input_size(image, predictor.config.input),) for image in images]
    packed = pack(images, sizes, pinned=device.type == "cuda")
    clock.mark("pack", 2 * packed.pixels.nbytes)
    pixels, table = (part.to(device, non_blocking=True) for part in (packed.pixels, packed.sizes))
    clock.mark("copy to the device", 2 * packed.pixels.nbytes)
    (batch,) = preparation.batches(replace(packed, pixels=pixels, sizes=table))
    clock.mark("resize, normalise, pad", pixels.nbytes + batch.pixels.nbytes)
    return batch


@torch.inference_mode()
def found_in(predictor: Predictor, images: ImageBatch) -> Detections:
    """As `Predictor.detect` without CUDA graphs, of a batch on the device, and left there."""
    with predictor.arithmetic():
        found = predictor.detector.detect(images)
    boxes = clip_boxes(scale_boxes(found.boxes, images.input_sizes, images.original_sizes), images.original_sizes)
    keypoints = found.keypoints
    if keypoints is not None:
        keypoints = scale_keypoints(keypoints, images.input_sizes, images.original_sizes)
    return replace(found, boxes=boxes, keypoints=keypoints)


@contextmanager
def _masks_marked(clock: Clock) -> Iterator[None]:
    """What draws masks on the device marks the clock while the block runs; what lies before it belongs to "records"."""

    def marked(masks: Tensor, *arguments: Any, **settings: Any) -> list[str]:
        clock.mark("records")
        counts: list[str] = encode_on_device(masks, *arguments, **settings)
        clock.mark("masks, run lengths", masks.nbytes)
        return counts

    with patch.object(output, "encode_on_device", marked):
        yield


@contextmanager
def _hooked(detector: RegionDetector, clock: Clock, first: str) -> Iterator[None]:
    """The detector's parts mark the clock while the block runs; what lies between two parts belongs to the former, what
    lies before all of them to the stage `first`."""
    handles: list[Any] = []
    between = [first]

    def before(_: nn.Module, __: Any) -> None:
        clock.mark(between[0])

    def after(name: str, following: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            weights = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
            clock.mark(name, _bytes_of(inputs) + weights + _bytes_of(output))
            between[0] = following

        return hook

    for attribute, name, following in PARTS:
        module = getattr(detector, attribute)
        if module is not None:
            handles.append(module.register_forward_pre_hook(before))
            handles.append(module.register_forward_hook(after(name, following)))
    try:
        yield
    finally:
        clock.mark(between[0])
        for handle in handles:
            handle.remove()


def _bytes_of(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, list | tuple):
        return sum(map(_bytes_of, value))
    return 0


def decoded_image(content: bytes) -> Tensor:
    """[3, H, W] uint8 RGB, never turned."""
    return decode_image(content, max_pixels=MAX_PIXELS, apply_exif=False)


def input_size(image: Tensor, rule: InputConfig) -> Size:
    """(height, width) in which the network sees an image."""
    height, width = image.shape[-2:]
    return resized_size(height, width, rule.short_side, rule.long_side, rule.resize)
