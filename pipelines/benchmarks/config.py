"""The typed configuration of the benchmarks."""

from dataclasses import dataclass
from typing import Literal

from maskrcnn_core.config.checks import require, require_between, require_not_negative, require_positive, require_typed
from maskrcnn_core.config.limits import MAX_REGIONS, MAX_SIDE


@dataclass(frozen=True)
class BenchmarkRun:
    """Measure speed on this machine."""

    images: str | None = None
    """Folder of images; null = generated ones."""
    num_images: int = 8
    """How many of them."""
    rounds: int = 3
    """Interleaved rounds; the median counts."""
    short_side: int = 800
    """Short side of the network's input, pixels."""
    long_side: int = 0
    """Limit of its long side, pixels; detect, stages and train first bring every image to these sides. 0 = 5/3 of the
    short side, whatever the images' shape; in train 4/3."""
    max_detections: int = 100
    """Detections of an image; the random weights always find that many."""
    model: Literal["masks", "keypoints", "retinanet", "fcos"] = "masks"
    """masks = maskrcnn_resnet50_fpn of 90 classes; keypoints = keypointrcnn_resnet50_fpn of people; retinanet, fcos =
    the one-stage models of that name (these three: detect only)."""
    checkpoint: str = ""
    """Checkpoint folder to label with, without a peer (label only); empty = torchvision's model with random weights."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of our side besides float32, and of the peer's autocast."""
    use_gpu: bool = False
    """Compute on the GPU, both sides."""
    batch: int = 1
    """Images that are computed together (detect, stages); 1 = each has a call of its own."""
    threads: int = 0
    """CPU threads of both sides; 0 = the machine's cores."""
    workers: int = 0
    """Detector processes of jobs.label, which share the threads (label); 0 = as jobs.label chooses them."""
    steps: int = 0
    """Consecutive steps of a round (train); 0 = 1 on a CPU, 20 on a GPU."""
    loaders: int = 0
    """Processes of each side that prepare inputs in the background (train); 0 = on a CPU none, inputs are prepared
    within the step; on a GPU all cores but two, at most 12."""
    ablate: bool = False
    """Measure ours without single optimisations, too (train, detect)."""
    output: str = ""
    """JSON file for all figures; empty = none."""
    trace: str = ""
    """Chrome trace of one more image (stages) or step (train), for Perfetto or chrome://tracing; empty = none."""

    def __post_init__(self) -> None:
        require_typed("", self)
        for name in ("num_images", "rounds", "short_side", "max_detections", "batch"):
            require_positive(name, getattr(self, name))
        require_between("short_side", self.short_side, 1, MAX_SIDE)
        require_between("long_side", self.long_side, 0, MAX_SIDE)
        for name in ("threads", "workers", "steps", "loaders"):
            require_not_negative(name, getattr(self, name))
        long_side_fits = self.long_side == 0 or self.long_side >= self.short_side
        require(long_side_fits, "long_side", self.long_side, f"0, or at least short_side ({self.short_side})")


@dataclass(frozen=True)
class InputBenchmarkRun:
    """Measure the way from image files to training batches."""

    images: str = ""
    """Folder that the file names of the annotations are relative to."""
    annotations: str = ""
    """COCO instances JSON file; empty = generated pictures."""
    num_images: int = 200
    """Images of a round; those that there are come again and again."""
    batch: int = 4
    """Images of a batch."""
    processes: int = 0
    """Loader processes of each side; 0 = one for each CPU."""
    rounds: int = 3
    """Rounds in turns; the median counts."""
    short_side: int = 800
    """Short side of the network's input, pixels."""
    long_side: int = 0
    """Limit of its long side, pixels; 0 = 5/3 of the short side."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """What the network rounds its input to, and our loader the values that it ships."""
    output: str = ""
    """JSON file for all figures; empty = none."""

    def __post_init__(self) -> None:
        require_typed("", self)
        for name in ("num_images", "batch", "rounds", "short_side"):
            require_positive(name, getattr(self, name))
        require_not_negative("processes", self.processes)
        require_between("short_side", self.short_side, 1, MAX_SIDE)
        long_side_fits = self.long_side == 0 or self.short_side <= self.long_side <= MAX_SIDE
        require(long_side_fits, "long_side", self.long_side, f"0, or at least short_side ({self.short_side})")
        given = bool(self.images) == bool(self.annotations)
        require(given, "annotations", self.annotations, "a COCO file together with images, or neither")


@dataclass(frozen=True)
class ReadingBenchmarkRun:
    """Measure reading images from an object store that answers late; the store is a server of this machine."""

    delay_ms: float = 30.0
    """Wait before each answer, milliseconds. S3 takes some 30 to 100."""
    num_images: int = 2000
    """Images of a round, of 60 to 160 KB."""
    readers: int = 64
    """Images that our side reads at once, as label.readers."""
    rounds: int = 3
    """Rounds in turns; the median counts."""
    output: str = ""
    """JSON file for all figures; empty = none."""

    def __post_init__(self) -> None:
        require_typed("", self)
        for name in ("num_images", "readers", "rounds"):
            require_positive(name, getattr(self, name))
        require_not_negative("delay_ms", self.delay_ms)


@dataclass(frozen=True)
class EncodingRun:
    """Measure the way from soft masks to COCO run lengths."""

    masks: int = 100
    """Objects of the image."""
    height: int = 800
    """Of the image, pixels."""
    width: int = 1333
    """Of the image, pixels."""
    rounds: int = 15
    """Rounds in turns; the median counts."""
    threads: int = 0
    """CPU threads of both sides; 0 = the machine's cores."""
    output: str = ""
    """JSON file for all figures; empty = none."""

    def __post_init__(self) -> None:
        require_typed("", self)
        for name in ("masks", "height", "width", "rounds"):
            require_positive(name, getattr(self, name))
        require_not_negative("threads", self.threads)


@dataclass(frozen=True)
class ChaosRun:
    """Label on a cluster of three nodes on this machine while processes, nodes and the driver are killed."""

    checkpoint: str = ""
    """Checkpoint folder; empty = a small Mask R-CNN with random weights."""
    num_images: int = 300
    """Generated pictures to label."""
    rounds: int = 10
    """How often; each has a seed of its own."""
    kills: int = 1
    """Detector processes, nodes and drivers killed in each round: so many of each kind."""
    pause: float = 2.0
    """Longest pause between two kills, seconds."""
    rows_per_file: int = 6
    """Images of one label file."""
    seed: int = 0
    """Of the first round."""

    def __post_init__(self) -> None:
        require_typed("", self)
        for name in ("num_images", "rounds", "kills", "pause", "rows_per_file"):
            require_positive(name, getattr(self, name))


@dataclass(frozen=True)
class ScaleRun:
    """Measure what grows with the number of images, and what does not."""

    sizes: tuple[int, ...] = (10_000, 100_000)
    """Numbers of images."""

    def __post_init__(self) -> None:
        require_typed("", self)
        require(all(size > 0 for size in self.sizes), "sizes", self.sizes, "numbers above 0")


@dataclass(frozen=True)
class WorkerBenchmarkRun:
    """Measure how busy a labelling worker keeps a GPU, with a simulated one."""

    annotations: str = ""
    """COCO file whose images' sizes are taken; empty = the common ones of COCO train2017."""
    num_images: int = 5000
    """Images, of one colour: they are decoded in a fraction of a photo's time, and so on few cores."""
    image_ms: float = 2.2
    """Time that the GPU takes for each image of a batch, milliseconds; an H100's for Mask R-CNN R50-FPN in bfloat16."""
    batch_ms: float = 1.5
    """What it takes for a batch besides, milliseconds."""
    batch_pixels: int = 9_000_000
    """As label.batch_pixels."""
    short_side: int = 800
    """Short side of the network's input, pixels; its long side is at most 5/3 of that."""
    delay_ms: float = 0.0
    """What storage takes for each image besides reading the local file, milliseconds."""
    readers: int = 16
    """Images read at the same time."""
    decode_threads: int = 2
    """Threads that decode images."""
    rows_per_file: int = 1000
    """Images of one label file."""
    seed: int = 0
    """Of the images' order."""
    output: str = ""
    """JSON file for all figures; empty = none."""

    def __post_init__(self) -> None:
        require_typed("", self)
        for name in ("num_images", "batch_pixels", "readers", "decode_threads", "rows_per_file"):
            require_positive(name, getattr(self, name))
        for name in ("image_ms", "batch_ms", "delay_ms", "seed"):
            require_not_negative(name, getattr(self, name))
        require_between("short_side", self.short_side, 1, MAX_SIDE)


@dataclass(frozen=True)
class AnnotationsBenchmarkRun:
    """Measure how annotations of any number of images get to a training's processes."""

    form: Literal["json", "shards"] = "json"
    """json = a COCO file with outlines; shards = Parquet shards with boxes."""
    num_images: int = 118_287
    """Images; those of COCO train2017."""
    num_objects: int = 860_001
    """Annotations."""
    repeat_threshold: float = 0.001
    """As of train.repeat_threshold, whose factors are part of the plan; 0 = without."""
    peer: bool = True
    """Measure pycocotools' reader beside ours (form: json)."""
    folder: str = ""
    """Where the files are written, and removed afterwards; empty = the system's folder for temporary files."""

    def __post_init__(self) -> None:
        require_typed("", self)
        for name in ("num_images", "num_objects"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
        require(0.0 <= self.repeat_threshold <= 1.0, "repeat_threshold", self.repeat_threshold, "a number from 0 to 1")


@dataclass(frozen=True)
class TradeoffRun:
    """Measure accuracy against speed: input sizes x checkpoints x numbers of proposals."""

    checkpoint: str
    """Checkpoint folders, separated by commas; such as of different trunks."""
    images: str
    """Folder that the file names of the annotations are relative to."""
    annotations: str
    """COCO instances JSON of the images."""
    output: str = "tradeoff"
    """Folder for tradeoff.json, .csv, .png and .svg."""
    short_sides: tuple[int, ...] = ()
    """Short sides of the network's input, pixels; empty = a half, three quarters and the whole of each checkpoint's."""
    proposals: tuple[int, ...] = ()
    """Proposals of an image that reach the heads; empty = a tenth, a third and all of each checkpoint's."""
    num_images: int = 0
    """First images of the annotation file to use; 0 = all."""
    rounds: int = 1
    """How often each image is measured; the median over all counts."""
    max_detections: int = 100
    """Best detections of an image and category that count (COCO: 100)."""
    use_gpu: bool = False
    """Compute on the GPU."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the network."""
    threads: int = 0
    """CPU threads; 0 = the machine's cores."""
    clock: Literal["wall", "cpu"] = "wall"
    """wall = time that passes; cpu = time that all threads compute, for a machine that has other work as well (with one
    thread the two are equal on a quiet one)."""

    def __post_init__(self) -> None:
        require_typed("", self)
        require(bool(self.checkpoints), "checkpoint", self.checkpoint, "one or more folders, separated by commas")
        for name in ("short_sides", "proposals"):
            values = getattr(self, name)
            object.__setattr__(self, name, tuple(values))
            limit = MAX_SIDE if name == "short_sides" else MAX_REGIONS
            fit = all(0 < value <= limit for value in values)
            require(fit, name, list(values), f"numbers above 0, up to {limit:,}")
        require_positive("rounds", self.rounds)
        require(self.clock == "wall" or not self.use_gpu, "clock", self.clock, "wall where a GPU computes")
        require(self.max_detections >= 10, "max_detections", self.max_detections, "at least 10")
        for name in ("num_images", "threads"):
            require_not_negative(name, getattr(self, name))

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """The folders of `checkpoint`."""
        return tuple(part.strip() for part in self.checkpoint.split(",") if part.strip())


@dataclass(frozen=True)
class EvaluationBenchmarkRun:
    """Measure the scoring of generated labels on this machine."""

    images: int = 5000
    """Generated images, with COCO val2017's number of objects."""
    detections: int = 100
    """Detections of each."""
    rounds: int = 3
    """Rounds in turns; the median counts."""
    peer: bool = True
    """Measure plain pycocotools too."""
    engine: Literal["hotcoco", "pycocotools"] = "hotcoco"
    """Engine of our side."""
    distributed: bool = False
    """Score shards as Ray tasks; Ray's own processes are not counted."""

    def __post_init__(self) -> None:
        require_typed("", self)
        for name in ("images", "detections", "rounds"):
            require_positive(name, getattr(self, name))


@dataclass(frozen=True)
class DriverRun:
    """What a labelling run's driver carries: workers that only take their time."""

    workers: int = 200
    """Workers on a cluster of this machine; each is a process of some 100 MB."""
    chunks: int = 5000
    """Chunks in all."""
    rows: int = 1000
    """Images of a chunk."""
    group: int = 256
    """Images that a worker reports at once."""
    chunk_seconds: float = 0.5
    """What a worker takes for a chunk."""
    output: str = ""
    """JSON file for all figures; empty = none."""

    def __post_init__(self) -> None:
        require_typed("", self)
        for name in ("workers", "chunks", "rows", "group", "chunk_seconds"):
            require_positive(name, getattr(self, name))
