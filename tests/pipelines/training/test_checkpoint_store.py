from pathlib import Path

import pytest

from maskrcnn_core.errors import StorageError
from pipelines import storage
from pipelines.training.checkpoint_store import list_checkpoints, newest_intact, opened, store_checkpoint


def checkpoint(folder: Path, content: str) -> Path:
    (folder / "training").mkdir(parents=True)
    (folder / "weights").write_text(content)
    (folder / "training" / "state").write_text(content * 2)
    return folder


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "store")
    return f"{request.getfixturevalue('s3_folder')}/{tmp_path.name}/store"


def newest_content(root: str, faults: list[str]) -> tuple[int, str] | None:
    with newest_intact(root, faults) as found:
        return None if found is None else (found[0].step, (found[1] / "weights").read_text())


def test_the_newest_one_comes_back_and_the_oldest_go(root: str, tmp_path: Path) -> None:
    assert newest_content(root, []) is None
    for step in (5, 20, 100):
        staged = checkpoint(tmp_path / f"staged{step}", f"after {step}")
        assert store_checkpoint(staged, root, step).step == step
        assert not staged.exists()
    assert [stored.step for stored in list_checkpoints(root)] == [100, 20]
    assert newest_content(root, []) == (100, "after 100")
    store_checkpoint(checkpoint(tmp_path / "again", "anew"), root, 100)
    assert newest_content(root, []) == (100, "anew")


def test_what_is_torn_is_never_loaded(root: str, tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        store_checkpoint(checkpoint(tmp_path / f"staged{step}", f"after {step}"), root, step, keep=4)
    # No manifest: an upload that was cut off.
    filesystem, path = storage.filesystem_and_path(root)
    filesystem.delete_file(f"{path}/step-00000004/manifest.json")
    # As long as before, but other bytes; and cut short.
    storage.write_bytes_atomically(f"{root}/step-00000003/weights", b"after X")
    storage.write_bytes_atomically(f"{root}/step-00000002/training/state", b"after")
    assert [stored.step for stored in list_checkpoints(root)] == [3, 2, 1]
    faults: list[str] = []
    assert newest_content(root, faults) == (1, "after 1")
    assert len(faults) == 2
    assert "step-00000003/weights: other content than when it was written" in faults[0]
    assert "step-00000002/training/state: has 5 bytes, expected 14 bytes" in faults[1]
    filesystem.delete_file(f"{path}/step-00000001/weights")
    assert newest_content(root, faults) is None
    with (
        pytest.raises(StorageError, match="weights: is missing, expected 7 bytes"),
        opened(list_checkpoints(root)[-1]),
    ):
        pass
