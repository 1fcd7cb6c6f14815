"""The roofline: what was reached, below what can be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from stepmark.report.drawing.style import COLOURS, DASHES, MARKERS, legend_below, set_title
from stepmark.units import format_flops


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
            linestyle=DASHES[place],
            linewidth=1.6,
            label=roof.label,
        )
    for place, (label, (x, y)) in enumerate(points.items()):
        axes.plot(
            [x], [y], linestyle="", marker=MARKERS[place], markersize=9,
            color=COLOURS[place], label=label,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte moved at least", ylabel="FLOP/s")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    # Matplotlib's own labels of powers are formulas, which are not read here.
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{format_flops(y)}/s"))
    axes.minorticks_off()
    set_title(axes, title)
    legend_below(figure, columns=3)
    return figure
