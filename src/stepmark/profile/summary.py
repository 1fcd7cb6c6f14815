"""From the traces that ranks wrote to a profile."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from stepmark.errors import StoreError
from stepmark.profile.record import Profile
from stepmark.result import Outcome
from stepmark.trace import Attribution, attribute, break_down, memory_timeline, read_trace
from stepmark.trace.attribution import Wait

# Of operators, kernels and waits; the trace has all of them.
_KEPT = 30


def summarize(found: Profile, folder: Path) -> Profile:
    """A profile with what its ranks wrote; a failed one if that cannot be read.

    Args:
        found: what the ranks said; as it is, if they failed.
        folder: of the traces.
    """
    if not found.ranks:
        return found
    try:
        return _read(found, folder)
    except StoreError as error:
        return dataclasses.replace(found, outcome=Outcome.FAILED, reason=str(error), ranks=())


def _read(found: Profile, folder: Path) -> Profile:
    first, *others = found.ranks
    trace, detail = (read_trace(folder / name) for name in (first.trace, first.detailed_trace))
    attribution = attribute(trace)
    waits = _with_lines(attribution.waits, attribute(detail).waits)
    attribution = dataclasses.replace(attribution, waits=tuple(waits))
    total = break_down(trace)
    if total.device is None and found.scenario.device == "cuda":
        blind = "the trace has no work of the device: is another profiler attached to it?"
        first = dataclasses.replace(first, notes=(*first.notes, blind))
    return dataclasses.replace(
        found,
        ranks=(first, *others),
        totals=(total, *(break_down(read_trace(folder / rank.trace)) for rank in others)),
        attribution=_cut(attribution),
        timeline=memory_timeline(detail),
    )


def _with_lines(waits: Sequence[Wait], with_lines: Sequence[Wait]) -> Iterator[Wait]:
    """Waits with the lines of Python that another trace found; its times are longer, and stay."""
    lines: dict[tuple[str, str], list[str]] = {}
    for wait in with_lines:
        lines.setdefault((wait.call, wait.operator), []).append(wait.line)
    for wait in waits:
        found = dict.fromkeys(filter(None, lines.get((wait.call, wait.operator), ())))
        yield dataclasses.replace(wait, line=wait.line or "; ".join(found))


def _cut(attribution: Attribution) -> Attribution:
    return dataclasses.replace(
        attribution,
        operators=attribution.operators[:_KEPT],
        kernels=attribution.kernels[:_KEPT],
        waits=attribution.waits[:_KEPT],
    )
