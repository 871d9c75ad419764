"""deploy/slurm.sh with programs in SLURM's and Ray's place, which write down how they are called."""

import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import cli
from pipelines.labelling.config import LabelRun
from pipelines.training.config import TrainRun
from tests.pipelines.submission import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "deploy/slurm.sh"

# The head listens until it is ended, as Ray's does.
RAY = """import os, socket, sys
open(os.environ["CALLS"], "a").write("ray " + " ".join(sys.argv[1:]) + "\\n")
if "HEAD_FAILS" in os.environ:
    sys.exit(1)
with socket.create_server((os.environ["HEAD_IP"], int(os.environ["RAY_PORT"]))) as server:
    while True:
        server.accept()
"""
SRUN = 'echo "srun $*" >>"$CALLS"'
JOB = """if [[ $1 == -c ]]; then exec {python} "$@"; fi
echo "python $* | $RAY_AUTH_MODE ${{#RAY_AUTH_TOKEN}}" >>"$CALLS"
trap 'echo saved >>"$CALLS"; exit 130' TERM
for _ in $(seq "${{STEPS:-0}}"); do sleep 0.1; done
exit "${{CODE:-0}}"
"""


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """The environment of a batch script whose folder has those programs in .venv/bin."""
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    texts = {
        "ray": f"#!{sys.executable} -S\n{RAY}",
        "srun": f"#!/bin/bash\n{SRUN}\n",
        "python": f"#!/bin/bash\n{JOB.format(python=shlex.quote(sys.executable))}",
    }
    for name, text in texts.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return {
        **os.environ,
        "CALLS": str(tmp_path / "calls"),
        "HEAD_IP": "127.0.0.1",
        "RAY_PORT": str(free_port()),
        "SLURM_CPUS_ON_NODE": "6",
        "SLURM_SUBMIT_DIR": str(tmp_path),
    }


def run(machine: dict[str, str], **variables: str) -> tuple[int, list[str]]:
    """Exit code, and the calls that were made, sorted since some run side by side."""
    done = subprocess.run([str(SCRIPT), "label", "--images", "a b"], env={**machine, **variables}, timeout=120)
    return done.returncode, sorted(Path(machine["CALLS"]).read_text().splitlines())


def test_the_first_machine_is_the_head_and_the_others_join_it(machine: dict[str, str]) -> None:
    address = f"127.0.0.1:{machine['RAY_PORT']}"
    code, calls = run(machine, SLURM_JOB_NUM_NODES="4", STEPS="10")  # a job that lets the others be called
    assert (code, len(calls)) == (0, 3)
    job, head, others = calls
    assert job == f"python -m jobs.label --images a b --cluster.address {address} | token 64"
    assert head.startswith(f"ray start --head --node-ip-address=127.0.0.1 --port={machine['RAY_PORT']} --num-cpus=6")
    assert others.startswith("srun --nodes=3 --ntasks=3 ")
    assert others.endswith(f"ray start --address={address} --num-cpus=6 --block")


def test_one_machine_needs_no_others(machine: dict[str, str]) -> None:
    code, calls = run(machine, SLURM_JOB_NUM_NODES="1")
    assert code == 0
    assert [call.split()[0] for call in calls] == ["python", "ray"]


def test_the_jobs_exit_code_is_the_scripts_and_the_head_ends(machine: dict[str, str]) -> None:
    assert run(machine, CODE="3")[0] == 3
    deadline = time.monotonic() + 30.0
    while True:
        try:
            socket.create_connection(("127.0.0.1", int(machine["RAY_PORT"])), timeout=1.0).close()
        except OSError:
            break
        assert time.monotonic() < deadline, "the head is still there"
        time.sleep(0.1)


def test_a_head_that_does_not_start_is_no_success(machine: dict[str, str]) -> None:
    code, calls = run(machine, HEAD_FAILS="1")
    assert code == 1
    assert [call.split()[0] for call in calls] == ["ray"]


def test_the_signal_before_the_end_of_the_time_reaches_the_job(machine: dict[str, str]) -> None:
    script = subprocess.Popen([str(SCRIPT), "train"], env={**machine, "STEPS": "600"})
    calls = Path(machine["CALLS"])
    deadline = time.monotonic() + 60.0
    while not (calls.exists() and "python -m jobs.train" in calls.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)  # until the job listens to signals
    script.send_signal(signal.SIGTERM)
    assert script.wait(60) == 130
    assert calls.read_text().endswith("saved\n")


def examples() -> Iterator[list[str]]:
    """The commands of the script's first lines."""
    lines = [line.removeprefix("#").strip() for line in SCRIPT.read_text().splitlines() if line.startswith("#")]
    for found in re.finditer(r"^sbatch --nodes=\d+ deploy/slurm\.sh (.*)", "\n".join(lines).replace("\\\n", ""), re.M):
        yield shlex.split(found[1])


def test_its_examples_are_taken_by_their_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    (label, *of_label), (train, *of_train) = examples()
    assert (label, train) == ("label", "train")
    assert cli.parse_run(LabelRun, prog=label, argv=of_label).label.max_workers == 16
    assert cli.parse_run(TrainRun, prog=train, argv=of_train).train.num_workers == 8


def test_it_is_a_program() -> None:
    assert SCRIPT.stat().st_mode & stat.S_IXUSR
    assert subprocess.run(["bash", "-n", str(SCRIPT)]).returncode == 0
