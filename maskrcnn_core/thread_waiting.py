"""How long OpenMP's threads stay awake at the end of a parallel region, which has to be said before torch is imported.

A network is some hundred regions of about a millisecond. GNU's OpenMP lets threads that are done early spin for
milliseconds (on Intel, whose pause instruction is long, for some 20), so that the next region starts at once. Where
another process needs the core, they take its time from the very thread that they wait for: beside four busy processes
on two cores detection then takes 6 times as long. A few microseconds awake are enough for the next region, and whoever
waits longer sleeps.
"""

import os
from collections.abc import MutableMapping

# Some 10 microseconds on AMD, 50 on Intel.
SPIN_COUNT = {"GOMP_SPINCOUNT": "1000"}

_CHOSEN_BY_USER = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def limit_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets the variable where the user has chosen nothing; torch must not have been imported before."""
    if not any(name in environment for name in _CHOSEN_BY_USER):
        environment.update(SPIN_COUNT)
