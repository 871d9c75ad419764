"""The validations of a run, one file each: OUTPUT/validation/00005000.json. They decide which checkpoint is best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType

from pipelines import storage
from pipelines.storage.run_files import json_object_bytes, read_json_object
from pipelines.training.validation import Scores

_MEND = "delete it: the run then goes on without that validation"


@dataclass(frozen=True)
class ScoredStep:
    """One validation.

    Attributes:
        step: steps done.
        score: the number that chooses the best checkpoint; None where it is undefined.
    """

    step: int
    score: float | None


def write_scores(output: str, step: int, scores: Scores, losses: Mapping[str, float]) -> None:
    """Keep a validation for good; the checkpoint that it makes the best one has to be in place."""
    document = {
        "step": step,
        "score": scores.score,
        "metrics": scores.metrics,
        "categories": scores.categories,
        "losses": dict(losses),
        "images": scores.images,
        "failed_images": scores.failed_images,
    }
    uri = storage.join(output, "validation", f"{step:08d}.json")
    storage.write_bytes_atomically(uri, json_object_bytes(document))


class ScoreHistory:
    """The validations of a run, kept in memory and in files.

    Args:
        output: folder of the run.
        entries: those that there are, in any order.
    """

    def __init__(self, output: str, entries: Sequence[ScoredStep]) -> None:
        self._output = output
        self._of_step = {entry.step: entry for entry in entries}

    @property
    def entries(self) -> list[ScoredStep]:
        """All of them, by step."""
        return [self._of_step[step] for step in sorted(self._of_step)]

    def add(self, step: int, scores: Scores, losses: Mapping[str, float]) -> None:
        """Keep a validation for good, in place of an earlier one of the same step; see `write_scores`."""
        write_scores(self._output, step, scores, losses)
        self._of_step[step] = ScoredStep(step, scores.score)


def read_history(output: str) -> list[ScoredStep]:
    """All validations, by step.

    Raises:
        StorageError: a file of them is damaged.
    """
    folder = storage.join(output, "validation")
    if not storage.is_folder(folder):
        return []
    fields: dict[str, type | tuple[type, ...]] = {"step": int, "score": (float, int, NoneType)}
    documents = [read_json_object(uri, fields, _MEND) for uri in storage.list_files(folder, ".json")]
    return [ScoredStep(document["step"], document["score"]) for document in documents]


def best_of(history: Sequence[ScoredStep]) -> ScoredStep | None:
    """The highest score, the first of equals; None where nothing was scored."""
    scored = [entry for entry in history if entry.score is not None]
    return max(scored, key=lambda entry: (entry.score, -entry.step), default=None)


def is_exhausted(history: Sequence[ScoredStep], patience: int) -> bool:
    """Whether the last `patience` validations brought no better score; never with a patience of 0."""
    best = best_of(history)
    return patience > 0 and best is not None and sum(entry.step > best.step for entry in history) >= patience
