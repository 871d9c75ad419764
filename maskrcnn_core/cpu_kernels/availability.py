"""Whether the loops that Numba compiles run here."""

import importlib.util
import logging
import os
from collections.abc import Callable
from functools import cache

_LOGGER = logging.getLogger(__name__)

SWITCH = "MASKRCNN_WITHOUT"
"""Environment variable, the one of `kernels.availability`: `loops` leaves these out."""


@cache
def loops_work(trial: Callable[[], bool]) -> bool:
    """Whether they compile here and `trial`, which uses some, finds the right numbers; asked once in a process."""
    if "loops" in os.environ.get(SWITCH, "").split(","):
        return False
    try:
        if importlib.util.find_spec("numba") is None:
            raise RuntimeError("Numba is not installed")
        if not trial():
            raise RuntimeError("they gave wrong numbers")
    except Exception as error:  # every stage of a compiler has its own
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        _LOGGER.warning("the loops that Numba compiles are left out, which costs a good part of the speed (%s)", reason)
        return False
    return True
