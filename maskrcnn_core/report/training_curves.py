"""The curves of a training run as one SVG picture: losses, scores, learning rate and speed over the steps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

from maskrcnn_core.report.charts import (
    HEIGHT,
    WIDTH,
    Axis,
    Line,
    plot_of_lines,
    point_in_plot,
    progress_axis,
    value_axis,
)
from maskrcnn_core.report.stylesheets import picture_style

Points = Sequence[tuple[int, float]]

_COLUMNS = 3
_MARGIN, _GAP, _HEAD, _CAPTION = 28, 24, 84, 30
_FEWEST_TO_SMOOTH = 20
_WINDOWS = 25
_USUAL_SHARE = 0.98
_LETTER, _DOT = 6.1, 22.0  # how wide a letter of the legend is about, and a dot with the room on both sides
_STYLE = """
svg {
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", "DejaVu Sans", sans-serif;
}
.paper { fill: var(--paper); }
.heading { fill: var(--ink); font-size: 21px; font-weight: 650; }
.below { fill: var(--soft); font-size: 13px; }
.caption { fill: var(--ink); font-size: 13px; font-weight: 600; }
.name { fill: var(--soft); font-size: 11px; }
.ring { fill: none; stroke: var(--ink); stroke-width: 1.5; }
.plot .best { fill: var(--ink); font-weight: 600; }
"""


@dataclass(frozen=True)
class TrainingCurves:
    """What is drawn. Points are (steps done, value), in the order of their steps.

    Attributes:
        title, subtitle: above the charts.
        steps: in all, above 0: where the charts end.
        losses: means since the point before, by name.
        validation_losses: by the same names.
        scores: by name, such as `mask AP`, from 0 to 1; the first is the one that chooses.
        best: the best checkpoint's point of the first score, or None.
        learning_rate: of the last step.
        images_per_second: since the point before.
    """

    title: str
    subtitle: str
    steps: int
    losses: Mapping[str, Points] = field(default_factory=dict)
    validation_losses: Mapping[str, Points] = field(default_factory=dict)
    scores: Mapping[str, Points] = field(default_factory=dict)
    best: tuple[int, float] | None = None
    learning_rate: Points = ()
    images_per_second: Points = ()


@dataclass(frozen=True)
class _Chart:
    """One of the charts: what stands above it, and its lines; `best` is marked by a ring."""

    caption: str
    lines: Sequence[Line]
    y: Axis
    best: tuple[int, float] | None = None


def curves_svg(curves: TrainingCurves) -> str:
    """The picture, for a file of its own; it follows the reader's light or dark."""
    x = progress_axis("steps", curves.steps)
    charts = _charts(curves)
    rows = -(-len(charts) // _COLUMNS)
    width = 2 * _MARGIN + _COLUMNS * WIDTH + (_COLUMNS - 1) * _GAP
    height = _HEAD + rows * (_CAPTION + HEIGHT) + _MARGIN // 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(f"{curves.title}: {curves.subtitle}")}">',
        f"<style>{picture_style(_STYLE)}</style>",
        f'<rect class="paper" width="{width}" height="{height}"/>',
        f'<text class="heading" x="{_MARGIN}" y="40">{escape(curves.title)}</text>',
        f'<text class="below" x="{_MARGIN}" y="62">{escape(curves.subtitle)}</text>',
    ]
    for number, chart in enumerate(charts):
        row, column = divmod(number, _COLUMNS)
        left, top = _MARGIN + column * (WIDTH + _GAP), _HEAD + row * (_CAPTION + HEIGHT)
        parts.append(f'<g transform="translate({left} {top})">{_drawn(chart, x)}</g>')
    return "".join(parts) + "</svg>\n"


def _charts(curves: TrainingCurves) -> list[_Chart]:
    """Loss, score and learning rate first, then the parts of the loss, and the speed."""
    charts = [_loss_chart("Loss", _total(curves.losses), _total(curves.validation_losses))]
    if any(curves.scores.values()):
        charts.append(_score_chart(curves))
    rates = [value for _, value in curves.learning_rate]
    charts.append(_Chart("Learning rate", [Line("", tuple(curves.learning_rate), filled=True)], _axis(rates)))
    charts += [
        _loss_chart(name, points, curves.validation_losses.get(name, ())) for name, points in curves.losses.items()
    ]
    speed = curves.images_per_second
    charts.append(_Chart("Images per second", _smoothed("", speed, 0), _axis([_usual_top(speed)])))
    return charts


def _total(losses: Mapping[str, Points]) -> Points:
    """The sum of all losses at each step that has them all."""
    sums: dict[int, list[float]] = {}
    for points in losses.values():
        for step, value in points:
            sums.setdefault(step, []).append(value)
    return [(step, sum(values)) for step, values in sorted(sums.items()) if len(values) == len(losses)]


def _loss_chart(caption: str, training: Points, validation: Points) -> _Chart:
    lines = _smoothed("training", training, 0)
    if validation:
        lines.append(Line("validation", tuple(validation), series=1, dots=True))
    return _Chart(caption, lines, _axis([_usual_top(training), *(value for _, value in validation)]))


def _score_chart(curves: TrainingCurves) -> _Chart:
    lines = [
        Line(name, tuple(points), series=min(number, 2), dots=True)
        for number, (name, points) in enumerate(curves.scores.items())
        if points
    ]
    values = [value for points in curves.scores.values() for _, value in points]
    return _Chart("Validation", lines, _axis(values), curves.best)


def _axis(values: Sequence[float]) -> Axis:
    largest = max((value for value in values if math.isfinite(value)), default=0.0)
    return value_axis("", largest if largest > 0 else 1.0)


def _usual_top(points: Points) -> float:
    """What nearly all values are below: the first ones, and single ones, may be many times larger."""
    values = [value for _, value in points if math.isfinite(value)]
    return float(np.quantile(values, _USUAL_SHARE)) if values else 0.0


def _smoothed(name: str, points: Points, series: int) -> list[Line]:
    """The points, faint where there are many, and their moving mean."""
    points = [point for point in points if math.isfinite(point[1])]
    if len(points) < _FEWEST_TO_SMOOTH:
        return [Line(name, tuple(points), series)]
    reach = max(1, len(points) // _WINDOWS // 2)
    values = np.array([value for _, value in points])
    sums = np.concatenate(([0.0], np.cumsum(values)))
    places = np.arange(len(points))
    first, last = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(points))
    means = (sums[last] - sums[first]) / (last - first)
    mean_points = tuple((step, float(mean)) for (step, _), mean in zip(points, means, strict=True))
    return [Line("", tuple(points), series, faint=True), Line(name, mean_points, series)]


def _drawn(chart: _Chart, x: Axis) -> str:
    """Caption and legend on one line, the chart beneath."""
    left = point_in_plot(x, chart.y, (0, 0))[0]
    parts = [f'<text class="caption" x="{left:g}" y="16">{escape(chart.caption)}</text>']
    named = [line for line in chart.lines if line.name]
    if len(named) > 1:
        parts.append(_legend(named))
    parts.append(f'<g class="plot" transform="translate(0 {_CAPTION - 8})">{plot_of_lines(chart.lines, x, chart.y)}')
    if chart.best is not None:
        parts.append(_best_mark(chart, x))
    return "".join(parts) + "</g>"


def _legend(lines: Sequence[Line]) -> str:
    """A dot and a name for each line, up to about the right edge of the chart."""
    parts: list[str] = []
    left = WIDTH - sum(_LETTER * len(line.name) + _DOT for line in lines)
    for line in lines:
        parts.append(f'<circle class="f{line.series}" cx="{left:.1f}" cy="12" r="3.5"/>')
        parts.append(f'<text class="name" x="{left + 8:.1f}" y="16">{escape(line.name)}</text>')
        left += _LETTER * len(line.name) + _DOT
    return "".join(parts)


def _best_mark(chart: _Chart, x: Axis) -> str:
    """A ring around the point; its numbers stand in the corner that scores leave free."""
    assert chart.best is not None
    step, value = chart.best
    across, down = point_in_plot(x, chart.y, chart.best)
    right, bottom = point_in_plot(x, chart.y, (x.high, chart.y.low))
    return (
        f'<circle class="ring" cx="{across:.1f}" cy="{down:.1f}" r="6"/>'
        f'<text class="best" x="{right:.1f}" y="{bottom - 10:.1f}" text-anchor="end">'
        f"best {value:.3f} at step {step:,}</text>"
    )
