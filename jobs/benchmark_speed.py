"""What `jobs.benchmark` measures and prints about speed beside a peer."""

from maskrcnn_core.benchmark_config import BenchmarkRun


def detect(run: BenchmarkRun) -> int:
    """torchvision's detector against ours."""
    from pipelines.benchmarking import benchmark_detect

    result = benchmark_detect(run)
    width = max(len(title) for title in result.names)
    print(f"  {result.images} images, {run.rounds} rounds, medians")
    for title, seconds, found in zip(result.names, result.seconds, result.detections, strict=True):
        print(f"  {title:{width}}  {seconds:8.3f} s/image  {1 / seconds:7.2f} images/s  {found:5.1f} detections/image")
    print(f"  speed of the second against the first: {result.ratio:.2f}")
    print(f"  {result.machine}")
    return 0


def label(run: BenchmarkRun) -> int:
    """Ways from images to labels."""
    from pipelines.benchmark_labelling import benchmark_label

    result = benchmark_label(run)
    width = max(len(way.name) for way in result.ways)
    print(f"  {result.images} images, {run.rounds} rounds, medians; {result.detections:.1f} detections/image")
    for way in result.ways:
        peak = f"{way.peak_bytes / 2**20:7.0f} MiB peak" if way.peak_bytes else " " * 16
        written = f"{way.written_bytes / 2**20:8.1f} MiB written" if way.written_bytes else ""
        speed = f"{way.images_per_second:7.2f} images/s  {way.ratio:5.2f} of the bare loop"
        print(f"  {way.name:{width}}  {speed}  {peak}  {written}".rstrip())
    print(f"  {result.machine}")
    return 0


def train(run: BenchmarkRun) -> int:
    """torchvision's training step against ours."""
    from pipelines.benchmark_training import benchmark_train

    result = benchmark_train(run)
    print(f"  {result.images} images a step, {run.rounds} rounds, medians")
    for name, (theirs, ours) in result.losses.items():
        print(f"  {name:15} torchvision {theirs:9.5f}  ours {ours:9.5f}  (everything sampled)")
    titles = ("torchvision maskrcnn_resnet50_fpn", f"ours ({run.precision})")
    for title, wall, cpu in zip(titles, result.seconds, result.cpu_seconds, strict=True):
        speed = result.images / wall
        print(f"  {title:34} {wall:8.3f} s/step  {cpu:8.3f} s of processor time  {speed:6.2f} images/s")
    print(f"  speed of the second against the first: {result.ratio:.2f} (by processor time {result.cpu_ratio:.2f})")
    print(f"  {result.machine}")
    return 0
