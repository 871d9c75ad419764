"""A detector in the form that its device computes fastest, and the choices that depend on the device, made once."""

from dataclasses import dataclass

import torch

from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.inference.compiled import CompiledByShape
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.layers.cpu_layers import use_cpu_layers
from maskrcnn_core.layers.frozen_norm import fold
from maskrcnn_core.layers.half_weights import round_large_weights
from maskrcnn_core.model.detector import Detector


@dataclass(frozen=True)
class Choices:
    """What `PredictorSettings` leave to the device.

    Attributes:
        device: that computes.
        half: compute in bfloat16 where autocast does.
        pixel_type: of the network's input. Under autocast the first convolution rounds its input anyway, so that on a
            GPU half the bytes are written.
        prefetch, device_masks, device_preparation, cuda_graphs: as in `PredictorSettings`, decided.
    """

    device: torch.device
    half: bool
    pixel_type: torch.dtype
    prefetch: bool
    device_masks: bool
    device_preparation: bool
    cuda_graphs: bool


def choices(config: ModelConfig, settings: PredictorSettings) -> Choices:
    """The choices for the settings' device.

    Raises:
        ConfigError: this machine has no such device.
    """
    device = usable_device(settings.device)
    on_gpu, half = device.type == "cuda", settings.precision == "bfloat16"

    def decided(wanted: bool | None) -> bool:
        return on_gpu if wanted is None else wanted

    return Choices(
        device=device,
        half=half,
        pixel_type=torch.bfloat16 if half and on_gpu else torch.float32,
        prefetch=decided(settings.prefetch),
        device_masks=decided(settings.device_masks),
        # Pillow's own values are always made on the host.
        device_preparation=decided(settings.device_preparation) and config.input.resize != "antialias",
        cuda_graphs=on_gpu and settings.cuda_graphs is not False,
    )


def prepared(detector: Detector, config: ModelConfig, settings: PredictorSettings, chosen: Choices) -> Detector:
    """The detector in inference form: norms folded, weights in the device's layout and precision, its own number of
    results.

    Args:
        detector: weights loaded; its layers are changed in place, so that it cannot learn any more.
        config: its configuration, with what the settings replace.
    """
    fold(detector)
    if settings.cpu_layers and chosen.device.type == "cpu" and not settings.compile:
        use_cpu_layers(detector, half=chosen.half)
    if chosen.half:
        round_large_weights(detector, torch.bfloat16)
    detector.to(chosen.device).to(memory_format=torch.channels_last)
    return (
        detector.adapted(
            min_score=config.detection.min_score,
            max_detections=config.detection.max_detections,
            max_proposals=config.dense.post_nms_test,
            maps=CompiledByShape(detector.maps) if settings.compile else None,
        )
        .eval()
        .requires_grad_(False)
    )


def usable_device(name: str) -> torch.device:
    """The torch device of that name.

    Raises:
        ConfigError: this machine, or this torch, has none.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        others = f", cuda or cuda:0 .. cuda:{gpus - 1}" if gpus else " (torch finds no GPU)"
        raise ConfigError(f"device: got {name!r}, which is not to be had here; expected cpu{others}") from error
    return device
