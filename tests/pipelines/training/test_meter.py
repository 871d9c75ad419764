import math

import pytest
import torch

from maskrcnn_core.errors import UserError
from maskrcnn_core.training.step import StepResult
from pipelines.training.meter import LossMeter, Stopwatch


def result(value: float) -> StepResult:
    losses = torch.tensor([1.0, value])
    return StepResult(("rpn_box", "roi_mask"), losses, losses.sum(), 0.02, ~torch.isfinite(losses.sum()))


def test_skipped_steps_count_but_do_not_enter_the_means() -> None:
    meter = LossMeter(1, max_skipped=2, skipped=5)
    for step, value in enumerate([1.0, math.nan, 3.0, math.inf, 5.0]):
        meter.add(result(value), step, [step])
    assert meter.means() == {"rpn_box": 1.0, "roi_mask": 3.0}
    assert meter.skipped == 7
    assert meter.means() == {}


def test_too_many_in_a_row_end_the_run_with_the_images() -> None:
    meter = LossMeter(1, max_skipped=3)
    for step, value in enumerate([math.nan, 1.0, math.nan, math.inf, math.nan]):
        meter.add(result(value), step, [10 + step, 20 + step])
    with pytest.raises(UserError, match=r"steps 2 to 4: loss is not finite 3 times in a row: roi_mask = nan") as caught:
        meter.settle()
    assert "image ids 12, 22, 13, 23, 14, 24; learning rate 0.02" in str(caught.value)
    assert "weights are those before step 2" in str(caught.value)


def test_waiting_is_counted_and_pauses_are_not() -> None:
    watch = Stopwatch()
    assert list(watch.waiting_for(iter([1, 2]))) == [1, 2]
    with watch.paused():
        pass
    seconds, waited = watch.lap()
    assert 0.0 < waited <= seconds
    assert watch.lap()[1] == 0.0
