"""The whole system in some minutes: `python -m jobs.demo [--output DIR]`.

Generated pictures -> train -> label -> evaluate -> a contact sheet. Every step takes up what an earlier start has made.
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.cli import GOES_ON, parse_run, run_job
from jobs.demo_config import DemoRun
from jobs.train import SECONDS_TO_SAVE_AND_END
from pipelines.evaluation.config import EvaluateRun
from pipelines.labelling.config import LabelRun
from pipelines.training.config import TrainRun
from pipelines.training.data_config import DatasetConfig

if TYPE_CHECKING:
    from maskrcnn_core.evaluation.coco import CocoScores

_CONFIG = Path(__file__).parent / "configs" / "demo.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    grace = SECONDS_TO_SAVE_AND_END
    return run_job(DemoRun, run, prog="python -m jobs.demo", argv=argv, interrupted=GOES_ON, grace=grace)


def run(settings: DemoRun) -> int:
    """Make, train, label, score, draw, and say what is where."""
    from jobs import evaluate, label, train
    from pipelines.evaluation.run import evaluate as score
    from pipelines.evaluation.run import write_numbers
    from pipelines.report.contact_sheet import write_contact_sheet

    output = Path(settings.output)
    _say(1, f"pictures: {settings.train_images} to learn from, {settings.val_images} held out")
    data = output / f"data-{settings.train_images}-{settings.val_images}-seed{settings.seed}"
    train_set = _dataset(data / "train", settings.train_images, settings.seed, first_id=1)
    val_set = _dataset(data / "val", settings.val_images, settings.seed, first_id=1 + settings.train_images)

    _say(2, "train a small Mask R-CNN")
    training = parse_run(TrainRun, prog="demo", argv=["--config", str(_CONFIG), "--output", str(output / "training")])
    training = replace(training, data=replace(training.data, train=train_set, val=val_set))
    checkpoint = train.train_with_progress(training).checkpoint

    _say(3, "label the held-out pictures")
    labelling = LabelRun(checkpoint=checkpoint, images=val_set.annotations, output=str(output / "labelled"))
    label.label_with_progress(labelling)

    _say(4, "score the labels")
    scoring = EvaluateRun(labels=labelling.output, annotations=val_set.annotations, output=str(output / "scores.json"))
    summary = score(scoring)
    scores = summary.scores
    evaluate.print_scores(scores)
    write_numbers(str(output / "scores.json"), summary)

    _say(5, "draw the most interesting pictures")
    sheet = write_contact_sheet(
        labelling.output, val_set.annotations, val_set.images, str(output / "contact_sheet.png")
    )
    print("\n".join(_closing_lines(scores, checkpoint, labelling.output, sheet)))
    return 0


def _dataset(folder: Path, num_images: int, seed: int, *, first_id: int) -> DatasetConfig:
    """The generated set in the folder, made if it is not there."""
    from maskrcnn_core.data.generated.pictures import generate_dataset

    if not folder.is_dir():
        # Made beside its place and then renamed, so that a start that is broken off leaves no half of it.
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        generate_dataset(partial, num_images=num_images, seed=seed, start_id=first_id)
        partial.rename(folder)
    return DatasetConfig(images=str(folder / "images"), annotations=str(folder / "annotations.json"))


def _say(step: int, text: str) -> None:
    print(f"\n[{step}/5] {text}", flush=True)


def _closing_lines(scores: "CocoScores", checkpoint: str, labels: str, sheet: str) -> list[str]:
    box, mask = scores.stats["bbox"][1], scores.stats["segm"][1]
    return [
        "",
        f"Done: box AP50 {box:.2f}, mask AP50 {mask:.2f} on pictures that the model has never seen.",
        f"  look at    {sheet}",
        f"  checkpoint {_from_here(checkpoint)}",
        f"  labels     {labels}/labels/*.parquet",
        "",
        "With your own data in COCO format:",
        "  python -m jobs.train --config jobs/configs/mask_rcnn_lite0_fpn.yaml \\",
        "      --data.train.images IMAGES --data.train.annotations TRAIN.json \\",
        "      --data.val.images IMAGES --data.val.annotations VAL.json --output runs/mine",
        "  python -m jobs.label --checkpoint runs/mine/checkpoints/best --images VAL.json --image_root IMAGES \\",
        "      --output runs/labelled",
        "  python -m jobs.evaluate --labels runs/labelled --annotations VAL.json",
    ]


def _from_here(path: str) -> str:
    """As the other paths of the closing lines, where it lies below the folder that the command was given in."""
    here = Path(path)
    return str(here.relative_to(Path.cwd())) if here.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    sys.exit(main())
