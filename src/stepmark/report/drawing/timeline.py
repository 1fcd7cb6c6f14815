"""Memory over a step."""

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from stepmark.report.drawing.style import (
    PART_STYLES,
    legend_below,
    part_name,
    seconds_unit,
    set_title,
)
from stepmark.trace import Timeline


def draw_timeline(timeline: Timeline, *, title: str) -> Figure:
    """Memory over a step, with the phases behind it.

    Args:
        timeline: of one step.
        title: over the axes.
    """
    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    axes = figure.add_subplot()
    end_s = max([*timeline.at_s, *(phase.end_s for phase in timeline.phases)])
    scale, unit = seconds_unit(end_s)
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
            label=part_name(name),
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
    set_title(axes, title)
    legend_below(figure, columns=4)
    return figure
