from collections.abc import Iterator
from typing import Any

import numba
import pytest
import torch

from maskrcnn_core.kernels.cpu.compilation import as_array, run


@pytest.fixture(autouse=True)
def same_threads_after() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def calls_with(threads: int) -> list[tuple[Any, ...]]:
    torch.set_num_threads(threads)
    calls: list[tuple[Any, ...]] = []
    run(lambda *given: calls.append(("alone", *given)), lambda *given: calls.append(("together", *given)), "x", count=7)
    return calls


def test_as_many_threads_as_torch_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 2)
    assert calls_with(1) == [("alone", "x", 0, 7)]
    assert calls_with(2) == [("together", "x", 7, 2)]
    assert calls_with(3) == [("together", "x", 7, 2)]


def test_where_two_threads_may_not_call_it_at_once_nothing_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba, "threading_layer", lambda: "workqueue")
    assert calls_with(2) == [("alone", "x", 0, 7)]


def test_memory_is_shared_with_the_tensor() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        maps = torch.zeros(2, 3, dtype=dtype)
        as_array(maps)[1, 2] = 1
        assert float(maps[1, 2]) != 0.0
