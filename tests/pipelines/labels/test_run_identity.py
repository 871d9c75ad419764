from dataclasses import replace
from pathlib import Path

import pytest

from maskrcnn_core.errors import StorageError
from pipelines.labels.run_folder import RunIdentity, claim_run, require_same_run

IDENTITY = RunIdentity("model", {"min_score": 0.5}, "code")


def test_the_same_run_goes_on(tmp_path: Path) -> None:
    claim_run(str(tmp_path), IDENTITY)
    require_same_run(str(tmp_path), IDENTITY)
    claim_run(str(tmp_path), IDENTITY)  # by another process


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(IDENTITY, settings={"min_score": 0.1}), r"min_score was 0\.5, now 0\.1.*repeat the former command"),
        (replace(IDENTITY, model="else"), "the model was model, now else"),
        # The same command is what was just refused, so that it is no advice.
        (replace(IDENTITY, code="new"), "begun by another release .*stays valid; go on with that release, or choose"),
    ],
)
def test_another_one_is_told_what_to_do(tmp_path: Path, other: RunIdentity, message: str) -> None:
    claim_run(str(tmp_path), IDENTITY)
    with pytest.raises(StorageError, match=message) as caught:
        require_same_run(str(tmp_path), other)
    assert ("repeat the former command" in str(caught.value)) == (other.code == "code")
