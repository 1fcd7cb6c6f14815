"""Chrome traces of torch.profiler to figures: where a step's time went. Imports no torch."""

from stepmark.trace.attribution import Attribution, attribute
from stepmark.trace.breakdown import Breakdown, Total, break_down
from stepmark.trace.events import Trace, read_trace
from stepmark.trace.timeline import Timeline, memory_timeline

__all__ = [
    "Attribution",
    "Breakdown",
    "Timeline",
    "Total",
    "Trace",
    "attribute",
    "break_down",
    "memory_timeline",
    "read_trace",
]
