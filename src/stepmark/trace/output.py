"""A trace's figures for people and for programs."""

import dataclasses
import json
from collections.abc import Sequence

from stepmark.columns import aligned
from stepmark.trace.attribution import Attribution
from stepmark.trace.breakdown import Breakdown, Total
from stepmark.units import format_percent, format_seconds

_SHOWN = 10
_LONGEST_NAME = 70
# From here on the host is what the device waits for.
_STARVED = 0.3


def as_json(total: Total, attribution: Attribution) -> str:
    """Everything, in seconds."""
    data = {**dataclasses.asdict(total), **dataclasses.asdict(attribution)}
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def as_text(total: Total, attribution: Attribution) -> str:
    """What a terminal shows: where the time went, and what to look at."""
    blocks = (
        _parts(total),
        _starved(total, attribution),
        _phases(total, attribution),
        _operators(total, attribution),
        _kernels(attribution),
        _waits(attribution),
    )
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _parts(total: Total) -> list[str]:
    device = "host alone" if total.device is None else f"device {total.device}"
    fields = {"wall": "wall_s", **total.parts}
    rows = [(name, *_cells(total, field)) for name, field in fields.items()]
    return [
        f"{len(total.steps)} steps, {format_seconds(total.wall_s)}; {device}",
        "",
        *aligned(("", "total", "of it", "a step"), rows),
    ]


def _starved(total: Total, attribution: Attribution) -> list[str]:
    if total.device is None or not attribution.starved_s:
        return []
    part = attribution.starved_s / total.wall_s
    verdict = ": launch-bound, under the profiler" if part > _STARVED else ""
    return [f"{format_percent(part)} of the time the device waited for a launch{verdict}"]


def _phases(total: Total, attribution: Attribution) -> list[str]:
    rows = [
        (p.name, format_seconds(p.host_s), format_seconds(p.device_s), str(p.launches))
        for p in attribution.phases
    ]
    shown = 4 if total.device is not None else 2
    header = ("phase", "host", "device", "launches")
    return aligned(header[:shown], [row[:shown] for row in rows])


def _operators(total: Total, attribution: Attribution) -> list[str]:
    operators = attribution.operators
    if total.device is None:
        operators = tuple(sorted(operators, key=lambda operator: -operator.host_s))
    rows = [
        (_short(o.name), str(o.calls), format_seconds(o.host_s), format_seconds(o.device_s))
        for o in operators[:_SHOWN]
    ]
    shown = 4 if total.device is not None else 3
    header = ("operator", "calls", "host, itself", "device")
    return aligned(header[:shown], [row[:shown] for row in rows])


def _kernels(attribution: Attribution) -> list[str]:
    rows = [
        (_short(k.name), str(k.calls), format_seconds(k.device_s))
        for k in attribution.kernels[:_SHOWN]
    ]
    return aligned(("kernel", "calls", "device"), rows)


def _waits(attribution: Attribution) -> list[str]:
    rows = [
        (w.call, w.operator or "-", w.line or "-", str(w.calls), format_seconds(w.wait_s))
        for w in attribution.waits[:_SHOWN]
    ]
    return aligned(("the host waits in", "for", "called by", "calls", "time"), rows)


def _cells(total: Total, field: str) -> tuple[str, str, str]:
    value = getattr(total, field)
    part = format_percent(value / total.wall_s) if total.wall_s else "-"
    return format_seconds(value), part, _range(total.steps, field)


def _range(steps: Sequence[Breakdown], field: str) -> str:
    """Smallest and largest step."""
    values = [getattr(step, field) for step in steps]
    low, high = format_seconds(min(values)), format_seconds(max(values))
    return low if low == high else f"{low} to {high}"


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 4]} ..."
