"""A fresh pair of processes, one a side, that run their steps in turns on the same cores.

Where the code allows it both are forked from one server. With a server each, the sides' memory is
laid out differently for as long as these live, and steps of the same code were seen to differ by
2-8 %, to the same side in every pair.
"""

import contextlib
import math
import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from stepmark.errors import StepmarkError
from stepmark.runner import Runner
from stepmark.runner.ending import Ending
from stepmark.runner.errand import Errand, ErrandOverError
from stepmark.runner.host_process import OWN, Installation
from stepmark.runner.messages import PEAK, Costs, Origins, Turn, Work
from stepmark.scenario import Plan, Scenario

_T = TypeVar("_T")

# A turn is short, so that both sides see the same neighbours, and holds several steps, since the
# first one after a pause finds cold caches and is not timed.
_TURN_S = 0.03
_FEWEST_STEPS = 5
_LONGEST_TURN_S = 0.1
# Of different scenarios: the first step after a pause, which is timed with loader workers and not
# without, and what workers do until they are stopped, then count for little.
_LONG_TURN_S = 0.25
# What a pair may take in turns, and how many turns a side gets.
_PAIR_S = 3.0
_FEWEST_ROUNDS, _MOST_ROUNDS = 8, 40

# glibc hands freed memory back to the system, or not, by what a process did before; getting it
# again costs page faults. In a CNN these were 0 to 1700 a step, and made the median step 1.7 times
# as long: more than any change of code to be found, and the same code on both sides.
STEADY_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TOP_PAD_": str(64 << 20),
}


@dataclass(frozen=True, kw_only=True)
class Side:
    """Where one side's code is.

    Attributes:
        name: ``base`` or ``head``.
        directory: where its processes work.
        sys_path: where they find modules, the standard library's too.
        origins: where its code must come from; ``None`` if that does not matter.
        installation: what its processes run with.
    """

    name: str
    directory: Path
    sys_path: tuple[str, ...]
    origins: Origins | None = None
    installation: Installation = OWN


@dataclass(frozen=True, kw_only=True)
class SideRecord:
    """What one side's process did.

    Attributes:
        windows_s: seconds of each timed turn.
        steps_s: seconds of each step, turn by turn; a turn's is empty where steps have no marks.
        num_steps: steps of a turn.
        counters: exact figures.
        costs: of each rank, if they were asked for.
        skipped_steps: that a gradient scaler skipped, over all turns; ``None`` if unknown.
        diverges: a loss was not finite.
    """

    windows_s: tuple[float, ...]
    steps_s: tuple[tuple[float, ...], ...]
    num_steps: int
    counters: dict[str, str]
    costs: tuple[Costs, ...] = ()
    skipped_steps: int | None = 0
    diverges: bool = False


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two processes that took turns, and how long it took from the first one's start."""

    base: SideRecord
    head: SideRecord
    wall_s: float


class PairFailedError(StepmarkError):
    """A side could not be measured.

    Attributes:
        side: its name; or that it is both, and the ending one of them.
        ending: what became of its process.
    """

    def __init__(self, side: str, ending: Ending) -> None:
        super().__init__(f"{side}: {ending.outcome}: {ending.reason}")
        self.side = side
        self.ending = ending


@dataclass(frozen=True, kw_only=True)
class Rhythm:
    """How a pair's time is cut up: rounds of a turn each.

    Attributes:
        num_rounds: turns of each side.
        num_lead: steps at the beginning of a turn that are not timed.
        num_steps: timed steps of a turn.
    """

    num_rounds: int
    num_lead: int
    num_steps: int


def rhythm(scenario: Scenario, step_s: float, turn_s: float = _TURN_S) -> Rhythm:
    """Turns of about that time for steps of that length, the slower side's."""
    num_steps = max(
        math.ceil(turn_s / step_s), min(_FEWEST_STEPS, math.ceil(_LONGEST_TURN_S / step_s))
    )
    # Loader workers deliver one after another: each shall have its share of a turn. They go on
    # where they were stopped, so that turns without a gap between them make one long window; a
    # step left out might be one that waited for a batch, or one that did not.
    num_lead = 0 if scenario.num_workers else 1
    each = max(1, scenario.num_workers)
    num_steps = math.ceil(num_steps / each) * each
    num_rounds = round(_PAIR_S / (2 * (num_lead + num_steps) * step_s))
    return Rhythm(
        num_rounds=min(_MOST_ROUNDS, max(_FEWEST_ROUNDS, num_rounds)),
        num_lead=num_lead,
        num_steps=num_steps,
    )


def cpus_for(
    scenario: Scenario, num_threads: int, usable: Sequence[int], number: int
) -> tuple[int, ...]:
    """CPUs that a pair keeps to: as many as it computes on, and others from pair to pair.

    Args:
        scenario: its device resolved.
        num_threads: compute threads of each rank.
        usable: CPUs that processes can be kept to; none if this system cannot.
        number: of the pair, counted from 0.

    Returns:
        Nothing for an accelerator, whose processes need more threads than those of the scenario.
    """
    if scenario.device != "cpu":
        return ()
    num_ranks = scenario.num_processes
    each = min(num_threads + scenario.num_workers, len(usable) // num_ranks)
    if each == 0:
        return ()
    num_places = max(1, len(usable) // (each * num_ranks))
    first = number % num_places * each * num_ranks
    return tuple(usable[first : first + each * num_ranks])


@dataclass
class _Player:
    """A side's process while it runs; paused unless it is its turn."""

    side: Side
    errand: Errand
    process_groups: list[int] = field(default_factory=list)
    step_s: float = 0.0
    counters: dict[str, str] = field(default_factory=dict)
    costs: tuple[Costs, ...] = ()
    windows_s: list[float] = field(default_factory=list)
    steps_s: list[tuple[float, ...]] = field(default_factory=list)
    skipped_steps: int | None = 0
    diverges: bool = False

    def start(self) -> None:
        ready = self.errand.start()
        self.process_groups = [answer.process_group for answer in ready.values()]
        self.step_s = max(answer.step_s for answer in ready.values())
        self.counters = _of_all_ranks([ready[rank].counters for rank in sorted(ready)])
        told = (ready[rank].costs for rank in sorted(ready))
        self.costs = tuple(costs for costs in told if costs is not None)
        self._signal(signal.SIGSTOP)

    def play(self, turn: Turn) -> None:
        self._signal(signal.SIGCONT)
        answers = self.errand.turn(turn).values()
        self._signal(signal.SIGSTOP)
        slowest = max(answers, key=lambda answer: answer.window_s)
        self.windows_s.append(slowest.window_s)
        self.steps_s.append(slowest.step_s)
        self.diverges = self.diverges or any(answer.diverges for answer in answers)
        if slowest.skipped_steps is None or self.skipped_steps is None:
            self.skipped_steps = None
        else:
            self.skipped_steps += slowest.skipped_steps

    def record(self, num_steps: int) -> SideRecord:
        return SideRecord(
            windows_s=tuple(self.windows_s),
            steps_s=tuple(self.steps_s),
            num_steps=num_steps,
            counters=self.counters,
            costs=self.costs,
            skipped_steps=self.skipped_steps,
            diverges=self.diverges,
        )

    def _signal(self, number: int) -> None:
        """To the ranks with their loader workers, which would load on during the other's turn."""
        for group in self.process_groups:
            with contextlib.suppress(ProcessLookupError):  # it is dead: the errand will hear of it
                os.killpg(group, number)


def measure_pair(
    runners: tuple[Runner, Runner],
    sides: tuple[Side, Side],
    scenarios: tuple[Scenario, Scenario],
    plan: Plan,
    cpus: Sequence[int],
    order: random.Random,
    *,
    with_costs: bool = False,
) -> Pair:
    """Start a process for each side, let them take turns, and end them.

    Args:
        runners: whose servers they are forked from; the same one for both, if it can be.
        sides: base and head.
        scenarios: what each runs, which can be had here, devices resolved. Sides that run the
            same take turns of as many steps; others, turns of about the same time.
        plan: of the warm-up, and the deadline of every answer.
        cpus: what both sides keep to.
        order: who begins, in each round.
        with_costs: also ask for what the scenarios cost beside their steps.

    Raises:
        PairFailedError: a side cannot be measured.
        RunnerError: no process can be started.
    """
    start_s = time.monotonic()
    with contextlib.ExitStack() as open_errands:
        players: dict[str, _Player] = {}

        def begin(runner: Runner, side: Side, scenario: Scenario) -> _Player:
            errand = runner.begin(
                scenario,
                plan,
                directory=side.directory,
                sys_path=side.sys_path,
                work=Work.TURNS,
                cpus=cpus,
                origins=side.origins,
                with_costs=with_costs,
            )
            open_errands.enter_context(errand)
            players[side.name] = _Player(side, errand)
            return players[side.name]

        waiting = _shuffled(tuple(zip(runners, sides, scenarios, strict=True)), order)
        try:
            while waiting:
                player = begin(*waiting.pop(0))
                player.start()
            steps_s = [players[side.name].step_s for side in sides]
            are_same = scenarios[0] == scenarios[1]
            if are_same:
                steps_s = [max(steps_s)] * len(sides)
            turn_s = _TURN_S if are_same else _LONG_TURN_S
            cuts = {
                side.name: rhythm(scenario, step_s, turn_s)
                for side, scenario, step_s in zip(sides, scenarios, steps_s, strict=True)
            }
            for _ in range(min(cut.num_rounds for cut in cuts.values())):
                for player in _shuffled(tuple(players.values()), order):
                    cut = cuts[player.side.name]
                    player.play(Turn(num_lead=cut.num_lead, num_steps=cut.num_steps))
        except ErrandOverError:
            player.errand.stop()
            ending = player.errand.finish()
            # A side that has not been started yet may be no better, and none is to blame then.
            fails_too = any(not _can_start(begin(*other)) for other in waiting)
            who = "both sides" if fails_too else player.side.name
            raise PairFailedError(who, ending) from None
        finally:
            for player in players.values():
                player.errand.stop()
            for player in players.values():
                player.errand.finish()
    base, head = (players[side.name].record(cuts[side.name].num_steps) for side in sides)
    return Pair(base=base, head=head, wall_s=time.monotonic() - start_s)


def _can_start(player: _Player) -> bool:
    try:
        player.start()
    except ErrandOverError:
        return False
    return True


def _of_all_ranks(counters: Sequence[dict[str, str]]) -> dict[str, str]:
    """Of figures that differ from rank to rank, the largest peak, and all of any other."""
    gathered = {}
    for name in counters[0]:
        values = [of_rank[name] for of_rank in counters]
        if name == PEAK:
            gathered[name] = max(values, key=int)
        else:
            gathered[name] = values[0] if len(set(values)) == 1 else "; ".join(values)
    return gathered


def _shuffled(items: Sequence[_T], order: random.Random) -> list[_T]:
    return order.sample(items, len(items))
