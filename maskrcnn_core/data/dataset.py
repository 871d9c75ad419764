"""COCO data for training: one item for each sample, and items to a batch.

All randomness is decided by whoever makes the samples: an item is a pure function of its `Sample`, so that a run can be
repeated and resumed, on any number of workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.config.limits import MAX_PIXELS
from maskrcnn_core.data.augment import ColorJitter, ScaleJitter, jittered, recolored, seeded
from maskrcnn_core.data.coco.dataset import CocoDataset, CocoImage
from maskrcnn_core.data.decode import decode_pixels
from maskrcnn_core.data.framing import LETTERBOX_COLOR, Framing, draw_window, framed
from maskrcnn_core.data.packed_inputs import InputImage, PackedInputs, pack_inputs
from maskrcnn_core.data.proposals import ImageProposals, ProposalFiles, pad_proposals, resize_proposals
from maskrcnn_core.data.scene import Scene, mirrored
from maskrcnn_core.data.targets import ImageTargets, TargetRule, object_targets, pad_targets
from maskrcnn_core.data.transform import fitted_size, is_resized_on_device, prepare_input, resize_exactly
from maskrcnn_core.errors import AnnotationError, ConfigError, ImageError, ImageStatus
from maskrcnn_core.keypoints import mirror_keypoints
from maskrcnn_core.structures import Proposals, Targets


class ImageFiles(Protocol):
    """Where the files of a data set are read (`files.Folder`, or what is more patient)."""

    def path(self, name: str) -> str:
        """Where the file lies that the annotations call `name`, for messages."""
        ...

    def read(self, name: str) -> bytes:
        """Its bytes.

        Raises:
            OSError: FileNotFoundError where there is none, others whatever keeps it from being read.
            ImageError: the same, told by whoever reads.
        """
        ...


@dataclass(frozen=True)
class Sample:
    """One draw of the sampler.

    Attributes:
        index: position of the image in the data set.
        flip: mirror it left to right.
        short_side: length to which the shorter side is resized, pixels.
        seed: of every further random choice about the image.
        partner: position of an image from which objects are pasted on this one, or None.
    """

    index: int
    flip: bool
    short_side: int
    seed: int = 0
    partner: int | None = None


@dataclass(frozen=True)
class TrainingItem:
    """One image ready for a batch.

    Attributes:
        image: as it travels to the device.
        targets: its objects in the input frame.
        image_id: COCO image id.
        proposals: in the input frame, or None where an RPN makes them.
    """

    image: InputImage
    targets: ImageTargets
    image_id: int
    proposals: ImageProposals | None = None


class CocoTrainingData:
    """Map-style data set (torch DataLoader takes it): `Sample` -> `TrainingItem`.

    Args:
        dataset: annotations.
        images: the files that the annotations name.
        input: how an image becomes the network's input; each sample says its own short side.
        targets: what the targets hold.
        max_pixels: larger images are refused.
        proposals: of every image, where no RPN makes them.
        max_proposals: best ones of an image that are used.
        resized_on_device: leave the resizing to the device, which is a GPU, where that is the smaller way to travel.
        jitter: large-scale jitter, in place of resizing to the sample's short side; also what a sample's partner needs.
        framing: zooming out and cuts; not together with jitter.
        colors: random changes to colours.

    Raises:
        ConfigError: jitter or framing together with proposals from a file, which know nothing of it.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        images: ImageFiles,
        input: InputConfig,
        targets: TargetRule,
        *,
        max_pixels: int = MAX_PIXELS,
        proposals: ProposalFiles | None = None,
        max_proposals: int = 1000,
        resized_on_device: bool = False,
        jitter: ScaleJitter | None = None,
        framing: Framing | None = None,
        colors: ColorJitter | None = None,
    ) -> None:
        assert jitter is None or framing is None
        if proposals is not None:
            _require_whole_images(input, jitter, framing)
        self._images, self._sizes = dataset.images, dataset.sizes
        self._label_of = dataset.label_of
        self._names = dataset.keypoint_names
        self._files = images
        self._input, self._rule, self._max_pixels = input, targets, max_pixels
        self._proposals, self._max_proposals = proposals, max_proposals
        if framing is None and jitter is None and input.fit == "letterbox":
            framing = Framing(canvas_color=LETTERBOX_COLOR)  # the whole picture, on a canvas
        self._jitter, self._framing, self._colors = jitter, framing, colors
        self._resized_on_device = resized_on_device

    def __len__(self) -> int:
        return len(self._images)

    @property
    def sizes(self) -> NDArray[np.int32]:
        """[images, 2]: height and width of every image file, pixels."""
        return self._sizes

    def __getitem__(self, sample: Sample) -> TrainingItem:
        """Read, decode and resize the image, and make its targets.

        Raises:
            ImageError: the image, or its partner, is missing, damaged or not of the annotated size, or an annotation of
                it cannot be used; has its COCO id.
        """
        image = self._images[sample.index]
        try:
            return self._item(image, sample)
        except ImageError as error:
            if error.image_id is not None:
                raise
            raise ImageError(error.status, str(error), image.image_id) from None
        except AnnotationError as error:
            raise self._bad(image, "failed", str(error)) from None

    def _item(self, image: CocoImage, sample: Sample) -> TrainingItem:
        rng = seeded(sample.seed)
        if self._jitter is not None:
            return self._jittered_item(image, sample, self._jitter, rng)
        if self._framing is not None:
            return self._framed_item(image, sample, self._framing, rng)
        pixels = self._recolored(self._decode(image), rng)
        size = fitted_size(image.height, image.width, self._input, sample.short_side, self._input.long_side)
        prepared = self._prepared(image, pixels.flip(-1) if sample.flip else pixels, size)
        targets = self._targets(image, size, flip=sample.flip)
        proposals = None
        if self._proposals is not None:
            proposals = resize_proposals(self._read_proposals(self._proposals, image), size, flip=sample.flip)
        return TrainingItem(prepared, targets, image.image_id, proposals)

    def _jittered_item(
        self, image: CocoImage, sample: Sample, jitter: ScaleJitter, rng: np.random.Generator
    ) -> TrainingItem:
        def scene(entry: CocoImage) -> Scene:
            return Scene(self._decode(entry), entry.objects)

        partner = None if sample.partner is None else self._images[sample.partner]
        made = jittered(
            scene(image),
            jitter,
            rng,
            flip=sample.flip,
            partner=None if partner is None else lambda: scene(partner),
            keypoint_sources=mirror_keypoints(self._names),
            keypoint_offset=self._rule.keypoint_offset,
            resize=self._input.resize,
        )
        return self._item_of(replace(made, pixels=self._recolored(made.pixels, rng)), image)

    def _framed_item(
        self, image: CocoImage, sample: Sample, framing: Framing, rng: np.random.Generator
    ) -> TrainingItem:
        objects = image.objects
        if self._rule.mask_size is None:
            # Boxes are then cut like boxes, and not as tight as masks that nobody learns.
            objects = tuple(replace(item, segmentation=None) for item in objects)
        scene = Scene(self._decode(image), objects)
        if sample.flip:
            scene = mirrored(scene, mirror_keypoints(self._names))
        window = draw_window(scene.size, scene.objects, framing, rng)
        sides = max(1, round(window.height)), max(1, round(window.width))
        made = framed(
            scene,
            window,
            fitted_size(*sides, self._input, sample.short_side, self._input.long_side),
            framing,
            letterboxed=self._input.fit == "letterbox",
            recolor=lambda pixels: self._recolored(pixels, rng),
            keypoint_offset=self._rule.keypoint_offset,
            resize=self._input.resize,
        )
        return self._item_of(made, image)

    def _item_of(self, made: Scene, image: CocoImage) -> TrainingItem:
        """A scene that has the size of the network's input."""
        prepared = self._prepared(image, made.pixels, made.size)
        changed = replace(image, height=made.size[0], width=made.size[1], objects=made.objects)
        return TrainingItem(prepared, self._targets(changed, made.size, flip=False), image.image_id)

    def _recolored(self, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        return pixels if self._colors is None else recolored(pixels.contiguous(), self._colors, rng)

    def _prepared(self, image: CocoImage, pixels: Tensor, size: tuple[int, int]) -> InputImage:
        rule, exact = self._input, resize_exactly(pixels, size, self._input.resize)
        if exact is not None:
            pixels = exact
        elif not (self._resized_on_device and is_resized_on_device(pixels, size, rule.resize)):
            pixels = prepare_input(pixels, size, rule)
        return InputImage(pixels, size, (image.height, image.width))

    def _targets(self, image: CocoImage, size: tuple[int, int], *, flip: bool) -> ImageTargets:
        return object_targets(
            image,
            self._label_of,
            input_size=size,
            flip=flip,
            mask_size=self._rule.mask_size,
            keypoint_names=self._names if self._rule.keypoints else (),
            keypoint_offset=self._rule.keypoint_offset,
        )

    def _read_proposals(self, files: ProposalFiles, image: CocoImage) -> ImageProposals:
        proposals = files.read(image.image_id, self._max_proposals)
        if proposals.size != (image.height, image.width):
            raise ImageError(
                "failed",
                f"image {image.image_id}: {files.name}: made at {proposals.size[1]} x {proposals.size[0]} pixels "
                f"(width x height), the annotation file says {image.width} x {image.height}; make them with "
                "jobs.label --images ANNOTATIONS.json",
            )
        return proposals

    def _decode(self, image: CocoImage) -> Tensor:
        """[3, H, W] uint8 RGB, of the annotated size."""
        try:
            encoded = self._files.read(image.file_name)
            # COCO's ground truth is drawn on the pixels as stored, so the EXIF orientation must not turn them.
            pixels = decode_pixels(encoded, max_pixels=self._max_pixels, apply_exif=False)
        except FileNotFoundError:
            raise self._bad(image, "missing", "no such file; check data.*.images and its file_name") from None
        except ImageError as error:
            raise self._bad(image, error.status, str(error)) from None
        except OSError as error:
            raise self._bad(image, "unreadable", f"cannot be read: {error}") from None
        height, width = pixels.shape[1:]
        if (height, width) != (image.height, image.width):
            turned = (height, width) == (image.width, image.height)
            hint = (
                "were the annotations drawn on the image as turned by EXIF? store it turned" if turned else "correct it"
            )
            raise self._bad(
                image,
                "failed",
                f"the file has {width} x {height} pixels (width x height), "
                f"the annotation file says {image.width} x {image.height}; {hint}",
            )
        return pixels

    def _bad(self, image: CocoImage, status: ImageStatus, reason: str) -> ImageError:
        where = f"image {image.image_id} ({self._files.path(image.file_name)})"
        return ImageError(status, f"{where}: {reason}", image.image_id)


def _require_whole_images(input: InputConfig, jitter: ScaleJitter | None, framing: Framing | None) -> None:
    """Proposals of a file lie in the whole image, resized as it is.

    Raises:
        ConfigError: something else becomes the input.
    """
    named = (
        ("train.augment.jitter_scale", jitter is not None),
        ("train.augment.zoom_out, cut_overlaps", framing is not None),
        ("model.input.fit letterbox", input.fit == "letterbox"),
    )
    for name, is_on in named:
        if is_on:
            raise ConfigError(
                f"{name}: got one together with proposals from a file, which lie in the whole image; leave it out, or "
                "train with an RPN"
            )


def collate_proposals(items: Sequence[TrainingItem]) -> Proposals | None:
    """Proposals of a batch in the input frame; None where the items have none."""
    proposals = [item.proposals for item in items if item.proposals is not None]
    return pad_proposals(proposals) if proposals else None


def collate(
    items: Sequence[TrainingItem], rule: InputConfig, dtype: torch.dtype = torch.float32
) -> tuple[PackedInputs, Targets, list[int]]:
    """Items to one batch: images packed for the way to the device, padded targets, COCO image ids.

    Args:
        rule: the network's input, as of the data set.
        dtype: of the pixels on the device.
    """
    images = pack_inputs([item.image for item in items], rule, dtype)
    return images, pad_targets([item.targets for item in items]), [item.image_id for item in items]
