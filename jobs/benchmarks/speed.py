"""What `jobs.benchmark` measures and prints about speed beside a peer."""

from collections.abc import Sequence

from pipelines.benchmarks.config import (
    BenchmarkRun,
    EncodingRun,
    InputBenchmarkRun,
    ReadingBenchmarkRun,
    ServingBenchmarkRun,
    WorkerBenchmarkRun,
)

_FASTEST_KNOWN = (
    "MLPerf Training v3.1, NVIDIA, one DGX H100 (8 GPUs, 12 images each): 180 images/s per GPU over the whole run"
)


def detect(run: BenchmarkRun) -> int:
    """torchvision's detectors against ours."""
    from pipelines.benchmarks.detection import benchmark_detect

    result = benchmark_detect(run)
    width = max(len(way.name) for way in result.ways)
    beside = f", beside {run.busy} busy processes" if run.busy else ""
    print(f"  {result.images} images in batches of {run.batch}, {run.rounds} rounds, medians{beside}")
    for way in result.ways:
        peak = f"  {way.peak_bytes / 2**30:5.1f} GiB of GPU memory" if way.peak_bytes else ""
        print(
            f"  {way.name:{width}}  {way.seconds:8.4f} s/image  {1 / way.seconds:7.2f} images/s  "
            f"{way.detections:5.1f} detections/image, {way.agreement:6.1%} of the first's{peak}  x {way.ratio:.2f}"
        )
    print(f"  {result.machine}")
    return 0


def encode(run: EncodingRun) -> int:
    """Soft masks to run lengths."""
    from pipelines.benchmarks.encoding import benchmark_encode

    result = benchmark_encode(run)
    width = max(len(name) for name in result.names)
    print(f"  {result.masks} masks in {run.width} x {run.height} pixels, {run.rounds} rounds, medians; all bytes equal")
    for name, seconds in zip(result.names, result.seconds, strict=True):
        print(f"  {name:{width}}  {1000 * seconds:9.2f} ms/image")
    print(f"  speed of the second against the first: {result.ratio:.1f}")
    print(f"  {result.machine}")
    return 0


def reading(run: ReadingBenchmarkRun) -> int:
    """Images from an object store that answers late."""
    from pipelines.benchmarks.reading import benchmark_reading

    result = benchmark_reading(run)
    width = max(len(way.name) for way in result.ways)
    print(
        f"  {result.images} images of {result.mean_bytes / 1000:.0f} KB, {run.delay_ms:g} ms before each answer, "
        f"{run.rounds} rounds, medians"
    )
    print(f"  {'':{width}}  {'images/s':>8}  {'CPU ms/image':>12}  {'requests/image':>14}  {'server busy':>11}")
    for way in result.ways:
        print(
            f"  {way.name:{width}}  {way.images_per_second:8.0f}  {way.milliseconds:12.2f}  {way.requests:14.2f}  "
            f"{way.server_busy:11.0%}  x {way.ratio:.2f}"
        )
    print(f"  {result.machine}")
    return 0


def stages(run: BenchmarkRun) -> int:
    """Where the time goes, beside what the machine could do."""
    from pipelines.benchmarks.stages import benchmark_stages

    result = benchmark_stages(run)
    width = max(len(stage.name) for stage in result.stages)
    batches = f" in batches of {result.batch}" if result.batch > 1 else ""
    print(f"  {result.images} images{batches}, {run.rounds} rounds, medians of an image")
    print(
        f"  measured here: {result.peak_flops / 1e9:.0f} GFLOP/s (the better of matrix product and convolution), "
        f"{result.bandwidth / 1e9:.1f} GB/s (copy)"
    )
    print(f"  {'stage':{width}}  {'ms':>9}  {'share':>6}  {'GFLOP':>8}  {'MB':>8}  {'floor ms':>9}  {'time/floor':>10}")
    for stage in result.stages:
        ratio = f"{stage.seconds / stage.floor:10.1f}" if stage.floor > 1e-6 else " " * 10
        print(
            f"  {stage.name:{width}}  {1000 * stage.seconds:9.2f}  {stage.seconds / result.total:6.1%}  "
            f"{stage.flops / 1e9:8.2f}  {stage.bytes / 1e6:8.1f}  {1000 * stage.floor:9.2f}  {ratio}".rstrip()
        )
    floor = sum(stage.floor for stage in result.stages)
    print(
        f"  {'together':{width}}  {1000 * result.total:9.2f}  {1:6.1%}  {'':8}  {'':8}  {1000 * floor:9.2f}  "
        f"{result.total / floor:10.1f}"
    )
    _print_dearest("operators", result.operators)
    print(f"  {result.machine}")
    if (at_once := result.in_one_go) is not None:
        print(
            f"  an image where nothing waits between the stages: trunk to boxes {1000 * at_once.graph:.2f} ms in one "
            f"replayed CUDA graph (in the table {1000 * at_once.network:.2f}); all of it {1000 * at_once.predict:.2f} "
            f"ms by predict of one batch, {1000 * at_once.predict_many:.2f} ms of {at_once.batches} batches in one "
            f"call (in the table {1000 * result.total:.2f})"
        )
    return 0


def label(run: BenchmarkRun) -> int:
    """Ways from images to labels."""
    from pipelines.benchmarks.labelling import benchmark_label

    result = benchmark_label(run)
    width = max(len(way.name) for way in result.ways)
    again = f" ({result.files} files, repeated)" if result.files else ""
    print(f"  {result.images} images{again}, {run.rounds} rounds, medians; {result.detections:.1f} detections/image")
    for way in result.ways:
        peak = f"{way.peak_bytes / 2**20:7.0f} MiB peak" if way.peak_bytes else " " * 16
        written = f"{way.written_bytes / 2**20:8.1f} MiB written" if way.written_bytes else ""
        speed = f"{way.images_per_second:7.2f} images/s  {way.ratio:5.2f} of the bare loop"
        gpu = "" if way.gpu_busy is None else f"  GPU busy {way.gpu_busy:4.0%}"
        gpu = f"{gpu:15}" if run.use_gpu else ""
        print(f"  {way.name:{width}}  {speed}{gpu}  {peak}  {written}".rstrip())
    print(f"  the detector of jobs.label was busy for {result.busy:.1%} of the time")
    print(f"  {result.machine}")
    return 0


def serve(run: ServingBenchmarkRun) -> int:
    """Servers under load."""
    from pipelines.benchmarks.serving import benchmark_serve

    result = benchmark_serve(run)
    width = max(len(way.name) for way in result.ways)
    print(f"  {result.requests} requests from {result.clients} clients, {result.images} different images")
    for way in result.ways:
        line = (
            f"  {way.name:{width}}  {way.images_per_second:8.2f} images/s  {way.ratio:5.2f} of the loop  "
            f"p50 {way.p50_ms:8.1f} ms  p99 {way.p99_ms:8.1f} ms  {way.lost} lost"
        )
        if way.wrong is not None and way.equal is not None:
            line += f", {way.wrong} wrong, {way.equal:.1%} equal in every bit"
        print(line if way.batch is None else f"{line}, mean batch {way.batch:.2f}")
    print(f"  {result.machine}")
    return int(any(way.lost or way.wrong for way in result.ways))


def worker(run: WorkerBenchmarkRun) -> int:
    """A worker with a simulated GPU."""
    from pipelines.benchmarks.worker import benchmark_worker

    result = benchmark_worker(run)
    width = max(len(way.name) for way in result.ways)
    print(
        f"  {result.images} images of {result.sizes} sizes, {run.image_ms:g} ms each and {run.batch_ms:g} ms a batch, "
        f"reading delayed by {run.delay_ms:g} ms"
    )
    for way in result.ways:
        print(
            f"  {way.name:{width}}  busy {way.busy:6.1%}  mean batch {way.mean_batch:5.2f}  "
            f"{way.images_per_second:7.1f} images/s  waiting by its own count {way.waiting:6.1%}"
        )
    print(f"  {result.machine}")
    return 0


def train(run: BenchmarkRun) -> int:
    """torchvision's training against ours."""
    from pipelines.benchmarks.training import benchmark_train

    result = benchmark_train(run, lambda line: print(f"  {line}", flush=True))
    inputs = f"inputs by {result.loaders} loaders in the background" if result.loaders else "inputs within the step"
    print(
        f"  {result.images} images a step, {run.rounds} rounds of {result.steps} steps, medians; {inputs}\n"
        f"  images of {result.height} x {result.width} pixels, {result.objects:.1f} objects each"
    )
    for name, (theirs, ours) in result.losses.items():
        print(f"  {name:15} torchvision {theirs:9.5f}  ours {ours:9.5f}  (float32, everything sampled)")
    width = max(len(way.name) for way in result.ways)
    for way in result.ways:
        peak = f"  {way.peak_bytes / 2**30:5.1f} GiB of GPU memory" if way.peak_bytes else ""
        waiting = f"  {way.waiting:5.1%} of it waiting for inputs" if result.loaders else ""
        print(
            f"  {way.name:{width}}  {way.seconds:8.4f} s/step  {way.cpu_seconds:8.3f} s of processor time  "
            f"{result.images / way.seconds:6.2f} images/s{waiting}{peak}  x {way.ratio:.2f} "
            f"(by processor time {way.cpu_ratio:.2f})"
        )
    if run.use_gpu:
        print(f"  for comparison: {_FASTEST_KNOWN}")
    _print_dearest("operators", result.operators)
    _print_dearest("kernels", result.kernels)
    print(f"  {result.machine}")
    return 0


def training_input(run: InputBenchmarkRun) -> int:
    """torchvision's reference loader against ours."""
    from pipelines.benchmarks.input import benchmark_input

    result = benchmark_input(run, lambda line: print(f"  {line}", flush=True))
    width = max(len(way.name) for way in result.ways)
    print(
        f"  {result.images} images in batches of {result.batch}, {result.processes} processes, {run.rounds} rounds, "
        "medians"
    )
    for way in result.ways:
        print(
            f"  {way.name:{width}}  {way.images_per_second:7.1f} images/s  "
            f"{way.images_per_core_second:6.1f} images/s a core  x {way.ratio:.2f} (by processor time "
            f"{way.core_ratio:.2f})"
        )
    print(f"  {result.machine}")
    return 0


def _print_dearest(title: str, shares: Sequence[tuple[str, float]]) -> None:
    if shares:
        print(f"  dearest {title}: " + ", ".join(f"{name} {share:.0%}" for name, share in shares))
