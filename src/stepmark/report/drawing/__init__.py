"""Figures: lines and bars, in colours and marks that survive colour blindness and grey print.

Everything is drawn on `Figure` objects; pyplot and its global state are not used.
"""

from stepmark.report.drawing.bars import draw_grouped_bars, draw_stacked_bars
from stepmark.report.drawing.epochs import draw_epochs
from stepmark.report.drawing.intervals import Interval, draw_intervals
from stepmark.report.drawing.lines import Line, draw_lines
from stepmark.report.drawing.roofline import Roof, draw_roofline
from stepmark.report.drawing.style import COLOURS, MOST_LINES, chunks, is_signed, style, to_png
from stepmark.report.drawing.timeline import draw_timeline

__all__ = [
    "COLOURS",
    "MOST_LINES",
    "Interval",
    "Line",
    "Roof",
    "chunks",
    "draw_epochs",
    "draw_grouped_bars",
    "draw_intervals",
    "draw_lines",
    "draw_roofline",
    "draw_stacked_bars",
    "draw_timeline",
    "is_signed",
    "style",
    "to_png",
]
