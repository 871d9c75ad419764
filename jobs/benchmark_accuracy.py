"""What `jobs.benchmark` measures and prints about scoring, and about accuracy against speed."""

from typing import TYPE_CHECKING

from maskrcnn_core.benchmark_config import EvaluationBenchmarkRun

if TYPE_CHECKING:
    pass


def evaluate(run: EvaluationBenchmarkRun) -> int:
    """Plain pycocotools against our scoring."""
    from pipelines.benchmark_evaluation import benchmark_evaluate

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
