"""Accuracy against speed: every combination of checkpoint, input size and number of proposals labels the images and is
scored, as in Huang et al., CVPR 2017 ("Speed/accuracy trade-offs for modern convolutional object detectors")."""

import csv
import io
import json
import multiprocessing
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.errors import AnnotationError, ConfigError, StorageError
from maskrcnn_core.evaluation.coco import evaluate_coco
from maskrcnn_core.inference.predictor import Predictor
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.records.labels import ImageRecord, record_schema, records_to_table
from maskrcnn_core.weights.checkpoint import load_checkpoint
from maskrcnn_core.weights.checkpoint_config import load_config
from pipelines import storage
from pipelines.benchmarks.config import TradeoffRun
from pipelines.benchmarks.peer import machine
from pipelines.benchmarks.tradeoff_plot import draw_tradeoff
from pipelines.evaluation.run import load_annotations

_WARM_UP = 2  # images
_SIDE_STEP = 32  # pixels
_CSV_MEASURES = ("milliseconds", "megabytes", "detections", "on_front")


@dataclass(frozen=True)
class Setting:
    """One combination.

    Attributes:
        checkpoint: folder.
        trunk: its network.
        short_side: of the network's input, pixels.
        proposals: that reach the heads; 0 of a one-stage detector.
    """

    checkpoint: str
    trunk: str
    short_side: int
    proposals: int


@dataclass(frozen=True)
class TradeoffPoint:
    """What one combination gives and costs.

    Attributes:
        setting: the combination.
        ap: COCO's AP by iou type (`bbox`, `segm`, `keypoints`).
        milliseconds: from encoded image to record, median over images and rounds, one image at a time, by
            `TradeoffRun.clock`.
        megabytes: peak memory: of the GPU where it computes, else of the process (resident).
        detections: mean of an image.
        ap50: AP at an IoU of .5, by iou type.
        on_front: no other combination is at least as fast and at least as accurate (`primary_ap`), and better in one.
    """

    setting: Setting
    ap: dict[str, float]
    milliseconds: float
    megabytes: float
    detections: float
    on_front: bool = False
    ap50: dict[str, float] = field(default_factory=dict)

    @property
    def primary_ap(self) -> float:
        """Of masks where there are some, else of boxes."""
        return self.ap.get("segm", self.ap["bbox"])


@dataclass(frozen=True)
class Tradeoff:
    """The whole sweep.

    Attributes:
        points: in the order of measurement.
        images: labelled and scored for each.
        machine: what it ran on.
        files: that were written.
    """

    points: tuple[TradeoffPoint, ...]
    images: int
    machine: str
    files: tuple[str, ...]


def benchmark_tradeoff(run: TradeoffRun, on_point: Callable[[TradeoffPoint, int], None] | None = None) -> Tradeoff:
    """Measure every combination, and write table and plot to the run's output folder.

    Each combination runs in a process of its own, so that its peak memory is its own.

    Args:
        run: what to measure.
        on_point: called after each combination with the point and the number of all.

    Raises:
        CheckpointError: a checkpoint cannot be used.
        ConfigError: a checkpoint makes no proposals of its own.
        StorageError: images or annotations are missing, or the output cannot be written.
        AnnotationError: the annotations are wrong.
    """
    require_folder(run.output)
    settings = combinations(run)
    annotations = annotations_of(run)
    files = files_of(run, annotations)
    points: list[TradeoffPoint] = []
    for setting in settings:
        records, seconds, megabytes = measure_apart(setting, run, files)
        point = scored(setting, run, annotations, records, seconds, megabytes)
        points.append(point)
        if on_point is not None:
            on_point(point, len(settings))
    points = mark_front(points)
    torch.set_num_threads(run.threads or os.cpu_count() or 1)  # for the line about the machine
    tradeoff = Tradeoff(tuple(points), len(files), machine(), ())
    return replace(tradeoff, files=_write(run, tradeoff))


def require_folder(output: str) -> None:
    """Table and plot can go there.

    Raises:
        StorageError: it is a file.
    """
    if storage.exists(output) and not storage.is_folder(output):
        raise StorageError(f"{output}: output is a file; expected the name of a folder for table and plot")


def combinations(run: TradeoffRun) -> list[Setting]:
    """All settings to measure, checkpoint by checkpoint, from the fastest up.

    Raises:
        CheckpointError, ConfigError: as `benchmark_tradeoff`.
    """
    settings = []
    for checkpoint in run.checkpoints:
        config = load_config(checkpoint)
        if not config.dense.enabled or config.finds != "detections":
            raise ConfigError(f"checkpoint: {checkpoint} is no detector with proposals of its own; expected one")
        for side in run.short_sides or _shares(config.input.short_side, (0.5, 0.75, 1.0), _SIDE_STEP):
            for proposals in _numbers_of_proposals(config, run):
                settings.append(Setting(checkpoint, config.backbone.name, side, proposals))
    return settings


def _shares(whole: int, shares: Sequence[float], step: int) -> list[int]:
    """Shares of a number, rounded to a step; each once."""
    return sorted({whole if share == 1.0 else max(step, round(share * whole / step) * step) for share in shares})


def mark_front(points: Sequence[TradeoffPoint]) -> list[TradeoffPoint]:
    """The same points, with `on_front` set."""

    def beaten(point: TradeoffPoint) -> bool:
        mine = (-point.milliseconds, point.primary_ap)
        theirs = [(-other.milliseconds, other.primary_ap) for other in points]
        return any(one != mine and one[0] >= mine[0] and one[1] >= mine[1] for one in theirs)

    return [replace(point, on_front=not beaten(point)) for point in points]


def annotations_of(run: TradeoffRun) -> dict[str, Any]:
    """The annotation file, cut to the images that are used."""
    truth = load_annotations(run.annotations)
    try:
        images = list(truth.images.values())[: run.num_images or None]
        if not images:
            raise AnnotationError("there are no images; expected some to measure")
        nameless = [image["id"] for image in images if not image.get("file_name")]
        if nameless:
            raise AnnotationError(f"image {nameless[0]} has no file_name")
    except AnnotationError as error:
        raise AnnotationError(f"{run.annotations}: {error}") from error
    ids = {image["id"] for image in images}
    kept = [entry for entry in truth.entries if entry["image_id"] in ids]
    return {"images": images, "annotations": kept, "categories": list(truth.categories)}


def files_of(run: TradeoffRun, annotations: dict[str, Any]) -> list[str]:
    """The images of the annotations, which are there."""
    files = [storage.join(run.images, image["file_name"]) for image in annotations["images"]]
    missing = [file for file in files if not storage.exists(file)]
    if missing:
        raise StorageError(f"images: {missing[0]} is missing; expected the folder of the annotations' file names")
    return files


Measured = tuple[list[ImageRecord], list[float], float]


def measure_apart(setting: Setting, run: TradeoffRun, files: Sequence[str]) -> Measured:
    """`measure` in a process of its own, whose peak memory is its own.

    Raises:
        ConfigError: that process was killed.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure, setting, run, files).result()
        except BrokenProcessPool as error:
            raise ConfigError(
                f"short_sides, proposals: the process for {setting.short_side} pixels and {setting.proposals} "
                "proposals was killed, most likely for its memory; leave this combination out"
            ) from error


def measure(setting: Setting, run: TradeoffRun, files: Sequence[str]) -> Measured:
    """Label the images in this process, one at a time.

    Returns:
        A record for each image, seconds of each image in each round, and the peak memory in megabytes.
    """
    torch.set_num_threads(run.threads or os.cpu_count() or 1)
    config, state = load_checkpoint(setting.checkpoint)
    detector = build_detector(_with_proposals(config, setting.proposals), load_pretrained=False)
    detector.load_state_dict(state)
    predictor = Predictor(
        detector,
        _with_proposals(config, setting.proposals),
        PredictorSettings(
            device="cuda" if run.use_gpu else "cpu",
            precision=run.precision,
            test_short_sides=(setting.short_side,),
            apply_exif=False,
        ),
    )
    contents = [storage.read_bytes(file) for file in files]
    for content in contents[:_WARM_UP]:
        predictor.predict([content])
    clock = time.process_time if run.clock == "cpu" else time.perf_counter
    records: list[ImageRecord] = []
    seconds: list[float] = []
    for _ in range(run.rounds):
        records = []
        for content in contents:
            started = clock()
            records += predictor.predict([content])  # records lie on the host: the device has finished
            seconds.append(clock() - started)
    return records, seconds, _peak_megabytes(run.use_gpu)


def _numbers_of_proposals(config: ModelConfig, run: TradeoffRun) -> Sequence[int]:
    if config.dense.finds == "detections":
        return (0,)
    return run.proposals or _shares(config.dense.post_nms_test, (0.1, 1 / 3, 1.0), 1)


def _with_proposals(config: ModelConfig, proposals: int) -> ModelConfig:
    if proposals == 0:
        return config
    before_nms = max(config.dense.pre_nms_test, proposals)
    return replace(config, dense=replace(config.dense, post_nms_test=proposals, pre_nms_test=before_nms))


def _peak_megabytes(use_gpu: bool) -> float:
    if use_gpu:
        return torch.cuda.max_memory_allocated() / 1e6
    try:
        # Not getrusage: a process starts with its parent's peak there.
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    except (OSError, IndexError):  # not Linux
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def scored(
    setting: Setting,
    run: TradeoffRun,
    annotations: dict[str, Any],
    records: Sequence[ImageRecord],
    seconds: Sequence[float],
    megabytes: float,
) -> TradeoffPoint:
    """The point of a combination that was measured; arguments as `measure` takes and gives them."""
    failed = [record for record in records if record.status != "ok"]
    if failed:
        raise StorageError(f"images: {len(failed)} cannot be labelled; the first: {failed[0].error}")
    ids = [image["id"] for image in annotations["images"]]
    names = [image["file_name"] for image in annotations["images"]]
    table = records_to_table(ids, names, records, "", record_schema(load_config(setting.checkpoint).categories))
    scores = evaluate_coco(annotations, table, max_detections=run.max_detections)
    return TradeoffPoint(
        setting=setting,
        ap={iou_type: stats[0] for iou_type, stats in scores.stats.items()},
        ap50={iou_type: stats[1] for iou_type, stats in scores.stats.items()},
        milliseconds=1e3 * statistics.median(seconds),
        megabytes=megabytes,
        detections=statistics.mean(len(record.detections) for record in records),
    )


def _write(run: TradeoffRun, tradeoff: Tradeoff) -> tuple[str, ...]:
    """Table as JSON and CSV, plot as PNG and SVG."""
    document = {
        "points": [asdict(point) for point in tradeoff.points],
        "images": tradeoff.images,
        "rounds": run.rounds,
        "max_detections": run.max_detections,
        "precision": run.precision,
        "clock": run.clock,
        "machine": tradeoff.machine,
        "annotations": run.annotations,
    }
    series = _series_names(tradeoff.points)
    pictures = draw_tradeoff(
        [
            (
                series[point.setting.checkpoint],
                point.setting.short_side,
                point.setting.proposals,
                point.milliseconds,
                point.primary_ap,
            )
            for point in tradeoff.points
        ],
        [point.on_front for point in tradeoff.points],
        "mask AP" if all("segm" in point.ap for point in tradeoff.points) else "box AP",
        "milliseconds per image (median" + (", processor time)" if run.clock == "cpu" else ")"),
    )
    contents = {
        "tradeoff.json": json.dumps(document, indent=2).encode() + b"\n",
        "tradeoff.csv": _csv(tradeoff.points),
        **{f"tradeoff.{ending}": picture for ending, picture in pictures.items()},
    }
    for name, content in contents.items():
        storage.write_bytes_atomically(storage.join(run.output, name), content)
    return tuple(storage.join(run.output, name) for name in contents)


def _series_names(points: Sequence[TradeoffPoint]) -> dict[str, str]:
    """By checkpoint its trunk, and the folder as well where several have the same trunk."""
    trunks = {point.setting.checkpoint: point.setting.trunk for point in points}
    several = {trunk for trunk, count in Counter(trunks.values()).items() if count > 1}
    return {folder: f"{trunk}, {folder}" if trunk in several else trunk for folder, trunk in trunks.items()}


def _csv(points: Sequence[TradeoffPoint]) -> bytes:
    iou_types = sorted({iou_type for point in points for iou_type in point.ap})
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(
        (
            *("checkpoint", "trunk", "short_side", "proposals"),
            *(f"ap_{iou_type}" for iou_type in iou_types),
            *_CSV_MEASURES,
        )
    )
    for point in points:
        table.writerow(
            (
                *asdict(point.setting).values(),
                *(point.ap.get(iou_type, "") for iou_type in iou_types),
                *(point.milliseconds, point.megabytes, point.detections, int(point.on_front)),
            )
        )
    return text.getvalue().encode()
