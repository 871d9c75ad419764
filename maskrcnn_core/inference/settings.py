"""How a predictor runs, and the fingerprint that says which labels belong to one run. Imports no network code."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from maskrcnn_core.config.checks import (
    require,
    require_between,
    require_fraction,
    require_not_negative,
    require_positive,
    require_typed,
)
from maskrcnn_core.config.limits import MAX_PIXELS, MAX_REGIONS, MAX_SIDE
from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.errors import ConfigError

# Not part of a fingerprint: where and how fast it runs.
_WITHOUT_EFFECT = (
    *("device", "batch_pixels", "cpu_layers", "compile", "cuda_graphs"),
    *("device_preparation", "decode_threads", "prefetch", "device_masks"),
)
_GPU_BATCH_PIXELS = 9_000_000
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu|meta)(:\d{1,3})?")
_DEVICES = "cpu, cuda, cuda:NUMBER or another device of torch (mps, xpu)"
# Left out of a fingerprint while they hold these, so that labels made before they existed keep theirs.
_LATER_ADDED: dict[str, Any] = {"test_short_sides": (), "test_flip": False, "record": "detections", "proposals": ""}

Stage = Literal[
    "decode",
    "resize, normalise",
    "pad",
    "pack",
    "copy to the device",
    "resize, normalise, pad",
    "to the device",
    "network",
    "boxes to the image's frame",
    "results to the host",
    "paste, run lengths",
    "masks, run lengths",
    "records",
]
"""What an image goes through in `Predictor.predict`. "network" is the detector as a whole."""

Mark = Callable[[Stage, float], None]
"""Told of each stage when it ends: its name, and the bytes that it had to read and write where they are worth counting.
What was done since the call before belongs to the stage."""


def no_mark(stage: Stage, moved: float) -> None:
    """Nobody measures."""


@dataclass(frozen=True)
class PredictorSettings:
    """How a predictor runs; those fields that change results are part of its fingerprint.

    Attributes:
        device: torch device: cpu, cuda, cuda:1, ...
        precision: `float32` or `bfloat16` (autocast).
        batch_pixels: upper limit of padded input pixels in a batch, over all views; one image is always taken. 0 =
            one image at a time on a CPU, where a batch only fills the caches, and 9,000,000 on a GPU: eight images of
            800 x 1344.
        max_pixels: larger images fail as `too_large`.
        apply_exif: turn images by their EXIF orientation.
        min_score, max_detections: replace the checkpoint's; None keeps it.
        test_short_sides: featurised image pyramid: each image is looked at in all these sizes (pixels of the shorter
            side) and the results are merged; empty = once, in the checkpoint's size.
        test_flip: look at each size mirrored left to right as well.
        record: what is asked of the detector, `detections` or the RPN's `proposals`; then `min_score` and
            `max_detections` are of proposals.
        proposals: fingerprint of the proposals that come with the images instead of the RPN's; empty = the RPN's.
        cpu_layers: on a CPU, layers with reused memory and, in float32, fewer multiplications
            (`layers/cpu_layers.py`); false = torch's own, the same up to rounding.
        device_masks: draw masks on the device and copy only their runs (`device_masks.py`), the same up to rounding;
            None = on a GPU.
        device_preparation: resize, normalise and pad on the device what the host has decoded
            (`device_preparation.py`), the same up to rounding; None = on a GPU. Pillow's own values (the resize rule
            `antialias`) are always made on the host.
        decode_threads: decode so many images at a time, ahead of the network; 0 = one after the other on a CPU, which
            has no time left over, and on a GPU as many as there are CPU threads, at most 8.
        prefetch: on threads of their own, while the device computes a batch, prepare the next one and make the records
            of the one before (`batch_stream.py`); None = with a GPU.
        cuda_graphs: record what the device does for a shape of batch that comes again, and replay it as one launch
            (`cuda_graphs.py`); None = on a GPU.
        compile: compile the trunk and the pyramid for each shape of batch (`compiled.py`), the same up to rounding; it
            takes a while for each.
    """

    device: str = "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"
    batch_pixels: int = 0
    max_pixels: int = MAX_PIXELS
    apply_exif: bool = True
    min_score: float | None = None
    max_detections: int | None = None
    test_short_sides: tuple[int, ...] = ()
    test_flip: bool = False
    record: Literal["detections", "proposals"] = "detections"
    proposals: str = ""
    cpu_layers: bool = True
    device_masks: bool | None = None
    device_preparation: bool | None = None
    decode_threads: int = 0
    prefetch: bool | None = None
    cuda_graphs: bool | None = None
    compile: bool = False

    @property
    def batch_limit(self) -> int:
        """`batch_pixels`, or what 0 stands for."""
        return self.batch_pixels or (1 if self.device == "cpu" else _GPU_BATCH_PIXELS)

    def __post_init__(self) -> None:
        require_typed("", self)
        object.__setattr__(self, "test_short_sides", tuple(self.test_short_sides))
        require(_DEVICE.fullmatch(self.device) is not None, "device", self.device, _DEVICES)
        for name in ("batch_pixels", "decode_threads"):
            require_not_negative(name, getattr(self, name))
        require_positive("max_pixels", self.max_pixels)
        if self.min_score is not None:
            require_fraction("min_score", self.min_score)
        if self.max_detections is not None:
            require_between("max_detections", self.max_detections, 1, MAX_REGIONS)
        sides_fit = all(1 <= side <= MAX_SIDE for side in self.test_short_sides)
        require(sides_fit, "test_short_sides", self.test_short_sides, f"lengths of 1 pixel or more, up to {MAX_SIDE:,}")


def check_settings(config: ModelConfig, settings: PredictorSettings) -> None:
    """Make sure that a model can do what is asked of it.

    Raises:
        ConfigError: it lacks the part that does it; says which and what to ask for instead.
    """
    if settings.record == "proposals":
        if not config.dense.enabled:
            raise ConfigError("label.record: got 'proposals', but the checkpoint has no RPN; expected 'detections'")
        if settings.proposals:
            raise ConfigError(
                "proposals: are given, and label.record asks for proposals as well; expected only one of the two"
            )
        if settings.test_short_sides or settings.test_flip:
            raise ConfigError(
                "label.test_short_sides, label.test_flip: only detections are merged over several views; "
                "leave them out with label.record 'proposals'"
            )
    else:
        if config.finds == "proposals":
            raise ConfigError(
                "label.record: got 'detections', but the checkpoint is an RPN alone; expected 'proposals' "
                "(--label.record proposals)"
            )
        if not config.dense.enabled and not settings.proposals:
            raise ConfigError(
                "proposals: not given, but the checkpoint has no RPN; give --proposals URI, the output of "
                "jobs.label --label.record proposals with a checkpoint that has one"
            )
        if settings.proposals and config.dense.finds == "detections":
            raise ConfigError(
                "proposals: are given, but the checkpoint is a one-stage detector, which finds its boxes itself; leave "
                "them out"
            )
        masks_elsewhere = config.mask_head.enabled and config.mask_head.regions == "proposals"
        if masks_elsewhere and (settings.test_short_sides or settings.test_flip):
            raise ConfigError(
                "label.test_short_sides, label.test_flip: masks of several views are drawn on the merged boxes; leave "
                "them out with a checkpoint whose model.mask_head.regions is 'proposals'"
            )


def with_overrides(config: ModelConfig, settings: PredictorSettings) -> ModelConfig:
    """The model's configuration with the settings that replace parts of it."""
    if settings.record == "proposals":
        most = settings.max_detections or config.dense.post_nms_test
        return replace(config, dense=replace(config.dense, post_nms_test=most))
    return config.with_detection(min_score=settings.min_score, max_detections=settings.max_detections)


def deciding_settings(settings: PredictorSettings) -> dict[str, Any]:
    """The settings that change results, by name (not the device or batching), as JSON can hold them."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(settings).items()
        if name not in _WITHOUT_EFFECT and (name not in _LATER_ADDED or value != _LATER_ADDED[name])
    }


def combined_fingerprint(weights_fingerprint: str, settings: PredictorSettings) -> str:
    """32 hexadecimal digits over the weights and the settings that change results."""
    document = json.dumps({"weights": weights_fingerprint, "settings": deciding_settings(settings)}, sort_keys=True)
    return hashlib.sha256(document.encode()).hexdigest()[:32]
