"""OpenCV's contrib package, which is no dependency: found when it is needed."""

from types import ModuleType

from maskrcnn_core.errors import ConfigError

_MODULE = "ximgproc"


def opencv_contrib(method: str) -> ModuleType:
    """The module `cv2` with its contrib parts.

    Args:
        method: what needs them, for the message.

    Raises:
        ConfigError: it is not installed, or the plain package is, whose module has the same name.
    """
    try:
        import cv2
    except ImportError as error:
        raise ConfigError(f"{_needs(method)}, and no OpenCV is installed ({error}); {_HOW}") from error
    if not hasattr(cv2, _MODULE):
        raise ConfigError(
            f"{_needs(method)}, and the OpenCV {cv2.__version__} that is installed lacks them; the packages have one "
            f"module and exclude each other: pip uninstall opencv-python-headless opencv-python, then {_HOW}"
        )
    module: ModuleType = cv2
    return module


_HOW = "pip install opencv-contrib-python-headless (this package's extra `proposals`)"


def _needs(method: str) -> str:
    return f"propose.method: {method} needs the contrib parts of OpenCV (cv2.{_MODULE})"
