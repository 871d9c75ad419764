"""Measure speed: `python -m jobs.benchmark detect|label|evaluate|tradeoff [settings]`."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.cli import run_job
from maskrcnn_core.benchmark_config import BenchmarkRun, EvaluationBenchmarkRun, TradeoffRun

if TYPE_CHECKING:
    from pipelines.benchmark_tradeoff import Tradeoff, TradeoffPoint

_NAMES = {
    "detect": "torchvision's Mask R-CNN against ours, from uint8 image to COCO run lengths",
    "label": "jobs.label on Ray against a bare loop over the same predictor",
    "evaluate": "jobs.evaluate against plain pycocotools, boxes and masks of generated labels",
    "tradeoff": "accuracy against speed: input sizes x checkpoints x numbers of proposals",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    if name not in _NAMES:
        asked_for_help = name in ("-h", "--help")
        print(
            "usage: python -m jobs.benchmark NAME [settings; see NAME --help]\n"
            + "\n".join(f"  {known:10}{meaning}" for known, meaning in _NAMES.items()),
            file=sys.stdout if asked_for_help else sys.stderr,
        )
        if not asked_for_help:
            print(f"error: NAME: got {name!r}, expected one of {', '.join(_NAMES)}", file=sys.stderr)
        return 0 if asked_for_help else 2
    if name == "tradeoff":
        return run_job(TradeoffRun, _sweep, prog=f"python -m jobs.benchmark {name}", argv=arguments[1:])
    if name == "evaluate":
        return run_job(
            EvaluationBenchmarkRun, _measure_scoring, prog="python -m jobs.benchmark evaluate", argv=arguments[1:]
        )
    return run_job(
        BenchmarkRun, lambda run: _measure(name, run), prog=f"python -m jobs.benchmark {name}", argv=arguments[1:]
    )


def _measure(name: str, run: BenchmarkRun) -> int:
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


def _sweep(run: TradeoffRun) -> int:
    from pipelines.benchmark_tradeoff import benchmark_tradeoff

    done: list[TradeoffPoint] = []

    def show(point: "TradeoffPoint", total: int) -> None:
        done.append(point)
        setting = point.setting
        print(
            f"[{len(done)}/{total}] {setting.trunk}, {setting.short_side} px, {setting.proposals} proposals: "
            f"{point.milliseconds:.0f} ms, AP {point.primary_ap:.3f}",
            flush=True,
        )

    _print_tradeoff(benchmark_tradeoff(run, show), run)
    return 0


def _print_tradeoff(found: "Tradeoff", run: TradeoffRun) -> None:
    """All combinations as a table, the front marked."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    kinds = list(dict.fromkeys(kind for point in found.points for kind in point.ap))
    titles = {"bbox": "box AP", "segm": "mask AP", "keypoints": "keypoint AP"}
    table = Table(title="Accuracy and speed", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("trunk", overflow="fold")
    for title in ("side", "proposals", *(titles[kind] for kind in kinds), "ms/image", "peak MB"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("")
    for point in found.points:
        setting = point.setting
        numbers = [f"{point.ap[kind]:.3f}" if point.ap.get(kind, -1) != -1 else "-" for kind in kinds]
        table.add_row(
            setting.trunk,
            str(setting.short_side),
            str(setting.proposals),
            *numbers,
            f"{point.milliseconds:.1f}",
            f"{point.megabytes:.0f}",
            "front" if point.on_front else "",
        )
    console = Console(highlight=False, markup=False)
    console.print(table)
    time = "processor time" if run.clock == "cpu" else "time"
    console.print(
        f"{found.images} images one at a time, {run.rounds} round{'s' * (run.rounds > 1)}, median {time}; "
        f"{found.machine}",
        soft_wrap=True,
    )
    console.print(f"Table and plot: {', '.join(found.files)}", soft_wrap=True)


def _measure_scoring(run: EvaluationBenchmarkRun) -> int:
    from pipelines.benchmark_evaluation import benchmark_evaluate

    found = benchmark_evaluate(run)
    print(
        f"{_NAMES['evaluate']}: {found.images} images, {found.detections} detections, {found.objects} objects, "
        f"{found.rounds} rounds, medians"
    )
    for title, cost in (("pycocotools", found.peer), (f"jobs.evaluate ({run.engine})", found.ours)):
        if cost:
            print(
                f"  {title:24}  {cost.cpu_seconds:8.2f} s CPU  {cost.wall_seconds:8.2f} s wall  "
                f"{cost.peak_bytes / 2**20:7.0f} MiB peak  {1000 * cost.cpu_seconds / found.images:7.3f} ms CPU/image"
            )
    if found.peer:
        print(
            f"  CPU time of the first over the second: {found.peer.cpu_seconds / found.ours.cpu_seconds:.1f}; memory: "
            f"{found.peer.peak_bytes / found.ours.peak_bytes:.1f}; the 24 numbers are "
            f"{'equal in every bit' if found.equal else 'NOT equal'}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
