"""What held, put together."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from stepmark.advice import FASTER, Quantity, Standing, Trial, find, judge
from stepmark.advice.catalogue import COMBINATIONS
from stepmark.advising.trials import begin
from stepmark.fingerprint import Machine
from stepmark.scenario import Scenario


def combination(scenario: Scenario, trials: Sequence[Trial], machine: Machine) -> list[Trial]:
    """What held at once; first all of it, then the best of it alone if that is something else.

    Only what trains the same; of several that set the same field, the one that gains most.

    Args:
        scenario: what the advice was tried on.
        trials: of the advice.
        machine: this one.

    Returns:
        Trials, with pairs where these two scenarios have taken turns already; none where nothing
        held.
    """
    found = [_gain(trial, scenario, Quantity.THROUGHPUT) for trial in trials]
    gains = sorted((gain for gain in found if gain), key=lambda gain: gain[0], reverse=True)
    # What an epoch as a whole gains costs no step anything; it comes with what steps gain by.
    gains += [g for trial in trials if (g := _gain(trial, scenario, Quantity.EPOCH)) and gains]
    own = _fields(scenario)
    steps = [scenario]
    for _, fields in gains:
        taken = _fields(steps[-1])
        if all(taken[name] == own[name] for name in fields):
            tried = dataclasses.replace(steps[-1], **fields)
            if tried.obstacle(machine) is None:
                steps.append(tried)
    wanted = dict.fromkeys([steps[-1], *steps[1:2]]) if len(steps) > 1 else ()
    known = {trial.with_it: trial for trial in trials if trial.without == scenario}
    return [
        dataclasses.replace(known[side], advice=name)
        if side in known
        else begin(name, (scenario, side), machine)
        for name, side in zip(COMBINATIONS, wanted, strict=False)
    ]


def _gain(
    trial: Trial, scenario: Scenario, quantity: Quantity
) -> tuple[float, dict[str, Any]] | None:
    """The log ratio that the better side gains, and what of the scenario it changes.

    ``None`` where the worse side is not how the scenario is: then nothing is known of what the
    scenario itself would gain.
    """
    advice = find(trial.advice)
    if advice is None or not advice.keeps_training or trial.without.task != scenario.task:
        return None
    claim = next((c for c in advice.claims if c.quantity is quantity), None)
    if claim is None:
        return None
    found = judge(trial, claim)
    if found.standing is Standing.HOLDS:
        better, worse = trial.with_it, trial.without
    elif found.standing is Standing.DOES_NOT_HOLD:
        better, worse = trial.without, trial.with_it
    else:
        return None
    then, own = _fields(worse), _fields(scenario)
    fields = {name: value for name, value in _fields(better).items() if value != then[name]}
    if any(then[name] != own[name] for name in fields):
        return None
    assert found.change is not None
    return abs(math.log1p(found.change)), fields


def best(scenario: Scenario, trials: Sequence[Trial]) -> Scenario:
    """The combination that gains most; the scenario itself where none is known to gain."""
    gains = {
        trial.with_it: found.change
        for trial in trials
        if trial.advice in COMBINATIONS
        and (found := judge(trial, FASTER)).standing is Standing.HOLDS
    }
    return max(gains, key=lambda side: gains[side] or 0.0, default=scenario)


def _fields(scenario: Scenario) -> dict[str, Any]:
    return {field.name: getattr(scenario, field.name) for field in dataclasses.fields(scenario)}
