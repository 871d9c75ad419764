"""The plot of systems by accuracy and speed, each point with its name."""

import io
from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipelines.benchmarks.tradeoff_plot import INK, style_axes

SystemPoint = tuple[str, int, float, float]
"""Name, stages, milliseconds, AP."""

# One stage, two stages: colour and shape, so that either tells them apart.
_LOOKS = {1: ("#d9772b", "o", "one stage"), 2: ("#0b7a82", "s", "two stages")}
_LIFT = 9  # points between a mark and its name


def draw_landscape(points: Sequence[SystemPoint], time_name: str) -> dict[str, bytes]:
    """Box AP over milliseconds of an image, a mark with its name for each system.

    Args:
        points: at least one.
        time_name: title of the axis of time.

    Returns:
        The plot as `png` and `svg`.
    """
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, (name, stages, milliseconds, ap) in enumerate(sorted(points, key=lambda point: point[2])):
        color, marker, _ = _LOOKS[stages]
        axes.scatter(milliseconds, ap, s=70, marker=marker, color=color, zorder=2)
        # Neighbours' names above and below in turns, lest one lie on another.
        above = place % 2 == 0
        axes.annotate(
            name,
            (milliseconds, ap),
            xytext=(0, _LIFT if above else -_LIFT),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            fontsize=9,
            color=INK,
        )
    axes.margins(x=0.18, y=0.18)
    style_axes(axes, "box AP", time_name)
    seen = sorted({point[1] for point in points})
    entries = [
        Line2D([], [], linestyle="", marker=_LOOKS[one][1], color=_LOOKS[one][0], label=_LOOKS[one][2]) for one in seen
    ]
    axes.legend(handles=entries, frameon=False, labelcolor=INK, fontsize=9, loc="best")
    pictures = {}
    for ending in ("png", "svg"):
        stream = io.BytesIO()
        # Without the date the same points give the same file.
        figure.savefig(stream, format=ending, dpi=130, metadata={"Date": None} if ending == "svg" else {})
        pictures[ending] = stream.getvalue()
    return pictures
