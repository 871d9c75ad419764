"""`train.batch_size auto`: the largest batch that fits into the memory of a GPU, found by trying.

Two steps are tried of ever more images, each as large as the run's largest and with as many objects as its fullest,
before anything is claimed. The number is then a setting of the run like any other, so that a resumed run has the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import ray
import ray.train.torch
import torch

from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.data.coco.dataset import CocoDataset
from maskrcnn_core.data.dataset import TrainingItem, collate
from maskrcnn_core.data.packed_inputs import InputImage
from maskrcnn_core.data.targets import ImageTargets, TargetRule
from maskrcnn_core.data.transform import fitted_size
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.training.device_feed import pixel_type
from maskrcnn_core.training.seeds import image_seeds
from maskrcnn_core.training.step import training_step
from pipelines.cluster.connection import unwrapped_errors
from pipelines.training.config import TrainConfig, TrainRun
from pipelines.training.datasets import target_rule, training_data
from pipelines.training.job import new_optimizer

_TRIED_STEPS = 2
_USED_SHARE = 0.9
"""Of a GPU's free memory: the rest is for what steps do not show, such as NCCL's buffers and fragments."""
_MOST_TIMES_REFERENCE = 8
_FEWEST_STEPS_PER_EPOCH = 16


@dataclass(frozen=True)
class LargestImage:
    """What an image of the run comes to at most: sides of the network's input, pixels, and number of objects."""

    height: int
    width: int
    objects: int


class DeviceMemory(Protocol):
    """Memory of a device.

    Attributes:
        limit: bytes that may be used.
    """

    limit: int

    def peak_of(self, work: Callable[[], object]) -> int:
        """Most bytes in use while `work` runs; torch.OutOfMemoryError where it does not fit at all."""
        ...


class CudaMemory:
    """Memory of a GPU, of which others may hold a part."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        free, self.total = torch.cuda.mem_get_info(device)
        self.limit = int(_USED_SHARE * free)

    def peak_of(self, work: Callable[[], object]) -> int:
        """As `DeviceMemory` says."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        work()
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_reserved(self._device)


def largest_that_fits(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to `most` that fits, where all smaller ones fit too; 0 where not even 1 does.

    Doubles up to the first that does not, and halves the gap from there: no number is tried twice, and none that is
    more than twice too large.
    """
    fitting, too_large = 0, most + 1
    while fitting + 1 < too_large:
        tried = min(max(1, 2 * fitting), most) if too_large > most else (fitting + too_large) // 2
        if fits(tried):
            fitting = tried
        else:
            too_large = tried
    return fitting


def most_images(settings: TrainConfig, epoch_images: float) -> int:
    """Images a step that are worth trying: the linear rule has its limits, and few steps an epoch teach little."""
    most = min(_MOST_TIMES_REFERENCE * settings.reference_batch_size, int(epoch_images / _FEWEST_STEPS_PER_EPOCH))
    return max(most, settings.num_workers)


def largest_image(run: TrainRun, dataset: CocoDataset) -> LargestImage:
    """The longest sides that any batch of the run is padded to, and the most objects in an image."""
    pixels, settings = run.model.input, run.train
    objects = int(dataset.columns.numbers_of_objects.max())
    if settings.augment.jitter_scale:
        (height, width), objects = settings.augment.crop, objects * (2 if settings.augment.copy_paste else 1)
        return LargestImage(height, width, objects)
    short_side = max(settings.short_sides or (pixels.short_side,))
    if settings.augment.cut_overlaps and pixels.fit == "aspect":
        # A cut may be tall in a wide image, and twice as long as wide.
        longest = min(pixels.long_side, 2 * short_side)
        return LargestImage(longest, longest, objects)
    sizes = [
        fitted_size(height, width, pixels, short_side, pixels.long_side)
        for height, width in np.unique(dataset.sizes, axis=0).tolist()
    ]
    # Images of one orientation share a batch, which is as high and as wide as any of them.
    groups = [[size for size in sizes if (size[0] > size[1]) == upright] for upright in (False, True)]
    sides = [(max(height for height, _ in group), max(width for _, width in group)) for group in groups if group]
    height, width = max(sides, key=lambda size: size[0] * size[1])
    return LargestImage(height, width, objects)


def images_that_fit(run: TrainRun, largest: LargestImage, memory: DeviceMemory, device: torch.device, most: int) -> int:
    """How many images of the largest kind a worker's step may have, `most` at most; 0 where not even one fits.

    Args:
        run: with the model's categories.
        largest: see `largest_image`.
        memory: of `device`.
        most: images that are tried at most.
    """
    detector = build_detector(run.model, load_pretrained=False)
    detector.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = new_optimizer(detector, run.train)
    bfloat16 = run.train.precision == "bfloat16"
    dtype = pixel_type(device, bfloat16=bfloat16, rounds_input=detector.trunk.rounds_input)

    def steps(number: int) -> None:
        items = [_item(largest, run.model, target_rule(run))] * number
        packed, targets, _ = collate(items, run.model.input, dtype)
        images, targets = packed.to(device), targets.to(device)
        targets = replace(targets, seeds=image_seeds(run.train.seed, 0, range(number)).to(device))
        for _ in range(_TRIED_STEPS):
            training_step(
                detector,
                images,
                targets,
                optimizer,
                learning_rate=0.0,
                bfloat16=bfloat16,
                skip_non_finite=True,
                accumulate=min(run.train.accumulate, number),
            )

    def fits(number: int) -> bool:
        try:
            return memory.peak_of(lambda: steps(number)) <= memory.limit
        except torch.OutOfMemoryError:
            return False
        finally:
            optimizer.zero_grad(set_to_none=True)

    return largest_that_fits(fits, most)


def _item(largest: LargestImage, model: ModelConfig, rule: TargetRule) -> TrainingItem:
    """An image of noise with objects of all sizes."""
    generator = torch.Generator().manual_seed(0)
    height, width, objects = largest.height, largest.width, largest.objects
    corners = torch.rand(objects, 2, generator=generator) * torch.tensor([width, height]) * 0.5
    sides = (0.05 + 0.45 * torch.rand(objects, 2, generator=generator)) * torch.tensor([width, height])
    boxes = torch.cat((corners, corners + sides), dim=1)
    grid = (height, width) if rule.mask_size == 0 else (rule.mask_size or 0,) * 2
    targets = ImageTargets(
        boxes,
        torch.zeros(objects, dtype=torch.int64),
        torch.zeros(objects, dtype=torch.bool),
        masks=None if rule.mask_size is None else torch.full((objects, *grid), 255, dtype=torch.uint8),
        mask_boxes=None if rule.mask_size is None else boxes,
        keypoints=_keypoints(boxes, len(model.keypoint_head.names)) if rule.keypoints else None,
    )
    pixels = torch.randn(3, height, width, generator=generator)
    return TrainingItem(InputImage(pixels, (height, width), (height, width)), targets, image_id=0)


def _keypoints(boxes: torch.Tensor, number: int) -> torch.Tensor:
    """Every keypoint visible, in the middle of its object."""
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    visible = torch.full((len(boxes), 1), 2.0)
    return torch.cat((middles, visible), dim=1)[:, None].repeat(1, number, 1)


def find_batch_size(run: TrainRun, epoch_images: float) -> tuple[int, str]:
    """The batch size of a new run, and a line that says how it came about.

    Args:
        run: with `train.batch_size` auto and the model's categories.
        epoch_images: images that an epoch shows.

    Raises:
        ConfigError: not even one image fits.
    """
    settings = run.train
    if not settings.use_gpu:
        number = max(settings.reference_batch_size, settings.num_workers)
        return number, f"train.batch_size auto: {number}, as there is no GPU to try it on (train.reference_batch_size)"
    workers = settings.min_workers or settings.num_workers  # those that are left may have to do it alone
    most = most_images(settings, epoch_images)
    remote: Any = ray.remote(num_cpus=1, num_gpus=1, max_calls=1)(_try_on_gpu)
    with unwrapped_errors():
        each, largest, memory = ray.get(remote.remote(run, -(-most // workers)))
    what = f"{largest.height} x {largest.width} pixels with up to {largest.objects} objects"
    if each == 0:
        raise ConfigError(
            f"train.batch_size: not even one image of {what} fits into the {memory:.0f} GiB of a GPU; expected a "
            "smaller model.input.short_side, train.precision bfloat16, or a larger GPU"
        )
    number = max(min(each * workers, most), settings.num_workers)
    return number, f"train.batch_size auto: {number}; {each} images of {what} fit into {memory:.0f} GiB"


def _try_on_gpu(run: TrainRun, most: int) -> tuple[int, LargestImage, float]:
    """Images that fit, of which kind, and the GPU's memory in GiB; in a task on a GPU."""
    device = torch.device("cuda")
    memory = CudaMemory(device)
    largest = largest_image(run, training_data(run).dataset)
    return images_that_fit(run, largest, memory, device, most), largest, memory.total / 2**30
