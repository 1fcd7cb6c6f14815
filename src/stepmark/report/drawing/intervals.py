"""Changes with their intervals, one below the other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from stepmark.report.drawing.style import set_title

# By what can be said of it: colour, marker and whether it is filled.
_LOOKS = {
    "holds": ("#0072B2", "o", True),
    "does not hold": ("#D55E00", "s", True),
    "no difference seen": ("#777777", "D", False),
}
_MARKS = (0.05, 0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2, 3, 5, 10, 20)
# A scale shorter than this would make much of nothing; beyond the longer one an interval that
# says little would leave no room for the others.
_LEAST_SPAN, _MOST_SPAN = 1.2, 25.0
# Of the scale's length: nearer to each other labels would touch.
_LEAST_GAP = 0.11


@dataclass(frozen=True, kw_only=True)
class Interval:
    """One row.

    Attributes:
        label: what it is.
        ratio: with over without.
        low, high: its interval.
        standing: how it is drawn; one of those in the legend.
    """

    label: str
    ratio: float
    low: float
    high: float
    standing: str


def draw_intervals(rows: Sequence[Interval], *, title: str, x_label: str) -> Figure:
    """Ratios around 1 on a logarithmic axis, with their intervals.

    Args:
        rows: from the top.
        title: over the axes.
        x_label: what the ratio is of.
    """
    figure = Figure(figsize=(8.0, 1.7 + 0.34 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(1.0, color="black", linewidth=1.0)
    for place, row in enumerate(rows):
        colour, marker, is_filled = _LOOKS[row.standing]
        axes.plot([row.low, row.high], [place, place], color=colour, linewidth=2.0)
        axes.plot(
            [row.ratio], [place], linestyle="", marker=marker, markersize=8, color=colour,
            markerfacecolor=colour if is_filled else "white", markeredgewidth=1.6,
        )  # fmt: skip
    ends = [end for row in rows for end in (row.low, row.high)]
    low = max(min(*ends, 1 / _LEAST_SPAN) / 1.05, 1 / _MOST_SPAN)
    high = min(max(*ends, _LEAST_SPAN) * 1.05, _MOST_SPAN)
    axes.set(xscale="log", xlim=(low, high), xlabel=x_label)
    axes.xaxis.set_major_locator(FixedLocator(_marks(low, high)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    axes.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    set_title(axes, title)
    shown = [s for s in _LOOKS if any(row.standing == s for row in rows)]
    handles = [
        Line2D(
            [], [], color=_LOOKS[s][0], marker=_LOOKS[s][1], linewidth=2.0, markersize=8,
            markerfacecolor=_LOOKS[s][0] if _LOOKS[s][2] else "white", label=s,
        )
        for s in shown
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)
    return figure


def _marks(low: float, high: float) -> list[float]:
    gap = _LEAST_GAP * math.log(high / low)
    kept = [1.0]
    # From the middle outwards, so that 1 is always one of them.
    for mark in sorted(_MARKS, key=lambda mark: abs(math.log(mark))):
        if low <= mark <= high and all(abs(math.log(mark / other)) >= gap for other in kept):
            kept.append(mark)
    return sorted(kept)
