"""One batch of images from files to rows, with every stage marked on a clock, as `benchmark_stages` needs it.

The stages are those of `Predictor.predict` and the label job, one after the other in one thread.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_core.inference.predictor import Predictor
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.records.labels import ImageRecord, record_schema, records_to_table

IN_FRAME = "boxes to the image's frame"

# Parts of the detector in the order in which they run: module, name of its stage, name of what follows it.
PARTS = (
    ("trunk", "trunk", "trunk"),
    ("pyramid", "pyramid", "pyramid"),
    ("dense.head", "RPN head", "proposals (top k, NMS)"),
    ("regions.box.transform", "RoIAlign for boxes", "RoIAlign for boxes"),
    ("regions.trunk", "region stage", "region stage"),
    ("regions.box.head", "box head", "detections (softmax, NMS)"),
    ("regions.mask.transform", "RoIAlign for masks", "RoIAlign for masks"),
    ("regions.mask.head", "mask head", "masks into slots"),
    ("regions.keypoints.transform", "RoIAlign for keypoints", "RoIAlign for keypoints"),
    ("regions.keypoints.head", "keypoint head", "keypoint decoding"),
)
# What lies between a part and whatever is marked next.
_FOLLOWING = {name: following for _, name, following in PARTS}


@dataclass
class Work:
    """What was counted for a stage of one batch: seconds, and bytes read and written at least."""

    seconds: float = 0.0
    bytes: float = 0.0


@dataclass
class Clock:
    """Adds the time since the last mark to a stage."""

    device: torch.device
    work: dict[str, Work] = field(default_factory=dict)
    last: float = 0.0
    latest: str = ""

    def start(self) -> None:
        """The first stage of another batch begins."""
        self.work = {}
        self.last = self._now()

    def mark(self, name: str, moved: float = 0.0) -> None:
        """What was done since the last mark belongs to a stage, which moved so many bytes. What the network as a whole
        has left belongs to what follows its last part."""
        now = self._now()
        self.latest = _FOLLOWING.get(self.latest, self.latest) if name == "network" else name
        work = self.work.setdefault(self.latest, Work())
        work.seconds += now - self.last
        work.bytes += moved
        self.last = self._now()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def in_stages(predictor: Predictor, batch_pixels: int, clock: Clock) -> Predictor:
    """The predictor with one stage after the other, each told to the clock.

    Args:
        predictor: whose network it shares.
        batch_pixels: of one full batch.
    """
    settings = replace(
        predictor.settings,
        batch_pixels=batch_pixels,
        decode_threads=1,
        prefetch=False,
        cuda_graphs=False,
        cpu_layers=False,  # the network has them
        compile=False,  # likewise
    )
    return Predictor(predictor.detector, predictor.config, settings, mark=clock.mark)


def one_batch(predictor: Predictor, contents: Sequence[bytes], clock: Clock) -> list[ImageRecord]:
    """From files to their rows, as the label job goes.

    Args:
        predictor: of `in_stages`, with the clock.
        contents: images of one padded shape.
    """
    clock.start()
    with _parts_marked(predictor.detector, clock):
        records = predictor.predict(contents)
    categories = record_schema(predictor.config.categories)
    records_to_table([*range(len(records))], ["image"] * len(records), records, predictor.fingerprint, categories)
    clock.mark("rows")
    return records


@contextmanager
def _parts_marked(detector: Detector, clock: Clock) -> Iterator[None]:
    """The detector's parts mark the clock while the block runs."""
    handles: list[Any] = []

    def before(_: nn.Module, __: Any) -> None:
        clock.mark("network")

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            weights = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
            clock.mark(name, _bytes_of(inputs) + weights + _bytes_of(output))

        return hook

    for name, module in parts_of(detector):
        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def parts_of(detector: Detector) -> Iterator[tuple[str, nn.Module]]:
    """Name of its stage and module of each of `PARTS` that the detector has."""
    modules = dict(detector.named_modules())
    return ((name, modules[path]) for path, name, _ in PARTS if path in modules)


def _bytes_of(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, list | tuple):
        return sum(map(_bytes_of, value))
    return 0
