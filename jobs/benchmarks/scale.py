"""What `jobs.benchmark` measures and prints about large and disturbed runs."""

from typing import TYPE_CHECKING

from pipelines.benchmarks.config import AnnotationsBenchmarkRun, ChaosRun, DriverRun, ScaleRun

if TYPE_CHECKING:
    from pipelines.benchmarks.annotations import ProcessCost
    from pipelines.benchmarks.chaos import ChaosRound
    from pipelines.benchmarks.scale import ScalePoint


def scale(run: ScaleRun) -> int:
    """Labelling of ever more images with a detector that costs nothing."""
    from pipelines.benchmarks.scale import benchmark_scale

    benchmark_scale(run, _show_point)
    return 0


def manifest(run: ScaleRun) -> int:
    """Manifests of ever more images."""
    from pipelines.benchmarks.scale import benchmark_manifest

    benchmark_manifest(run, _show_point)
    return 0


def driver(run: DriverRun) -> int:
    """What the driver of a labelling run carries."""
    from pipelines.benchmarks.driver import benchmark_driver
    from pipelines.benchmarks.peer import write_figures

    point = benchmark_driver(run)
    rate, cpu = point.chunks / point.seconds, 1000 * point.cpu_seconds / point.chunks
    print(
        f"  {point.workers:,} workers, {point.chunks:,} chunks of {run.rows:,} images: "
        f"{rate:.1f} chunks/s, {cpu:.2f} ms of the driver's processor time a chunk",
        flush=True,
    )
    write_figures(point, run.output)
    return 0


def annotations(run: AnnotationsBenchmarkRun) -> int:
    """Annotations from a file, or shards, to the first batch."""
    from pipelines.benchmarks.annotations import benchmark_annotations

    print(
        f"  {run.num_images:,} images, {run.num_objects:,} objects, {run.form}\n"
        "                       read    first batch   plan of a step   memory of its own   most resident",
        flush=True,
    )
    benchmark_annotations(run, _show_cost)
    return 0


def _show_cost(cost: "ProcessCost") -> None:
    read, seconds = (f"{value:.1f} s" if value else "" for value in (cost.read, cost.seconds))
    step = f"{cost.step * 1000:.2f} ms" if cost.step else ""
    own, peak = (f"{value / 2**20:,.0f} MiB" for value in (cost.own, cost.peak))
    print(f"  {cost.name:18}{read:>9}{seconds:>15}{step:>17}{own:>20}{peak:>16}", flush=True)


def _show_point(point: "ScalePoint") -> None:
    verified = "" if point.verify_seconds is None else f"  verified in {point.verify_seconds:.1f} s"
    print(
        f"  {point.images:>12,}  {point.seconds:8.1f} s  {point.milliseconds:8.4f} ms/image  "
        f"driver {point.driver_bytes / 2**20:6.0f} MiB  worker {point.worker_bytes / 2**20:6.0f} MiB{verified}",
        flush=True,
    )


def chaos(run: ChaosRun) -> int:
    """Labelling under SIGKILL; exit code 1 if anything was lost, repeated, torn or changed."""
    from pipelines.benchmarks.chaos import benchmark_chaos

    print(f"  {run.num_images} images, {run.rounds} rounds", flush=True)
    rounds = benchmark_chaos(run, _show_round)
    lost, repeated, torn, changed = (
        sum(getattr(result, name) for result in rounds) for name in ("lost", "repeated", "torn", "different")
    )
    print(f"  lost / repeated / torn: {lost} / {repeated} / {torn}; rows unlike an undisturbed run's: {changed}")
    return int(lost + repeated + torn + changed > 0 or not all(result.verified for result in rounds))


def _show_round(result: "ChaosRound") -> None:
    killed = ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in result.killed.items())
    print(
        f"  seed {result.seed}: killed {killed}; lost {result.lost}, repeated {result.repeated}, torn {result.torn}, "
        f"changed {result.different}, verified {'yes' if result.verified else 'NO'}; {result.seconds:.0f} s",
        flush=True,
    )
