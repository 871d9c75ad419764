"""A job of a process of its own, sent what a terminal, a scheduler or an impatient user sends."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# `action` is what the job does; "ready" on stdout says that it has begun.
JOB = """
import signal, subprocess, sys, time
from jobs.cli import run_job
from pipelines.verification.config import VerifyRun
def action(run):
    print("ready", flush=True)
    {action}
    return 0
sys.exit(run_job(VerifyRun, action, prog="x", argv=["--labels", "l"], interrupted="it goes on", grace={grace}))
"""
LINE = "interrupted: it goes on\n"

STUCK = "while True: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1}); time.sleep(60)"
HIJACKED = "signal.signal(signal.SIGINT, lambda *_: sys.exit(0)); signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))"
SLEEP = "time.sleep(60)"


def start(action: str, grace: float = 5.0, **options: object) -> "subprocess.Popen[str]":
    code = JOB.format(action=action.replace("\n", "\n    "), grace=grace)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        **options,  # type: ignore[call-overload]
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit code and stderr."""
    _, err = process.communicate(timeout=30)
    return process.returncode, err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(
    "action",
    [
        SLEEP,
        f"{HIJACKED}\n{SLEEP}",  # as Ray and Ray Train do
        f"try:\n    {SLEEP}\nfinally:\n    print('noise of a library', file=sys.stderr)",
        f"try:\n    {SLEEP}\nexcept BaseException as error:\n    raise ValueError('a bug in the closing') from error",
    ],
)
def test_one_line_and_the_code_of_the_signal(action: str, number: int, code: int) -> None:
    process = start(action)
    process.send_signal(number)
    assert end(process) == (code, LINE)


def test_what_does_not_unwind_ends_all_the_same() -> None:
    process = start(STUCK, grace=0.5)
    time.sleep(0.2)
    process.terminate()
    assert end(process) == (143, LINE)


def test_a_second_signal_ends_at_once() -> None:
    process = start(STUCK, grace=60.0)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert end(process) == (130, LINE)


def test_what_the_interrupt_says_itself_is_the_line() -> None:
    process = start(f"try:\n    {SLEEP}\nexcept KeyboardInterrupt:\n    raise KeyboardInterrupt('at step 40; resumes')")
    process.send_signal(signal.SIGINT)
    assert end(process) == (130, "interrupted at step 40; resumes\n")


@pytest.mark.parametrize("action", [SLEEP, STUCK])
def test_what_it_has_started_ends_with_it(action: str) -> None:
    """Also what its children have started and left alone."""
    process = start(
        "child = subprocess.Popen(['sh', '-c', 'sleep 61 & echo $!; wait'], stdout=subprocess.PIPE, text=True)\n"
        f"print(child.stdout.readline(), end='', flush=True)\n{action}",
        grace=0.5,
    )
    assert process.stdout is not None
    grandchild = int(process.stdout.readline())
    process.terminate()
    assert end(process) == (143, LINE)
    until = time.monotonic() + 5
    while Path(f"/proc/{grandchild}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{grandchild}").exists()


def test_children_hear_a_request_to_end() -> None:
    """Ray ends its own processes by SIGTERM; it starts them with a function to call before exec."""
    process = start(
        "child = subprocess.Popen(['sleep', '60'], preexec_fn=lambda: None)\n"
        "child.terminate()\nprint(child.wait(timeout=20), flush=True)"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == f"{-signal.SIGTERM}\n"
    assert end(process) == (0, "")


def test_a_job_in_the_background_of_a_shell_is_deaf_to_ctrl_c_and_hears_sigterm() -> None:
    process = start(SLEEP, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.terminate()
    assert end(process) == (143, LINE)


def test_ctrl_c_on_a_terminal() -> None:
    leader, follower = pty.openpty()
    process = start(SLEEP, stdin=follower, start_new_session=True, preexec_fn=lambda: _take_terminal())
    os.close(follower)
    os.write(leader, b"\x03")
    assert end(process) == (130, LINE)
    os.close(leader)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_job_that_has_ended_leaves_the_signals_as_they_were() -> None:
    from jobs.cli import run_job
    from pipelines.verification.config import VerifyRun

    before = signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.getsignal(signal.SIGINT)
    assert run_job(VerifyRun, lambda _: 7, prog="x", argv=["--labels", "l"]) == 7
    assert (signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.getsignal(signal.SIGINT)) == before
