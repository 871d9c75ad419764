"""Batches that wait for more images of their shape, and how long."""

import pytest

from maskrcnn_core.inference import unfilled_batches
from maskrcnn_core.inference.unfilled_batches import UnfilledBatches


def sent(shapes: str, most: int = 2, nbytes: int = 1) -> list[str]:
    """What goes after each of some items, named by their shapes and places, and at the end."""
    unfilled: UnfilledBatches[str] = UnfilledBatches()
    steps = [[*unfilled.add(shape, f"{shape}{place}", nbytes, most)] for place, shape in enumerate(shapes)]
    return [" ".join("".join(group) for group in step) for step in [*steps, [*unfilled.take_all()]]]


def test_a_full_batch_goes_at_once_and_the_others_at_the_end() -> None:
    assert sent("abacb") == ["", "", "a0a2", "", "b1b4", "c3"]
    assert sent("ab", most=1) == ["a0", "b1", ""]
    assert sent("") == [""]


def test_a_rare_shape_waits_for_so_many_others_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfilled_batches, "_MOST_IMAGES_LATER", 3)
    assert sent("raaaaaa") == ["", "", "a1a2", "r0", "a3a4", "", "a5a6", ""]
    assert sent("rsaaaa", most=9) == ["", "", "", "r0", "s1", "a2a3a4a5", ""]
    assert sent("rraaa", most=9) == ["", "", "", "r0r1", "", "a2a3a4"]  # counted from the first of a shape


def test_what_is_held_has_a_limit_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfilled_batches, "_MOST_BYTES", 10)
    assert sent("abcd", most=9, nbytes=4) == ["", "", "a0", "b1", "c2 d3"]
    assert sent("ab", most=9, nbytes=99) == ["a0", "b1", ""]  # one that is larger than all of it
