"""Whatever happens to the folder of compiled loops, they run; and what can be mended there is."""

import errno
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
import pytest
from numba.core.caching import IndexDataCacheFile

from maskrcnn_core.kernels.cpu import cache

SOURCE = """
from maskrcnn_core.kernels.cpu.compilation import compiled

@compiled()
def twice(number):
    return 2 * number
"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Any]]:
    """Imports a module with a loop as a new process would: nothing is compiled yet, the folder is what it was."""
    source = tmp_path / "loops_of_a_test.py"
    source.write_text(SOURCE)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "kept"))
    cache._say_once.cache_clear()

    def load() -> Any:
        spec = importlib.util.spec_from_file_location("loops_of_a_test", source)
        assert spec is not None
        assert spec.loader is not None
        module: ModuleType = importlib.util.module_from_spec(spec)
        sys.modules["loops_of_a_test"] = module
        spec.loader.exec_module(module)
        return module.twice

    yield load
    sys.modules.pop("loops_of_a_test", None)


def kept(tmp_path: Path, suffix: str) -> list[Path]:
    return sorted((tmp_path / "kept").rglob(f"*{suffix}"))


def hits(loop: Any) -> int:
    return sum(loop.stats.cache_hits.values())


def test_another_process_finds_what_was_compiled(load: Callable[[], Any], tmp_path: Path) -> None:
    assert load()(21) == 42
    assert len(kept(tmp_path, ".nbc")) == 1
    again = load()
    assert again(21) == 42
    assert again(0.25) == 0.5  # a type that is not there yet
    assert hits(again) == 1
    assert len(kept(tmp_path, ".nbc")) == 2
    last = load()
    assert (last(1), last(1.5)) == (2, 3.0)
    assert hits(last) == 2


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def zeros_at_the_end(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def one_other_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def something_else(file: Path) -> None:
    file.write_text("<html>not found</html>")


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("tear", [cut_short, emptied, zeros_at_the_end, something_else])
def test_a_torn_file_is_said_once_and_made_again(
    load: Callable[[], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, tear: Callable[[Path], None]
) -> None:
    first = load()
    assert (first(21), first(0.25)) == (42, 0.5)
    for file in kept(tmp_path, suffix):
        tear(file)
    with caplog.at_level(logging.WARNING):
        torn = load()
        assert (torn(21), torn(0.25)) == (42, 0.5)
    assert hits(torn) == 0
    (said,) = [entry.getMessage() for entry in caplog.records]
    assert str(kept(tmp_path, suffix)[0].parent) in said
    assert "delete that folder" in said
    caplog.clear()
    mended = load()
    assert (mended(21), mended(0.25)) == (42, 0.5)
    assert hits(mended) == 2
    assert not caplog.records


def test_machine_code_with_one_other_byte_is_not_run(load: Callable[[], Any], tmp_path: Path) -> None:
    load()(21)
    one_other_byte(kept(tmp_path, ".nbc")[0])
    loop = load()
    assert loop(21) == 42
    assert hits(loop) == 0


@pytest.mark.parametrize(("code", "method"), [(errno.ENOSPC, "_save_data"), (errno.EROFS, "_save_index")])
def test_a_disk_that_cannot_be_written_costs_time_alone(
    load: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
    code: int,
) -> None:
    loop = load()
    assert loop(21) == 42  # kept

    def full(self: IndexDataCacheFile, *given: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(IndexDataCacheFile, method, full)
    with caplog.at_level(logging.WARNING):
        assert (loop(0.25), loop(1j)) == (0.5, 2j)  # types that come later
    (said,) = [entry.getMessage() for entry in caplog.records]
    assert os.strerror(code) in said
    assert "NUMBA_CACHE_DIR" in said


def test_a_folder_that_is_gone_or_a_file_meanwhile(load: Callable[[], Any], tmp_path: Path) -> None:
    loop = load()
    assert loop(21) == 42
    for file in (tmp_path / "kept").rglob("*"):
        if file.is_file():
            file.unlink()
    folder = next((tmp_path / "kept").iterdir())
    folder.rmdir()
    folder.write_text("a file where the folder was")
    assert loop(0.25) == 0.5


def test_without_any_place_it_is_compiled_each_time(
    load: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for error in (RuntimeError("cannot cache function: no locator available"), FileNotFoundError(2, "No such file")):

        def nowhere(self: object, function: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(cache._ForgivingCache, "__init__", nowhere)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert load()(21) == 42
        assert len(caplog.records) == 1
        assert "NUMBA_CACHE_DIR" in caplog.records[0].getMessage()
