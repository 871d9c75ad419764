"""Write labels in another tool's format: `python -m jobs.export --labels URI --format NAME --output URI`."""

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.cli import run_job
from maskrcnn_core.export_config import ExportRun
from maskrcnn_core.printable import printable

if TYPE_CHECKING:
    from pipelines.export import ExportSummary

_USE = {
    "coco": "python -m jobs.evaluate --labels {first} --annotations ANNOTATIONS.json; in pycocotools "
    "COCO('ANNOTATIONS.json').loadRes({first!r}). Both file a mask as small, medium or large by the box beside it: "
    "APs, APm and APl are others than those of the labels themselves",
    "coco_dataset": "any tool that reads COCO instances; python -m jobs.train "
    "--config jobs/configs/mask_rcnn_lite0_fpn.yaml --data.train.annotations {first} --data.train.images {root} "
    "--output runs/corrected",
    "yolo": "put or link the images into {first}/images; yolo segment train data={first}/data.yaml",
    "label_studio": "paste {second} as the labelling interface, then import {first}",
    "cvat": "open a task with the same images and labels; upload annotations, CVAT for images 1.1",
    "fiftyone": "fiftyone.Dataset.from_dir({first!r}, dataset_type=fiftyone.types.COCODetectionDataset, "
    'data_path="data.json", label_types=["segmentations"])',
}
_IN_PYTHON = ("fiftyone",)  # and not in a shell


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    return run_job(ExportRun, run, prog="python -m jobs.export", argv=argv)


def run(settings: ExportRun) -> int:
    """Export, then say what was written, what was left out, and what to do with it."""
    from pipelines.export import export

    print("\n".join(summary_lines(settings, export(settings))))
    return 0


def summary_lines(settings: ExportRun, summary: "ExportSummary") -> list[str]:
    """What was written, what was left out, and how to use it."""
    lines = [f"exported: {summary.images} images, {summary.objects} objects"]
    if summary.failed:
        lines.append(f"left out: {summary.failed} images that failed")
    if summary.left_out:
        lines.append(f"left out: {summary.left_out} objects whose mask has no pixel or whose box has no extent")
    if summary.undrawn:
        lines.append(f"left out: {summary.undrawn} objects whose masks are too large, or of too many pieces, to draw")
    if summary.renamed:
        lines.append(
            f"renamed: {summary.renamed} images whose names no file can have below {settings.output}; link them with "
            "--export.link_images true, or by images.txt, whose lines are in the order of the label rows"
        )
    use = _use(settings, summary)
    return [printable(line) for line in (*lines, *(f"written: {uri}" for uri in summary.files), f"use: {use}")]


def _use(settings: ExportRun, summary: "ExportSummary") -> str:
    names = {"first": summary.files[0], "second": summary.files[-1], "root": summary.root or "IMAGES"}
    if settings.format not in _IN_PYTHON:
        names = {key: shlex.quote(name) for key, name in names.items()}
    use = _USE[settings.format].format(**names)
    return use.split("; ")[-1] if settings.export.link_images else use  # the images are there already


if __name__ == "__main__":
    sys.exit(main())
