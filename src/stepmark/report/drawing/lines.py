"""Lines along an axis."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from stepmark.report.drawing.style import COLOURS, DASHES, MARKERS, set_title


@dataclass(frozen=True, kw_only=True)
class Line:
    """A series with its repeats.

    Attributes:
        label: for the legend.
        points: by x, the values of the repeats.
    """

    label: str
    points: Mapping[float, Sequence[float]]


def draw_lines(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_log2: bool = False,
    ideal: float | None = None,
) -> Figure:
    """Lines through the medians; whiskers from the smallest to the largest repeat.

    Args:
        lines: at most `MOST_LINES`.
        title: over the axes; a line that stands alone is named below it.
        x_label, y_label: with units.
        x_log2: x doubles from tick to tick.
        ideal: a level to hold the lines against.
    """
    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for place, line in enumerate(lines):
        _draw_line(axes, line, place, _aside(place, lines, log2=x_log2))
    if ideal is not None:
        axes.axhline(ideal, color="#777777", linewidth=1, label="ideal")
    if x_log2:
        axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({x for line in lines for x in line.points}))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.6g}"))
    highest = max(max(values) for line in lines for values in line.points.values())
    axes.set_ylim(0, 1.08 * max(highest, ideal or 0.0) or 1.0)
    axes.set(xlabel=x_label, ylabel=y_label)
    if len(lines) > 1 or ideal is not None:
        axes.legend(fontsize=9, loc="best")
    else:
        title += f"\n{lines[0].label}"
    set_title(axes, title)
    return figure


def _aside(place: int, lines: Sequence[Line], *, log2: bool) -> Callable[[float], float]:
    """Moves a line's points a little, so that whiskers of several lines stand side by side."""
    shift = place - (len(lines) - 1) / 2
    if log2:
        return lambda x: float(x * 2 ** (0.05 * shift))
    xs = [x for line in lines for x in line.points]
    step = 0.015 * (max(xs) - min(xs))
    return lambda x: x + step * shift


def _draw_line(axes: Axes, line: Line, place: int, aside: Callable[[float], float]) -> None:
    points = sorted(line.points.items())
    x = [aside(value) for value, _ in points]
    y = [statistics.median(repeats) for _, repeats in points]
    below = [middle - min(repeats) for middle, (_, repeats) in zip(y, points, strict=True)]
    above = [max(repeats) - middle for middle, (_, repeats) in zip(y, points, strict=True)]
    axes.errorbar(
        x,
        y,
        yerr=[below, above],
        label=line.label,
        color=COLOURS[place],
        marker=MARKERS[place],
        linestyle=DASHES[place],
        markersize=5.5,
        capsize=3.5,
        elinewidth=1.2,
    )
