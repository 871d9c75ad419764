"""The picture of a run's curves."""

import math
import re
from xml.etree import ElementTree

import pytest

from maskrcnn_core.report.charts import progress_axis, value_axis
from maskrcnn_core.report.stylesheets import page_style, picture_style
from maskrcnn_core.report.training_curves import TrainingCurves, curves_svg

FALLING = [(10 * (step + 1), 1.0 / (step + 1)) for step in range(8)]


def texts(picture: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(picture).iter() if element.tag.endswith("text")]


def circles(picture: str) -> list[str]:
    """The classes of all circles."""
    return re.findall(r'<circle class="([^"]+)"', picture)


def test_every_curve_is_there() -> None:
    curves = TrainingCurves(
        "runs & <one>",
        "step 80 of 100",
        100,
        losses={"rpn_box": FALLING, "roi_mask": FALLING},
        validation_losses={"rpn_box": [(40, 0.5), (80, 0.25)], "roi_mask": [(40, 0.5), (80, 0.25)]},
        scores={"mask AP": [(40, 0.25), (80, 0.5)], "box AP": [(40, 0.3), (80, 0.4)]},
        best=(80, 0.5),
        learning_rate=[(10, 0.01), (80, 0.001)],
        images_per_second=[(10, 3.0), (80, 4.0)],
    )
    picture = curves_svg(curves)
    said = texts(picture)
    captions = ["Loss", "Validation", "Learning rate", "rpn_box", "roi_mask", "Images per second"]
    assert [text for text in said if text in captions] == captions
    assert {"runs & <one>", "step 80 of 100", "training", "validation", "mask AP", "box AP"} <= set(said)
    assert "best 0.500 at step 80" in said
    # Dots of two validations in three charts of losses and of two scores, and those of their legends; one ring.
    assert circles(picture).count("f1") == 3 * 2 + 2 + 4
    assert circles(picture).count("ring") == 1


def test_the_total_is_that_of_the_steps_that_have_every_loss() -> None:
    losses = {"a": [(10, 1.0), (20, 0.5)], "b": [(20, 0.5), (30, 7.0)]}
    picture = curves_svg(TrainingCurves("run", "", 40, losses=losses))
    first = re.findall(r'class="line s0" d="([^"]+)"', picture)[0]
    assert first == "M197.0 10.0"  # step 20 in the middle, 1.0 at the top


@pytest.mark.parametrize(
    "curves",
    [
        TrainingCurves("run", "", 1),
        TrainingCurves("run", "", 100, losses={"a": []}, scores={"mask AP": []}),
        TrainingCurves("run", "", 100, losses={"a": [(10, math.nan), (20, math.inf)]}),
        TrainingCurves("run", "", 100, losses={"a": [(10, 0.0)]}, scores={"mask AP": [(10, 0.0)]}, best=(10, 0.0)),
        TrainingCurves("run", "", 10, images_per_second=[(20, 3.0)]),
    ],
)
def test_hardly_anything_is_a_picture_too(curves: TrainingCurves) -> None:
    picture = curves_svg(curves)
    ElementTree.fromstring(picture)
    assert not re.search(r"\b(nan|inf)\b", picture)


@pytest.mark.parametrize("number", [19, 20, 21, 500])
def test_many_points_have_a_moving_mean(number: int) -> None:
    points = [(step, 1.0 + (-1) ** step) for step in range(1, number + 1)]
    picture = curves_svg(TrainingCurves("run", "", number, losses={"a": points}))
    assert ('class="line faint s0"' in picture) == (number >= 20)
    paths = re.findall(r'class="line s0" d="([^"]+)"', picture)
    assert paths[0].count("L") == number - 1


def test_a_first_value_that_is_far_above_does_not_flatten_the_rest() -> None:
    points = [(1, 1e6)] + [(step, 1.0) for step in range(2, 101)]
    assert "1M" not in texts(curves_svg(TrainingCurves("run", "", 100, losses={"a": points})))


def test_axes_of_small_values_and_of_runs_of_any_length() -> None:
    assert value_axis("", 0.015).labels == ("0", "0.005", "0.01", "0.015")
    assert value_axis("", 3e-5).high == pytest.approx(3e-5)
    assert progress_axis("", 4500).ticks == (0, 1000, 2000, 3000, 4000)
    assert progress_axis("", 4500).high == 4500
    assert progress_axis("", 1).ticks == pytest.approx((0, 0.2, 0.4, 0.6, 0.8, 1))
    assert progress_axis("", 90_000).labels == ("0", "20k", "40k", "60k", "80k")


def test_a_picture_carries_its_colours_along() -> None:
    style = picture_style(".mine { fill: var(--ink); }\n")
    assert "var(" not in style
    assert style.count(".mine { fill: #") == 2  # light, dark
    assert style.index("prefers-color-scheme: dark") > style.index(".mine")
    assert ".plot" in page_style()
    assert page_style().count(".s0 {") == 1
