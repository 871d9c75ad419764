"""What the process that started a training run does meanwhile: waits, hears signals, says why workers were lost."""

import threading
from collections.abc import Callable
from typing import Any

import ray
import ray.train

from maskrcnn_core.errors import UserError
from pipelines.cluster.lost_processes import causes, why_lost
from pipelines.training.checkpoint_store import list_checkpoints
from pipelines.training.events import Interrupted, WorkersLost
from pipelines.training.output import resume_uri
from pipelines.training.worker import WorkerResult

# Within what a scheduler grants between SIGTERM and SIGKILL (Kubernetes: 30 seconds).
_SAVE_SECONDS = 20.0
_POLL_SECONDS = 0.2


def result_of(trainer: Any, progress: Any, output: str, look: Callable[[], None]) -> Any:
    """What the trainer returns, or None where the user's mistake has ended it.

    Args:
        trainer: of Ray Train.
        progress: `ProgressLog` actor.
        output: folder of the run.
        look: called again and again meanwhile; what it raises ends the wait.

    Raises:
        KeyboardInterrupt: the run was interrupted; its text says where the same call goes on.
        UserError: workers were lost too often.

    It runs in a thread of its own: outside of the main thread Ray Train leaves the signals alone, which it would answer
    with an end in the middle of a step.
    """
    outcome: list[Any] = []
    failure: list[BaseException] = []
    ended = threading.Event()  # a thread whose `join` was interrupted seems dead to Python 3.11

    def fit() -> None:
        try:
            outcome.append(trainer.fit())
        except BaseException as error:  # raised again below
            failure.append(error)
        finally:
            ended.set()

    try:
        threading.Thread(target=fit, name="ray-train", daemon=True).start()
        while not ended.wait(_POLL_SECONDS):
            look()
    except KeyboardInterrupt:
        if not _saved_in_time(ended, progress) or not outcome:
            raise KeyboardInterrupt(_where_it_resumes(output)) from None
        value = outcome[0].return_value
        if isinstance(value, WorkerResult) and not value.is_finished:
            raise KeyboardInterrupt(f"at step {value.state.step}; the same command resumes there") from None
    if failure:
        if ray.get(progress.mistake.remote()) is not None:
            return None
        if (reason := why_lost(failure[0])) is not None:
            raise UserError(f"the training workers were lost: {reason}; {_resumption(output)}") from failure[0]
        raise failure[0]
    return outcome[0]


def _saved_in_time(ended: threading.Event, progress: Any) -> bool:
    """Asks the workers to save and end; whether they have, within the time that there is."""
    if not ray.get(progress.stop.remote(), timeout=_SAVE_SECONDS):
        return False
    progress.add.remote(Interrupted(_SAVE_SECONDS))
    return ended.wait(_SAVE_SECONDS)


def _where_it_resumes(output: str) -> str:
    """The end of `interrupted ...` where no checkpoint could be made just now."""
    stored = list_checkpoints(resume_uri(output))
    return (
        f"after the checkpoint of step {stored[0].step}; {_resumption(output)}"
        if stored
        else ("before the first checkpoint; the same command starts from the beginning")
    )


def _resumption(output: str) -> str:
    stored = list_checkpoints(resume_uri(output))
    return (
        f"the same command resumes after step {stored[0].step}"
        if stored
        else ("nothing was saved yet: the same command starts from the beginning")
    )


class Notices(ray.train.UserCallback):  # type: ignore[misc] # Ray has no types here
    """Tells the driver why workers are started anew, and ends the run where that happens too often in a row; runs on
    Ray Train's controller.

    Args:
        progress: `ProgressLog` actor.
        max_failures: losses of workers without a new checkpoint in between.
    """

    def __init__(self, progress: Any, max_failures: int) -> None:
        self._progress, self._max_failures = progress, max_failures

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """See `UserCallback`. What it raises is no failure that Ray Train starts workers anew for."""
        error = next(iter(worker_exceptions.values()))
        if any(isinstance(cause, UserError) for cause in causes(error)):  # it ends the run, with a line of its own
            return
        had_notice = any(
            getattr(cause, "preempted", False) for failure in worker_exceptions.values() for cause in causes(failure)
        )
        losses = ray.get(self._progress.lose.remote(counts=not had_notice))
        if losses > self._max_failures:
            raise error
        reason = why_lost(error) or str(error).strip().rsplit("\n", 1)[-1]
        self._progress.add.remote(WorkersLost(reason[:300]))
