"""Trials before their first pair."""

from collections.abc import Sequence
from datetime import UTC, datetime

from stepmark.advice import ADVICE, Trial
from stepmark.fingerprint import Commit, Machine
from stepmark.scenario import Scenario


def plan_trials(
    scenario: Scenario,
    machine: Machine,
    names: Sequence[str] | None = None,
    commit: Commit | None = None,
) -> list[Trial]:
    """A trial for each piece of advice, not yet begun.

    Args:
        scenario: what it is tried on, its device resolved.
        machine: this one.
        names: of the advice that is wanted; all of it by default.
        commit: of the code that is measured.
    """
    return [
        begin(advice.name, advice.sides(scenario, machine), machine, commit)
        for advice in ADVICE
        if names is None or advice.name in names
    ]


def begin(
    name: str,
    sides: tuple[Scenario, Scenario],
    machine: Machine,
    commit: Commit | None = None,
) -> Trial:
    """A trial without pairs, with the reason if it cannot have any."""
    without, with_it = sides
    obstacles = (side.obstacle(machine) for side in sides)
    return Trial(
        advice=name,
        without=without,
        with_it=with_it,
        machine=machine,
        commit=commit,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        obstacle=next(filter(None, obstacles), ""),
    )
