"""The tutorial's landscape with numbers: systems of one stage and of more in one table and one plot, each at its own
settings."""

import csv
import io
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.weights.checkpoint_config import load_config
from pipelines import storage
from pipelines.benchmarks.config import TradeoffRun
from pipelines.benchmarks.landscape_config import LandscapeRun
from pipelines.benchmarks.landscape_plot import draw_landscape
from pipelines.benchmarks.peer import machine
from pipelines.benchmarks.tradeoff import (
    Setting,
    TradeoffPoint,
    annotations_of,
    files_of,
    mark_front,
    measure_apart,
    require_folder,
    scored,
)


@dataclass(frozen=True)
class LandscapePoint:
    """What a system gives and costs.

    Attributes:
        name: of the system.
        stages: 1, or 2 where a region stage finds the boxes.
        point: the measurement; `on_front` is by box AP, which all systems have.
    """

    name: str
    stages: int
    point: TradeoffPoint


@dataclass(frozen=True)
class Landscape:
    """The whole comparison.

    Attributes:
        points: in the order of the checkpoints.
        images: labelled and scored for each.
        machine: what it ran on.
        files: that were written.
    """

    points: tuple[LandscapePoint, ...]
    images: int
    machine: str
    files: tuple[str, ...]


def benchmark_landscape(run: LandscapeRun, on_point: Callable[[LandscapePoint, int], None] | None = None) -> Landscape:
    """Measure every system in a process of its own, and write table and plot to the run's output folder.

    Args:
        run: what to measure.
        on_point: called after each system with the point and the number of all.

    Raises:
        CheckpointError: a checkpoint cannot be used.
        ConfigError: a checkpoint makes no detections of its own.
        StorageError: images or annotations are missing, or the output cannot be written.
        AnnotationError: the annotations are wrong.
    """
    require_folder(run.output)
    systems = _systems(run)
    sweep = _as_sweep(run)
    annotations = annotations_of(sweep)
    files = files_of(sweep, annotations)
    points = []
    for name, stages, setting in systems:
        records, seconds, megabytes = measure_apart(setting, sweep, files)
        points.append(LandscapePoint(name, stages, scored(setting, sweep, annotations, records, seconds, megabytes)))
        if on_point is not None:
            on_point(points[-1], len(systems))
    by_boxes = [replace(one.point, ap={"bbox": one.point.ap["bbox"]}) for one in points]
    fronts = [point.on_front for point in mark_front(by_boxes)]
    points = [replace(one, point=replace(one.point, on_front=front)) for one, front in zip(points, fronts, strict=True)]
    torch.set_num_threads(run.threads or os.cpu_count() or 1)  # for the line about the machine
    landscape = Landscape(tuple(points), len(files), machine(), ())
    return replace(landscape, files=_write(run, landscape))


def _systems(run: LandscapeRun) -> list[tuple[str, int, Setting]]:
    """Name, stages and own setting of each checkpoint."""
    systems = []
    for name, folder in run.systems:
        config = load_config(folder)
        if not config.dense.enabled or config.finds != "detections":
            raise ConfigError(f"checkpoint: {folder} is no detector with proposals of its own; expected one")
        one_stage = config.dense.finds == "detections"
        setting = Setting(
            folder, config.backbone.name, config.input.short_side, 0 if one_stage else config.dense.post_nms_test
        )
        systems.append((name or f"{config.backbone.name}, {folder}", 1 if one_stage else 2, setting))
    return systems


def _as_sweep(run: LandscapeRun) -> TradeoffRun:
    """The settings that the two benchmarks share."""
    return TradeoffRun(
        checkpoint=",".join(folder for _, folder in run.systems),
        images=run.images,
        annotations=run.annotations,
        output=run.output,
        num_images=run.num_images,
        rounds=run.rounds,
        max_detections=run.max_detections,
        use_gpu=run.use_gpu,
        precision=run.precision,
        threads=run.threads,
        clock=run.clock,
    )


def _write(run: LandscapeRun, landscape: Landscape) -> tuple[str, ...]:
    """Table as JSON and CSV, plot as PNG and SVG."""
    document = {
        "points": [asdict(one) for one in landscape.points],
        "images": landscape.images,
        "rounds": run.rounds,
        "max_detections": run.max_detections,
        "precision": run.precision,
        "clock": run.clock,
        "machine": landscape.machine,
        "annotations": run.annotations,
    }
    pictures = draw_landscape(
        [(one.name, one.stages, one.point.milliseconds, one.point.ap["bbox"]) for one in landscape.points],
        "milliseconds per image (median" + (", processor time)" if run.clock == "cpu" else ")"),
    )
    contents = {
        "landscape.json": json.dumps(document, indent=2).encode() + b"\n",
        "landscape.csv": _csv(landscape),
        **{f"landscape.{ending}": picture for ending, picture in pictures.items()},
    }
    for name, content in contents.items():
        storage.write_bytes_atomically(storage.join(run.output, name), content)
    return tuple(storage.join(run.output, name) for name in contents)


def _csv(landscape: Landscape) -> bytes:
    iou_types = sorted({iou_type for one in landscape.points for iou_type in one.point.ap})
    measures = ("milliseconds", "megabytes", "detections")
    text = io.StringIO()
    table = csv.writer(text)
    scores = [f"{score}_{iou_type}" for iou_type in iou_types for score in ("ap", "ap50")]
    table.writerow(("system", "stages", "short_side", "proposals", *scores, *measures, "on_front"))
    for one in landscape.points:
        point = one.point
        table.writerow(
            (
                *(one.name, one.stages, point.setting.short_side, point.setting.proposals),
                *(part.get(iou_type, "") for iou_type in iou_types for part in (point.ap, point.ap50)),
                *(getattr(point, measure) for measure in measures),
                int(point.on_front),
            )
        )
    return text.getvalue().encode()
