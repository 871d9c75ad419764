"""What `jobs.benchmark` measures and prints about scoring, and about accuracy against speed."""

from typing import TYPE_CHECKING

from jobs.terminal import new_table, plain_console, score_text
from pipelines.benchmarks.config import EvaluationBenchmarkRun, TradeoffRun

if TYPE_CHECKING:
    from pipelines.benchmarks.tradeoff import Tradeoff, TradeoffPoint


def evaluate(run: EvaluationBenchmarkRun) -> int:
    """Plain pycocotools against our scoring."""
    from pipelines.benchmarks.evaluation import benchmark_evaluate

    found = benchmark_evaluate(run)
    print(
        f"  {found.images} images, {found.detections} detections, {found.objects} objects, "
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


def _print_tradeoff(found: "Tradeoff", run: TradeoffRun) -> None:
    """All combinations as a table, the front marked."""
    kinds = list(dict.fromkeys(kind for point in found.points for kind in point.ap))
    titles = {"bbox": "box AP", "segm": "mask AP", "keypoints": "keypoint AP"}
    numbers = ("side", "proposals", *(titles[kind] for kind in kinds), "ms/image", "peak MB")
    table = new_table("Accuracy and speed", "trunk", *numbers)
    table.add_column("")
    for point in found.points:
        setting = point.setting
        table.add_row(
            setting.trunk,
            str(setting.short_side),
            str(setting.proposals),
            *(score_text(point.ap.get(kind, -1)) for kind in kinds),
            f"{point.milliseconds:.1f}",
            f"{point.megabytes:.0f}",
            "front" if point.on_front else "",
        )
    console = plain_console()
    console.print(table)
    time = "processor time" if run.clock == "cpu" else "time"
    console.print(
        f"{found.images} images one at a time, {run.rounds} round{'s' * (run.rounds > 1)}, median {time}; "
        f"{found.machine}",
        soft_wrap=True,
    )
    console.print(f"Table and plot: {', '.join(found.files)}", soft_wrap=True)
