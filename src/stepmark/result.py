"""What came back from a measurement: one `Result` per scenario and repeat.

Times are seconds, sizes are bytes. What was not measured is ``None``, never 0.
"""

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from stepmark import stats
from stepmark.fingerprint import Commit, Machine
from stepmark.record import PHASES, RankRecord
from stepmark.scenario import Plan, Scenario


class Outcome(StrEnum):
    """How a scenario ended."""

    OK = "ok"
    SKIPPED = "skipped"
    OOM = "oom"
    TIMEOUT = "timeout"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One scenario, measured once in fresh processes, or the reason why it was not.

    Attributes:
        scenario: with ``auto`` already resolved to a device.
        plan: how long it was measured.
        repeat: which of the plan's repeats, from 0.
        outcome: see `Outcome`.
        reason: one line for anything but ``ok``; empty otherwise.
        ranks: one record per rank; empty unless ``ok``.
        machine: what it ran on.
        commit: the git commit of the working directory; ``None`` outside a repository.
        started_at: ISO 8601 with time zone.
        wall_s: from the request until the last process of it was gone.
        detail: a traceback or the last output of a process that died; empty if ``ok``.
    """

    scenario: Scenario
    plan: Plan
    repeat: int
    outcome: Outcome
    reason: str
    ranks: tuple[RankRecord, ...]
    machine: Machine
    commit: Commit | None
    started_at: str
    wall_s: float
    detail: str = ""

    @property
    def slowest(self) -> RankRecord | None:
        """The rank that the others wait for; steps, phases and readings are shown of it.

        Ranks that exchange gradients have windows of one length, so it is the one whose step is
        longest when it is left alone (reading ``free_step``).
        """

        def alone_s(rank: RankRecord) -> tuple[float, float]:
            free_s = next((r.value for r in rank.readings if r.name == "free_step"), None)
            return (free_s or 0.0, rank.window.window_s)

        return max(self.ranks, key=alone_s, default=None)

    @property
    def samples_per_s(self) -> float | None:
        """Throughput: samples of all ranks over the longest window of any rank.

        ``batch_size * accumulation * world_size * steps / max over ranks of window_s``. Every
        rank runs the same number of steps.
        """
        if not self.ranks:
            return None
        num_steps = self.ranks[0].window.num_steps
        return self.scenario.samples_per_step * num_steps / self._window_s

    @property
    def achieved_flops(self) -> float | None:
        """FLOP/s of all ranks together over the window; ``None`` if they are not counted."""
        flops = self.reading_of_any("flops_per_step")
        if flops is None:
            return None
        return flops * self.ranks[0].window.num_steps / self._window_s

    @property
    def attainable_fraction(self) -> float | None:
        """Of the FLOP/s that this machine can attain; ``None`` if it was not calibrated."""
        achieved = self.achieved_flops
        attainable = self.reading_of_any("attainable_compute")
        return achieved / attainable if achieved is not None and attainable else None

    def reading_of_any(self, name: str) -> float | None:
        """A reading of the node, which any rank may have."""
        found = (r.value for rank in self.ranks for r in rank.readings if r.name == name)
        return next(found, None)

    @property
    def joules_per_sample(self) -> float | None:
        """Energy of all ranks' devices over the window, over its samples; ``None`` if unknown."""
        energy_j = self.row()["energy_j"]
        if energy_j is None:
            return None
        return float(energy_j / (self.scenario.samples_per_step * self.ranks[0].window.num_steps))

    @property
    def observer_effect(self) -> float | None:
        """Mean step with phase marks over mean step without them; about 1 is good."""
        slowest = self.slowest
        if slowest is None:
            return None
        with_marks = slowest.phase_window.window_s / slowest.phase_window.num_steps
        return with_marks / (slowest.window.window_s / slowest.window.num_steps)

    def reading(self, name: str) -> float | None:
        """A reading of the slowest rank by name; ``None`` if it has none."""
        slowest = self.slowest
        if slowest is None:
            return None
        return next((r.value for r in slowest.readings if r.name == name), None)

    @property
    def ranks_with_loss(self) -> tuple[RankRecord, ...]:
        """The ranks that know the loss: of a pipeline, the last stage alone."""
        return self.ranks[-1:] if self.scenario.pipeline_stages > 1 else self.ranks

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks of all ranks, each once."""
        return tuple(dict.fromkeys(note for rank in self.ranks for note in rank.notes))

    @property
    def unfit(self) -> tuple[str, ...]:
        """Why its windows are not to be trusted, each reason once; empty if they are."""
        return tuple(dict.fromkeys(reason for rank in self.ranks for reason in rank.unfit))

    def row_with_axes(self) -> dict[str, Any]:
        """`row`, and behind it the axes that have no column in it, as `AXIS_COLUMNS`."""
        axes = {name: getattr(self.scenario, name) for name in AXIS_COLUMNS}
        return {**self.row(), **{n: str(v) if isinstance(v, str) else v for n, v in axes.items()}}

    def row(self) -> dict[str, Any]:
        """The flat table's row; its keys are `COLUMNS`, in order."""
        scenario = self.scenario
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row.update(
            scenario_id=scenario.id,
            workload=scenario.workload,
            device=scenario.device,
            batch_size=scenario.batch_size,
            num_workers=scenario.num_workers,
            precision=scenario.precision.value,
            accumulation=scenario.accumulation,
            world_size=scenario.world_size,
            repeat=self.repeat,
            outcome=self.outcome.value,
            reason=self.reason or None,
        )
        slowest = self.slowest
        if slowest is not None:
            row.update(self._measured(slowest))
        assert tuple(row) == COLUMNS, "a row has the contract's columns"
        return row

    @property
    def _window_s(self) -> float:
        return max(rank.window.window_s for rank in self.ranks)

    @property
    def _energy_j(self) -> float | None:
        counted = self._total("energy")
        return self._total("energy_integral") if counted is None else counted

    def _total(self, name: str) -> float | None:
        """A reading's sum over ranks, if all have it."""
        found = [[r.value for r in rank.readings if r.name == name] for rank in self.ranks]
        return _total(values[0] if values else None for values in found)

    def _measured(self, slowest: RankRecord) -> dict[str, Any]:
        steps_s = slowest.window.step_s
        phases = slowest.phases
        memory = [rank.memory for rank in self.ranks]
        return {
            "samples_per_s": self.samples_per_s,
            "steps": slowest.window.num_steps,
            "window_s": self._window_s,
            "step_s_median": stats.median(steps_s) if steps_s else None,
            "step_s_p90": stats.percentile(steps_s, 90) if steps_s else None,
            "step_s_p99": stats.percentile(steps_s, 99) if steps_s else None,
            "step_s_min": min(steps_s, default=None),
            **{f"{phase}_s": getattr(phases, f"{phase}_s") for phase in PHASES},
            "phase_step_s": phases.step_s,
            # A device belongs to one rank, so its peak is the worst rank's; host memory is
            # shared by all ranks, so theirs add up.
            "peak_allocated_bytes": _worst(m.peak_allocated_bytes for m in memory),
            "peak_reserved_bytes": _worst(m.peak_reserved_bytes for m in memory),
            "peak_host_bytes": _total(m.peak_host_bytes for m in memory),
            "nvml_used_bytes": _worst(m.nvml_used_bytes for m in memory),
            # By the devices' counters; one without has its power integrated.
            "energy_j": self._energy_j,
            "first_step_s": max(rank.startup.first_step_s for rank in self.ranks),
            "final_loss": _mean(rank.final_loss for rank in self.ranks_with_loss),
            "flops_per_step": self.reading_of_any("flops_per_step"),
            "attainable_fraction": self.attainable_fraction,
        }


COLUMNS = (
    "scenario_id",
    "workload",
    "device",
    "batch_size",
    "num_workers",
    "precision",
    "accumulation",
    "world_size",
    "repeat",
    "outcome",
    "reason",
    "samples_per_s",
    "steps",
    "window_s",
    "step_s_median",
    "step_s_p90",
    "step_s_p99",
    "step_s_min",
    *(f"{phase}_s" for phase in PHASES),
    "phase_step_s",
    "peak_allocated_bytes",
    "peak_reserved_bytes",
    "peak_host_bytes",
    "nvml_used_bytes",
    "energy_j",
    "first_step_s",
    "final_loss",
    "flops_per_step",
    "attainable_fraction",
)


AXIS_COLUMNS = tuple(f.name for f in dataclasses.fields(Scenario) if f.name not in COLUMNS)


def _known(values: Any) -> list[float] | None:
    """All values, or ``None`` if any rank lacks its own: part of a total is no total."""
    listed = list(values)
    return None if not listed or None in listed else listed


def _worst(values: Any) -> float | None:
    known = _known(values)
    return None if known is None else max(known)


def _total(values: Any) -> float | None:
    known = _known(values)
    return None if known is None else sum(known)


def _mean(values: Any) -> float | None:
    known = _known(values)
    return None if known is None else sum(known) / len(known)
