"""What became of an order: from all that was heard of it to an outcome and a reason."""

import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepmark.result import Outcome
from stepmark.runner.messages import Ended, Failed, Order, Ready, Turned
from stepmark.runner.processes import tail


@dataclass
class Progress:
    """What is known of an order.

    Attributes:
        answers: of the ranks that are done, what the order asked for.
        failures: of the ranks that ended by an exception.
        begun: a rank was heard of; before that, nothing of the workload was run.
        stage: what a rank did last.
        ended: the host's word that all processes are gone.
        stopped: they were killed because they took too long.
        host_lost: the host died, or no longer answered.
        ready, turned: what ranks that take turns said last, by rank.
        renewed_s: when an epoch was finished last, by ``time.monotonic``; the plan's timeout
            begins anew there.
    """

    answers: dict[int, Any] = field(default_factory=dict)
    failures: list[Failed] = field(default_factory=list)
    begun: bool = False
    stage: str = "starting"
    ended: Ended | None = None
    stopped: bool = False
    host_lost: bool = False
    ready: dict[int, Ready] = field(default_factory=dict)
    turned: dict[int, Turned] = field(default_factory=dict)
    renewed_s: float | None = None

    @property
    def is_over(self) -> bool:
        """Nothing more comes, or nothing that would be of use."""
        return bool(self.failures) or self.ended is not None or self.host_lost

    def is_decided(self, num_processes: int) -> bool:
        """Whether the outcome is known, even if processes still run."""
        return bool(self.failures) or len(self.answers) == num_processes


@dataclass(frozen=True)
class Ending:
    """How a scenario ended; the fields are those of `Result`.

    Attributes:
        answers: rank by rank what the order asked for: records, profiles, or ceilings; none unless
            it is ``ok``.
        is_usage: as of `Failed`.
    """

    outcome: Outcome
    reason: str
    detail: str = ""
    answers: tuple[Any, ...] = ()
    is_usage: bool = False


def judge(progress: Progress, order: Order, *, host_log: str, oom_killed: bool) -> Ending:
    """What became of an order. The first cause wins: a rank that dies makes the others fail.

    Args:
        progress: what was heard.
        order: what was asked for; its folder still holds the ranks' output.
        host_log: the end of what the host printed.
        oom_killed: the kernel has killed a process for want of memory meanwhile.
    """
    num_processes = order.scenario.num_processes
    if len(progress.answers) == num_processes:
        answers = tuple(progress.answers[rank] for rank in range(num_processes))
        return Ending(Outcome.OK, "", answers=answers)
    logs = _logs(Path(order.folder))
    if progress.stopped and not progress.failures:
        limit = f"{order.plan.timeout:g} s"
        reason = f"not finished after {limit} (while {progress.stage}); raise --timeout"
        return Ending(Outcome.TIMEOUT, reason, logs)
    if not progress.stopped:
        # One that failed has spoken, and one that is done, whatever its exit code; who dies
        # silently was killed.
        spoken = {failure.rank for failure in progress.failures} | set(progress.answers)
        exit_codes = {} if progress.ended is None else progress.ended.exit_codes
        for rank, code in exit_codes.items():
            if code and int(rank) not in spoken:
                who = f"rank {rank}" if num_processes > 1 else "the measuring process"
                return _of_exit_code(code, who, oom_killed, logs)
    for failure in sorted(progress.failures, key=lambda failure: failure.at_s):
        detail = f"{failure.detail}\n{logs}".strip()
        where = f"rank {failure.rank}: " if num_processes > 1 else ""
        if oom_killed and "DataLoader worker" in failure.reason:
            reason = f"{where}the kernel killed a loader worker: out of host memory"
            return Ending(Outcome.OOM, reason, detail)
        reason = where + failure.reason
        return Ending(failure.outcome, reason, detail, is_usage=failure.is_usage)
    if progress.host_lost or progress.ended is None:
        return Ending(Outcome.FAILED, "the measuring host died", f"{logs}\n{host_log}".strip())
    if progress.ended.error:
        reason = f"the measuring processes were lost: {progress.ended.error}"
        return Ending(
            Outcome.OOM if oom_killed else Outcome.FAILED, reason, f"{logs}\n{host_log}".strip()
        )
    return Ending(Outcome.FAILED, "ended with exit code 0 before it was measured", logs)


def _of_exit_code(code: int, who: str, oom_killed: bool, logs: str) -> Ending:
    if code == -signal.SIGKILL and oom_killed:
        reason = f"{who} was killed by the kernel: out of host memory"
        return Ending(Outcome.OOM, reason, logs)
    if code > 0:
        reason = f"{who} ended with exit code {code} before it was measured"
        return Ending(Outcome.FAILED, reason, logs)
    # Real-time signals have numbers only.
    known = {int(number): number.name for number in signal.Signals}
    name = known.get(-code, f"signal {-code}")
    return Ending(Outcome.FAILED, f"{who} was killed by {name}", logs)


def _logs(folder: Path) -> str:
    """The end of what each rank printed."""
    return "\n".join(
        f"--- output of rank {log.stem.removeprefix('rank')} ---\n{text}"
        for log in sorted(folder.glob("rank*.log"))
        if (text := tail(log))
    )
