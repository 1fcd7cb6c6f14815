"""``stepmark profile --trace``: a trace that is there already."""

from pathlib import Path

from stepmark.console import show
from stepmark.trace import attribute, break_down, read_trace
from stepmark.trace.output import as_json, as_text


def analyse(trace: Path, *, json: bool) -> None:
    """Print where the time of a chrome trace's steps went.

    Raises:
        StoreError: the file cannot be read, or is no chrome trace.
    """
    events = read_trace(trace)
    write = as_json if json else as_text
    show(write(break_down(events), attribute(events)))
