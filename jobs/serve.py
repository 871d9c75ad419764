"""Answer requests for detections over HTTP: `python -m jobs.serve --checkpoint URI`."""

import sys
from collections.abc import Sequence

from jobs.cli import run_job
from jobs.terminal import show_note
from maskrcnn_core.printable import printable
from pipelines.serving.config import ServeRun


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    return run_job(ServeRun, run, prog="python -m jobs.serve", argv=argv, interrupted="the service has ended", grace=30)


def run(settings: ServeRun) -> int:
    """Serve until a signal comes."""
    from pipelines.serving.run import serving, wait_for_ever

    with serving(settings, show_note) as address:
        print(printable(f"serving at {address}; Ctrl-C ends it"), flush=True)
        print(f"try: curl --data-binary @IMAGE.jpg {address}/v1/detect", flush=True)
        wait_for_ever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
