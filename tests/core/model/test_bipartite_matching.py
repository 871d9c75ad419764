"""The assignment is the cheapest of all, which every permutation of small cases shows, whatever stands beside it."""

import itertools

import pytest
import torch
from torch import Tensor

from maskrcnn_core.model.bipartite_matching import assign_one_to_one
from tests.core.model.test_fixed_size import NeverWaits


def cheapest(costs: Tensor) -> float:
    """Of [g, A], by trying everything: as many objects as can be have a candidate of their own."""
    objects, candidates = costs.shape
    if objects > candidates:
        return cheapest(costs.T)
    ways = itertools.permutations(range(candidates), objects)
    return min(sum(float(costs[row, column]) for row, column in enumerate(way)) for way in ways)


def total(costs: Tensor, owned: Tensor, objects: Tensor) -> float:
    (columns,) = owned.nonzero(as_tuple=True)
    rows = objects[columns].tolist()
    assert len(set(rows)) == len(rows)
    return float(costs[rows, columns].sum())


def test_by_eye() -> None:
    """The first object would like the first candidate, but the second object can do with nothing else."""
    costs = torch.tensor([[[1.0, 2.0, 9.0], [1.0, 9.0, 9.0]]])
    owned, objects = assign_one_to_one(costs, torch.tensor([[True, True]]))
    assert owned.tolist() == [[True, True, False]]
    assert objects.tolist() == [[1, 0, 0]]
    owned, objects = assign_one_to_one(costs, torch.tensor([[True, False]]))
    assert owned.tolist() == [[True, False, False]]
    assert objects[0, 0] == 0


@pytest.mark.parametrize("fixed_size", [False, True])
@pytest.mark.parametrize(("num_objects", "num_candidates"), [(1, 1), (3, 3), (4, 6), (5, 3), (2, 1), (5, 7)])
def test_no_other_assignment_costs_less(num_objects: int, num_candidates: int, fixed_size: bool) -> None:
    generator = torch.Generator().manual_seed(num_objects)
    costs = torch.rand(24, num_objects, num_candidates, generator=generator)
    costs[8:16] = (4 * costs[8:16]).round()  # ties
    valid = torch.rand(24, num_objects, generator=generator) < 0.8
    owned, objects = assign_one_to_one(costs, valid, fixed_size=fixed_size)
    for image in range(24):
        real = valid[image]
        assert int(owned[image].sum()) == min(int(real.sum()), num_candidates)
        assert bool(real[objects[image][owned[image]]].all())
        expected = cheapest(costs[image, real]) if real.any() else 0.0
        assert total(costs[image], owned[image], objects[image]) == pytest.approx(expected, abs=1e-6)


def test_a_larger_case_has_prices_that_prove_it() -> None:
    """No exchange of two objects' candidates, and no free candidate, makes it cheaper; each image as by itself."""
    generator = torch.Generator().manual_seed(0)
    costs = torch.rand(3, 30, 100, generator=generator)
    valid = torch.ones(3, 30, dtype=torch.bool)
    valid[1, 10:], valid[2] = False, False
    owned, objects = assign_one_to_one(costs, valid)
    assert owned.sum(dim=1).tolist() == [30, 10, 0]
    for image in range(2):
        (columns,) = owned[image].nonzero(as_tuple=True)
        rows = objects[image, columns]
        now = costs[image, rows, columns]
        swapped = costs[image][rows][:, columns]
        assert bool((swapped + swapped.T >= now[:, None] + now[None, :] - 1e-6).all())
        assert bool((costs[image][rows][:, ~owned[image]] >= now[:, None]).all())
        alone = assign_one_to_one(costs[image : image + 1], valid[image : image + 1])
        assert torch.equal(alone[0][0], owned[image])
        assert torch.equal(alone[1][0], objects[image])


def test_nothing_to_assign() -> None:
    for shape in ((0, 2, 3), (2, 0, 3), (2, 2, 0)):
        costs = torch.zeros(shape)
        owned, objects = assign_one_to_one(costs, torch.ones(shape[:2], dtype=torch.bool))
        assert owned.shape == objects.shape == (shape[0], shape[2])
        assert not owned.any() or shape[1] > 0


def test_padding_may_hold_anything_and_nothing_waits() -> None:
    costs = torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(2))
    valid = torch.tensor([[True, False, True, True], [False, False, False, True]])
    expected = assign_one_to_one(costs, valid)
    spoilt = torch.where(valid[..., None], costs, torch.nan)
    with NeverWaits():
        got = assign_one_to_one(spoilt, valid, fixed_size=True)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])
