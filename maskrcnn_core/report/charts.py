"""Small charts as SVG text. Colours come from the page's style (`--series-0` ..), so that they follow light and dark.

All have one narrow size: they stand beside each other on a wide screen and fill a phone's width with letters that can
still be read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from maskrcnn_core.report.content import Histogram

WIDTH, HEIGHT = 360, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 10, 40
_MOST_TICKS = 5


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        title: beneath or beside it.
        low, high: range of values; low < high.
        ticks: values with a line and a number.
        labels: text of each tick; empty = the number.
    """

    title: str
    low: float
    high: float
    ticks: tuple[float, ...]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line:
    """Points joined by a line.

    Attributes:
        name: in the legend.
        points: x, y.
        series: number of the colour.
        dashed: thin and dashed, for a line of reference.
        dots: a disc at each point.
        filled: a light area beneath.
        faint: thin and light, for values behind their mean.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    series: int = 0
    dashed: bool = False
    dots: bool = False
    filled: bool = False
    faint: bool = False


SHARE = (0.0, 0.25, 0.5, 0.75, 1.0)


def share_axis(title: str) -> Axis:
    """From 0 to 1."""
    return Axis(title, 0.0, 1.0, SHARE, ("0", ".25", ".5", ".75", "1"))


def count_axis(title: str, largest: float) -> Axis:
    """From 0 to a round number that is not below `largest`, nor below 1."""
    return value_axis(title, max(largest, 1.0))


def value_axis(title: str, largest: float) -> Axis:
    """From 0 to a round number that is not below `largest`, which is above 0."""
    step = _round_step(largest / (_MOST_TICKS - 1))
    count = max(1, math.ceil(largest / step - 1e-9))
    ticks = tuple(index * step for index in range(count + 1))
    return Axis(title, 0.0, ticks[-1], ticks, tuple(short_number(tick) for tick in ticks))


def progress_axis(title: str, end: float) -> Axis:
    """From 0 to exactly `end`, which is above 0, with round numbers on the way."""
    step = _round_step(end / _MOST_TICKS)
    ticks = tuple(index * step for index in range(math.floor(end / step + 1e-9) + 1))
    return Axis(title, 0.0, end, ticks, tuple(short_number(tick) for tick in ticks))


def _round_step(least: float) -> float:
    """1, 2 or 5 times a power of ten, not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= least - 1e-12)


def short_number(value: float) -> str:
    """1234567 -> 1.2M, 12000 -> 12k, 0.25 -> 0.25."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.1f}".removesuffix(".0") + letter
    return f"{value:g}"


def line_chart(lines: Sequence[Line], x: Axis, y: Axis, *, label: str) -> str:
    """Lines over two axes, with a legend where there is more than one.

    Args:
        lines: drawn in order.
        x, y: axes; points outside are drawn at the edge.
        label: says what the chart shows to those who do not see it.
    """
    legend = [(line.name, line.series) for line in lines if line.name]
    return _svg(plot_of_lines(lines, x, y), label) + (_legend(legend) if len(legend) > 1 else "")


def plot_of_lines(lines: Sequence[Line], x: Axis, y: Axis) -> str:
    """What `line_chart` shows, as SVG elements within `WIDTH` and `HEIGHT`."""
    parts = []
    for line in lines:
        points = [(_across(x, px), _down(y, py)) for px, py in line.points]
        if not points:
            continue
        if line.filled:
            ends = f"L{points[-1][0]:.1f} {_down(y, y.low):.1f}L{points[0][0]:.1f} {_down(y, y.low):.1f}Z"
            parts.append(f'<path class="area f{line.series}" d="{_path(points)}{ends}"/>')
        style = "line" + " dashed" * line.dashed + " faint" * line.faint
        parts.append(f'<path class="{style} s{line.series}" d="{_path(points)}"/>')
        if line.dots:
            parts += [f'<circle class="f{line.series}" cx="{px:.1f}" cy="{py:.1f}" r="3"/>' for px, py in points]
    return _frame(x, y) + "".join(parts)


def point_in_plot(x: Axis, y: Axis, point: tuple[float, float]) -> tuple[float, float]:
    """Where a point lies in `plot_of_lines`."""
    return _across(x, point[0]), _down(y, point[1])


def curve_path(points: Sequence[tuple[float, float]]) -> str:
    """`d` of a path through points of 0 to 1, in the frame of `line_chart` with two `share_axis`."""
    axis = share_axis("")
    return _path([(_across(axis, px), _down(axis, py)) for px, py in points])


def histogram_chart(histogram: Histogram, x: Axis, *, label: str, positions: Sequence[float] | None = None) -> str:
    """Bars over the bins; with several series stacked, or the second as an outline over the first.

    Args:
        histogram: counts.
        x: axis in the values of `positions`.
        label: says what the chart shows to those who do not see it.
        positions: where the edges lie on the axis; None = at their values.
    """
    edges = list(positions if positions is not None else histogram.edges)
    counts = [values for _, values in histogram.series]
    tops = (
        [sum(values) for values in zip(*counts, strict=True)]
        if histogram.stacked
        else [max(b) for b in zip(*counts, strict=True)]
    )
    y = count_axis("", max(tops, default=0))
    parts = []
    base = [0] * (len(edges) - 1)
    for series, (name, values) in enumerate(histogram.series):
        for index, value in enumerate(values):
            low, high = _across(x, edges[index]), _across(x, edges[index + 1])
            top, bottom = _down(y, base[index] + value), _down(y, base[index])
            if not value:
                continue
            said = f"{name}: {value} from {histogram.edges[index]:g} to {histogram.edges[index + 1]:g}"
            outline = series > 0 and not histogram.stacked
            inset = 0.5 if high - low > 4 else 0.0
            parts.append(
                f'<rect class="{"outline s" if outline else "bar f"}{series}" x="{low + inset:.1f}" y="{top:.1f}" '
                f'width="{max(high - low - 2 * inset, 0.5):.1f}" height="{max(bottom - top, 0.5):.1f}">'
                f"<title>{escape(said)}</title></rect>"
            )
        if histogram.stacked:
            base = [low + value for low, value in zip(base, values, strict=True)]
    legend = [(name, series) for series, (name, _) in enumerate(histogram.series)]
    return _svg(_frame(x, y) + "".join(parts), label) + (_legend(legend) if len(legend) > 1 else "")


def _across(axis: Axis, value: float) -> float:
    share = (min(max(value, axis.low), axis.high) - axis.low) / (axis.high - axis.low)
    return _LEFT + share * (WIDTH - _LEFT - _RIGHT)


def _down(axis: Axis, value: float) -> float:
    share = (min(max(value, axis.low), axis.high) - axis.low) / (axis.high - axis.low)
    return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _frame(x: Axis, y: Axis) -> str:
    """Grid, numbers and titles."""
    left, right, bottom = _LEFT, WIDTH - _RIGHT, HEIGHT - _BOTTOM
    parts = []
    for tick, text in zip(y.ticks, y.labels or map(short_number, y.ticks), strict=True):
        line_y = _down(y, tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{line_y:.1f}" y2="{line_y:.1f}"/>')
        parts.append(f'<text x="{left - 7}" y="{line_y + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    for tick, text in zip(x.ticks, x.labels or map(short_number, x.ticks), strict=True):
        parts.append(f'<text x="{_across(x, tick):.1f}" y="{bottom + 16}" text-anchor="middle">{escape(text)}</text>')
    parts.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    middle = (left + right) / 2
    parts.append(f'<text class="title" x="{middle:g}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x.title)}</text>')
    if y.title:
        height = (_TOP + bottom) / 2
        parts.append(
            f'<text class="title" transform="translate(11 {height:g}) rotate(-90)" text-anchor="middle">'
            f"{escape(y.title)}</text>"
        )
    return "".join(parts)


def _svg(inside: str, label: str) -> str:
    return f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{inside}</svg>'


def _legend(entries: Sequence[tuple[str, int]]) -> str:
    items = "".join(f'<li><span class="key b{series}"></span>{escape(name)}</li>' for name, series in entries)
    return f'<ul class="legend">{items}</ul>'


def curve_frame(names: Sequence[str], label: str) -> str:
    """An empty precision-recall chart whose paths, marked `data-curve`, a script fills with `curve_path`."""
    paths = "".join(f'<path class="line s{index}" data-curve="{index}"/>' for index in range(len(names)))
    inside = _frame(share_axis("recall"), share_axis("precision")) + paths
    return _svg(inside, label) + _legend([(name, index) for index, name in enumerate(names)])
