from pathlib import Path

import pytest
import torch
from torch import nn

from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.training.optimizer import build_optimizer
from maskrcnn_core.training.state import TrainingState, load_learnt_weights, load_training_state, save_training_state


def learner(features: int = 3) -> tuple[nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(features, 2)
    return model, build_optimizer(model, learning_rate=0.1, momentum=0.9, weight_decay=0.1)


def advance(model: nn.Linear, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(1, model.in_features)).sum().backward()
        optimizer.step()


def test_resume_continues_the_momentum(tmp_path: Path) -> None:
    straight, optimizer = learner()
    advance(straight, optimizer, 3)
    state = TrainingState(step=3, seconds=1.5, best_score=0.25, best_step=2)
    save_training_state(tmp_path, state, optimizer)
    resumed, fresh = learner()
    resumed.load_state_dict(straight.state_dict())
    assert load_training_state(tmp_path, fresh) == state
    advance(straight, optimizer, 3)
    advance(resumed, fresh, 3)
    assert torch.equal(straight.weight, resumed.weight)


def test_missing_damaged_and_foreign_states(tmp_path: Path) -> None:
    _, optimizer = learner()
    with pytest.raises(CheckpointError, match="no such file"):
        load_training_state(tmp_path, optimizer)
    save_training_state(tmp_path, TrainingState(), optimizer)
    _, other = learner()
    other.param_groups.pop()
    with pytest.raises(CheckpointError, match="cannot resume"):
        load_training_state(tmp_path, other)
    path = tmp_path / "training" / "state.pt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot resume"):
        load_training_state(tmp_path, optimizer)


def test_weights_that_are_not_the_checkpoints_own(tmp_path: Path) -> None:
    model, optimizer = learner()
    save_training_state(tmp_path, TrainingState(step=1), optimizer)
    assert load_learnt_weights(tmp_path) is None
    save_training_state(tmp_path, TrainingState(step=1), optimizer, model.state_dict())
    found = load_learnt_weights(tmp_path)
    assert found is not None
    assert torch.equal(found["weight"], model.weight)
    with pytest.raises(CheckpointError, match="cannot resume"):
        load_learnt_weights(tmp_path / "nothing")


def test_weights_of_a_run_that_began_with_other_names(tmp_path: Path) -> None:
    _, optimizer = learner()
    old = {"rpn_head.objectness.weight": torch.ones(1), "box_head.classes.bias": torch.zeros(1)}
    save_training_state(tmp_path, TrainingState(step=1), optimizer, old)
    found = load_learnt_weights(tmp_path)
    assert found is not None
    assert list(found) == ["dense.head.logits.weight", "regions.box.head.classes.bias"]
