"""The plot of accuracy against speed, with its Pareto front."""

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

PlotPoint = tuple[str, int, int, float, float]
"""Trunk, short side, proposals, milliseconds, AP."""

_COLORS = ("#0b7a82", "#d9772b", "#6257b5", "#b5475f", "#5b7f2b", "#7a6a58")
_MARKERS = ("o", "s", "^", "D", "v", "P")
INK, _RULE = "#3a4149", "#e3e4e0"
_TICKS = tuple(factor * 10.0**power for power in range(-1, 5) for factor in (1, 2, 5))
_LEAST_TICKS = 3


def draw_tradeoff(
    points: Sequence[PlotPoint], on_front: Sequence[bool], ap_name: str, time_name: str
) -> dict[str, bytes]:
    """AP over milliseconds of an image: a colour for each trunk, a shape for each input size, a size for each number of
    proposals, a line along the points that no other beats.

    Args:
        points: at least one.
        on_front: which of them no other beats.
        ap_name, time_name: titles of the axes.

    Returns:
        The plot as `png` and `svg`.
    """
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    trunks = list(dict.fromkeys(point[0] for point in points))
    sides = sorted({point[1] for point in points})
    counts = sorted({point[2] for point in points})
    front = sorted((point[3], point[4]) for point, best in zip(points, on_front, strict=True) if best)
    axes.plot(*zip(*front, strict=True), drawstyle="steps-post", color=INK, linewidth=1, zorder=1)
    for (trunk, side, proposals, milliseconds, ap), best in zip(points, on_front, strict=True):
        axes.scatter(
            milliseconds,
            ap,
            s=_area(counts.index(proposals), len(counts)),
            marker=_MARKERS[sides.index(side) % len(_MARKERS)],
            color=_COLORS[trunks.index(trunk) % len(_COLORS)],
            alpha=1.0 if best else 0.45,
            edgecolor=INK if best else "none",
            linewidth=0.9,
            zorder=2,
        )
    style_axes(axes, ap_name, time_name)
    _legends(figure, axes, trunks, sides, counts)
    pictures = {}
    for ending in ("png", "svg"):
        stream = io.BytesIO()
        # Without the date the same points give the same file.
        figure.savefig(stream, format=ending, dpi=130, metadata={"Date": None} if ending == "svg" else {})
        pictures[ending] = stream.getvalue()
    return pictures


def _area(index: int, count: int) -> float:
    """Of a marker, square points."""
    return 30 + 90 * index / max(count - 1, 1)


def style_axes(axes: Axes, ap_name: str, time_name: str) -> None:
    """Titles, round ticks on a logarithmic axis of time, and a faint grid."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    round_ticks = [tick for tick in _TICKS if low <= tick <= high]
    if len(round_ticks) >= _LEAST_TICKS:
        axes.set_xticks(round_ticks)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(time_name, color=INK)
    axes.set_ylabel(ap_name, color=INK)
    axes.tick_params(colors=INK, which="both", length=0)
    axes.grid(color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(INK)


def _legends(figure: Figure, axes: Axes, trunks: Sequence[str], sides: Sequence[int], counts: Sequence[int]) -> None:
    def entry(label: str, marker: str, color: str, area: float = 60.0) -> Line2D:
        return Line2D([], [], linestyle="", marker=marker, color=color, markersize=area**0.5, label=label)

    entries = [entry(trunk, "o", _COLORS[index % len(_COLORS)]) for index, trunk in enumerate(trunks)]
    entries += [entry(f"{side} px", _MARKERS[index % len(_MARKERS)], "#8a929c") for index, side in enumerate(sides)]
    entries += [
        entry(f"{count} proposals" if count else "one stage", "o", "#c3c7cb", _area(index, len(counts)))
        for index, count in enumerate(counts)
    ]
    entries.append(Line2D([], [], color=INK, linewidth=1, label="Pareto front"))
    axes.legend(
        handles=entries,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        frameon=False,
        labelcolor=INK,
        fontsize=9,
        labelspacing=0.7,
    )
