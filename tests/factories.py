"""Synthetic machines, records, results and runs, with sensible defaults, for every test.

Each builder takes keyword overrides for the fields of what it builds, and a few shorthands
(``samples_per_s``, ``shares``) for what a test is usually about.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepmark.advice import Measured, MeasuredPair, Trial
from stepmark.fingerprint import Commit, DeviceInfo, Machine
from stepmark.profile import Holding, Profile, RankProfile
from stepmark.record import PHASES, EndedBy, Memory, Phases, RankRecord, StartUp, WarmUp, Window
from stepmark.result import Outcome, Result
from stepmark.scenario import Plan, Scenario
from stepmark.store import Run, RunFolder, RunPlan
from stepmark.trace import Attribution, Breakdown, Timeline, Total
from stepmark.trace.attribution import Kernel, Operator, Phase, Wait
from stepmark.trace.timeline import Span
from stepmark.training import EndOfTraining, Epoch, Facts, TrainingRecord, TrainPlan

MIB = 1 << 20

# Fraction of a step that each phase takes unless a test says otherwise.
SHARES = {
    "data_wait": 0.10,
    "h2d": 0.02,
    "forward": 0.30,
    "backward": 0.40,
    "optimizer": 0.15,
    "other": 0.03,
}


def make_machine(**overrides: Any) -> Machine:
    """A two-CPU machine without a GPU, fit to measure on."""
    fields: dict[str, Any] = {
        "host": "bench-1",
        "hardware": {
            "cpu": "Example CPU 3.0",
            "cpus": "2",
            "memory": "8 GiB",
            "gpus": "none",
            "virtual": "yes",
        },
        "software": {"python": "3.11.9", "torch": "2.11.0", "os": "Linux 6.1"},
        "devices": (DeviceInfo(kind="cpu", names=("Example CPU 3.0",), precisions={}),),
        "unfit": (),
    }
    return Machine(**{**fields, **overrides})


def make_commit(**overrides: Any) -> Commit:
    """A clean commit on ``main``."""
    fields: dict[str, Any] = {
        "id": "0123456789abcdef0123456789abcdef01234567",
        "branch": "main",
        "dirty": False,
        "time": "2026-01-02T03:04:05+00:00",
    }
    return Commit(**{**fields, **overrides})


def make_scenario(**overrides: Any) -> Scenario:
    """``mlp-toy`` on the CPU, everything else at its default."""
    return Scenario(**{"workload": "mlp-toy", "device": "cpu", **overrides})


def make_startup(**overrides: float) -> StartUp:
    """A start-up of 0.54 seconds."""
    fields = {
        "process_s": 0.05,
        "import_s": 0.20,
        "build_s": 0.10,
        "process_group_s": 0.0,
        "first_batch_s": 0.15,
        "first_step_s": 0.04,
    }
    return StartUp(**{**fields, **overrides})


def make_memory(**overrides: int | None) -> Memory:
    """Memory of a rank on the CPU: 64 MiB on the host, no accelerator."""
    fields: dict[str, int | None] = {
        "peak_allocated_bytes": None,
        "peak_reserved_bytes": None,
        "peak_host_bytes": 64 * MIB,
        "workers_bytes": None,
        "nvml_used_bytes": None,
    }
    return Memory(**{**fields, **overrides})


def make_window(*, step_s: float = 0.01, num_steps: int = 50, **overrides: Any) -> Window:
    """A window of equal steps, ended by its number of steps."""
    fields: dict[str, Any] = {
        "num_steps": num_steps,
        "window_s": step_s * num_steps,
        "step_s": (step_s,) * num_steps,
        "ended_by": EndedBy.STEPS,
    }
    return Window(**{**fields, **overrides})


def make_phases(*, step_s: float = 0.01, shares: Mapping[str, float] = SHARES) -> Phases:
    """Phases that take these fractions of a step; phases without one take 0.

    ``other`` takes what the rest leaves, so that they sum to ``step_s``.
    """
    seconds = {f"{name}_s": shares.get(name, 0.0) * step_s for name in PHASES[:-1]}
    return Phases(**seconds, other_s=step_s - sum(seconds.values()), step_s=step_s)


def make_rank(
    *,
    rank: int = 0,
    step_s: float = 0.01,
    num_steps: int = 50,
    shares: Mapping[str, float] = SHARES,
    **overrides: Any,
) -> RankRecord:
    """One rank's record, whose windows are of equal steps.

    Args:
        rank: its number.
        step_s: time of every step.
        num_steps: optimizer steps in each window.
        shares: fraction of a step for each phase.
        overrides: fields of `RankRecord`.
    """
    fields: dict[str, Any] = {
        "rank": rank,
        "device_name": "Example CPU 3.0",
        "num_threads": 2,
        "settings": {"matmul_precision": "ieee", "OMP_WAIT_POLICY": "passive"},
        "data": "real samples",
        "startup": make_startup(),
        "warmup": WarmUp(num_steps=5, seconds=5 * step_s, settled=True),
        "window": make_window(step_s=step_s, num_steps=num_steps),
        "phase_window": make_window(step_s=step_s, num_steps=num_steps),
        "phases": make_phases(step_s=step_s, shares=shares),
        "memory": make_memory(),
        "first_loss": 2.3,
        "final_loss": 1.1,
        "skipped_steps": 0,
    }
    return RankRecord(**{**fields, **overrides})


def make_result(
    scenario: Scenario | None = None,
    *,
    samples_per_s: float = 1000.0,
    num_steps: int = 50,
    shares: Mapping[str, float] = SHARES,
    rank: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Result:
    """A result; ``ok`` unless an ``outcome`` is given, then without ranks.

    Args:
        scenario: `make_scenario()` unless given.
        samples_per_s: throughput that `Result.samples_per_s` shall come to.
        num_steps: optimizer steps in each window.
        shares: fraction of a step for each phase.
        rank: fields of every rank's `RankRecord`.
        overrides: fields of `Result`.
    """
    scenario = scenario or make_scenario()
    outcome = overrides.get("outcome", Outcome.OK)
    step_s = scenario.samples_per_step / samples_per_s
    ranks = tuple(
        make_rank(rank=i, step_s=step_s, num_steps=num_steps, shares=shares, **(rank or {}))
        for i in range(scenario.num_processes)
    )
    fields: dict[str, Any] = {
        "scenario": scenario,
        "plan": Plan(steps=num_steps),
        "repeat": 0,
        "outcome": outcome,
        "reason": "" if outcome is Outcome.OK else f"made up to be {outcome.value}",
        "ranks": ranks if outcome is Outcome.OK else (),
        "machine": make_machine(),
        "commit": make_commit(),
        "started_at": "2026-01-02T03:04:05+00:00",
        "wall_s": 2.0,
    }
    return Result(**{**fields, **overrides})


def make_repeats(
    scenario: Scenario | None = None, *, samples_per_s: Sequence[float], **overrides: Any
) -> list[Result]:
    """One `ok` result per throughput, as repeats of one scenario."""
    plan = Plan(repeats=len(samples_per_s))
    return [
        make_result(scenario, samples_per_s=rate, repeat=number, **{"plan": plan, **overrides})
        for number, rate in enumerate(samples_per_s)
    ]


def make_run(*results: Result, name: str = "run-1", missing: Sequence[tuple[str, int]] = ()) -> Run:
    """A run read back, without a folder behind it."""
    return Run(name=name, path=Path("results") / name, results=results, missing=tuple(missing))


def save_run(results: Path, run: Run) -> Path:
    """Write a run's results to a run folder; returns the folder."""
    scenarios = tuple(dict.fromkeys(result.scenario for result in run.results))
    plan = dataclasses.replace(
        run.results[0].plan, repeats=1 + max(result.repeat for result in run.results)
    )
    planned = RunPlan(created_at=run.results[0].started_at, plan=plan, scenarios=scenarios)
    folder = RunFolder.create(results, run.name, planned)
    for result in run.results:
        folder.save(result)
    return folder.path


def make_profile(scenario: Scenario | None = None, *, device: int | None = 0) -> Profile:
    """Two steps of 10 ms on an accelerator (or, without one, on the host)."""
    step = Breakdown(
        wall_s=0.01, compute_s=0.004, exposed_comm_s=0.001, memcpy_s=0.0005, idle_s=0.0045
    )
    both = {name: 2 * value for name, value in vars(step).items()}
    total = Total(**both, steps=(step, step), device=device, comm_s=0.003)
    attribution = Attribution(
        operators=(
            Operator(name="aten::mm", calls=12, host_s=0.002, device_s=0.006),
            Operator(name="(outside of operators)", calls=0, host_s=0.001, device_s=0.0),
        ),
        kernels=(Kernel(name="sgemm_128x64", calls=12, device_s=0.006, is_communication=False),),
        phases=(Phase(name="forward", host_s=0.01, device_s=0.004, launches=6),),
        waits=(
            Wait(
                call="cudaStreamSynchronize", operator="aten::item", line="train.py(12): step",
                calls=2, wait_s=0.003,
            ),
        ),
        starved_s=0.005,
    )  # fmt: skip
    rank = RankProfile(
        rank=0, device_name="Example GPU", trace="mlp.rank0.trace.json.gz",
        detailed_trace="mlp.rank0.detail.json.gz", snapshot="",
        num_steps=2, profiled_step_s=0.01, plain_step_s=0.008,
        ledger=(
            Holding(name="parameters", predicted_bytes=4 * MIB, measured_bytes=4 * MIB),
            Holding(name="gradients", predicted_bytes=4 * MIB, measured_bytes=4 * MIB),
            Holding(name="optimizer state", predicted_bytes=8 * MIB, measured_bytes=8 * MIB),
            Holding(name="activations", predicted_bytes=None, measured_bytes=30 * MIB),
            Holding(name="workspace and the rest", predicted_bytes=None, measured_bytes=-MIB),
        ),
    )  # fmt: skip
    return Profile(
        scenario=scenario or make_scenario(),
        outcome=Outcome.OK,
        reason="",
        started_at="2026-01-02T03:04:06+00:00",
        wall_s=3.0,
        ranks=(rank,),
        totals=(total,),
        attribution=attribution,
        timeline=Timeline(
            at_s=(0.0, 0.004, 0.008), allocated_bytes=(40 * MIB, 46 * MIB, 44 * MIB),
            reserved_bytes=(60 * MIB, 60 * MIB, 60 * MIB), device=device,
            phases=(Span(name="forward", start_s=0.001, end_s=0.005),),
        ),
    )  # fmt: skip


def make_measured(samples_per_s: float = 1000.0, **overrides: Any) -> Measured:
    """A side of a pair: eight turns of 100 samples, at one pace."""
    fields: dict[str, Any] = {
        "windows_s": (100 / samples_per_s,) * 8,
        "samples_per_turn": 100,
        "peak_bytes": 100 * MIB,
        "epoch_turn_s": 0.5,
        "num_samples": 1000,
        "first_step_s": 0.01,
        "num_steps": 80,
    }
    return Measured(**{**fields, **overrides})


def make_trial(
    advice: str = "workers",
    ratios: Sequence[float] = (),
    *,
    memory: Sequence[float] | None = None,
    wall_s: float = 1.0,
    **overrides: Any,
) -> Trial:
    """A trial; by pair, what throughput and memory are with the advice over without it."""
    peaks = [1.0] * len(ratios) if memory is None else memory
    pairs = tuple(
        MeasuredPair(
            without=make_measured(),
            with_it=make_measured(1000.0 * ratio, peak_bytes=round(100 * MIB * peak)),
            wall_s=wall_s,
        )
        for ratio, peak in zip(ratios, peaks, strict=True)
    )
    fields: dict[str, Any] = {
        "advice": advice,
        "without": make_scenario(),
        "with_it": make_scenario(num_workers=2),
        "machine": make_machine(),
        "started_at": "2026-01-02T03:04:05+00:00",
        "pairs": pairs,
    }
    return Trial(**{**fields, **overrides})


def make_epoch(**overrides: Any) -> Epoch:
    """The first of a classification: 1000 samples in 2 s, then validated and saved."""
    fields: dict[str, Any] = {
        "epoch": 1, "num_steps": 20, "num_samples": 1000, "train_loss": 0.9,
        "smoothed_loss": 0.8, "train_accuracy": 0.7, "valid_loss": 0.6, "valid_accuracy": 0.75,
        "num_valid_samples": 100, "learning_rate": 0.1, "train_s": 2.0, "valid_s": 0.25,
        "phases": make_phases(), "num_phase_steps": 20, "skipped_steps": 0,
        "checkpoint_s": 0.05, "checkpoint_bytes": MIB, "is_best": True,
    }  # fmt: skip
    return Epoch(**{**fields, **overrides})


def make_training(*epochs: Epoch, **overrides: Any) -> TrainingRecord:
    """A training that ended as planned, after these epochs or one."""
    done = epochs or (make_epoch(),)
    fields: dict[str, Any] = {
        "scenario": make_scenario(),
        "plan": TrainPlan(epochs=len(done)),
        "machine": make_machine(),
        "commit": make_commit(),
        "started_at": "2026-01-02T03:04:05+00:00",
        "wall_s": 5.0,
        "facts": Facts(
            device_name="cpu", num_threads=2, settings={}, data="real samples", num_parameters=99,
            num_train_samples=1000, num_valid_samples=100, steps_per_epoch=20,
        ),
        "epochs": done,
        "ended_by": EndOfTraining.EPOCHS,
        "outcome": Outcome.OK,
    }  # fmt: skip
    return TrainingRecord(**{**fields, **overrides})
