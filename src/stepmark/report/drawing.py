"""Figures: lines and bars, in colours and marks that survive colour blindness and grey print.

Everything is drawn on `Figure` objects; pyplot and its global state are not used.
"""

import io
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stepmark.trace import Timeline
from stepmark.units import format_flops

# Okabe and Ito's palette (2008), without its yellow, which is too pale for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "os^DvPX"
_DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (3, 3)), (0, (1, 3)))
MOST_LINES = len(COLOURS)

PART_STYLES = {
    "data_wait": ("#D55E00", "////"),
    "h2d": ("#E69F00", ".."),
    "forward": ("#0072B2", ""),
    "backward": ("#56B4E9", "\\\\"),
    "optimizer": ("#009E73", "xx"),
    "other": ("#BBBBBB", ""),
    "process": ("#BBBBBB", ""),
    "import": ("#CC79A7", "\\\\"),
    "build": ("#E69F00", ".."),
    "process group": ("#000000", ""),
    "first batch": ("#D55E00", "////"),
    "first step": ("#0072B2", ""),
    "compute": ("#0072B2", ""),
    "exposed communication": ("#D55E00", "////"),
    "memory copies": ("#E69F00", ".."),
    "idle": ("#DDDDDD", ""),
    "outside of operators": ("#DDDDDD", ""),
    "parameters": ("#0072B2", ""),
    "buffers": ("#000000", ""),
    "gradients": ("#56B4E9", "\\\\"),
    "optimizer state": ("#009E73", "xx"),
    "activations": ("#D55E00", "////"),
    "workspace and the rest": ("#E69F00", ".."),
    "cached": ("#CC79A7", "\\\\"),
    "context and others": ("#BBBBBB", ""),
}

_PART_NAMES = {"h2d": "to device (h2d)"}

_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "hatch.linewidth": 0.7,
    # A workload's name may hold a dollar sign, which would start a formula.
    "text.parse_math": False,
}
_DPI = 150
_PALETTE_COLOURS = 64
_SIGNATURE = "stepmark report"


@dataclass(frozen=True, kw_only=True)
class Line:
    """A series with its repeats.

    Attributes:
        label: for the legend.
        points: by x, the values of the repeats.
    """

    label: str
    points: Mapping[float, Sequence[float]]


def style() -> AbstractContextManager[None]:
    """The look of all figures; draw and save inside it."""
    return matplotlib.rc_context(_STYLE)


def to_png(figure: Figure) -> bytes:
    """The drawing as PNG, signed; in a palette, which is a third as large and looks the same."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=_DPI, format="png")
    signature = PngInfo()
    signature.add_text("Software", _SIGNATURE)
    file = io.BytesIO()
    with Image.open(drawn) as image:
        palette = image.convert("RGB").quantize(_PALETTE_COLOURS)
    palette.save(file, format="PNG", pnginfo=signature, optimize=True)
    return file.getvalue()


def is_signed(png: bytes) -> bool:
    """Whether a PNG was drawn here, so that a later report may replace it."""
    return b"tEXtSoftware\0" + _SIGNATURE.encode("ascii") in png


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
    _set_title(axes, title)
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
        marker=_MARKERS[place],
        linestyle=_DASHES[place],
        markersize=5.5,
        capsize=3.5,
        elinewidth=1.2,
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
    scale, unit_name = unit or _seconds_unit(max(totals))
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
            label=_PART_NAMES.get(name, name.replace("_", " ")),
        )
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_xlabel(f"{quantity} ({unit_name})")
    _legend_below(figure)
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
    _legend_below(figure)
    return figure


@dataclass(frozen=True, kw_only=True)
class Roof:
    """Two ceilings: operations per second, and bytes per second.

    Attributes:
        label: for the legend.
        flops, bytes_per_s: the ceilings.
    """

    label: str
    flops: float
    bytes_per_s: float


def draw_roofline(
    points: Mapping[str, tuple[float, float]], roofs: Sequence[Roof], *, title: str
) -> Figure:
    """What was reached, below what can be; both axes are logarithmic.

    Args:
        points: by label, operations per byte and operations per second; at most `MOST_LINES`.
        roofs: at most three.
        title: over the axes.
    """
    figure = Figure(figsize=(8.0, 4.6), layout="constrained")
    axes = figure.add_subplot()
    xs = [x for x, _ in points.values()] + [roof.flops / roof.bytes_per_s for roof in roofs]
    low, high = min(xs) / 4, max(xs) * 4
    for place, roof in enumerate(roofs):
        ridge = roof.flops / roof.bytes_per_s
        ends = [low, ridge, high]
        axes.plot(
            ends,
            [min(roof.flops, roof.bytes_per_s * x) for x in ends],
            color="#555555",
            linestyle=_DASHES[place],
            linewidth=1.6,
            label=roof.label,
        )
    for place, (label, (x, y)) in enumerate(points.items()):
        axes.plot(
            [x], [y], linestyle="", marker=_MARKERS[place], markersize=9,
            color=COLOURS[place], label=label,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte moved at least", ylabel="FLOP/s")
    # Matplotlib's own labels of powers are formulas, which are not read here.
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{format_flops(y)}/s"))
    axes.minorticks_off()
    _set_title(axes, title)
    _legend_below(figure, columns=3)
    return figure


def draw_timeline(timeline: Timeline, *, title: str) -> Figure:
    """Memory over a step, with the phases behind it.

    Args:
        timeline: of one step.
        title: over the axes.
    """
    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    axes = figure.add_subplot()
    end_s = max([*timeline.at_s, *(phase.end_s for phase in timeline.phases)])
    scale, unit = _seconds_unit(end_s)
    for name in dict.fromkeys(phase.name for phase in timeline.phases):
        colour, hatch = PART_STYLES[name]
        spans = [
            (phase.start_s / scale, (phase.end_s - phase.start_s) / scale)
            for phase in timeline.phases
            if phase.name == name
        ]
        axes.broken_barh(
            spans, (0, 1), transform=axes.get_xaxis_transform(), facecolor=colour, hatch=hatch,
            alpha=0.3, edgecolor="white", linewidth=0.5,
            label=_PART_NAMES.get(name, name.replace("_", " ")),
        )  # fmt: skip
    # A level holds until the next point; the last one until the step's end.
    at = [*(s / scale for s in timeline.at_s), end_s / scale]
    for name, levels, dashes in (
        ("allocated", timeline.allocated_bytes, "-"),
        ("reserved", timeline.reserved_bytes, "--"),
    ):
        if levels:
            mib = [level / (1 << 20) for level in (*levels, levels[-1])]
            axes.plot(
                at, mib, dashes, color="black", linewidth=1.5, drawstyle="steps-post", label=name
            )
    axes.set_xlim(0, end_s / scale)
    axes.set_ylim(min(0, *axes.get_ylim()), None)
    axes.grid(visible=False, axis="x")
    axes.set(xlabel=f"time in the step ({unit})", ylabel="memory (MiB)")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.6g}"))
    _set_title(axes, title)
    _legend_below(figure, columns=4)
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
    _set_title(axes, title)
    return figure, axes


def _set_title(axes: Axes, title: str) -> None:
    # Matplotlib's own wrapping would read a dollar sign as the start of a formula.
    axes.set_title("\n".join(textwrap.fill(line, 66) for line in title.split("\n")), loc="left")


def _legend_below(figure: Figure, columns: int = 6) -> None:
    handles, names = figure.axes[0].get_legend_handles_labels()
    columns = min(len(names), columns)
    figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=9)


def _seconds_unit(longest_s: float) -> tuple[float, str]:
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if longest_s >= scale:
            return scale, unit
    return 1e-9, "ns"


def chunks(items: Sequence[Any], most: int) -> list[Sequence[Any]]:
    """Pieces of about equal length, none longer than ``most``."""
    num_pieces = -(-len(items) // most)
    size = -(-len(items) // max(num_pieces, 1))
    return [items[start : start + size] for start in range(0, len(items), size or 1)]
