"""Answer requests for detections over HTTP: `python -m jobs.serve --checkpoint URI`."""

import sys
from collections.abc import Sequence

from jobs.cli import run_job
from jobs.terminal import show_note
from maskrcnn_core.printable import printable
from pipelines.serving.config import ServeRun

# Requests that are under way may end.
_GRACE_SECONDS = 60.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    return run_job(
        ServeRun,
        run,
        prog="python -m jobs.serve",
        argv=argv,
        interrupted="the service has ended",
        grace=_GRACE_SECONDS,
    )


def run(settings: ServeRun) -> int:
    """Serve until a signal comes, or write the file for `serve deploy`."""
    if settings.deploy_file:
        from pipelines.serving.deploy_file import write_deploy_file

        write_deploy_file(settings)
        print(printable(f"written: {settings.deploy_file}; serve deploy {settings.deploy_file}"))
        return 0
    from pipelines.serving.run import serving, wait_for_ever

    with serving(settings, show_note) as address:
        print(printable(f"serving at {address}; Ctrl-C ends it"), flush=True)
        print(f"try: curl --data-binary @IMAGE.jpg {address}/v1/detect", flush=True)
        wait_for_ever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
