"""Scoring against plain pycocotools: CPU time and peak memory of whole jobs on a generated data set.

Each job is a process of its own, from its start to the printed numbers: reading, matching, accumulating. CPU time
counts all of its threads, so that an engine with threads gains nothing by them here.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pycocotools import mask as coco_mask

from maskrcnn_core.config.model import Category
from maskrcnn_core.records.labels import record_schema
from pipelines.benchmarks.config import EvaluationBenchmarkRun

HEIGHT, WIDTH = 480, 640
_CATEGORIES = 80
_OBJECTS = 7.3  # of an image of COCO val2017
_BLOCK = 500  # images whose shapes are drawn once and come again with other scores and categories
_CORNERS = 24
_IOU_TYPES = ("bbox", "segm")

_PEER = """
import json, sys
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
annotations, results = sys.argv[1:3]
stats = {}
for iou_type in ("bbox", "segm"):
    truth = COCO(annotations)
    evaluation = COCOeval(truth, truth.loadRes(results.format(iou_type)), iou_type)
    evaluation.evaluate(); evaluation.accumulate(); evaluation.summarize()
    stats[iou_type] = evaluation.stats.tolist()
    del truth, evaluation
json.dump({"stats": stats}, open(sys.argv[3], "w"))
"""


@dataclass(frozen=True)
class JobCost:
    """Medians over the rounds.

    Attributes:
        cpu_seconds: of all threads.
        wall_seconds: from start to end.
        peak_bytes: most resident memory.
    """

    cpu_seconds: float
    wall_seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class EvaluationComparison:
    """Two ways to score boxes and masks of the same labels.

    Attributes:
        images, detections, objects: of the data set.
        ours, peer: costs; the peer's None where it was not asked for.
        equal: all 24 numbers of both are equal in every bit; None without a peer.
        rounds: how often each was measured.
    """

    images: int
    detections: int
    objects: int
    ours: JobCost
    peer: JobCost | None
    equal: bool | None
    rounds: int


def benchmark_evaluate(run: EvaluationBenchmarkRun) -> EvaluationComparison:
    """Measure jobs.evaluate, and pycocotools if wanted, on the same labels, in turns."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        objects = generate_scoring(folder, run.images, run.detections, with_results=run.peer)
        generate_scoring(folder / "small", 2, 10, with_results=run.peer)
        compiled = str(folder / "compiled")
        costs: dict[str, list[JobCost]] = {"ours": [], "peer": []}
        # The first round is small and compiles Python's modules, once for all rounds.
        for path in (folder / "small", *[folder] * run.rounds):
            costs["ours"].append(_cost(_our_command(path, run), compiled))
            if run.peer:
                costs["peer"].append(_cost(_peer_command(path), compiled))
        stats = [
            json.loads((folder / name).read_text())["stats"]
            for name in ("ours.json", "peer.json")
            if (folder / name).exists()
        ]
    return EvaluationComparison(
        run.images,
        run.images * run.detections,
        objects,
        _median(costs["ours"][1:]),
        _median(costs["peer"][1:]) if run.peer else None,
        stats[0] == stats[1] if run.peer else None,
        run.rounds,
    )


def generate_scoring(folder: Path, images: int, detections: int, *, with_results: bool, seed: int = 0) -> int:
    """Write annotations and labels like those of COCO val2017: 80 categories, 7.3 objects an image with polygons.

    Some detections lie about objects, most of these in their category; the others anywhere. Many scores are equal.

    Args:
        folder: gets `val.json`, `labels/*.parquet` and, `with_results`, `results-bbox.json` and `results-segm.json`.
        images: how many.
        detections: of each.
        with_results: also as COCO results, for pycocotools.
        seed: of the shapes.

    Returns:
        Number of annotated objects.
    """
    random = np.random.default_rng(seed)
    block = [_draw_image(random, detections) for _ in range(min(_BLOCK, images))]
    (folder / "labels").mkdir(parents=True)
    annotations: list[dict[str, Any]] = []
    names = [Category(number, f"category {number}") for number in range(1, _CATEGORIES + 1)]
    results = {
        iou_type: (folder / f"results-{iou_type}.json").open("w") for iou_type in (_IOU_TYPES if with_results else ())
    }
    for start in range(0, images, _BLOCK):
        count = min(_BLOCK, images - start)
        rows = [_draw_labels(random, shapes) for shapes in block[:count]]
        for offset, (shapes, (categories, _, _)) in enumerate(zip(block, rows, strict=False)):
            annotations += _annotations(shapes, categories, start + offset + 1, len(annotations) + 1)
        table = _label_table(block[:count], rows, start + 1, names)
        pq.write_table(table, folder / "labels" / f"{start:08d}.parquet")
        for iou_type, file in results.items():
            for text in _results(block[:count], rows, start + 1, iou_type):
                file.write(("[" if file.tell() == 0 else ",\n") + text)
    for file in results.values():
        file.write("]")
        file.close()
    document = {
        "images": [{"id": number, "width": WIDTH, "height": HEIGHT} for number in range(1, images + 1)],
        "categories": [{"id": category.id, "name": category.name} for category in names],
        "annotations": annotations,
    }
    (folder / "val.json").write_text(json.dumps(document))
    return len(annotations)


@dataclass(frozen=True)
class _Shapes:
    """Objects and detections of one image.

    Attributes:
        polygons, areas, crowds: of the objects.
        boxes: [D, 4] float32; masks: run lengths.
        object_of: [D] index of the object that a detection lies about, or -1.
    """

    polygons: list[list[float]]
    areas: list[float]
    crowds: list[bool]
    boxes: npt.NDArray[np.float32]
    masks: list[str]
    object_of: npt.NDArray[np.int64]


def _draw_image(random: np.random.Generator, detections: int) -> _Shapes:
    count = min(int(random.geometric(1 / (_OBJECTS + 1))) - 1, 60)
    sizes = np.clip(random.lognormal(4.0, 0.9, (count, 2)), 6, 400)
    centers = random.uniform((0, 0), (WIDTH, HEIGHT), (count, 2))
    object_of = np.where(random.random(detections) < 0.4, random.integers(0, max(count, 1), detections), -1)
    object_of = object_of if count else np.full(detections, -1)
    about = object_of >= 0
    detection_centers = random.uniform((0, 0), (WIDTH, HEIGHT), (detections, 2))
    detection_sizes = np.clip(random.lognormal(4.0, 0.9, (detections, 2)), 6, 400)
    detection_centers[about] = (
        centers[object_of[about]] + random.normal(0, 0.06, (about.sum(), 2)) * sizes[object_of[about]]
    )
    detection_sizes[about] = sizes[object_of[about]] * random.lognormal(0, 0.12, (about.sum(), 2))
    outlines = _ellipses(centers, sizes)
    detection_outlines = _ellipses(detection_centers, detection_sizes)
    runs = coco_mask.frPyObjects(detection_outlines.reshape(detections, -1).tolist(), HEIGHT, WIDTH)
    low, high = detection_outlines.min(axis=1), detection_outlines.max(axis=1)
    areas = (
        coco_mask.area(coco_mask.frPyObjects(outlines.reshape(count, 2 * _CORNERS).tolist(), HEIGHT, WIDTH))
        if count
        else []
    )
    return _Shapes(
        outlines.reshape(count, 2 * _CORNERS).tolist(),
        [float(max(area, 1)) for area in areas],
        (random.random(count) < 0.01).tolist(),
        np.concatenate([low, high - low], axis=1).astype(np.float32),
        [one["counts"].decode() for one in runs],
        object_of,
    )


def _ellipses(centers: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[N, corners, 2] outlines within the image, in hundredths of a pixel."""
    angles = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1) / 2
    outlines = centers[:, None] + circle * sizes[:, None]
    return np.clip(outlines, 0, (WIDTH, HEIGHT)).round(2)


_Row = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.int32]]


def _draw_labels(random: np.random.Generator, shapes: _Shapes) -> _Row:
    """Categories of the objects; scores, best first, and categories of the detections."""
    categories = random.integers(1, _CATEGORIES + 1, len(shapes.polygons)).astype(np.int32)
    detection_categories = random.integers(1, _CATEGORIES + 1, len(shapes.object_of)).astype(np.int32)
    right = (shapes.object_of >= 0) & (random.random(len(detection_categories)) < 0.85)
    detection_categories[right] = categories[shapes.object_of[right]]
    scores = np.sort(random.beta(1, 3, len(detection_categories)).round(3).astype(np.float32))[::-1]
    return categories, scores, detection_categories


def _annotations(shapes: _Shapes, categories: npt.NDArray[np.int32], image_id: int, first: int) -> list[dict[str, Any]]:
    entries = []
    for number, (polygon, area, crowd) in enumerate(zip(shapes.polygons, shapes.areas, shapes.crowds, strict=True)):
        xs, ys = polygon[::2], polygon[1::2]
        entries.append(
            {
                "id": first + number,
                "image_id": image_id,
                "category_id": int(categories[number]),
                "bbox": [min(xs), min(ys), round(max(xs) - min(xs), 2), round(max(ys) - min(ys), 2)],
                "area": area,
                "iscrowd": int(crowd),
                "segmentation": [polygon],
            }
        )
    return entries


def _label_table(block: list[_Shapes], rows: list[_Row], first: int, names: list[Category]) -> pa.Table:
    schema = record_schema(names)
    field = schema.field("detections").type.value_type
    boxes = np.concatenate([shapes.boxes for shapes in block])
    total, each = len(boxes), len(block[0].boxes)
    categories = np.concatenate([row[2] for row in rows])
    sizes = pa.ListArray.from_arrays(
        np.arange(0, 2 * total + 1, 2, dtype=np.int32), pa.array(np.tile([HEIGHT, WIDTH], total), pa.int32())
    )
    masks = pa.StructArray.from_arrays(
        [sizes, pa.array([text for shapes in block for text in shapes.masks])], fields=list(field[4].type)
    )
    detections = pa.StructArray.from_arrays(
        [
            pa.array(categories, pa.int32()),
            pa.array([names[number - 1].name for number in categories]),
            pa.array(np.concatenate([row[1] for row in rows])),
            pa.ListArray.from_arrays(np.arange(0, 4 * total + 1, 4, dtype=np.int32), pa.array(boxes.ravel())),
            masks,
            pa.nulls(total, pa.list_(pa.float32())),
        ],
        fields=[field[index] for index in range(field.num_fields)],
    )
    count = len(block)
    columns = {
        "image_id": pa.array(range(first, first + count), pa.int64()),
        "uri": pa.array([f"{first + number}.jpg" for number in range(count)]),
        "width": pa.array([WIDTH] * count, pa.int32()),
        "height": pa.array([HEIGHT] * count, pa.int32()),
        "status": pa.array(["ok"] * count),
        "error": pa.nulls(count, pa.string()),
        "detections": pa.ListArray.from_arrays(np.arange(0, total + 1, each, dtype=np.int32), detections),
        "model": pa.array(["generated"] * count),
    }
    return pa.Table.from_pydict(columns, schema=schema)


def _results(block: list[_Shapes], rows: list[_Row], first: int, iou_type: str) -> Iterator[str]:
    for number, (shapes, (_, scores, categories)) in enumerate(zip(block, rows, strict=True)):
        for index, (score, category) in enumerate(zip(scores.tolist(), categories.tolist(), strict=True)):
            shape: dict[str, Any] = {"bbox": shapes.boxes[index].tolist()}
            if iou_type == "segm":
                shape = {"segmentation": {"size": [HEIGHT, WIDTH], "counts": shapes.masks[index]}}
            yield json.dumps({"image_id": first + number, "category_id": category, "score": score, **shape})


def _our_command(folder: Path, run: EvaluationBenchmarkRun) -> list[str]:
    files = ["--labels", str(folder / "labels"), "--annotations", str(folder / "val.json")]
    settings = ["--output", str(folder / "ours.json"), "--evaluate.engine", run.engine]
    where = ["--evaluate.distributed", "always" if run.distributed else "never"]
    return [sys.executable, "-m", "jobs.evaluate", *files, *settings, *where]


def _peer_command(folder: Path) -> list[str]:
    files = [str(folder / name) for name in ("val.json", "results-{}.json", "peer.json")]
    return [sys.executable, "-c", _PEER, *files]


def _cost(command: list[str], compiled: str) -> JobCost:
    """Run a process to its end.

    Args:
        command: what to run.
        compiled: folder for Python's compiled modules.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = compiled
    with tempfile.TemporaryFile() as said:
        started = os.times().elapsed
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = os.times().elapsed - started
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{command[1:3]} failed: {said.read()[-2000:].decode(errors='replace')}")
    return JobCost(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss * 1024)


def _median(costs: list[JobCost]) -> JobCost:
    return JobCost(
        statistics.median(cost.cpu_seconds for cost in costs),
        statistics.median(cost.wall_seconds for cost in costs),
        int(statistics.median(cost.peak_bytes for cost in costs)),
    )
