"""All scenarios on trial, one after another; those that moved together are tried again."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

from stepmark.compare.verdict import Verdict, moved_together
from stepmark.gate.noise import Noise
from stepmark.gate.pairs import Pair
from stepmark.gate.trial import Rules, Trial, try_scenario
from stepmark.scenario import Scenario


def try_all(
    scenarios: Sequence[Scenario],
    measure: Callable[[Scenario], Pair],
    rules: Rules,
    known: Mapping[str, Noise],
) -> Iterator[Trial]:
    """Try each scenario. One that is tried again comes twice; the later trial counts.

    Args:
        scenarios: can run here, devices resolved.
        measure: measures one more pair of a scenario.
        rules: see there.
        known: the noise on this machine, by scenario id, where a self-test found it.
    """
    trials: dict[str, Trial] = {}
    for scenario in scenarios:
        trials[scenario.id] = trial = _try(scenario, measure, rules, known)
        yield trial
    for moved in moved_together([trial.comparison for trial in trials.values()]):
        first = trials[moved.scenario_id]
        yield _joined(first, _try(first.scenario, measure, rules, known))


def _try(
    scenario: Scenario,
    measure: Callable[[Scenario], Pair],
    rules: Rules,
    known: Mapping[str, Noise],
) -> Trial:
    return try_scenario(
        scenario, functools.partial(measure, scenario), rules, known.get(scenario.id)
    )


def _joined(first: Trial, again: Trial) -> Trial:
    """What two trials of a scenario come to: only what both say."""
    then, now = first.comparison, again.comparison
    if now.verdict in (Verdict.MISSING, Verdict.INCOMPARABLE):
        comparison = now
    elif then.verdict is now.verdict:
        remark = "tried twice, since so many scenarios moved together"
        comparison = dataclasses.replace(now, remarks=(*now.remarks, remark))
    else:
        comparison = dataclasses.replace(
            now,
            verdict=Verdict.INCONCLUSIVE,
            reason=f"{then.verdict} first, when many scenarios moved together, then {now.verdict}",
        )
    return Trial(
        scenario=first.scenario,
        comparison=comparison,
        pairs=(*first.pairs, *again.pairs),
        wall_s=first.wall_s + again.wall_s,
        percentile=again.percentile,
    )
