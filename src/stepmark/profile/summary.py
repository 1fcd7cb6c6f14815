"""From the traces that ranks wrote to a profile."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepmark.profile.record import Profile, RankProfile
from stepmark.scenario import Scenario
from stepmark.trace import Attribution, attribute, break_down, read_trace

# Of operators, kernels and waits; the trace has all of them.
_KEPT = 30


def summarize(
    scenario: Scenario, folder: Path, *, ranks: Sequence[RankProfile], **fields: Any
) -> Profile:
    """Read what the ranks wrote.

    Args:
        scenario: that was profiled.
        folder: of the traces.
        ranks: what they said; none if they failed.
        fields: of `Profile`.

    Raises:
        StoreError: a trace cannot be read.
    """
    found = Profile(scenario=scenario, ranks=tuple(ranks), **fields)
    if not ranks:
        return found
    first = ranks[0]
    trace = read_trace(folder / first.trace)
    attribution = attribute(trace)
    if first.stacks:
        # Stacks make everything longer; what waited, and where, stays.
        waits = attribute(read_trace(folder / first.stacks)).waits
        attribution = dataclasses.replace(attribution, waits=waits)
    return dataclasses.replace(found, total=break_down(trace), attribution=_cut(attribution))


def _cut(attribution: Attribution) -> Attribution:
    return dataclasses.replace(
        attribution,
        operators=attribution.operators[:_KEPT],
        kernels=attribution.kernels[:_KEPT],
        waits=attribution.waits[:_KEPT],
    )
