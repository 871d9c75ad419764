from pathlib import Path

import pytest

from maskrcnn_core.errors import StorageError
from pipelines.training.score_history import ScoreHistory, best_of, read_history, write_scores
from pipelines.training.validation import Scores


def scores(value: float | None) -> Scores:
    return Scores(metrics={}, score=value, images=1, failed_images=0)


def test_the_history_is_read_back_in_the_order_of_steps(tmp_path: Path) -> None:
    for step, value in ((200, 0.5), (100, None), (300, 1)):
        write_scores(str(tmp_path), step, scores(value), {})
    assert [(entry.step, entry.score) for entry in read_history(str(tmp_path))] == [(100, None), (200, 0.5), (300, 1)]
    best = best_of(read_history(str(tmp_path)))
    assert best is not None
    assert best.step == 300


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b"null", b"\x00" * 40, b'{"step": true, "score": 1}', b"\xff"]
)
def test_a_torn_file_is_named_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    write_scores(str(tmp_path), 100, scores(0.5), {})
    file = tmp_path / "validation" / "00000100.json"
    file.write_bytes(content)
    with pytest.raises(StorageError, match=r"00000100\.json: .*; delete it: the run then goes on without"):
        read_history(str(tmp_path))


def test_a_score_that_was_changed_is_not_believed(tmp_path: Path) -> None:
    write_scores(str(tmp_path), 100, scores(0.4), {})
    file = tmp_path / "validation" / "00000100.json"
    file.write_text(file.read_text().replace("0.4", "9.4"))
    with pytest.raises(StorageError, match="other content than when it was written"):
        read_history(str(tmp_path))


def test_what_is_in_memory_is_what_is_in_the_files(tmp_path: Path) -> None:
    write_scores(str(tmp_path), 200, scores(0.5), {})
    history = ScoreHistory(str(tmp_path), read_history(str(tmp_path)))
    for step, value in ((300, 0.25), (100, None), (200, 0.75)):  # a step comes again after a crash, or late from a task
        history.add(step, scores(value), {})
        assert history.entries == read_history(str(tmp_path))
    assert [(entry.step, entry.score) for entry in history.entries] == [(100, None), (200, 0.75), (300, 0.25)]
    assert ScoreHistory(str(tmp_path / "new"), ()).entries == []
