import re

import pytest

from maskrcnn_core.report.charts import (
    Axis,
    Line,
    count_axis,
    curve_path,
    histogram_chart,
    line_chart,
    share_axis,
    short_number,
)
from maskrcnn_core.report.content import Histogram


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (999, "999"), (1000, "1k"), (12_500, "12.5k"), (3e6, "3M"), (2e9, "2G")],
)
def test_short_numbers(value: float, text: str) -> None:
    assert short_number(value) == text


@pytest.mark.parametrize(("largest", "high"), [(0, 1), (1, 1), (4, 4), (7, 8), (41, 60), (800, 800), (1407, 1500)])
def test_count_axis_ends_at_a_round_number(largest: float, high: float) -> None:
    axis = count_axis("", largest)
    assert axis.high == pytest.approx(high)
    assert axis.ticks[0] == 0
    assert axis.ticks[-1] == axis.high
    assert len(axis.ticks) <= 6


def test_lines_run_from_the_lower_left_to_the_upper_right() -> None:
    assert curve_path([(0, 0), (1, 1)]) == "M44.0 196.0L350.0 10.0"
    chart = line_chart([Line("up", ((0, 0), (1, 1)), 2, dots=True)], share_axis("x"), share_axis("y"), label="a <line>")
    assert 'class="line s2" d="M44.0 196.0L350.0 10.0"' in chart
    assert chart.count("<circle") == 2
    assert 'aria-label="a &lt;line&gt;"' in chart
    assert "legend" not in chart  # of one line


def test_points_outside_are_drawn_at_the_edge() -> None:
    chart = line_chart([Line("", ((-1, 2), (5, 0.5)))], share_axis("x"), share_axis("y"), label="")
    assert "M44.0 10.0L350.0 103.0" in chart


def test_stacked_bars_stand_on_each_other() -> None:
    histogram = Histogram((0.0, 0.5, 1.0), (("right", (4, 0)), ("wrong", (4, 8))), stacked=True)
    chart = histogram_chart(histogram, share_axis("score"), label="")
    bars = re.findall(r'class="bar f(\d)" x="[\d.]+" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', chart)
    assert bars == [("0", "103.0", "93.0"), ("1", "10.0", "93.0"), ("1", "10.0", "186.0")]  # nothing for an empty bin
    assert "wrong: 8 from 0.5 to 1" in chart


def test_a_second_series_is_an_outline() -> None:
    histogram = Histogram((1.0, 2.0, 4.0), (("detections", (1, 2)), ("objects", (2, 1))))
    chart = histogram_chart(histogram, Axis("", 0, 2, (0, 1, 2)), label="", positions=(0, 1, 2))
    assert chart.count('class="bar f0"') == chart.count('class="outline s1"') == 2
