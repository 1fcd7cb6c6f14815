"""What trying advice came to, as text and as JSON."""

import dataclasses
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stepmark.advice.catalogue import Quantity, claims_of, title_of
from stepmark.advice.judgement import Judgement, judge
from stepmark.advice.record import Trial
from stepmark.codec import encode
from stepmark.columns import aligned
from stepmark.scenario import Scenario
from stepmark.units import format_bytes, format_change, format_rate


@dataclass(frozen=True)
class Best:
    """What is best of all that was tried.

    Attributes:
        scenario: it; the one that advice was tried on, where nothing gains.
        gain: throughput over that one's, in fresh processes; ``None`` if that is not known.
    """

    scenario: Scenario
    gain: float | None


def as_text(trials: Sequence[Trial]) -> str:
    """A table with a line for each claim."""
    header = ("advice", "said", "change", "99 % interval", "without", "with", "verdict")
    rows = [
        (trial.advice, found.claim.says, *_figures(found), _verdict(found))
        for trial in trials
        for found in judgements(trial)
    ]
    lines = aligned(header, rows, left=(0, 1, len(header) - 1))
    return "".join(f"{line}\n" for line in lines)


def _verdict(found: Judgement) -> str:
    if found.change is None:
        return f"{found.standing}: {found.reason}"
    return "; ".join(filter(None, [str(found.standing), notes(found)]))


def notes(found: Judgement) -> str:
    """What else to know of a claim that has figures: what would have shown, and remarks."""
    return "; ".join(filter(None, [found.detectable, found.remark]))


def judgements(trial: Trial) -> list[Judgement]:
    """What a trial says on each claim of its advice."""
    return [judge(trial, claim) for claim in claims_of(trial.advice)]


def as_json(
    trials: Sequence[Trial], scenario: Scenario, best: Best | None, rates: dict[str, Any]
) -> str:
    """The same with every pair, in SI units.

    Args:
        trials: of the advice and of combinations.
        scenario: what it was tried on.
        best: what is best; ``None`` if it was not come to.
        rates: samples per second in fresh processes, by scenario id.
    """
    data = {
        "scenario": encode(scenario),
        "advice": [
            {
                "name": trial.advice,
                "title": title_of(trial.advice),
                "without": trial.without.id,
                "with": trial.with_it.id,
                "claims": [_claim(found) for found in judgements(trial)],
                "pairs": encode(trial.pairs),
            }
            for trial in trials
        ],
        "best": None
        if best is None
        else {
            "scenario": best.scenario.id,
            "command": command(best.scenario),
            "gain_in_fresh_processes": best.gain,
        },
        "samples_per_s": rates,
    }
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def _claim(found: Judgement) -> dict[str, Any]:
    return {
        "says": found.claim.says,
        "quantity": found.claim.quantity.value,
        "verdict": found.standing.value,
        "reason": found.reason,
        "change": found.change,
        "low": found.low,
        "high": found.high,
        "without": found.without,
        "with": found.with_it,
        "num_pairs": found.num_pairs,
        "remark": found.remark,
    }


def _figures(found: Judgement) -> tuple[str, str, str, str]:
    if found.change is None or found.low is None or found.high is None:
        return ("", "", "", "")
    assert found.without is not None
    assert found.with_it is not None
    return (
        format_change(found.change),
        f"{format_change(found.low)} to {format_change(found.high)}",
        amount(found.without, found.claim.quantity),
        amount(found.with_it, found.claim.quantity),
    )


def amount(value: float, quantity: Quantity) -> str:
    """A value of a claim's quantity with its unit."""
    is_memory = quantity is Quantity.MEMORY
    return format_bytes(value) if is_memory else f"{format_rate(value)}/s"


def command(scenario: Scenario) -> str:
    """The command line that measures a scenario."""
    words = ["stepmark", "run"]
    for field in dataclasses.fields(scenario):
        value = getattr(scenario, field.name)
        if value != field.default or field.name == "batch_size":
            written = str(value).lower() if isinstance(value, bool) else str(value)
            words += [f"--{field.name.replace('_', '-')}", written]
    return shlex.join(words)
