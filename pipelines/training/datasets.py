"""The annotations that a run learns from and validates on, read the same way by everyone who needs them.

What a model does not need is not looked at: masks without a mask head, keypoints without a keypoint head.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from maskrcnn_core.data.coco.category_ids import with_categories
from maskrcnn_core.data.coco.conversion import Reader
from maskrcnn_core.data.coco.dataset import CocoDataset, dataset_of
from maskrcnn_core.data.coco.json_columns import convert_here
from maskrcnn_core.data.targets import TargetRule
from maskrcnn_core.errors import AnnotationError
from maskrcnn_core.keypoints import pixel_offset
from pipelines import storage
from pipelines.annotations.columns import annotation_columns, conversion
from pipelines.annotations.shared import publish_columns
from pipelines.images.picture_sizes import picture_sizes
from pipelines.images.split_names import splits_to_drop
from pipelines.training.config import TrainRun
from pipelines.training.data_config import DatasetConfig


@dataclass(frozen=True)
class RunData:
    """A data set of a run.

    Attributes:
        paths: where it lies.
        dataset: checked annotations, with the model's category ids.
        notes: what a person should know of them, a line each.
    """

    paths: DatasetConfig
    dataset: CocoDataset
    notes: tuple[str, ...] = ()


def training_data(run: TrainRun, *, fresh: bool = False) -> RunData:
    """What to learn from; where masks are learnt, an object without a usable one is a region to ignore.

    Args:
        fresh: read the annotation file as it is now, whatever the run has published of it: for the driver.

    Raises:
        AnnotationError: the file is wrong.
        StorageError: it cannot be read.
    """
    paths = run.data.train
    dataset = _read(run, paths, fresh=fresh, require_masks=run.model.mask_head.enabled)
    return RunData(paths, dataset, _notes(paths, dataset))


def validation_data(run: TrainRun, *, learnt: bool = False, fresh: bool = False) -> RunData:
    """What to validate on, with the ids of the model's categories, which are known by now.

    Args:
        run: with a validation set.
        learnt: as of the training data, for losses on it; otherwise to be scored.
        fresh: as of `training_data`.

    Raises:
        AnnotationError: the file is wrong, or has categories that the training data lack.
        StorageError: it cannot be read.
    """
    paths = run.data.val
    dataset = _read(run, paths, fresh=fresh, require_masks=learnt and run.model.mask_head.enabled)
    notes = _notes(paths, dataset)
    try:
        dataset, said = with_categories(dataset, run.model.categories)
    except AnnotationError as error:
        raise AnnotationError(f"{paths.annotations}: {error} ({run.data.train.annotations})") from None
    if said:
        notes += (f"{paths.annotations} (here) and {run.data.train.annotations} (there): {said}",)
    return RunData(paths, dataset, notes)


def publish_data(run: TrainRun, data: Iterable[RunData]) -> None:
    """Columns of large annotation files go to the run's folder, where its workers on other machines find them.

    Raises:
        StorageError: the folder cannot be written to.
    """
    columns = {one.paths.annotations: one.dataset.columns for one in data}
    publish_columns(_published(run), columns)


def _published(run: TrainRun) -> str:
    return storage.join(run.output, "annotations")


def _read(run: TrainRun, paths: DatasetConfig, *, fresh: bool, require_masks: bool) -> CocoDataset:
    columns = annotation_columns(
        paths.annotations,
        Reader(sizes=picture_sizes(paths.images)),
        images=paths.images,
        shared="" if fresh else _published(run),
        convert=conversion() if fresh else convert_here,
    )
    masks, keypoints = run.model.mask_head.enabled, run.model.keypoint_head.enabled
    try:
        dataset = dataset_of(columns, require_masks=require_masks, masks=masks, keypoints=keypoints)
    except AnnotationError as error:
        raise AnnotationError(f"{paths.annotations}: {error}") from None
    if not dataset.named_by_url:
        return dataset
    names = (columns.file_name(index) for index in range(len(columns)))
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
