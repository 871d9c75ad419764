"""What can be wrong with the data of a run, looked for before it starts."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from maskrcnn_core.config.heads import KeypointHeadConfig
from maskrcnn_core.data.coco.dataset import CocoDataset
from maskrcnn_core.data.files import located
from maskrcnn_core.errors import AnnotationError, ConfigError, StorageError
from pipelines import storage
from pipelines.training.bad_images import most_by_chance
from pipelines.training.config import TrainRun
from pipelines.training.data_config import DatasetConfig
from pipelines.training.data_summary import check_images
from pipelines.training.datasets import RunData, training_data, validation_data
from pipelines.training.proposals import check_proposal_settings, proposals_of


def check_data(run: TrainRun) -> dict[str, RunData]:
    """Read the annotations and look for the first image of each data set.

    Returns:
        What was read, by the name of its setting: `data.train`, and `data.val` where it is given.

    Raises:
        ConfigError: a data set is not given, or the model's own categories are others.
        AnnotationError: a file is faulty or empty, there is nothing to learn, or validation has categories of its own.
        StorageError: a file or folder is missing.
    """
    data = run.data
    check_proposal_settings(run)
    _require_given("data.train", data.train)
    datasets = {"data.train": training_data(run, fresh=True)}
    dataset = datasets["data.train"].dataset
    _check_dataset("data.train", data.train, dataset)
    _require_objects(data.train, dataset, masks=run.model.mask_head.enabled)
    if run.model.keypoint_head.enabled:
        _check_keypoints(run.model.keypoint_head, dataset, data.train.annotations)
    if run.model.categories and run.model.categories != dataset.categories:
        raise ConfigError(
            f"model.categories: differ from those of {data.train.annotations}; leave them out, training takes them "
            "from the annotation file"
        )
    if data.val.annotations or data.val.images:
        _require_given("data.val", data.val)
        known = replace(run, model=replace(run.model, categories=dataset.categories))
        validation = validation_data(known, fresh=True)
        _check_dataset("data.val", data.val, validation.dataset)
        _require_annotations(data.val, validation.dataset)
        datasets["data.val"] = replace(
            validation, notes=validation.notes + _nothing_to_score(data.val, validation.dataset)
        )
    return datasets


def check_run_images(run: TrainRun, data: Mapping[str, RunData]) -> None:
    """Read some images of each data set (`data.check_images`) before a new run starts.

    Raises:
        ImageError: more of them cannot be used than `data.max_bad_fraction` lets expect.
    """
    for name, paths in (("data.train", run.data.train), ("data.val", run.data.val)):
        if run.data.check_images and name in data:
            number, most = run.data.check_images, run.data.max_pixels
            tolerated = int(most_by_chance(min(number, len(data[name].dataset.images)), run.data.max_bad_fraction))
            check_images(name, data[name].dataset, paths.images, number=number, max_pixels=most, tolerated=tolerated)


def _check_keypoints(head: KeypointHeadConfig, dataset: CocoDataset, annotations: str) -> None:
    if dataset.keypoint_names != head.names:
        raise ConfigError(
            f"model.keypoint_head.names: {len(head.names)} names ({', '.join(head.names)}), but {annotations} has "
            f"{len(dataset.keypoint_names)} ({', '.join(dataset.keypoint_names)}); expected the same in one order, "
            "or model.keypoint_head.enabled false"
        )
    missing = [name for name in head.categories if name not in dataset.keypoint_categories]
    if missing:
        raise ConfigError(
            f"model.keypoint_head.categories: {missing[0]!r} has no keypoints in {annotations}, expected some of "
            f"{', '.join(dataset.keypoint_categories)}"
        )


def _require_given(name: str, paths: DatasetConfig) -> None:
    for field in ("images", "annotations"):
        if not getattr(paths, field):
            raise ConfigError(f"{name}.{field}: not given, expected a {'folder' if field == 'images' else 'COCO file'}")


def _require_objects(paths: DatasetConfig, dataset: CocoDataset, *, masks: bool) -> None:
    """Regions to ignore teach nothing: neither what is there, nor what is not."""
    if _objects(dataset):
        return
    _require_annotations(paths, dataset)
    regions = int(dataset.columns.numbers_of_objects.sum())
    why = "; ".join(dataset.faults.lines())
    what = "is a crowd (iscrowd 1)" + (" or has no mask" if masks else "")
    mend = ", give masks, or set model.mask_head.enabled false" if masks else ""
    raise AnnotationError(
        f"{paths.annotations}: there is nothing to learn, every one of its {regions} annotations {what}"
        f"{f' ({why})' if why else ''}; set iscrowd to 0 where an annotation is one object{mend}"
    )


def _require_annotations(paths: DatasetConfig, dataset: CocoDataset) -> None:
    if not dataset.columns.numbers_of_objects.any():
        why = "; ".join(dataset.faults.lines())
        raise AnnotationError(
            f"{paths.annotations}: no usable annotation{f' ({why})' if why else ''}, expected at least one"
        )


def _nothing_to_score(paths: DatasetConfig, dataset: CocoDataset) -> tuple[str, ...]:
    if _objects(dataset):
        return ()
    return (f"{paths.annotations}: there is nothing to score on: no annotation is an object (iscrowd 0)",)


def _objects(dataset: CocoDataset) -> int:
    return sum(int(np.count_nonzero(~batch.crowds)) for _, batch in dataset.objects())


def _check_dataset(name: str, paths: DatasetConfig, dataset: CocoDataset) -> None:
    if not dataset.images:
        raise AnnotationError(f"{paths.annotations}: section 'images' is empty, expected at least one image")
    if (proposals := proposals_of(paths, name)) is not None:
        proposals.require(dataset.columns.image_ids.tolist())
    first = located(paths.images, dataset.images[0].file_name)
    if not storage.exists(first):
        raise StorageError(
            f"{first}: no such file, but {paths.annotations} lists it; {name}.images has to be the folder that the "
            "file names in the annotations are relative to"
        )
