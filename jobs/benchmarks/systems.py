"""What `jobs.benchmark` measures and prints about systems of one stage and of two, beside each other."""

from typing import TYPE_CHECKING

from jobs.terminal import new_table, plain_console, score_text
from pipelines.benchmarks.landscape_config import LandscapeRun, StepCostRun

if TYPE_CHECKING:
    from pipelines.benchmarks.landscape import Landscape, LandscapePoint

_TITLES = {"bbox": "box", "segm": "mask", "keypoints": "keypoint"}


def landscape(run: LandscapeRun) -> int:
    """Accuracy and speed of each system."""
    from pipelines.benchmarks.landscape import benchmark_landscape

    done: list[LandscapePoint] = []

    def show(one: "LandscapePoint", total: int) -> None:
        done.append(one)
        print(
            f"[{len(done)}/{total}] {one.name}: {one.point.milliseconds:.0f} ms, box AP {one.point.ap['bbox']:.3f}",
            flush=True,
        )

    _print_landscape(benchmark_landscape(run, show), run)
    return 0


def _print_landscape(result: "Landscape", run: LandscapeRun) -> None:
    """All systems as a table, the front marked."""
    iou_types = list(dict.fromkeys(iou_type for one in result.points for iou_type in one.point.ap))
    scores = [name for iou_type in iou_types for name in (f"{_TITLES[iou_type]} AP", "AP50")]
    # Size of the input, proposals and memory are in the files: a terminal of 80 columns shows all of these.
    table = new_table("Systems", "system", "stages", *scores, "ms/image")
    table.add_column("")
    for one in result.points:
        point = one.point
        table.add_row(
            one.name,
            str(one.stages),
            *(score_text(part.get(iou_type, -1)) for iou_type in iou_types for part in (point.ap, point.ap50)),
            f"{point.milliseconds:.1f}",
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


def steps(run: StepCostRun) -> int:
    """Cost of a training step."""
    from pipelines.benchmarks.step_cost import benchmark_steps

    cost = benchmark_steps(run)
    print(
        f"  {cost.seconds:.3f} s of processor time for a step of {cost.images} images, "
        f"{cost.seconds / cost.images:.3f} s an image (mean of {run.measured} steps)\n"
        f"  {run.seconds:g} s buy {cost.steps:,} steps: --train.steps {cost.steps}"
    )
    return 0
