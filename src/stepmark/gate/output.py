"""Trials as JSON data, every window of every pair in it."""

from collections.abc import Mapping, Sequence
from typing import Any

from stepmark.compare import output
from stepmark.gate.pairs import Pair, SideRecord
from stepmark.gate.trial import Trial, step_s


def as_data(trials: Sequence[Trial], title: str, facts: Mapping[str, object]) -> dict[str, Any]:
    """All trials, ready for JSON: as of comparisons, with what they were decided from."""
    data = output.as_data([trial.comparison for trial in trials], title)
    for comparison, trial in zip(data["comparisons"], trials, strict=True):
        comparison["wall_s"] = trial.wall_s
        comparison["pairs"] = [_pair(pair, trial) for pair in trial.pairs]
    return {**facts, **data}


def _pair(pair: Pair, trial: Trial) -> dict[str, object]:
    return {
        "wall_s": pair.wall_s,
        "base": _side(pair.base, trial),
        "head": _side(pair.head, trial),
    }


def _side(record: SideRecord, trial: Trial) -> dict[str, object]:
    return {
        "step_s": step_s(record, trial.scenario, trial.percentile),
        "num_steps": record.num_steps,
        "windows_s": record.windows_s,
        "counters": record.counters,
    }
