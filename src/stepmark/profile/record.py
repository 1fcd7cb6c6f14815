"""What a profile comes to. Times are seconds, sizes are bytes."""

from dataclasses import dataclass

from stepmark.result import Outcome
from stepmark.scenario import Scenario
from stepmark.trace import Attribution, Timeline, Total


@dataclass(frozen=True, kw_only=True)
class Holding:
    """A line of the memory ledger.

    Attributes:
        name: what holds the memory.
        predicted_bytes: known before anything ran; ``None`` where nothing is.
        measured_bytes: found; ``None`` where it cannot be.
        at_peak: it is there when tensors hold most, and so part of what is allocated then.
        note: what it is, or why it is not known.
    """

    name: str
    predicted_bytes: int | None
    measured_bytes: int | None
    at_peak: bool = True
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class RankProfile:
    """One rank under the profiler.

    Attributes:
        rank: its number.
        device_name: the device it ran on.
        trace: name of its chrome trace, in the folder of the profile.
        detailed_trace: of another one, of two steps, with allocations; on an accelerator with
            Python's stacks, too, which show where the host waits for it.
        snapshot: of its memory snapshot; empty where the device has none.
        num_steps: steps in the trace.
        profiled_step_s: the mean of these, synchronized at both ends.
        plain_step_s: mean step in the same process before the profiler was started.
        ledger: of memory; what an accelerator has allocated, reserved and in use is the sum of
            the lines above that are there at the peak.
        notes: remarks.
    """

    rank: int
    device_name: str
    trace: str
    detailed_trace: str
    snapshot: str
    num_steps: int
    profiled_step_s: float
    plain_step_s: float
    ledger: tuple[Holding, ...]
    notes: tuple[str, ...] = ()

    @property
    def overhead(self) -> float:
        """Profiled step over plain one."""
        return self.profiled_step_s / self.plain_step_s


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A scenario under the profiler, or the reason why there is none.

    Attributes:
        scenario: which, its device resolved.
        outcome, reason, detail: as of a `stepmark.Result`.
        started_at: ISO 8601 with time zone.
        wall_s: how long it took.
        ranks: one of each; empty unless ``ok``.
        totals: where each rank's steps went.
        attribution: whose work the first rank's were, its longest lists cut; ``None`` unless
            ``ok``.
        timeline: memory over one of its steps; ``None`` where the trace has no allocations.
    """

    scenario: Scenario
    outcome: Outcome
    reason: str
    started_at: str
    wall_s: float
    ranks: tuple[RankProfile, ...] = ()
    totals: tuple[Total, ...] = ()
    attribution: Attribution | None = None
    timeline: Timeline | None = None
    detail: str = ""

    @property
    def parts(self) -> dict[str, str]:
        """Names of the parts of `totals`, with their fields; an accelerator's if any has one."""
        return max(self.totals, key=lambda total: total.device is not None).parts
