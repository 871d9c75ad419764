"""Assignment of objects to candidates one to one, at the lowest total cost (the bipartite matching of MultiBox).

Each object in turn gets a candidate along the cheapest path of exchanges with the objects before it, so that the result
is the best of all assignments: the Hungarian method with prices (Kuhn, 1955), its shortest paths found as by Jonker and
Volgenant (Computing 38, 1987). All images of a batch take each step together.

Letters: N images, G objects, A candidates.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def assign_one_to_one(costs: Tensor, valid: Tensor, *, fixed_size: bool = False) -> tuple[Tensor, Tensor]:
    """The assignment with the lowest sum of costs: every object has a candidate of its own, as far as there are some.

    Args:
        costs: [N, G, A] of 0 or more, finite for the valid objects.
        valid: [N, G] bool; the others are assigned nothing.
        fixed_size: G * (G + 1) steps whatever the data, so that nothing waits for the device; else as many as the
            image with the longest paths needs.

    Returns:
        [N, A] whether a candidate is some object's, and that object's number (0 where it is none's).
    """
    num_objects, num_candidates = costs.shape[1:]
    costs = torch.where(valid[..., None], costs, 0.0).double()
    if num_objects > num_candidates:
        # Candidates that stand for none, dearer than all others together: no more than needed are taken.
        dear = 1.0 + 2.0 * num_objects * costs.flatten(1).amax(dim=1) if num_candidates else costs.new_ones(len(costs))
        none = dear[:, None, None].expand(-1, num_objects, num_objects - num_candidates)
        costs = torch.cat((costs, none), dim=2)
    state = _Prices(
        owners=valid.new_zeros(len(costs), costs.shape[2] + 1, dtype=torch.int64),
        of_objects=costs.new_zeros(len(costs), num_objects + 1),
        of_candidates=costs.new_zeros(len(costs), costs.shape[2] + 1),
    )
    for number in range(num_objects):
        state = _with_object(costs, number, valid[:, number], state, fixed_size=fixed_size)
    owners = state.owners[:, 1 : num_candidates + 1]
    return owners > 0, (owners - 1).clamp(min=0)


@dataclass(frozen=True)
class _Prices:
    """An assignment of the objects so far, and prices that prove it the best.

    Column 0 stands for the object that has no candidate yet, candidate a is column a + 1. Object g is number g + 1, and
    0 is none.

    Attributes:
        owners: [N, A + 1] int64, the object of each column.
        of_objects: [N, G + 1]; of_candidates: [N, A + 1]; cost - both prices is 0 where assigned, never negative.
    """

    owners: Tensor
    of_objects: Tensor
    of_candidates: Tensor


def _with_object(costs: Tensor, number: int, active: Tensor, state: _Prices, *, fixed_size: bool) -> _Prices:
    """The assignment with one more object, where `active` [N]; at most `number` others change their candidates."""
    owners, of_objects, of_candidates = state.owners.clone(), state.of_objects, state.of_candidates
    owners[:, 0] = number + 1
    rows = torch.arange(len(costs), device=costs.device)
    column = torch.zeros_like(owners[:, 0])
    before = torch.zeros_like(owners)
    nearest = torch.full_like(of_candidates, torch.inf)
    reached = torch.zeros_like(owners, dtype=torch.bool)
    searching = active
    for _ in range(number + 1):
        if not fixed_size and not bool(searching.any()):
            break
        # From the object of this column to all columns that are not reached yet.
        here = owners[rows, column]
        reached = reached.scatter(1, column[:, None], True)
        lengths = costs[rows, here - 1] - of_objects[rows, here][:, None] - of_candidates[:, 1:]
        shorter = (lengths < nearest[:, 1:]) & ~reached[:, 1:]
        nearest[:, 1:] = torch.where(shorter & searching[:, None], lengths, nearest[:, 1:])
        before[:, 1:] = torch.where(shorter & searching[:, None], column[:, None], before[:, 1:])
        # The nearest of them is next; prices move by the way to it.
        step, following = nearest.masked_fill(reached, torch.inf).min(dim=1)
        step = torch.where(searching, step, 0.0)[:, None]
        moved = torch.where(reached, step, 0.0)
        of_objects = of_objects.scatter_add(1, owners, moved)
        of_candidates = of_candidates - moved
        nearest = torch.where(reached, nearest, nearest - step)
        column = torch.where(searching, following, column)
        searching = searching & (owners[rows, column] > 0)
    # Back along the path: each object takes the next column.
    column = torch.where(active, column, 0)
    for _ in range(number + 1):
        if not fixed_size and not bool((column > 0).any()):
            break
        earlier = before[rows, column]
        taken = torch.where(column > 0, owners[rows, earlier], owners[rows, column])
        owners = owners.scatter(1, column[:, None], taken[:, None])
        column = torch.where(column > 0, earlier, 0)
    return _Prices(owners, of_objects, of_candidates)
