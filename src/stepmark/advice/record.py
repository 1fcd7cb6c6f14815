"""What trying a piece of advice measured."""

import math
from dataclasses import dataclass

from stepmark.fingerprint import Commit, Machine
from stepmark.scenario import Scenario


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One process that ran its scenario's steps in turns with the other side's.

    Attributes:
        windows_s: seconds of each turn.
        samples_per_turn: over all micro-batches and ranks.
        peak_bytes: most that warm steps held, over all ranks: of an accelerator's memory, or of
            the host's on a CPU; ``None`` if unknown.
        epoch_turn_s: from an epoch's last batch to the next one's first; ``None`` if unknown.
        num_samples: of an epoch.
        first_step_s: the first step, which compiles where that was asked for.
        num_steps: over all of its turns.
        skipped_steps: of these, that a gradient scaler skipped; ``None`` if unknown.
        diverges: a loss was not finite.
    """

    windows_s: tuple[float, ...]
    samples_per_turn: int
    peak_bytes: int | None
    epoch_turn_s: float | None
    num_samples: int
    first_step_s: float
    num_steps: int
    skipped_steps: int | None = 0
    diverges: bool = False

    @property
    def samples_per_s(self) -> float:
        """Over all of its turns."""
        return self.samples_per_turn * len(self.windows_s) / math.fsum(self.windows_s)

    @property
    def epoch_samples_per_s(self) -> float | None:
        """Over an epoch with the turn to the next one; ``None`` if that is unknown."""
        if self.epoch_turn_s is None:
            return None
        return self.num_samples / (self.num_samples / self.samples_per_s + self.epoch_turn_s)


@dataclass(frozen=True, kw_only=True)
class MeasuredPair:
    """Two processes that took turns.

    Attributes:
        without, with_it: the sides.
        wall_s: from the first one's start to the last one's end.
        commit: of the code that was measured; a trial's pairs may be of several.
    """

    without: Measured
    with_it: Measured
    wall_s: float
    commit: Commit | None = None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A piece of advice, tried.

    Attributes:
        advice: its name, or one of `COMBINATIONS` for what held put together.
        without, with_it: the scenarios.
        pairs: as they were measured; more may follow.
        obstacle: why it cannot be tried here; empty otherwise.
        failure: what became of its last pair, if that could not be measured; empty otherwise.
        machine: as of a `stepmark.Result`.
        commit: when it was planned, and of pairs that have none of their own.
        started_at: ISO 8601 with time zone.
    """

    advice: str
    without: Scenario
    with_it: Scenario
    machine: Machine
    started_at: str
    commit: Commit | None = None
    pairs: tuple[MeasuredPair, ...] = ()
    obstacle: str = ""
    failure: str = ""

    @property
    def commits(self) -> tuple[Commit, ...]:
        """Of the code that its pairs measured, each once."""
        found = (pair.commit or self.commit for pair in self.pairs)
        return tuple(dict.fromkeys(commit for commit in found if commit))
