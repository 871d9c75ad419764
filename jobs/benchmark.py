"""Measure speed: `python -m jobs.benchmark detect|label|train [settings]`."""

import sys
from collections.abc import Sequence

from jobs.cli import run_job
from maskrcnn_core.benchmark_config import BenchmarkRun

_NAMES = {
    "detect": "torchvision's Mask R-CNN against ours, from uint8 image to COCO run lengths",
    "label": "jobs.label on Ray against a bare loop over the same predictor",
    "train": "torchvision's training step of Mask R-CNN against ours; num_images is the batch",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    if name not in _NAMES:
        asked_for_help = name in ("-h", "--help")
        print(
            "usage: python -m jobs.benchmark NAME [settings; see NAME --help]\n"
            + "\n".join(f"  {known:8}{meaning}" for known, meaning in _NAMES.items()),
            file=sys.stdout if asked_for_help else sys.stderr,
        )
        if not asked_for_help:
            print(f"error: NAME: got {name!r}, expected one of {', '.join(_NAMES)}", file=sys.stderr)
        return 0 if asked_for_help else 2
    return run_job(
        BenchmarkRun, lambda run: _measure(name, run), prog=f"python -m jobs.benchmark {name}", argv=arguments[1:]
    )


def _measure_training(run: BenchmarkRun) -> int:
    from pipelines.benchmark_training import benchmark_train

    result = benchmark_train(run)
    print(f"{_NAMES['train']}: {result.images} images a step, {run.rounds} rounds, medians")
    for name, (theirs, ours) in result.losses.items():
        print(f"  {name:15} torchvision {theirs:9.5f}  ours {ours:9.5f}  (everything sampled)")
    titles = ("torchvision maskrcnn_resnet50_fpn", f"ours ({run.precision})")
    for title, wall, cpu in zip(titles, result.seconds, result.cpu_seconds, strict=True):
        speed = result.images / wall
        print(f"  {title:34} {wall:8.3f} s/step  {cpu:8.3f} s of processor time  {speed:6.2f} images/s")
    print(f"  speed of the second against the first: {result.ratio:.2f} (by processor time {result.cpu_ratio:.2f})")
    print(f"  {result.machine}")
    return 0


def _measure(name: str, run: BenchmarkRun) -> int:
    if name == "train":
        return _measure_training(run)
    from pipelines import benchmarking

    measure = {"detect": benchmarking.benchmark_detect, "label": benchmarking.benchmark_label}[name]
    result = measure(run)
    width = max(len(title) for title in result.names)
    print(f"{_NAMES[name]}: {result.images} images, {run.rounds} rounds, medians")
    for title, seconds, found in zip(result.names, result.seconds, result.detections, strict=True):
        print(f"  {title:{width}}  {seconds:8.3f} s/image  {1 / seconds:7.2f} images/s  {found:5.1f} detections/image")
    print(f"  speed of the second against the first: {result.ratio:.2f}")
    print(f"  {result.machine}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
