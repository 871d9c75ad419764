"""COCO data for training: one item for each sample, and items to a batch.

All randomness is decided by whoever makes the samples: an item is a pure function of its `Sample`, so that a run can be
repeated and resumed, on any number of workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from maskrcnn_core.data.coco import CocoDataset, CocoImage
from maskrcnn_core.data.decode import decode_image
from maskrcnn_core.data.files import Folder
from maskrcnn_core.data.targets import ImageTargets, object_targets, pad_targets
from maskrcnn_core.data.transform import pad_batch, prepare_image, resized_size
from maskrcnn_core.errors import ImageError
from maskrcnn_core.structures import ImageBatch, Targets


@dataclass(frozen=True)
class Sample:
    """One draw of the sampler.

    Attributes:
        index: position of the image in the data set.
        flip: mirror it left to right.
        short_side: length to which the shorter side is resized, pixels.
    """

    index: int
    flip: bool
    short_side: int


@dataclass(frozen=True)
class TrainingItem:
    """One image ready for a batch.

    Attributes:
        image: [3, h, w] float32, normalised.
        original_size: (height, width) of the image file, pixels.
        targets: its objects in the input frame.
        image_id: COCO image id.
    """

    image: Tensor
    original_size: tuple[int, int]
    targets: ImageTargets
    image_id: int


class CocoTrainingData:
    """Map-style data set (torch DataLoader takes it): `Sample` -> `TrainingItem`.

    Args:
        dataset: annotations.
        images: folder or URI that the file names are relative to.
        long_side, mean, std, channels, scale: as `InputConfig`.
        mask_size: side of the mask crops, cells; 0 = input resolution; None = no masks (see `data.targets`).
        keypoints: give keypoints too.
        max_pixels: larger images are refused.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        images: str,
        *,
        long_side: int,
        mean: Sequence[float],
        std: Sequence[float],
        channels: Literal["rgb", "bgr"] = "rgb",
        scale: Literal["unit", "byte"] = "unit",
        mask_size: int | None = 112,
        keypoints: bool = False,
        max_pixels: int = 178_956_970,
    ) -> None:
        self._images = dataset.images
        self._label_of = dataset.label_of
        self._keypoint_names = dataset.keypoint_names if keypoints else ()
        self._folder = Folder(images)
        self._long_side, self._mean, self._std = long_side, tuple(mean), tuple(std)
        self._channels, self._scale = channels, scale
        self._mask_size, self._max_pixels = mask_size, max_pixels

    def __len__(self) -> int:
        return len(self._images)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of every image file, pixels."""
        return tuple((image.height, image.width) for image in self._images)

    def __getitem__(self, sample: Sample) -> TrainingItem:
        """Read, decode and resize the image, and make its targets.

        Raises:
            ImageError: the image is missing, damaged or not of the annotated size.
        """
        image = self._images[sample.index]
        pixels = self._decode(image)
        size = resized_size(image.height, image.width, sample.short_side, self._long_side)
        prepared = prepare_image(
            pixels.flip(-1) if sample.flip else pixels,
            size=size,
            mean=self._mean,
            std=self._std,
            channels=self._channels,
            scale=self._scale,
        )
        targets = object_targets(
            image,
            self._label_of,
            input_size=size,
            flip=sample.flip,
            mask_size=self._mask_size,
            keypoint_names=self._keypoint_names,
        )
        return TrainingItem(prepared, (image.height, image.width), targets, image.image_id)

    def _decode(self, image: CocoImage) -> Tensor:
        where = f"image {image.image_id} ({self._folder.path(image.file_name)})"
        try:
            encoded = self._folder.read(image.file_name)
        except FileNotFoundError:
            raise ImageError("missing", f"{where}: no such file; check data.*.images and its file_name") from None
        except (OSError, ValueError) as error:
            raise ImageError("unreadable", f"{where}: cannot be read: {error}") from None
        try:
            # COCO's ground truth is drawn on the pixels as stored, so the EXIF orientation must not turn them.
            pixels = decode_image(encoded, max_pixels=self._max_pixels, apply_exif=False)
        except ImageError as error:
            raise ImageError(error.status, f"{where}: {error}") from None
        height, width = pixels.shape[1:]
        if (height, width) != (image.height, image.width):
            turned = (height, width) == (image.width, image.height)
            hint = (
                "were the annotations drawn on the image as turned by EXIF? store it turned" if turned else "correct it"
            )
            raise ImageError(
                "failed",
                f"{where}: the file has {width} x {height} pixels (width x height), "
                f"the annotation file says {image.width} x {image.height}; {hint}",
            )
        return pixels


def collate(items: Sequence[TrainingItem], *, divisor: int = 32) -> tuple[ImageBatch, Targets, list[int]]:
    """Items to one batch: padded images, padded targets, COCO image ids.

    Args:
        divisor: sides of the batch are a multiple of it, pixels.
    """
    batch = pad_batch([item.image for item in items], [item.original_size for item in items], divisor)
    return batch, pad_targets([item.targets for item in items]), [item.image_id for item in items]
