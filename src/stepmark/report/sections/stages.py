"""Models whose layers are spread over processes: what each of them does."""

from collections.abc import Sequence

from stepmark.report.blocks import Block, Paragraph, Table
from stepmark.report.cells import Group
from stepmark.report.material import Material
from stepmark.report.readings import STAGE_PARAMETERS
from stepmark.report.wording import known, percent
from stepmark.units import format_bytes, format_rate, format_seconds

_PHASES = ("data_wait", "forward", "backward", "optimizer")
_EXPLAINED = (
    "Each process has some layers; the micro-batches of a step go forward through all of them, "
    "and then back (GPipe). Forward and backward hold the waiting for the neighbouring stages. "
    "With S stages and M micro-batches even equal stages stand idle for (S - 1) of every "
    "(M + S - 1) turns: more micro-batches (--accumulation) make that less. Stages on a CPU share "
    "its cores. From the process with the median throughput, with phase marks."
)


def stages(material: Material) -> Sequence[Block]:
    """Parameters, phases and memory of every stage."""
    tables = [table for group in material.groups() if (table := _table(group)) is not None]
    return (Paragraph(text=_EXPLAINED), *tables) if tables else ()


def _table(group: Group) -> Table | None:
    cells = [cell for cell in group.cells if cell.scenario.pipeline_stages > 1]
    if not cells:
        return None
    rows = []
    for cell in cells:
        num_stages = cell.scenario.pipeline_stages
        num_turns = cell.scenario.accumulation + num_stages - 1
        for record in cell.typical.ranks:
            found = {reading.name: reading.value for reading in record.readings}
            rows.append(
                (
                    group.label(cell),
                    f"{record.rank + 1} of {num_stages}",
                    known(found.get(STAGE_PARAMETERS), format_rate),
                    *(format_seconds(getattr(record.phases, f"{p}_s")) for p in _PHASES),
                    format_seconds(record.phases.step_s),
                    percent((num_stages - 1) / num_turns),
                    known(record.memory.peak_allocated_bytes, format_bytes),
                    known(record.memory.peak_host_bytes, format_bytes),
                )
            )
    header = (
        "scenario",
        "stage",
        "parameters",
        *(phase.replace("_", " ") for phase in _PHASES),
        "step",
        "idle at least",
        "peak allocated",
        "peak host memory",
    )
    text_columns = frozenset({0, 1})
    table = Table(header=header, rows=rows, caption=group.title, text_columns=text_columns)
    return table.without_empty_columns()
