"""What torch.compile costs beside what it saves."""

from collections.abc import Sequence

from stepmark.choices import CompileMode
from stepmark.report.blocks import Block, Paragraph, Table
from stepmark.report.break_even import paid_after_steps
from stepmark.report.cells import Cell, Group
from stepmark.report.contrast import Verdict, contrast
from stepmark.report.material import Material
from stepmark.report.readings import COMPILE_TIME, COMPILER_START, median_of
from stepmark.report.wording import EMPTY, known
from stepmark.units import format_seconds

_COUNTS = ("compiled_graphs", "graph_breaks", "recompilations")
_EXPLAINED = (
    "Every process starts with an empty cache. Starting the compiler is importing it and trying "
    "it out; compile time is the model's own, forward and backward, until the first window. "
    "Break-even is the number of steps after which both are saved, against the equal scenario "
    "that is not compiled: never where the compiled step is longer, unclear where this run cannot "
    "tell the two apart. A first step that takes longer than compiling has other work beside it."
)


def compiling(material: Material) -> Sequence[Block]:
    """Compile time, graphs and break-even of each compiled scenario."""
    tables = [
        table for group in material.groups() if (table := _table(material, group)) is not None
    ]
    return (Paragraph(text=_EXPLAINED), *tables) if tables else ()


def _table(material: Material, group: Group) -> Table | None:
    cells = [cell for cell in group.cells if cell.scenario.compile is not CompileMode.OFF]
    if not cells:
        return None
    rows = []
    for cell in cells:
        eager = material.partner(cell, compile=CompileMode.OFF)
        rows.append(
            (
                group.label(cell),
                known(median_of(cell, COMPILER_START), format_seconds),
                known(median_of(cell, COMPILE_TIME), format_seconds),
                known(cell.median("first_step_s"), format_seconds),
                *(known(median_of(cell, name), "{:g}".format) for name in _COUNTS),
                EMPTY if eager is None else format_seconds(eager.mean_step_s),
                format_seconds(cell.mean_step_s),
                EMPTY if eager is None else _break_even(cell, eager, group),
            )
        )
    header = (
        "scenario",
        "compiler start",
        "compile time",
        "first step",
        *(name.replace("_", " ") for name in _COUNTS),
        "eager step",
        "compiled step",
        "break-even",
    )
    return Table(header=header, rows=rows, caption=group.title).without_empty_columns()


def _break_even(compiled: Cell, eager: Cell, group: Group) -> str:
    steps = paid_after_steps(compiled, eager, group.cells)
    if steps is not None:
        return f"{steps:,} steps"
    is_slower = contrast(compiled, eager, group.cells).verdict is Verdict.LESS
    return "never" if is_slower else "unclear"
