"""Edge boxes (Zitnick and Dollar, ECCV 2014): boxes that hold many contours and cut few.

OpenCV's implementation. The contours are those of structured edges (Dollar and Zitnick, ICCV 2013), a forest of
decision trees whose model file is no part of OpenCV's package.
"""

import gzip
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.region_proposals.opencv_contrib import opencv_contrib
from maskrcnn_core.region_proposals.settings import EdgeBoxesConfig

# A forest looks at patches of so many pixels; the last row and column of smaller images are repeated.
_PATCH = 32

# Without one of these OpenCV's reader ends the process.
_PARTS = (b"options", b"childs", b"featureIds", b"thresholds", b"edgeBoundaries", b"edgeBins")
_GZIP = b"\x1f\x8b"


class EdgeBoxes:
    """Finds the boxes of images.

    Args:
        config: model file and search.
        most: boxes of an image.

    Raises:
        ConfigError: OpenCV's contrib parts are not installed, or the model file cannot be used.
    """

    def __init__(self, config: EdgeBoxesConfig, most: int) -> None:
        self._config, self._most = config, most
        self._cv2 = opencv_contrib("edge_boxes")
        require_model(config)
        try:
            self._edges = self._cv2.ximgproc.createStructuredEdgeDetection(config.model)
        except (self._cv2.error, SystemError) as error:
            raise ConfigError(_unusable(config, " ".join(str(error).split())[:200])) from error

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The boxes of an image [H, W, 3] RGB, best first: [R, 4] as x, y, width, height in its pixels, and their
        scores [R], 0 to 1; in a tiny image they may reach out of it."""
        height, width = pixels.shape[:2]
        missing = [(0, max(0, _PATCH - height)), (0, max(0, _PATCH - width)), (0, 0)]
        pixels = np.pad(pixels, missing, mode="edge")
        edges = self._edges.detectEdges(pixels.astype(np.float32) / np.float32(255))
        orientation = self._edges.computeOrientation(edges)
        thin = self._edges.edgesNms(edges, orientation)
        search = self._cv2.ximgproc.createEdgeBoxes(
            alpha=self._config.alpha, beta=self._config.beta, maxBoxes=self._most
        )
        boxes, scores = search.getBoundingBoxes(thin, orientation)
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        scores = np.asarray(scores, np.float64).reshape(-1)[: len(boxes)]  # without boxes it is one of nothing
        order = np.argsort(-scores, kind="stable")
        return boxes[order], np.clip(scores[order], 0.0, 1.0)


def require_model(config: EdgeBoxesConfig) -> bytes:
    """The content of the model file, as it is stored.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    try:
        content = Path(config.model).read_bytes()
        text = gzip.decompress(content) if content.startswith(_GZIP) else content
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(_unusable(config, getattr(error, "strerror", None) or str(error))) from error
    missing = [part.decode() for part in _PARTS if part + b":" not in text]
    if missing:
        raise ConfigError(_unusable(config, f"it has no {missing[0]}"))
    return content


def _unusable(config: EdgeBoxesConfig, why: str) -> str:
    return (
        f"propose.edge_boxes.model: {config.model!r} cannot be used ({why}); expected the model file of structured "
        "edges, such as testdata/cv/ximgproc/model.yml.gz of github.com/opencv/opencv_extra, on every machine"
    )
