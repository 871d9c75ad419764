"""Selective search (Uijlings et al., IJCV 2013): regions of a segmentation, merged by likeness step by step.

OpenCV's implementation. It orders boxes by their level in the hierarchy times a random number, as the paper does
(section 4.3), and draws that of the C library's own generator, which is seeded here before every image: an image's
proposals depend on nothing that was computed before.
"""

import ctypes
import threading
from types import ModuleType

import numpy as np
import numpy.typing as npt

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.region_proposals.opencv_contrib import opencv_contrib
from maskrcnn_core.region_proposals.settings import SelectiveSearchConfig

_SEED = 1

# The generator belongs to the process.
_generator = threading.Lock()


class SelectiveSearch:
    """Finds the regions of images.

    Args:
        config: strategy, and the size in which images are looked at.

    Raises:
        ConfigError: OpenCV's contrib parts are not installed, or their order cannot be repeated on this system.
    """

    def __init__(self, config: SelectiveSearchConfig) -> None:
        self._config = config
        self._cv2 = opencv_contrib("selective_search")
        self._require_repeatable()

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """The boxes of an image [H, W, 3] RGB, best first: [R, 4] as x, y, width, height in its pixels."""
        height, width = pixels.shape[:2]
        small = resized(self._cv2, pixels, self._config.side)
        boxes = self._search(np.ascontiguousarray(small[:, :, ::-1]))
        scale_y, scale_x = height / small.shape[0], width / small.shape[1]
        boxes *= np.array([scale_x, scale_y, scale_x, scale_y])
        return boxes

    def _search(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """Boxes of an image BGR in the order that OpenCV gives them."""
        search = self._cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(pixels)
        match self._config.strategy:
            case "fast":
                search.switchToSelectiveSearchFast()
            case "quality":
                search.switchToSelectiveSearchQuality()
            case "single":
                search.switchToSingleStrategy()
        with _generator:
            ctypes.CDLL(None).srand(_SEED)
            return np.asarray(search.process(), np.float64).reshape(-1, 4)

    def _require_repeatable(self) -> None:
        """The seed has to reach the generator that OpenCV draws from."""
        picture = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        if not np.array_equal(self._search(picture), self._search(picture)):
            raise ConfigError(
                "propose.method: selective_search gives another order each time on this system, whose random numbers "
                "cannot be seeded; expected one that resumed runs can rely on. Use Linux, or another method"
            )


def resized(cv2: ModuleType, pixels: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """An image [H, W, 3] whose longer side has `side` pixels; 0 = as it is."""
    height, width = pixels.shape[:2]
    scale = side / max(height, width) if side else 1.0
    if scale == 1.0:
        return pixels
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1.0 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, shape, interpolation=how), np.uint8)
