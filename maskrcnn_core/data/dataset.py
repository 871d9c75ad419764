"""COCO data for training: one item for each sample, and items to a batch.

All randomness is decided by whoever makes the samples: an item is a pure function of its `Sample`, so that a run can be
repeated and resumed, on any number of workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.config.limits import MAX_PIXELS
from maskrcnn_core.data.augment import ColorJitter, ScaleJitter, jittered, recolored, seeded
from maskrcnn_core.data.coco.dataset import CocoDataset, CocoImage
from maskrcnn_core.data.decode import decode_image
from maskrcnn_core.data.files import Folder
from maskrcnn_core.data.proposals import ImageProposals, ProposalFiles, pad_proposals, resize_proposals
from maskrcnn_core.data.scene import Scene
from maskrcnn_core.data.targets import ImageTargets, TargetRule, object_targets, pad_targets
from maskrcnn_core.data.transform import pad_batch, prepare_image, resized_size
from maskrcnn_core.errors import ConfigError, ImageError
from maskrcnn_core.keypoints import mirror_keypoints
from maskrcnn_core.structures import ImageBatch, Proposals, Targets


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
        image: [3, h, w] float32, normalised.
        original_size: (height, width) of the image file, pixels.
        targets: its objects in the input frame.
        image_id: COCO image id.
        proposals: in the input frame, or None where an RPN makes them.
    """

    image: Tensor
    original_size: tuple[int, int]
    targets: ImageTargets
    image_id: int
    proposals: ImageProposals | None = None


class CocoTrainingData:
    """Map-style data set (torch DataLoader takes it): `Sample` -> `TrainingItem`.

    Args:
        dataset: annotations.
        images: folder or URI that the file names are relative to.
        input: how an image becomes the network's input; each sample says its own short side.
        targets: what the targets hold.
        max_pixels: larger images are refused.
        proposals: of every image, where no RPN makes them.
        max_proposals: best ones of an image that are used.
        jitter: large-scale jitter, in place of resizing to the sample's short side; also what a sample's partner needs.
        colors: random changes to colours.

    Raises:
        ConfigError: jitter together with proposals from a file, which know nothing of it.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        images: str,
        input: InputConfig,
        targets: TargetRule,
        *,
        max_pixels: int = MAX_PIXELS,
        proposals: ProposalFiles | None = None,
        max_proposals: int = 1000,
        jitter: ScaleJitter | None = None,
        colors: ColorJitter | None = None,
    ) -> None:
        if jitter is not None and proposals is not None:
            raise ConfigError(
                "train.augment.jitter_scale: got one together with proposals from a file, which lie in the whole "
                "image; leave it empty, or train with an RPN"
            )
        self._images, self._sizes = dataset.images, dataset.sizes
        self._label_of = dataset.label_of
        self._names = dataset.keypoint_names
        self._folder = Folder(images)
        self._input, self._rule, self._max_pixels = input, targets, max_pixels
        self._proposals, self._max_proposals = proposals, max_proposals
        self._jitter, self._colors = jitter, colors

    def __len__(self) -> int:
        return len(self._images)

    @property
    def sizes(self) -> NDArray[np.int32]:
        """[images, 2]: height and width of every image file, pixels."""
        return self._sizes

    def __getitem__(self, sample: Sample) -> TrainingItem:
        """Read, decode and resize the image, and make its targets.

        Raises:
            ImageError: the image is missing, damaged or not of the annotated size.
        """
        image = self._images[sample.index]
        rng = seeded(sample.seed)
        if self._jitter is not None:
            return self._jittered_item(image, sample, self._jitter, rng)
        pixels = self._recolored(self._decode(image), rng)
        size = resized_size(image.height, image.width, sample.short_side, self._input.long_side, self._input.resize)
        prepared = self._prepared(pixels.flip(-1) if sample.flip else pixels, size)
        targets = self._targets(image, size, flip=sample.flip)
        proposals = None
        if self._proposals is not None:
            proposals = resize_proposals(self._read_proposals(self._proposals, image), size, flip=sample.flip)
        return TrainingItem(prepared, (image.height, image.width), targets, image.image_id, proposals)

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
        prepared = self._prepared(self._recolored(made.pixels, rng), made.size)
        changed = replace(image, height=made.size[0], width=made.size[1], objects=made.objects)
        targets = self._targets(changed, made.size, flip=False)
        return TrainingItem(prepared, (image.height, image.width), targets, image.image_id)

    def _recolored(self, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        return pixels if self._colors is None else recolored(pixels, self._colors, rng)

    def _prepared(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        return prepare_image(
            pixels,
            size=size,
            mean=self._input.mean,
            std=self._input.std,
            channels=self._input.channels,
            scale=self._input.scale,
            resize=self._input.resize,
        )

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


def collate_proposals(items: Sequence[TrainingItem]) -> Proposals | None:
    """Proposals of a batch in the input frame; None where the items have none."""
    proposals = [item.proposals for item in items if item.proposals is not None]
    return pad_proposals(proposals) if proposals else None


def collate(items: Sequence[TrainingItem], *, divisor: int = 32) -> tuple[ImageBatch, Targets, list[int]]:
    """Items to one batch: padded images, padded targets, COCO image ids.

    Args:
        divisor: sides of the batch are a multiple of it, pixels.
    """
    batch = pad_batch([item.image for item in items], [item.original_size for item in items], divisor)
    return batch, pad_targets([item.targets for item in items]), [item.image_id for item in items]
