"""The fuzz, for as many cases as wanted: `python -m tests.fuzz [--cases N] [--first N] [--targets NAME ...]`.

Prints what came of each target, and each finding with the command that repeats it; exits with 1 where there is one.
"""

import argparse
import functools
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from tests.fuzz.isolation import Outcome, run_cases
from tests.fuzz.sound import SoundInputs, make_sound_inputs
from tests.fuzz.targets import TARGETS, run_target

_CASES_OF_A_CHILD = 50
_SHOWN_FINDINGS = 30


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=4000, help="of all targets together; default %(default)s")
    parser.add_argument("--first", type=int, default=0, help="number of the first case; another number, other damage")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    each = -(-arguments.cases // len(arguments.targets))
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-sound-") as folder:
        outcomes = fuzz(arguments.targets, range(arguments.first, arguments.first + each), arguments.processes, folder)
        found = _show(outcomes, started)
    return int(found)


def fuzz(
    targets: Sequence[str], cases: Sequence[int], processes: int, folder: str
) -> Iterator[tuple[str, list[Outcome]]]:
    """Outcomes of every target, in blocks as they come; `folder` gets the sound inputs."""
    # Forked from a process that has computed nothing: libraries' pools of threads do not survive a fork.
    fork = multiprocessing.get_context("fork")
    sound = _in_a_process(fork, folder)
    blocks = [
        (target, cases[start : start + _CASES_OF_A_CHILD])
        for start in range(0, len(cases), _CASES_OF_A_CHILD)
        for target in targets
    ]
    with ProcessPoolExecutor(processes, mp_context=fork, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for (target, _), outcomes in zip(
            blocks, pool.map(_block, *zip(*blocks, strict=True), [sound] * len(blocks)), strict=True
        ):
            yield target, outcomes


def _in_a_process(fork: multiprocessing.context.ForkContext, folder: str) -> SoundInputs:
    with ProcessPoolExecutor(1, mp_context=fork) as pool:
        return pool.submit(make_sound_inputs, Path(folder)).result()


def _block(target: str, cases: Sequence[int], sound: SoundInputs) -> list[Outcome]:
    return list(run_cases(functools.partial(run_target, target, sound), cases))


def _show(blocks: Iterable[tuple[str, list[Outcome]]], started: float) -> bool:
    """Prints findings as they come and a table at the end; whether there were any."""
    outcomes: dict[str, list[Outcome]] = defaultdict(list)
    shown = 0
    for target, block in blocks:
        outcomes[target] += block
        for outcome in block:
            if outcome.is_finding and shown < _SHOWN_FINDINGS:
                shown += 1
                print(f"\n{target} {outcome.case}: {outcome.verdict[1:]}\n{outcome.text}", flush=True)
                print(f"again: python -m tests.fuzz --targets '{target}' --first {outcome.case} --cases 1", flush=True)
    print(f"\n{'target':12} {'cases':>6} {'findings':>8} {'ms':>6} {'MiB':>5}  outcomes")
    for target, all_of_it in outcomes.items():
        counts = Counter(outcome.verdict.lstrip("!") for outcome in all_of_it)
        seconds = sorted(outcome.seconds for outcome in all_of_it)[len(all_of_it) // 2]
        most = max(outcome.bytes for outcome in all_of_it) >> 20
        findings = sum(outcome.is_finding for outcome in all_of_it)
        text = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
        print(f"{target:12} {len(all_of_it):6} {findings:8} {1000 * seconds:6.0f} {most:5}  {text}")
    total = [outcome for of_target in outcomes.values() for outcome in of_target]
    findings = sum(outcome.is_finding for outcome in total)
    print(f"{len(total)} cases in {time.monotonic() - started:.0f} s, {findings} findings", flush=True)
    return findings > 0


if __name__ == "__main__":
    sys.exit(main())
