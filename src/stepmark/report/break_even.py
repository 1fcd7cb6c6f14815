"""What compiling a model costs, and after how many steps that is paid back."""

import math
from collections.abc import Iterable

from stepmark.report.cells import Cell
from stepmark.report.contrast import Verdict, contrast
from stepmark.report.readings import COMPILE_TIME, COMPILER_START, median_of


def compile_cost_s(cell: Cell) -> float | None:
    """Seconds that a process spends on it before it trains at speed; ``None`` if unknown."""
    parts = [median_of(cell, COMPILER_START), median_of(cell, COMPILE_TIME)]
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def paid_after_steps(compiled: Cell, eager: Cell, cells: Iterable[Cell]) -> int | None:
    """The step at which compiling has saved what it cost.

    Args:
        compiled, eager: cells that differ in nothing else.
        cells: of the same run and workload, for their typical spread.

    Returns:
        ``None`` where this run does not show the compiled step to be shorter.
    """
    cost_s = compile_cost_s(compiled)
    saved_s = eager.mean_step_s - compiled.mean_step_s
    is_faster = contrast(compiled, eager, cells).verdict is Verdict.MORE
    if cost_s is None or saved_s <= 0 or not is_faster:
        return None
    return math.ceil(cost_s / saved_s)
