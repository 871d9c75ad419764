"""Whether the loops that Numba compiles run here."""

import importlib.util
import logging
from collections.abc import Callable
from functools import cache

from maskrcnn_core.kernels.gpu.availability import Kernel, without

_LOGGER = logging.getLogger(__name__)


def use_loops(kernel: Kernel, trial: Callable[[], bool]) -> bool:
    """Whether those of one kind work here and are not switched off (`kernels.availability.SWITCH`).

    Args:
        kernel: which.
        trial: uses them and says whether they find the right numbers; asked once in a process.
    """
    return not without(kernel) and _work(trial)


@cache
def _work(trial: Callable[[], bool]) -> bool:
    try:
        if importlib.util.find_spec("numba") is None:
            raise RuntimeError("Numba is not installed")
        if not trial():
            raise RuntimeError("they gave wrong numbers")
    except Exception as error:  # every stage of a compiler has its own
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        _LOGGER.warning("loops compiled by Numba are left out, which costs a good part of the speed (%s)", reason)
        return False
    return True
