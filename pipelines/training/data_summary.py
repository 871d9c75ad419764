"""What a data set holds, for people: OUTPUT/data.json; and a look at its image files before anything starts."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskrcnn_core.data.coco.category_names import distinct_names
from maskrcnn_core.data.coco.dataset import CocoDataset, CocoImage
from maskrcnn_core.data.coco.entry_faults import FaultKind
from maskrcnn_core.data.decode import decode_image
from maskrcnn_core.errors import ImageError
from pipelines import storage
from pipelines.training.image_files import PatientFiles

_READERS = 16
_FAULTS_SHOWN = 5
_DROPPED_SHOWN = 20
_SIZE_NAMES = ("small (under 32 x 32)", "medium (under 96 x 96)", "large")
_SIZE_LIMITS = (32.0**2, 96.0**2)
_FAULT_NAMES: dict[FaultKind, str] = {
    "image": "images left out",
    "object": "annotations left out",
    "field": "mended boxes, areas, flags or sizes",
    "no mask": "objects without a usable mask",
    "mask": "mended masks",
    "keypoints": "mended keypoints",
}


@dataclass(frozen=True)
class DataSummary:
    """Counts over a data set.

    Attributes:
        images, images_without_objects: number of images, and of those with nothing to learn.
        objects, crowd_regions: number of annotations of each kind.
        objects_per_category: by category name, in the order of the ids.
        objects_per_size: by COCO's three ranges of area, original pixels.
        object_sides: square root of the objects' areas, original pixels: how many lie from each power of two to the
            next.
        objects_per_image: least, median and most.
        image_sides: shortest, median and longest side of the images, pixels.
        dropped: annotations that were left out because they are faulty.
        faults: how many entries are faulty, by what was done: left out (images, annotations), mended, made a region to
            ignore.
        first_dropped: the first of all faulty ones, and why.
    """

    images: int
    images_without_objects: int
    objects: int
    crowd_regions: int
    objects_per_category: dict[str, int]
    objects_per_size: dict[str, int]
    object_sides: dict[str, int]
    objects_per_image: tuple[int, int, int]
    image_sides: tuple[int, int, int]
    dropped: int
    faults: dict[str, int]
    first_dropped: tuple[str, ...]


def summarize(dataset: CocoDataset) -> DataSummary:
    """Count what a data set with at least one image holds."""
    names = distinct_names((category.id, category.name) for category in dataset.categories)
    per_category: Counter[int] = Counter()
    per_range, powers = np.zeros(len(_SIZE_NAMES), np.int64), Counter[int]()
    per_image, crowds = np.zeros(len(dataset.images), np.int64), 0
    for images, batch in dataset.objects():
        single = ~batch.crowds
        crowds += int(batch.crowds.sum())
        ids, counts = np.unique(batch.category_ids[single], return_counts=True)
        per_category.update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
        areas = batch.areas[single]
        per_range += np.bincount(np.digitize(areas, _SIZE_LIMITS), minlength=len(_SIZE_NAMES))
        powers.update(np.log2(np.maximum(np.sqrt(areas), 1.0)).astype(np.int64).tolist())
        np.add.at(per_image, images[single], 1)
    return DataSummary(
        images=len(dataset.images),
        images_without_objects=int(np.count_nonzero(per_image == 0)),
        objects=int(per_image.sum()),
        crowd_regions=crowds,
        objects_per_category={name: per_category[number] for number, name in names.items()},
        objects_per_size=dict(zip(_SIZE_NAMES, per_range.tolist(), strict=True)),
        object_sides={f"{2**power} to {2 ** (power + 1)}": powers[power] for power in sorted(powers)},
        objects_per_image=_spread(per_image),
        image_sides=_spread(dataset.sizes),
        dropped=dataset.faults.counts.get("object", 0),
        faults={_FAULT_NAMES[kind]: count for kind, count in dataset.faults.counts.items()},
        first_dropped=dataset.faults.all_first()[:_DROPPED_SHOWN],
    )


def _spread(values: NDArray[Any]) -> tuple[int, int, int]:
    return int(values.min()), int(np.median(values)), int(values.max())


def write_data_summary(output: str, summaries: dict[str, DataSummary]) -> None:
    """Write OUTPUT/data.json: name of a data set -> its summary."""
    document: dict[str, Any] = {name: asdict(summary) for name, summary in summaries.items()}
    content = json.dumps(document, indent=2, ensure_ascii=False)
    storage.write_bytes_atomically(storage.join(output, "data.json"), content.encode())


def check_images(
    name: str, dataset: CocoDataset, images: str, *, number: int, max_pixels: int, tolerated: int = 0
) -> None:
    """Read and decode images spread evenly over the data set, and compare their sizes with the annotations.

    Args:
        name: of the setting, for messages.
        images: the folder of the file names.
        number: how many images are looked at.
        max_pixels: larger ones are refused.
        tolerated: so many of them may be faulty.

    Raises:
        ImageError: names the first faults, all of one kind or not.
    """
    indices = np.unique(np.linspace(0, len(dataset.images) - 1, min(number, len(dataset.images))).astype(int))
    chosen = [dataset.images[index] for index in indices]
    folder = PatientFiles(images)
    with ThreadPoolExecutor(_READERS) as pool:
        results = list(pool.map(lambda image: _fault_of(image, folder, max_pixels), chosen))
    faults = [fault for fault in results if fault is not None]
    if len(faults) > tolerated:
        more = f"; and {len(faults) - _FAULTS_SHOWN} more" if len(faults) > _FAULTS_SHOWN else ""
        raise ImageError(
            "failed",
            f"{name}: {len(faults)} of {len(chosen)} images looked at cannot be used: "
            f"{'; '.join(faults[:_FAULTS_SHOWN])}{more}; mend them or take them out of the annotation file",
        )


def _fault_of(image: CocoImage, folder: PatientFiles, max_pixels: int) -> str | None:
    where = f"image {image.image_id} ({folder.path(image.file_name)})"
    try:
        height, width = decode_image(folder.read(image.file_name), max_pixels=max_pixels, apply_exif=False).shape[1:]
    except FileNotFoundError:
        return f"{where}: no such file"
    except (OSError, ValueError, ImageError) as error:
        return f"{where}: {error}"
    if (height, width) != (image.height, image.width):
        return (
            f"{where}: the file has {width} x {height} pixels (width x height), the annotation file says "
            f"{image.width} x {image.height}"
        )
    return None
