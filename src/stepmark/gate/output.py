"""What a gate measured as JSON data, every window of every pair in it."""

from collections.abc import Mapping, Sequence
from typing import Any

from stepmark.compare import output
from stepmark.compare.verdict import Comparison
from stepmark.gate.pairs import Pair, SideRecord
from stepmark.gate.trial import Trial, step_s


def as_data(
    comparisons: Sequence[Comparison],
    trials: Mapping[str, Trial],
    unfinished: Sequence[Pair],
    *,
    title: str,
    facts: Mapping[str, object],
) -> dict[str, Any]:
    """All that was measured, ready for JSON.

    Args:
        comparisons: of all scenarios.
        trials: what they were decided from, by scenario id; one that could not be tried has none.
        unfinished: pairs of a trial that is not over, or was interrupted.
        title: what was compared.
        facts: what else to tell.
    """
    data = output.as_data(comparisons, title)
    for comparison in data["comparisons"]:
        trial = trials.get(comparison["scenario_id"])
        comparison["wall_s"] = 0.0 if trial is None else trial.wall_s
        comparison["pairs"] = (
            [] if trial is None else [_judged(pair, trial) for pair in trial.pairs]
        )
    return {**facts, **data, "unfinished": [_pair(pair) for pair in unfinished]}


def _judged(pair: Pair, trial: Trial) -> dict[str, Any]:
    data = _pair(pair)
    for name, record in (("base", pair.base), ("head", pair.head)):
        data[name]["step_s"] = step_s(record, trial.scenario, trial.percentile)
    return data


def _pair(pair: Pair) -> dict[str, Any]:
    return {"wall_s": pair.wall_s, "base": _side(pair.base), "head": _side(pair.head)}


def _side(record: SideRecord) -> dict[str, Any]:
    return {
        "num_steps": record.num_steps,
        "windows_s": record.windows_s,
        "counters": record.counters,
    }
