"""How long a worker will need for an image, roughly, before anything is measured: chunks are some seconds of work."""

from pathlib import Path

from maskrcnn_core.errors import UserError
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.weights.checkpoint_config import WEIGHTS_NAME, load_config
from pipelines.storage.checkpoint_copy import local_checkpoint

# A weight of a convolution is used once for each few pixels of the input: ResNet-50 with FPN and mask head, of 44.4
# million, takes 486 GFLOP for an image of 800 x 1216.
_OPERATIONS = 11.0
_BYTES_OF_WEIGHT = 4

# What a thread of a server's processor, and a GPU, make of such a network in float32, operations a second.
_RATE_OF_THREAD = 150e9
_RATE_OF_GPU = 100e12

# Decoding, preparing and encoding take a while however small the network is.
_LEAST_ON_CPU, _LEAST_ON_GPU = 0.01, 0.001

# Where the checkpoint doesn't tell.
_UNKNOWN = 1.0


def seconds_of_image(checkpoint: str, settings: PredictorSettings, threads: int) -> float:
    """Seconds of one worker, within a factor of some three.

    Args:
        checkpoint, settings: as `load_predictor` takes them.
        threads: of a worker on a CPU.
    """
    on_cpu = settings.device == "cpu"
    try:
        operations = _operations(local_checkpoint(checkpoint), settings)
    except (UserError, OSError):
        return _UNKNOWN if on_cpu else _LEAST_ON_GPU
    rate = _RATE_OF_THREAD * max(1, threads) if on_cpu else _RATE_OF_GPU
    return max(operations / rate, _LEAST_ON_CPU if on_cpu else _LEAST_ON_GPU)


def _operations(folder: str, settings: PredictorSettings) -> float:
    """Of all passes over an image."""
    config = load_config(folder).input
    weights = (Path(folder) / WEIGHTS_NAME).stat().st_size / _BYTES_OF_WEIGHT
    longest = config.long_side / config.short_side
    pixels = sum(side * side * longest for side in settings.test_short_sides or (config.short_side,))
    return _OPERATIONS * weights * pixels * (2 if settings.test_flip else 1)
