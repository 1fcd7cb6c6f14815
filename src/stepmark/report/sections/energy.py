"""What a sample costs in energy."""

import functools
from collections.abc import Sequence

from stepmark.report.blocks import Block, Paragraph, Plot, Table
from stepmark.report.drawing import draw_grouped_bars
from stepmark.report.material import Material
from stepmark.report.readings import median_of, write_value
from stepmark.report.wording import known


def energy(material: Material) -> Sequence[Block]:
    """Joules per sample, beside the power and what held the clocks back."""
    blocks: list[Block] = []
    for group in material.groups():
        cells = [cell for cell in group.cells if cell.median("energy_j") is not None]
        if not cells:
            continue
        labels = [group.label(cell) for cell in cells]
        series = {"energy": [cell.joules_per_sample for cell in cells]}
        figure = draw_grouped_bars(
            labels, series, title=group.title, x_label="energy per sample (J)"
        )
        blocks.append(Plot(title=f"Energy: {group.title}", figure=figure, wide=True))
        rows = [
            (
                label,
                known(cell.joules_per_sample, lambda value: f"{value:.3g} J"),
                *(
                    known(median_of(cell, name), functools.partial(write_value, unit=unit))
                    for name, unit in (
                        ("power", "W"),
                        ("sm_clock", "MHz"),
                        ("clocks_held_back", "fraction"),
                        ("gpu_temperature", "°C"),
                    )
                ),
            )
            for label, cell in zip(labels, cells, strict=True)
        ]
        header = ("scenario", "per sample", "mean power", "SM clock", "held back", "hottest")
        blocks.append(
            Table(header=header, rows=rows, caption=f"{group.title}: energy", foldable=True)
        )
    explained = Paragraph(
        text="Of the whole devices over the measured window, by their own counters (where there "
        "are none, power integrated), over the window's samples; medians over repeats. Power, "
        "clocks and temperature are the slowest rank's device. Held back is the part of the "
        "window in which a power cap, heat or settings kept clocks from rising."
    )
    return (explained, *blocks) if blocks else ()
