"""Bars, lines and tables that commands share.

A terminal gets what moves; a pipe gets lines. Nothing here obeys markup: names come from files of any origin.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from maskrcnn_core.printable import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pipelines.labelling.progress import LabelProgress
    from pipelines.report.run import ReportSummary

# Without a terminal a line appears this often at first and twice as rarely each time, up to the longest.
_FIRST_LINE_SECONDS = 5.0
_LONGEST_LINE_SECONDS = 300.0


@contextmanager
def labelling_progress(noun: str) -> Iterator["Callable[[LabelProgress], None]"]:
    """What shows the progress of labelling inside the block: a bar, or lines of text where stdout is no terminal."""
    if not sys.stdout.isatty():
        yield PlainProgress(noun=noun)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[numbers]}"))
    with Progress(*columns) as progress:
        task = progress.add_task("label", total=None, numbers="workers start ...")

        def show(state: "LabelProgress") -> None:
            numbers = progress_numbers(state, noun) if state.images_per_second else "workers start ..."
            progress.update(task, completed=state.done, total=state.images, numbers=numbers)

        yield show


def show_note(text: str) -> None:
    """A line beside the output that other programs may read."""
    print(f"note: {printable(text)}", file=sys.stderr, flush=True)


class PlainProgress:
    """Progress as lines of `name=value` pairs, which people and log collectors read alike, ever more rarely."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, noun: str = "detections") -> None:
        self._clock, self._noun = clock, noun
        self._wait = _FIRST_LINE_SECONDS
        self._next = clock() + self._wait
        self._shown = -1

    def __call__(self, state: "LabelProgress") -> None:
        """Print a line if it is time for one and something is new."""
        if self._clock() < self._next or state.done == self._shown:
            return
        print(log_line(state, self._noun), flush=True)
        self._shown = state.done
        self._wait = min(2 * self._wait, _LONGEST_LINE_SECONDS)
        self._next = self._clock() + self._wait


def log_line(state: "LabelProgress", noun: str = "detections") -> str:
    """Progress as `name=value` pairs; times in seconds."""
    rate = state.images_per_second
    pairs: dict[str, object] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "event": "progress" if rate else "starting",
        "done": state.done,
        "images": state.images,
        noun: state.detections,
        "failed": state.failed,
    }
    if rate:
        left = round((state.images - state.done) / rate)
        pairs |= {"images_per_second": f"{rate:.2f}", "waiting": f"{state.waiting_share:.3f}", "seconds_left": left}
        pairs["detections_per_second"] = f"{state.detections_per_second:.1f}"
    return " ".join(f"{name}={value}" for name, value in pairs.items())


def progress_numbers(state: "LabelProgress", noun: str = "detections") -> str:
    """Rate, detections (or what `noun` calls them), failures, the share of time that detectors stand still for want of
    images, and time left in one line."""
    rate = state.images_per_second
    left = f"  left {_duration((state.images - state.done) / rate)}" if rate else ""
    failed = f"  {state.failed} failed" if state.failed else ""
    waiting = f"  waiting {state.waiting_share:.0%}" if rate else ""
    return f"{rate:.2f} images/s  {state.detections} {noun}{failed}{waiting}{left}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def print_report(summary: "ReportSummary") -> None:
    """Where the page is, and what is missing on it."""
    size = f"{summary.megabytes:.1f} MB; {summary.images} images, {summary.examples} examples"
    print(printable(f"Report: {summary.page} ({size}); open it in a browser"))
    if summary.left_out:
        print(printable(f"  {summary.left_out}"))


def plain_console() -> "Console":
    """A console that prints texts as they are: no markup, no emoji codes, no colours for numbers."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def new_table(title: str, first: str, *numbers: str) -> "Table":
    """An empty table: a column of names, which fold where they are long, and columns of numbers."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column(first, overflow="fold")
    for number in numbers:
        table.add_column(number, justify="right", no_wrap=True)
    return table


def text_cell(text: str) -> "Text":
    """A name as a cell of a table: no markup, no emoji codes, nothing that a terminal obeys."""
    from rich.text import Text

    return Text(printable(text))


def score_text(value: float) -> str:
    """A score with three digits; a dash for -1, which is a score that is not defined."""
    return "-" if value == -1 else f"{value:.3f}"
