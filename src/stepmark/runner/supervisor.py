"""The side that asks for measurements: sets the deadline, kills, and turns any end into a result.

It imports no torch, and while a window is measured it sleeps in ``select``.
"""

import atexit
import functools
import os
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict, Unpack

from stepmark import ceilings, machine, nvml, profile, workloads
from stepmark.errors import UsageError
from stepmark.fingerprint import Commit, Machine
from stepmark.profile import Profile
from stepmark.result import Outcome, Result
from stepmark.runner.ending import Ending
from stepmark.runner.errand import Errand, TrainingWatcher, Watcher
from stepmark.runner.host_process import OWN, HostProcess, Installation
from stepmark.runner.messages import Order, Origins, Work
from stepmark.runner.processes import GRACE_S
from stepmark.scenario import Plan, Scenario
from stepmark.training import TrainOrder

# Each stands unless the user's own environment says otherwise. How OpenMP's threads wait for each
# other is left alone on purpose: a training gets torch's default, and so must its benchmark.
# gloo finds its network interface by the host's name, which need not resolve.
ENVIRONMENT: dict[str, str] = {}
if sys.platform == "linux":
    ENVIRONMENT["GLOO_SOCKET_IFNAME"] = "lo"


@dataclass(frozen=True, kw_only=True)
class _CarriedOut:
    """What became of a scenario: as it was resolved, its end, when it began, how long it took."""

    scenario: Scenario
    ending: Ending
    started_at: str
    wall_s: float


class _More(TypedDict, total=False):
    """What some kinds of work need; as of `Runner.begin`."""

    profile_to: str
    training: TrainOrder
    on_training: TrainingWatcher


class Runner:
    """Measures scenarios, each in fresh processes from one warm server. Use as a context.

    Args:
        watch: told what a running measurement does next; never called inside a window.
        environment: variables for the measuring processes, on top of the own environment.
        installation: what the measuring processes run with.

    Raises:
        RunnerError: (from `machine` or `run`) the measuring host cannot be started.
    """

    def __init__(
        self,
        watch: Watcher | None = None,
        environment: Mapping[str, str] | None = None,
        installation: Installation = OWN,
    ) -> None:
        self._installation = installation
        self._watch = watch
        self._environment = dict(environment or {})
        self._host: HostProcess | None = None
        self._sampler = nvml.SamplerProcess({**os.environ, **self._environment})
        self._machine: Machine | None = None
        # Two measurements at a time would disturb each other.
        self._turn = threading.RLock()

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def machine(self) -> Machine:
        """This machine, as the measuring processes see it."""
        with self._turn:
            host = self._ready_host()
            if self._machine is None:
                self._machine = machine.fingerprint(host.hello.devices, host.hello.software)
            return self._machine

    def run(self, scenario: Scenario, plan: Plan, *, repeat: int = 0) -> Result:
        """Measure a scenario once, in fresh processes. Whatever happens to them is a result.

        Raises:
            WorkloadError: the workload is known beforehand not to exist.
            RunnerError: no process can be started.
        """
        with self._turn:
            done = self._carry_out(scenario, plan)
            tapes = self._sampler.cut()
            return Result(
                scenario=done.scenario,
                plan=plan,
                repeat=repeat,
                outcome=done.ending.outcome,
                reason=done.ending.reason,
                ranks=nvml.join(done.ending.answers, tapes),
                machine=self.machine,
                commit=_commit(Path.cwd()),
                started_at=done.started_at,
                wall_s=done.wall_s,
                detail=done.ending.detail,
            )

    def profile(self, scenario: Scenario, plan: Plan, prefix: Path) -> Profile:
        """Run some steps of a scenario under torch.profiler, in fresh processes.

        Args:
            scenario: which.
            plan: of the warm-up.
            prefix: of the names of the files that the ranks write; their folder exists.

        Raises:
            WorkloadError: the workload is known beforehand not to exist.
            RunnerError: no process can be started.
        """
        with self._turn:
            done = self._carry_out(scenario, plan, Work.PROFILE, profile_to=str(prefix.absolute()))
        found = Profile(
            scenario=done.scenario,
            outcome=done.ending.outcome,
            reason=done.ending.reason,
            detail=done.ending.detail,
            ranks=done.ending.answers,
            started_at=done.started_at,
            wall_s=done.wall_s,
        )
        return profile.summarize(found, prefix.parent)

    def calibrate(self, scenario: Scenario, plan: Plan) -> tuple[Ending, tuple[str, ...]]:
        """Measure what the scenario's device can attain at most, in a fresh process.

        Args:
            scenario: its device, threads and ranks; its workload does not matter.
            plan: its timeout.

        Returns:
            How it ended, and remarks: why what was found may be too low, or that nobody could
            look for it.

        Raises:
            RunnerError: no process can be started.
        """
        with self._turn:
            start_s = time.monotonic()
            done = self._carry_out(scenario, plan, Work.CALIBRATE)
            end_s = time.monotonic()
            tapes = self._sampler.cut()
            remarks = (
                f"{uuid}: {remark}" if len(tapes) > 1 else remark
                for uuid, tape in tapes.items()
                for look in (nvml.unfit, nvml.blind)
                for remark in look(tape, start_s, end_s, 1)
            )
            return done.ending, tuple(remarks)

    def train(
        self, scenario: Scenario, order: TrainOrder, on_training: TrainingWatcher
    ) -> tuple[Ending, float]:
        """Train a scenario's model, in fresh processes.

        Args:
            scenario: which.
            order: how, and where checkpoints go.
            on_training: told of its beginning, and of each epoch as soon as it is finished.

        Returns:
            How it ended, and seconds from the request to its end.

        Raises:
            WorkloadError: the workload is known beforehand not to exist.
            RunnerError: no process can be started.
        """
        plan = Plan(timeout=order.plan.timeout)
        with self._turn:
            done = self._carry_out(
                scenario, plan, Work.TRAIN, training=order, on_training=on_training
            )
        return done.ending, done.wall_s

    def _carry_out(
        self, scenario: Scenario, plan: Plan, work: Work = Work.MEASURE, **more: Unpack[_More]
    ) -> _CarriedOut:
        if work is not Work.CALIBRATE:
            workloads.check(scenario.workload)
        here = self.machine
        scenario = scenario.on(here)
        obstacle = scenario.obstacle(here)
        if obstacle is None:
            self._ready_host(scenario)
        started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        start_s = time.monotonic()
        if obstacle is not None:
            ending = Ending(Outcome.SKIPPED, obstacle)
        else:
            ending = self._measure(scenario, plan, work, **more)
        return _CarriedOut(
            scenario=scenario,
            ending=ending,
            started_at=started_at,
            wall_s=time.monotonic() - start_s,
        )

    def close(self, patience_s: float = GRACE_S) -> None:
        """End every process that this runner started."""
        self._sampler.close()
        if self._host is not None:
            self._host.close(patience_s)
            self._host = None

    def _ready_host(self, scenario: Scenario | None = None) -> HostProcess:
        """A host, with all done that is done once: no scenario's clock runs meanwhile."""
        environment = {**ENVIRONMENT, **os.environ, **self._environment}
        # pytest changes it from test to test, and the host outlives a test.
        environment.pop("PYTEST_CURRENT_TEST", None)
        if self._host is not None and self._host.environment != environment:
            # Variables such as OMP_* and CUDA_VISIBLE_DEVICES are read when torch is imported.
            self.close()
            self._machine = None
        if self._host is not None and not self._host.is_alive:
            self.close()
        if self._host is None:
            self._host = HostProcess(environment, self._installation)
        if scenario is not None and scenario.distributed:
            self._host.prepare_for_ranks()
        return self._host

    def begin(
        self,
        scenario: Scenario,
        plan: Plan,
        *,
        directory: Path | None = None,
        sys_path: Sequence[str] | None = None,
        work: Work = Work.MEASURE,
        profile_to: str = "",
        cpus: Sequence[int] = (),
        origins: Origins | None = None,
        with_costs: bool = False,
        training: TrainOrder | None = None,
        on_training: TrainingWatcher | None = None,
    ) -> Errand:
        """Have processes started for a scenario, which can run here; `run` also waits for them.

        Args:
            scenario: with its device resolved.
            plan: how long.
            directory: where they work; by default where this process does.
            sys_path: where they find modules; by default where this process does.
            work: what they do with it.
            profile_to: beginning of the paths of the profiler's files.
            cpus: what the ranks keep to, an equal share each; empty leaves them where they are.
            origins: by turns, where their code must come from.
            with_costs: by turns, they tell what the scenario costs beside its steps.
            training: how to train.
            on_training: told how far that is.

        Raises:
            RunnerError: no process can be started.
        """
        host = self._ready_host(scenario)
        here = str(directory or Path.cwd())
        order = Order(
            scenario=scenario,
            plan=plan,
            threads=scenario.threads_per_rank(self.machine.num_cpus),
            requested_s=time.monotonic(),
            directory=here,
            sys_path=tuple(sys_path or (str(Path(e).absolute()) for e in ["", *sys.path])),
            folder=tempfile.mkdtemp(dir=host.folder),
            work=work,
            profile_to=profile_to,
            cpus=tuple(cpus),
            origins=origins,
            with_costs=with_costs,
            training=training,
        )
        # Turns are so short that nothing else may go on, and the profiler is no clock anyway.
        sampled = self._sampler.watch if work in (Work.MEASURE, Work.CALIBRATE) else None
        return Errand(host, order, self._watch, sampled, on_training)

    def _measure(
        self,
        scenario: Scenario,
        plan: Plan,
        work: Work,
        *,
        may_repeat: bool = True,
        **more: Unpack[_More],
    ) -> Ending:
        try:
            with self.begin(scenario, plan, work=work, **more) as errand:
                ending = errand.finish()
        except BaseException:
            # Ctrl-C, most likely: nothing of a half-done order may stay behind.
            self.close()
            raise
        progress = errand.progress
        if progress.host_lost:
            self.close(patience_s=0)
            if may_repeat and not progress.begun and not progress.stopped:
                # It was killed while nothing was measured, and died only when asked.
                return self._measure(scenario, plan, work, may_repeat=False, **more)
        return ending


def measure(scenario: Scenario, plan: Plan | None = None, *, repeat: int = 0) -> Result:
    """Measure a scenario once, in a fresh process; failures are outcomes, not exceptions.

    The first call starts a server that imports torch (some seconds); it serves all later calls
    and ends with this process. What 'stepmark calibrate' kept in ``results`` here, the result is
    held against.

    Args:
        scenario: what to measure.
        plan: how long; by default `Plan()`.
        repeat: recorded in the result, for callers that measure a scenario several times.

    Raises:
        UsageError: the workload does not exist, or the plan asks for repeats: call `measure`
            once for each and compare the results.
        RunnerError: no process can be started.
        StoreError: what was calibrated cannot be read.
    """
    plan = plan or Plan()
    if plan.repeats != 1:
        raise UsageError(
            f"repeats={plan.repeats}: measure() is one fresh process with one Result; call it "
            "once per repeat, or use 'stepmark run --repeats'"
        )
    runner = _shared_runner(os.getpid())
    known = ceilings.load(Path("results"), runner.machine)
    return ceilings.attach(runner.run(scenario, plan, repeat=repeat), known)


@functools.cache
def _shared_runner(_pid: int) -> Runner:
    """One per process: a fork of this one must not speak to its parent's host."""
    runner = Runner()
    atexit.register(runner.close)
    return runner


@functools.cache
def _commit(directory: Path) -> Commit | None:
    return machine.commit(directory)
