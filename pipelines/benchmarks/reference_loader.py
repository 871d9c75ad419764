"""The input of torchvision's detection reference (references/detection), written anew from what it does: our
loader's peer.

    the file     opened by Pillow, converted to RGB
    objects      crowds left out; boxes clipped to the image; each mask drawn whole by pycocotools; none without a side
    preset       "hflip": mirrored at random, to a tensor, to floating point 0..1
    batch        a tuple of images and a tuple of targets, of whatever sizes
    transform    GeneralizedRCNNTransform, torchvision's own: normalises, resizes images and masks, pads
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms.v2 import functional

from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.data.coco.dataset import CocoDataset, image_entries
from maskrcnn_core.data.dataset import Sample
from maskrcnn_core.data.files import Folder

ReferenceItem = tuple[Tensor, dict[str, Tensor]]
ReferenceBatch = tuple[tuple[Tensor, ...], tuple[dict[str, Tensor], ...]]


class ReferenceData:
    """Samples to images [3, H, W] in 0..1 and their targets, in the size of the file.

    Args:
        dataset: annotations.
        images: folder of the files.
    """

    def __init__(self, dataset: CocoDataset, images: str) -> None:
        self._images, self._folder = dataset.images, Folder(images)

    def __getitem__(self, sample: Sample) -> ReferenceItem:
        """Read and decode an image, and draw its masks."""
        entry = self._images[sample.index]
        image = Image.open(self._folder.path(entry.file_name)).convert("RGB")
        target = _target(entry.image_id, image_entries(entry), image.height, image.width)
        pixels = functional.pil_to_tensor(image)
        if sample.flip:
            pixels = functional.horizontal_flip(pixels)
            target["masks"] = target["masks"].flip(-1)
            target["boxes"][:, [0, 2]] = image.width - target["boxes"][:, [2, 0]]
        return functional.to_dtype(pixels, torch.float32, scale=True), target


def _target(image_id: int, entries: Sequence[dict[str, Any]], height: int, width: int) -> dict[str, Tensor]:
    objects = [entry for entry in entries if not entry.get("iscrowd", 0)]
    boxes = torch.tensor([entry["bbox"] for entry in objects], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes[:, 0::2].clamp_(min=0, max=width)
    boxes[:, 1::2].clamp_(min=0, max=height)
    masks = [_mask(entry["segmentation"], height, width) for entry in objects]
    stacked = torch.stack(masks) if masks else torch.zeros((0, height, width), dtype=torch.uint8)
    kept = (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])
    labels = torch.tensor([entry["category_id"] for entry in objects], dtype=torch.int64)
    return {
        "boxes": boxes[kept],
        "labels": labels[kept],
        "masks": stacked[kept],
        "image_id": torch.tensor(image_id),
        "area": torch.tensor([float(entry["area"]) for entry in objects]),
        "iscrowd": torch.zeros(len(objects), dtype=torch.int64),
    }


def _mask(segmentation: Any, height: int, width: int) -> Tensor:
    if isinstance(segmentation, list):
        drawn = coco_mask.decode(coco_mask.frPyObjects(segmentation, height, width))
    else:
        counts = segmentation["counts"]
        run_lengths = coco_mask.frPyObjects(segmentation, height, width) if isinstance(counts, list) else segmentation
        drawn = coco_mask.decode(run_lengths)[..., None]
    return torch.as_tensor(np.ascontiguousarray(drawn), dtype=torch.uint8).any(dim=2).to(torch.uint8)


def as_tuples(items: Sequence[ReferenceItem]) -> ReferenceBatch:
    """A batch as the reference's loader hands it to the model."""
    images, targets = zip(*items, strict=True)
    return images, targets


@dataclass(frozen=True)
class Transformed:
    """A batch as the model's own transform makes it, here in the loader's process: what the network takes in.

    Attributes:
        rule: sizes, mean and standard deviation.
    """

    rule: InputConfig

    def __call__(self, items: Sequence[ReferenceItem]) -> tuple[ImageList, list[dict[str, Tensor]]]:
        """Items to one padded batch."""
        rule = self.rule
        transform = GeneralizedRCNNTransform(rule.short_side, rule.long_side, list(rule.mean), list(rule.std))
        images, targets = as_tuples(items)
        batch, resized = transform.train()(list(images), [dict(target) for target in targets])
        assert resized is not None
        return batch, resized
