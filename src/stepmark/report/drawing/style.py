"""How all figures look, and how they are saved."""

import io
import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

# Okabe and Ito's palette (2008), without its yellow, which is too pale for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^DvPX"
DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (3, 3)), (0, (1, 3)))
MOST_LINES = len(COLOURS)

# Of whatever has parts, by name: colour and hatch.
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


def part_name(name: str) -> str:
    """What a legend calls a part of `PART_STYLES`."""
    return _PART_NAMES.get(name, name.replace("_", " "))


def set_title(axes: Axes, title: str) -> None:
    """A title at the left, wrapped."""
    # Matplotlib's own wrapping would read a dollar sign as the start of a formula.
    axes.set_title("\n".join(textwrap.fill(line, 66) for line in title.split("\n")), loc="left")


def legend_below(figure: Figure, columns: int = 6) -> None:
    """A legend of the figure's axes below them."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    columns = min(len(names), columns)
    figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=9)


def seconds_unit(longest_s: float) -> tuple[float, str]:
    """The unit of time that suits a length: its seconds, and its name."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if longest_s >= scale:
            return scale, unit
    return 1e-9, "ns"


def chunks(items: Sequence[Any], most: int) -> list[Sequence[Any]]:
    """Pieces of about equal length, none longer than ``most``."""
    num_pieces = -(-len(items) // most)
    size = -(-len(items) // max(num_pieces, 1))
    return [items[start : start + size] for start in range(0, len(items), size or 1)]
