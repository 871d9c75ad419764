"""Validation in tasks of their own, on resources that training does not use, while training goes on.

A checkpoint that waits to be scored lies in OUTPUT/checkpoints/candidate-00005000. It is published as `best` or
deleted when its score is there. After a crash, the candidates that are left are scored again.

Why not Ray Train's own (`ray.train.ValidationConfig`, Ray 2.60): it scores checkpoints of its list only, which a killed
driver can tear (`checkpoint_store`); a validation that fails is a line in a log, and the run ends well without a score;
an interrupted run does not end before its last validation has.
"""

import copy
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from pyarrow import fs

from maskrcnn_core.model.build import build_detector
from maskrcnn_core.weights.checkpoint import load_checkpoint
from pipelines import storage
from pipelines.training.config import TrainRun
from pipelines.training.datasets import validation_data
from pipelines.training.output import checkpoint_uri
from pipelines.training.proposals import proposals_of
from pipelines.training.validation import PredictedShare, Scores, draw_pictures, predict_share, score_shares
from pipelines.training.validation_losses import mean_losses, sum_losses

_CANDIDATE = "candidate-"


@dataclass(frozen=True)
class TaskResult:
    """What a validation in tasks hands back.

    Attributes:
        scores: of all images.
        pictures: ground truth beside predictions, [H, W, 3] or None.
        losses: mean losses over the validation images.
        seconds: wall time.
    """

    scores: Scores
    pictures: NDArray[np.uint8] | None
    losses: dict[str, float]
    seconds: float


def candidate_uri(output: str, step: int) -> str:
    """Where the checkpoint of a step waits for its score."""
    return checkpoint_uri(output, f"{_CANDIDATE}{step:08d}")


def waiting_candidates(output: str) -> list[int]:
    """Steps whose checkpoints have no score yet."""
    folder = storage.join(output, "checkpoints")
    if not storage.is_folder(folder):
        return []
    filesystem, path = storage.filesystem_and_path(folder)
    names = [Path(info.path).name for info in filesystem.get_file_info(fs.FileSelector(path))]
    return sorted(int(name[len(_CANDIDATE) :]) for name in names if name.startswith(_CANDIDATE))


class PendingValidations:
    """Validations that have been started, in the order of their steps; on one worker of a run."""

    def __init__(self, run: TrainRun) -> None:
        self._run = run
        self._tasks: dict[int, Any] = {}

    def start(self, step: int) -> None:
        """Score the candidate of a step; does not wait."""
        self._tasks[step] = ray.remote(_validate).options(num_cpus=0, max_retries=3).remote(self._run, step)

    def finished(self, *, wait: bool = False) -> Iterator[tuple[int, TaskResult]]:
        """Steps and their results, those that are there; with `wait` all.

        Raises:
            ray.exceptions.RayError: a validation failed for another reason than a lost machine.
        """
        for step, task in sorted(self._tasks.items()):
            if not wait and not ray.wait([task], timeout=0)[0]:
                return
            result = ray.get(task)
            del self._tasks[step]
            yield step, result


def _validate(run: TrainRun, step: int) -> TaskResult:
    """Splits the images among prediction tasks and scores what they found."""
    begin = time.perf_counter()
    number = run.train.validation_tasks
    predict = ray.remote(_predict).options(num_cpus=1, num_gpus=int(run.train.use_gpu), max_retries=3)
    parts: list[tuple[PredictedShare, Any, dict[str, float]]] = ray.get(
        [predict.remote(run, step, rank, number) for rank in range(number)]
    )
    scores = score_shares([share for share, _, _ in parts], run.model, validation_data(run).dataset)
    losses = mean_losses([sums for _, _, sums in parts])
    return TaskResult(scores, parts[0][1], losses, time.perf_counter() - begin)


def _predict(
    run: TrainRun, step: int, rank: int, world_size: int
) -> tuple[PredictedShare, NDArray[np.uint8] | None, dict[str, float]]:
    device = torch.device("cuda" if run.train.use_gpu else "cpu")
    detector = build_detector(run.model, load_pretrained=False)
    with _local_copy(candidate_uri(run.output, step)) as folder:
        detector.load_state_dict(load_checkpoint(folder)[1])
    detector.to(device)
    proposals = proposals_of(run.data.val, "data.val")
    part: dict[str, Any] = {"device": device, "rank": rank, "world_size": world_size, "proposals": proposals}
    sums = sum_losses(copy.deepcopy(detector), run, **part) if run.train.validation_losses else {}
    dataset = validation_data(run).dataset
    max_pixels = run.data.max_pixels
    share = predict_share(
        detector,
        run.model,
        dataset,
        run.data.val,
        precision=run.train.precision,
        max_pixels=max_pixels,
        **part,
    )
    pictures = None
    if rank == 0 and run.train.pictures:
        pictures = draw_pictures(share, dataset, run.data.val, number=run.train.pictures, max_pixels=max_pixels)
    return share, pictures, sums


@contextmanager
def _local_copy(uri: str) -> Iterator[Path]:
    if storage.is_local(uri):
        yield Path(storage.filesystem_and_path(uri)[1])
        return
    with tempfile.TemporaryDirectory(prefix="maskrcnn-candidate-") as folder:
        filesystem, path = storage.filesystem_and_path(uri)
        fs.copy_files(path, folder, source_filesystem=filesystem, destination_filesystem=fs.LocalFileSystem())
        yield Path(folder)


def settle_candidate(output: str, step: int, *, is_best: bool) -> None:
    """Publish a candidate as `best`, or delete it."""
    uri, best = candidate_uri(output, step), checkpoint_uri(output, "best")
    filesystem, path = storage.filesystem_and_path(uri)
    _, target = storage.filesystem_and_path(best)
    if storage.is_local(uri):
        if is_best:
            old = f"{target}.old"
            shutil.rmtree(old, ignore_errors=True)
            if Path(target).exists():
                Path(target).rename(old)
            Path(path).rename(target)
            shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(path, ignore_errors=True)
        return
    for file in storage.list_files(uri) if is_best else ():
        name = file[len("s3://") + len(path) + 1 :]
        filesystem.copy_file(f"{path}/{name}", f"{target}/{name}")
    filesystem.delete_dir(path)
