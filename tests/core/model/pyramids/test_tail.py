"""A pyramid that goes on downwards: sizes by eye, the norm of the finest map, what is refused."""

import pytest
import torch

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.pyramids.tail import ScaledL2Norm, TailPyramid, TailRule


def pyramid(rule: TailRule, norm: str = "none") -> TailPyramid:
    torch.manual_seed(0)
    return TailPyramid((6, 8), rule, strides=(8, 16), maps_used=(1, 2), norm=norm)


def maps(side: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    sides = ((4, 2 * side), (6, side), (8, -(-side // 2)))
    return [torch.rand(2, width, cells, cells, generator=generator) for width, cells in sides]


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("tensorflow", [False, True])
@pytest.mark.parametrize("norm", ["none", "frozen_batch", "sync_batch", "group"])
def test_sizes_by_eye(depthwise: bool, tensorflow: bool, norm: str) -> None:
    # SSD300's 38, 19, 10, 5, 3, 1.
    rule = TailRule((10, 6, 4, 4), ("stride", "stride", "valid", "valid"), depthwise, tensorflow=tensorflow)
    made = pyramid(rule, norm).eval()
    levels = made(maps(38))
    assert [tuple(level.shape[1:]) for level in levels] == [
        (6, 38, 38),
        (8, 19, 19),
        (10, 10, 10),
        (6, 5, 5),
        (4, 3, 3),
        (4, 1, 1),
    ]
    assert made.level_channels == (6, 8, 10, 6, 4, 4)
    assert made.strides == (8, 16, 32, 64, 64, 64)
    assert torch.equal(levels[0], maps(38)[1])


def test_the_even_step_by_eye() -> None:
    # 2 x 2 cells, a kernel of 4 and one cell of padding: one cell.
    levels = pyramid(TailRule((4, 4), ("stride", "even")))(maps(8))
    assert [level.shape[2] for level in levels] == [8, 4, 2, 1]


def test_the_finest_map_is_normalised_and_the_tail_starts_from_the_map_itself() -> None:
    made = pyramid(TailRule((4,), ("stride",), l2_scale=20.0))
    levels = made(maps(6))
    torch.testing.assert_close(levels[0].norm(dim=1), torch.full((2, 6, 6), 20.0))
    assert torch.equal(levels[1], maps(6)[2])
    nothing = ScaledL2Norm(3, 20.0)(torch.zeros(1, 3, 2, 2))
    assert not nothing.any()
    assert ScaledL2Norm(3, 20.0)(torch.ones(1, 3, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_map_that_is_too_small_is_refused() -> None:
    rule = TailRule((4, 4), ("stride", "valid"))
    with pytest.raises(ConfigError, match=r"model\.pyramid\.tail_steps: a 3x3 .* map of 2 x 2 cells; use a larger"):
        pyramid(rule)(maps(8))
