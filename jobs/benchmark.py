"""Measure on this machine: `python -m jobs.benchmark NAME [settings]`."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.benchmarks import accuracy, scale, speed, systems
from jobs.cli import run_job
from pipelines.benchmarks import config, landscape_config


@dataclass(frozen=True)
class Benchmark:
    """One of them: what it measures, its settings, and what measures and prints."""

    meaning: str
    run_type: type[Any]
    action: Callable[[Any], int]


BENCHMARKS = {
    "detect": Benchmark(
        "torchvision's detectors against ours, from uint8 image to COCO records",
        config.BenchmarkRun,
        speed.detect,
    ),
    "stages": Benchmark(
        "where our time goes from JPEG to rows, beside the least that this machine needs for each stage",
        config.BenchmarkRun,
        speed.stages,
    ),
    "encode": Benchmark(
        "soft masks to COCO run lengths: torchvision and pycocotools against ours",
        config.EncodingRun,
        speed.encode,
    ),
    "train": Benchmark(
        "torchvision's training step of Mask R-CNN against ours; num_images is the batch",
        config.BenchmarkRun,
        speed.train,
    ),
    "input": Benchmark(
        "training input from JPEG to batch: the loader of torchvision's detection reference against ours",
        config.InputBenchmarkRun,
        speed.training_input,
    ),
    "reading": Benchmark(
        "images from an object store that answers late: Arrow's HEAD and GET in 16 threads against ours",
        config.ReadingBenchmarkRun,
        speed.reading,
    ),
    "label": Benchmark(
        "jobs.label against a bare loop over its predictor, and against Ray documentation's way",
        config.BenchmarkRun,
        speed.label,
    ),
    "serve": Benchmark(
        "jobs.serve under load against a bare loop over its predictor, and against FastAPI with torchvision's detector",
        config.ServingBenchmarkRun,
        speed.serve,
    ),
    "worker": Benchmark(
        "how busy a labelling worker keeps a GPU that only takes time, beside one that is drained at every group",
        config.WorkerBenchmarkRun,
        speed.worker,
    ),
    "evaluate": Benchmark(
        "jobs.evaluate against plain pycocotools, boxes and masks of generated labels",
        config.EvaluationBenchmarkRun,
        accuracy.evaluate,
    ),
    "tradeoff": Benchmark(
        "accuracy against speed: input sizes x checkpoints x numbers of proposals",
        config.TradeoffRun,
        accuracy.tradeoff,
    ),
    "landscape": Benchmark(
        "accuracy and speed of several systems, of one stage and of two, each at its own settings",
        landscape_config.LandscapeRun,
        systems.landscape,
    ),
    "steps": Benchmark(
        "what a training step of a preset costs in processor time, and how many steps a budget buys",
        landscape_config.StepCostRun,
        systems.steps,
    ),
    "scale": Benchmark(
        "jobs.label with a detector that costs nothing: time and memory for more and more images",
        config.ScaleRun,
        scale.scale,
    ),
    "driver": Benchmark(
        "the driver of jobs.label with many workers that only take their time: chunks a second, processor time a chunk",
        config.DriverRun,
        scale.driver,
    ),
    "manifest": Benchmark(
        "the list of images of a synthetic S3 inventory: time and memory for more and more images",
        config.ScaleRun,
        scale.manifest,
    ),
    "annotations": Benchmark(
        "annotations of any number of images, from a file to a training's first batch; memory of each process",
        config.AnnotationsBenchmarkRun,
        scale.annotations,
    ),
    "chaos": Benchmark("jobs.label while its processes, nodes and driver are killed", config.ChaosRun, scale.chaos),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    if name not in BENCHMARKS:
        asked_for_help = name in ("-h", "--help")
        print(
            "usage: python -m jobs.benchmark NAME [settings; see NAME --help]\n"
            + "\n".join(f"  {known:13}{benchmark.meaning}" for known, benchmark in BENCHMARKS.items()),
            file=sys.stdout if asked_for_help else sys.stderr,
        )
        if not asked_for_help:
            print(f"error: NAME: got {name!r}, expected one of {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 0 if asked_for_help else 2
    benchmark = BENCHMARKS[name]

    def measure(run: Any) -> int:
        print(f"{benchmark.meaning}", flush=True)
        return benchmark.action(run)

    return run_job(benchmark.run_type, measure, prog=f"python -m jobs.benchmark {name}", argv=arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
