"""What `jobs.benchmark` measures and prints about scoring, and about accuracy against speed."""

from typing import TYPE_CHECKING

from jobs.terminal import new_table, plain_console, score_text
from pipelines.benchmarks.config import EvaluationBenchmarkRun, TradeoffRun

if TYPE_CHECKING:
    from pipelines.benchmarks.tradeoff import Tradeoff, TradeoffPoint


def evaluate(run: EvaluationBenchmarkRun) -> int:
    """Plain pycocotools against our scoring."""
    from pipelines.benchmarks.evaluation import benchmark_evaluate

    result = benchmark_evaluate(run)
    print(
        f"  {result.images} images, {result.detections} detections, {result.objects} objects, "
        f"{result.rounds} rounds, medians"
    )
    for title, cost in (("pycocotools", result.peer), (f"jobs.evaluate ({run.engine})", result.ours)):
        if cost:
            print(
                f"  {title:24}  {cost.cpu_seconds:8.2f} s CPU  {cost.wall_seconds:8.2f} s wall  "
                f"{cost.peak_bytes / 2**20:7.0f} MiB peak  {1000 * cost.cpu_seconds / result.images:7.3f} ms CPU/image"
            )
    if result.peer:
        print(
            f"  CPU time of the first over the second: {result.peer.cpu_seconds / result.ours.cpu_seconds:.1f}; "
            f"memory: {result.peer.peak_bytes / result.ours.peak_bytes:.1f}; the 24 numbers are "
            f"{'equal in every bit' if result.equal else 'NOT equal'}"
        )
    return 0


def tradeoff(run: TradeoffRun) -> int:
    """Accuracy against speed over sizes, checkpoints and numbers of proposals."""
    from pipelines.benchmarks.tradeoff import benchmark_tradeoff

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


def _print_tradeoff(result: "Tradeoff", run: TradeoffRun) -> None:
    """All combinations as a table, the front marked."""
    iou_types = list(dict.fromkeys(iou_type for point in result.points for iou_type in point.ap))
    titles = {"bbox": "box AP", "segm": "mask AP", "keypoints": "keypoint AP"}
    numbers = ("side", "proposals", *(titles[iou_type] for iou_type in iou_types), "ms/image", "peak MB")
    table = new_table("Accuracy and speed", "trunk", *numbers)
    table.add_column("")
    for point in result.points:
        setting = point.setting
        table.add_row(
            setting.trunk,
            str(setting.short_side),
            str(setting.proposals),
            *(score_text(point.ap.get(iou_type, -1)) for iou_type in iou_types),
            f"{point.milliseconds:.1f}",
            f"{point.megabytes:.0f}",
            "front" if point.on_front else "",
        )
    console = plain_console()
    console.print(table)
    time = "processor time" if run.clock == "cpu" else "time"
    console.print(
        f"{result.images} images one at a time, {run.rounds} round{'s' * (run.rounds > 1)}, median {time}; "
        f"{result.machine}",
        soft_wrap=True,
    )
    console.print(f"Table and plot: {', '.join(result.files)}", soft_wrap=True)
