"""The sections of a report, in order. A new one is a function and a line here.

A section is given the material and returns its blocks; one with nothing to show returns none,
and is left out.
"""

from collections.abc import Callable, Sequence

from stepmark.report.blocks import Block
from stepmark.report.material import Material
from stepmark.report.sections.advice import advice
from stepmark.report.sections.breakdown import memory, phases, start_up
from stepmark.report.sections.compiling import compiling
from stepmark.report.sections.conditions import conditions
from stepmark.report.sections.doubts import doubts
from stepmark.report.sections.energy import energy
from stepmark.report.sections.profiles import ledger, profiled
from stepmark.report.sections.roofline import roofline
from stepmark.report.sections.stages import stages
from stepmark.report.sections.summary import summary
from stepmark.report.sections.tables import did_not_run, every_scenario, other_readings
from stepmark.report.sections.throughput import accumulation, batch_size, ddp, num_workers
from stepmark.report.sections.training import training

SECTIONS: tuple[tuple[str, Callable[[Material], Sequence[Block]]], ...] = (
    ("Summary", summary),
    ("Does the advice hold here?", advice),
    ("Throughput and batch size", batch_size),
    ("Throughput and data-loader workers", num_workers),
    ("Gradient accumulation", accumulation),
    ("Several ranks (DDP)", ddp),
    ("Training", training),
    ("Layers over several processes (pipeline)", stages),
    ("torch.compile", compiling),
    ("Where the step's time goes", phases),
    ("What the machine could attain", roofline),
    ("What the profiler found", profiled),
    ("Memory", memory),
    ("Memory ledger", ledger),
    ("Energy", energy),
    ("Start-up", start_up),
    ("Every scenario", every_scenario),
    ("Other readings", other_readings),
    ("Did not run", did_not_run),
    ("Doubts about these numbers", doubts),
    ("Machine, software and settings", conditions),
)
