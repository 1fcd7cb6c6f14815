"""Loss and accuracy over the epochs of a training."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from stepmark.report.drawing.style import COLOURS, DASHES, MARKERS, legend_below, set_title
from stepmark.training import Epoch

_MOST_MARKED = 40


def draw_epochs(epochs: Sequence[Epoch], *, title: str) -> Figure:
    """Losses, and beside them accuracies where there are any.

    Args:
        epochs: at least one.
        title: over the axes.
    """
    kinds = ["loss"]
    if any(epoch.train_accuracy is not None for epoch in epochs):
        kinds.append("accuracy")
    figure = Figure(figsize=(5.0 * len(kinds) + 1, 4.0), layout="constrained")
    for place, kind in enumerate(kinds, 1):
        axes = figure.add_subplot(1, len(kinds), place)
        _draw(axes, epochs, kind)
        if place == 1:
            set_title(axes, title)
    legend_below(figure)
    return figure


def _draw(axes: Axes, epochs: Sequence[Epoch], kind: str) -> None:
    parts = {"train": "training", "valid": "validation"}
    drawn: list[tuple[int, float]] = []
    for place, (field, name) in enumerate(parts.items()):
        points = [
            (epoch.epoch, value)
            for epoch in epochs
            if (value := getattr(epoch, f"{field}_{kind}")) is not None
        ]
        drawn += points
        if points:
            axes.plot(
                *zip(*points, strict=True), color=COLOURS[place], linestyle=DASHES[place],
                marker=MARKERS[place] if len(points) <= _MOST_MARKED else "", label=name,
            )  # fmt: skip
    low = min((value for _, value in drawn), default=0.0)
    best = next((epoch for epoch in reversed(epochs) if epoch.is_best), None)
    if best is not None:
        axes.axvline(best.epoch, color="#777777", linewidth=1, label="best epoch")
    axes.set_xlabel("epoch")
    axes.set_ylabel(kind)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.6g}"))
    if kind == "accuracy":
        # Room over the highest there is, but no ticks: they would be accuracies above 1.
        low = min(max(0.0, low - 0.05), 0.95)
        axes.set_ylim(low, 1 + 0.05 * (1 - low))
        axes.set_yticks([tick for tick in MaxNLocator(6).tick_values(low, 1.0) if low <= tick <= 1])
    else:
        # Losses begin at 0, unless they lie so close together that nothing would be seen of them.
        high = max((value for _, value in drawn), default=1.0)
        bottom = min(0.0, low) if high - low > high / 4 else low - (high - low or high or 1.0) / 10
        axes.set_ylim(bottom, high + 0.05 * ((high - bottom) or 1.0))
