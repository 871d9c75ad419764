"""The annotations that a run learns from and validates on, read the same way by everyone who needs them.

What a model does not need is not looked at: masks without a mask head, keypoints without a keypoint head.
"""

from dataclasses import dataclass, replace

from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.data.coco.dataset import CocoDataset, load_coco, with_categories
from maskrcnn_core.data.targets import TargetRule
from maskrcnn_core.errors import AnnotationError
from maskrcnn_core.keypoints import pixel_offset
from pipelines.images.picture_sizes import picture_sizes
from pipelines.images.split_names import splits_to_drop
from pipelines.training.config import DatasetConfig, TrainRun


@dataclass(frozen=True)
class RunData:
    """A data set of a run.

    Attributes:
        dataset: checked annotations, with the model's category ids.
        notes: what a person should know of them, a line each.
    """

    dataset: CocoDataset
    notes: tuple[str, ...] = ()


def training_data(run: TrainRun) -> RunData:
    """What to learn from; where masks are learnt, an object without a usable one is a region to ignore.

    Raises:
        AnnotationError: the file is wrong.
        StorageError: it cannot be read.
    """
    paths = run.data.train
    dataset = _read(paths, run.model, require_masks=run.model.mask_head.enabled)
    return RunData(dataset, _notes(paths, dataset))


def validation_data(run: TrainRun, *, learnt: bool = False) -> RunData:
    """What to validate on, with the ids of the model's categories, which are known by now.

    Args:
        run: with a validation set.
        learnt: as of the training data, for losses on it; otherwise to be scored.

    Raises:
        AnnotationError: the file is wrong, or has categories that the training data lack.
        StorageError: it cannot be read.
    """
    paths = run.data.val
    dataset = _read(paths, run.model, require_masks=learnt and run.model.mask_head.enabled)
    notes = _notes(paths, dataset)
    try:
        dataset, said = with_categories(dataset, run.model.categories)
    except AnnotationError as error:
        raise AnnotationError(f"{paths.annotations}: {error} ({run.data.train.annotations})") from None
    if said:
        notes += (f"{paths.annotations} (here) and {run.data.train.annotations} (there): {said}",)
    return RunData(dataset, notes)


def _read(paths: DatasetConfig, model: ModelConfig, *, require_masks: bool) -> CocoDataset:
    dataset = load_coco(
        paths.annotations,
        require_masks=require_masks,
        masks=model.mask_head.enabled,
        keypoints=model.keypoint_head.enabled,
        on_fault="drop",
        size_of=picture_sizes(paths.images),
    )
    if not dataset.named_by_url:
        return dataset
    names = (dataset.columns.file_name(index) for index in range(len(dataset.images)))
    return replace(dataset, split_folders=splits_to_drop(paths.images, names))


def _notes(paths: DatasetConfig, dataset: CocoDataset) -> tuple[str, ...]:
    return tuple(f"{paths.annotations}: {line}" for line in dataset.faults.lines())


def target_rule(run: TrainRun) -> TargetRule:
    """What the model learns of each object."""
    masks, keypoints = run.model.mask_head, run.model.keypoint_head
    return TargetRule(
        mask_size=run.train.mask_crop if masks.enabled else None,
        keypoints=keypoints.enabled,
        keypoint_offset=pixel_offset(keypoints.decode),
    )
