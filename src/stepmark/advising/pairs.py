"""Pairs of processes, one without a piece of advice and one with it, that take turns."""

import dataclasses
import os
import random
from pathlib import Path
from typing import Self

from stepmark import machine
from stepmark.advice import Measured, MeasuredPair, Trial
from stepmark.gate import interpreters
from stepmark.gate.pairs import STEADY_MEMORY, PairFailedError, SideRecord, measure_pair
from stepmark.result import Outcome
from stepmark.runner import Runner
from stepmark.scenario import Plan, Scenario

_WARM_UP_S = 2.0


class Pairs:
    """Measures pairs of scenarios, all forked from one server. Use as a context.

    Args:
        timeout: seconds that a process may take to get ready, and for a turn.

    Raises:
        RunnerError: no process can be started.
    """

    def __init__(self, timeout: float) -> None:
        environment = {name: os.environ.get(name, v) for name, v in STEADY_MEMORY.items()}
        self._runner = Runner(environment=environment)
        # Its server starts now, so that the first pair does not wait for it.
        _ = self._runner.machine
        self._plan = Plan(steps=1, warmup=5, max_seconds=_WARM_UP_S, timeout=timeout)
        self._order = random.Random()
        self._commit = machine.commit(Path.cwd())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()

    def add_to(self, trial: Trial) -> Trial:
        """The trial with one more pair, or with the reason why it has none.

        Raises:
            RunnerError: no process can be started.
        """
        here = interpreters.this_one()
        sides = tuple(interpreters.side(name, here, Path.cwd()) for name in ("without", "with"))
        scenarios = (trial.without, trial.with_it)
        try:
            pair = measure_pair(
                (self._runner, self._runner),
                (sides[0], sides[1]),
                scenarios,
                self._plan,
                (),
                self._order,
                with_costs=True,
            )
        except PairFailedError as error:
            if error.ending.outcome is Outcome.SKIPPED:
                return dataclasses.replace(trial, obstacle=error.ending.reason)
            return dataclasses.replace(trial, failure=_why(error, trial))
        measured = MeasuredPair(
            without=_measured(pair.base, trial.without),
            with_it=_measured(pair.head, trial.with_it),
            wall_s=pair.wall_s,
            commit=self._commit,
        )
        return dataclasses.replace(trial, pairs=(*trial.pairs, measured))


def _why(error: PairFailedError, trial: Trial) -> str:
    ending = error.ending
    who = {"without": "without it: ", "with": "with it: "}.get(error.side, "")
    text = f"{who}{ending.outcome}: {ending.reason}"
    if ending.outcome is Outcome.OOM and trial.with_it.device != "cpu":
        text += "; both sides are on the device together, where one of them may fit"
    return f"{text} (pair {len(trial.pairs) + 1})" if trial.pairs else text


def _measured(record: SideRecord, scenario: Scenario) -> Measured:
    costs = record.costs
    peaks = [cost.peak_bytes for cost in costs if cost.peak_bytes is not None]
    turns = [cost.epoch_turn_s for cost in costs if cost.epoch_turn_s is not None]
    return Measured(
        windows_s=record.windows_s,
        samples_per_turn=scenario.samples_per_step * record.num_steps,
        peak_bytes=sum(peaks) if len(peaks) == len(costs) else None,
        epoch_turn_s=max(turns) if len(turns) == len(costs) else None,
        num_samples=costs[0].num_samples,
        first_step_s=max(cost.first_step_s for cost in costs),
        num_steps=record.num_steps * len(record.windows_s),
        skipped_steps=record.skipped_steps,
        diverges=record.diverges,
    )
