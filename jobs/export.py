"""Write labels in another tool's format: `python -m jobs.export --labels URI --format NAME --output URI`."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.cli import run_job
from maskrcnn_core.export_config import ExportRun

if TYPE_CHECKING:
    from pipelines.export import ExportSummary

_USE = {
    "coco": 'COCO("annotations.json").loadRes({first!r})',
    "coco_dataset": "any tool that reads COCO instances; python -m jobs.train --data.train.annotations {first}",
    "yolo": "put or link the images into {first}/images; yolo segment train data={first}/data.yaml",
    "label_studio": "paste {second} as the labelling interface, then import {first}",
    "cvat": "open a task with the same images and labels; upload annotations, CVAT for images 1.1",
    "fiftyone": "fiftyone.Dataset.from_dir({first!r}, dataset_type=fiftyone.types.COCODetectionDataset, "
    'label_types=["segmentations"])',
}


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
    use = _USE[settings.format].format(first=summary.files[0], second=summary.files[-1])
    if settings.export.link_images:
        use = use.split("; ")[-1]  # the images are there already
    return [*lines, *(f"written: {uri}" for uri in summary.files), f"use: {use}"]


if __name__ == "__main__":
    sys.exit(main())
