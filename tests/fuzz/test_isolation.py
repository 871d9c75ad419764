"""The fuzz itself can fail: what a case does to its process is found, and the next case runs."""

import os
import signal
import time

from tests.fuzz.isolation import run_cases
from tests.processes import descendants


def _misbehave(case: int) -> tuple[str, str]:
    if case == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if case == 2:
        time.sleep(60)
    if case == 3:
        raise KeyError("nobody caught it")
    if case == 4:
        assert len(b"x" * (1200 << 20)) > 0
    if case == 5:
        os._exit(3)
    return "ok", ""


def test_each_way_to_misbehave_is_a_finding_and_the_others_go_on() -> None:
    outcomes = {outcome.case: outcome for outcome in run_cases(_misbehave, range(7), most_seconds=5.0)}
    verdicts = {case: outcome.verdict for case, outcome in outcomes.items()}
    assert verdicts == {
        0: "ok",
        1: "!crash",
        2: "!hang",
        3: "!traceback",
        4: "!memory",
        5: "!crash",
        6: "ok",
    }
    assert "signal 9" in outcomes[1].text
    assert "nobody caught it" in outcomes[3].text
    assert outcomes[4].bytes > 1 << 30
    assert [case for case, outcome in outcomes.items() if outcome.is_finding] == [1, 2, 3, 4, 5]


def test_no_process_is_left() -> None:
    before = descendants(os.getpid())  # of other tests
    list(run_cases(_misbehave, [0, 2, 6], most_seconds=0.5))
    assert [pid for pid in descendants(os.getpid()) if pid not in before] == []
