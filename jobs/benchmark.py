"""Measure speed: `python -m jobs.benchmark NAME [settings]`."""

import sys
from collections.abc import Sequence

from jobs.cli import run_job
from maskrcnn_core.benchmark_config import BenchmarkRun, ChaosRun, ScaleRun

_NAMES = {
    "detect": "torchvision's Mask R-CNN against ours, from uint8 image to COCO run lengths",
    "label": "jobs.label on Ray against a bare loop over the same predictor",
    "scale": "jobs.label with a detector that costs nothing: time and memory for more and more images",
    "manifest": "the list of images of a synthetic S3 inventory: time and memory for more and more images",
    "chaos": "jobs.label while its processes, nodes and driver are killed",
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
    rest = arguments[1:]
    if name in ("scale", "manifest"):
        return run_job(ScaleRun, lambda run: _scale(name, run), prog=f"python -m jobs.benchmark {name}", argv=rest)
    if name == "chaos":
        return run_job(ChaosRun, _chaos, prog=f"python -m jobs.benchmark {name}", argv=rest)
    return run_job(BenchmarkRun, lambda run: _measure(name, run), prog=f"python -m jobs.benchmark {name}", argv=rest)


def _scale(name: str, run: ScaleRun) -> int:
    from pipelines.benchmark_scale import ScalePoint, benchmark_manifest, benchmark_scale

    def show(point: ScalePoint) -> None:
        print(
            f"  {point.images:>12,}  {point.seconds:8.1f} s  {point.milliseconds:8.4f} ms/image  "
            f"driver {point.driver_bytes / 2**20:6.0f} MiB  worker {point.worker_bytes / 2**20:6.0f} MiB",
            flush=True,
        )

    print(f"{_NAMES[name]}", flush=True)
    (benchmark_scale if name == "scale" else benchmark_manifest)(run, show)
    return 0


def _chaos(run: ChaosRun) -> int:
    """Exit code 1 if anything was lost, repeated, torn or changed."""
    from pipelines.benchmark_chaos import ChaosRound, benchmark_chaos

    def show(found: ChaosRound) -> None:
        killed = ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in found.killed.items())
        print(
            f"  seed {found.seed}: killed {killed}; lost {found.lost}, repeated {found.repeated}, torn {found.torn}, "
            f"changed {found.different}, verified {'yes' if found.verified else 'NO'}; {found.seconds:.0f} s",
            flush=True,
        )

    print(f"{_NAMES['chaos']}: {run.num_images} images, {run.rounds} rounds", flush=True)
    rounds = benchmark_chaos(run, show)
    lost, repeated, torn, changed = (
        sum(getattr(found, name) for found in rounds) for name in ("lost", "repeated", "torn", "different")
    )
    print(f"lost / repeated / torn: {lost} / {repeated} / {torn}; rows unlike an undisturbed run's: {changed}")
    return int(lost + repeated + torn + changed > 0 or not all(found.verified for found in rounds))


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


if __name__ == "__main__":
    sys.exit(main())
