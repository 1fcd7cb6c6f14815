"""Horizontal bars: stacked, or side by side."""

import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from stepmark.report.drawing.style import (
    COLOURS,
    PART_STYLES,
    legend_below,
    part_name,
    seconds_unit,
    set_title,
)


def draw_stacked_bars(
    labels: Sequence[str],
    parts: Mapping[str, Sequence[float]],
    *,
    title: str,
    quantity: str,
    unit: tuple[float, str] | None = None,
) -> Figure:
    """Horizontal bars, each made of parts.

    Args:
        labels: one per bar, from the top.
        parts: by a name in `PART_STYLES`, a value for every bar.
        title: over the axes.
        quantity: what the values are.
        unit: its size and name; values are seconds without one, and theirs fits the longest bar.
    """
    figure, axes = _bar_axes(labels, title)
    totals = [sum(column) for column in zip(*parts.values(), strict=True)]
    scale, unit_name = unit or seconds_unit(max(totals))
    left = [0.0] * len(labels)
    for name, values in parts.items():
        colour, hatch = PART_STYLES[name]
        widths = [value / scale for value in values]
        axes.barh(
            range(len(labels)),
            widths,
            left=left,
            height=0.72,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.5,
            label=part_name(name),
        )
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_xlabel(f"{quantity} ({unit_name})")
    legend_below(figure)
    return figure


def draw_grouped_bars(
    labels: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    *,
    title: str,
    x_label: str,
) -> Figure:
    """Horizontal bars beside each other; a missing value leaves a gap.

    Args:
        labels: one per group of bars, from the top.
        series: by name, one value per label.
        title: over the axes.
        x_label: with its unit.
    """
    figure, axes = _bar_axes(labels, title, bars=len(series))
    height = 0.8 / len(series)
    hatches = ("", "////", "..", "xx", "\\\\")
    for place, (name, values) in enumerate(series.items()):
        axes.barh(
            [i - 0.4 + (place + 0.5) * height for i in range(len(labels))],
            [float("nan") if value is None else value for value in values],
            height=height,
            color=COLOURS[place],
            hatch=hatches[place],
            edgecolor="white",
            linewidth=0.5,
            label=name,
        )
    axes.set_xlabel(x_label)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.6g}"))
    legend_below(figure)
    return figure


def _bar_axes(labels: Sequence[str], title: str, bars: int = 1) -> tuple[Figure, Axes]:
    row = 0.30 if bars == 1 else 0.16 + 0.13 * bars
    figure = Figure(figsize=(8.0, 1.5 + row * len(labels)), layout="constrained")
    axes = figure.add_subplot()
    wrapped = [textwrap.fill(label, 48) for label in labels]
    axes.set_yticks(range(len(labels)), wrapped, fontsize=9)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    set_title(axes, title)
    return figure, axes
