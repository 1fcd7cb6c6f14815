"""One rank's measurement against a scripted clock: every figure is known beforehand."""

import dataclasses
from typing import Any

import pytest
import scripted_workload
import torch
from scripted_workload import Script

from stepmark import Plan, Scenario, session
from stepmark.devices.scripted import ScriptedDevice
from stepmark.place import Place
from stepmark.record import EndedBy, RankRecord


@pytest.fixture(autouse=True)
def _keep_script() -> Any:
    before = scripted_workload.SCRIPT
    yield
    scripted_workload.SCRIPT = before


def run(script: Script, plan: Plan | None = None, **axes: Any) -> RankRecord:
    scripted_workload.SCRIPT = script
    scenario = Scenario(
        workload="scripted_workload:build", device="cpu", **{"batch_size": 4, **axes}
    )
    place = Place(
        rank=0,
        device=ScriptedDevice(script.clock),
        threads=1,
        requested_s=0.0,
    )
    return session.run(scenario, plan or Plan(steps=10), place, lambda stage, rate: None)


def test_each_phase_gets_the_time_that_was_spent_in_it() -> None:
    script = Script(sample_s=0.001, forward_s=0.020, backward_s=0.030, optimizer_s=0.005)
    phases = run(script).phases
    assert phases.data_wait_s == pytest.approx(4 * 0.001)
    assert phases.h2d_s == pytest.approx(0, abs=1e-12)
    assert phases.forward_s == pytest.approx(0.020)
    assert phases.backward_s == pytest.approx(0.030)
    assert phases.optimizer_s == pytest.approx(0.005)
    assert phases.other_s == pytest.approx(0, abs=1e-12)
    assert phases.step_s == pytest.approx(0.059)


def test_phases_of_all_micro_batches_of_a_step_add_up() -> None:
    script = Script(sample_s=0.001, forward_s=0.020, backward_s=0.030, optimizer_s=0.005)
    phases = run(script, accumulation=3).phases
    assert phases.data_wait_s == pytest.approx(3 * 4 * 0.001)
    assert phases.forward_s == pytest.approx(3 * 0.020)
    assert phases.backward_s == pytest.approx(3 * 0.030)
    assert phases.optimizer_s == pytest.approx(0.005)
    assert phases.step_s == pytest.approx(3 * 0.054 + 0.005)


def test_phases_sum_to_the_window() -> None:
    record = run(Script(sample_s=0.0013, forward_s=0.007, backward_s=0.011, optimizer_s=0.003))
    named = dataclasses.asdict(record.phases)
    step_s = named.pop("step_s")
    assert sum(named.values()) == pytest.approx(step_s, rel=1e-12)
    assert record.phase_window.window_s == pytest.approx(step_s * record.phase_window.num_steps)


def test_the_window_holds_the_planned_steps_and_their_times() -> None:
    window = run(Script(forward_s=0.040, backward_s=0.010), Plan(steps=7)).window
    assert window.num_steps == 7
    assert window.ended_by is EndedBy.STEPS
    assert window.window_s == pytest.approx(7 * 0.050)
    assert window.step_s == pytest.approx([0.050] * 7)


def test_warmup_steps_are_excluded_from_throughput() -> None:
    slow_start = [1.0] * 8 + [0.050]
    record = run(Script(forward_s=slow_start), Plan(steps=10, warmup=6, max_seconds=60))
    assert record.warmup.num_steps >= 6
    assert record.warmup.settled
    assert record.window.window_s == pytest.approx(10 * 0.050)


def test_warmup_goes_on_until_neighbouring_stretches_agree() -> None:
    falling = [1.0] * 6 + [0.5] * 5 + [0.25] * 5 + [0.125] * 5 + [0.1]
    record = run(Script(forward_s=falling), Plan(steps=3, warmup=5, max_seconds=60))
    assert record.warmup.settled
    # 5 of 1.0, 5 of 0.5, 5 of 0.25, 5 of 0.125, 5 of 0.1, 5 of 0.1 that agree.
    assert record.warmup.num_steps == 30
    assert record.window.step_s == pytest.approx([0.1] * 3)


def test_warmup_that_never_settles_ends_with_the_budget_and_says_so() -> None:
    growing = [0.1 * 1.2**i for i in range(200)]
    record = run(Script(forward_s=growing), Plan(steps=3, warmup=5, max_seconds=5))
    assert not record.warmup.settled
    assert any("not settled" in note and "--max-seconds" in note for note in record.notes)


def test_a_window_that_runs_out_of_seconds_says_so_and_counts_what_it_did() -> None:
    window = run(Script(forward_s=2.0), Plan(steps=100, warmup=0, max_seconds=5)).window
    assert window.ended_by is EndedBy.SECONDS
    assert window.num_steps == 3  # the third began at 4 s, a fourth would begin at 6 s
    assert window.window_s == pytest.approx(6.0)


def test_a_step_longer_than_the_budget_is_still_measured() -> None:
    window = run(Script(forward_s=9.0), Plan(steps=100, warmup=0, max_seconds=5)).window
    assert window.num_steps == 1
    assert window.window_s == pytest.approx(9.0)


def test_the_first_batch_and_the_first_step_stand_in_the_ledger_apart() -> None:
    script = Script(sample_s=0.1, forward_s=[5.0, 0.05], backward_s=0.01)
    startup = run(script).startup
    assert startup.first_batch_s == pytest.approx(4 * 0.1)
    assert startup.first_step_s == pytest.approx(5.01)


def test_an_epochs_end_is_measured_on_its_own_and_falls_into_no_window() -> None:
    # 24 samples in batches of 4: 6 steps an epoch, and 40 steps in the window.
    record = run(Script(sample_s=0.01, forward_s=0.02), Plan(steps=40))
    assert record.window.step_s == pytest.approx([0.06] * 40)
    (turn,) = [r for r in record.readings if r.name == "epoch_turn"]
    assert turn.value == pytest.approx(0.04)


def test_an_epoch_turn_that_would_take_too_long_is_left_out_with_a_reason() -> None:
    record = run(Script(sample_s=1.0), Plan(steps=1, warmup=0, max_seconds=10))
    (turn,) = [r for r in record.readings if r.name == "epoch_turn"]
    assert turn.value is None
    assert "not tried" in turn.note


def test_the_device_is_waited_for_at_the_edges_of_windows_only() -> None:
    def synchronizations(steps: int) -> int:
        script = Script(forward_s=0.05)
        scripted_workload.SCRIPT = script
        device = ScriptedDevice(script.clock)
        place = Place(rank=0, device=device, threads=1, requested_s=0.0)
        scenario = Scenario(workload="scripted_workload:build", device="cpu", batch_size=4)
        session.run(scenario, Plan(steps=steps), place, lambda stage, rate: None)
        return device.num_synchronizations

    assert synchronizations(steps=5) == synchronizations(steps=100)


def test_the_observer_is_told_of_stages_but_never_inside_a_window() -> None:
    script = Script(forward_s=0.05)
    scripted_workload.SCRIPT = script
    told_at: list[tuple[str, float]] = []
    place = Place(rank=0, device=ScriptedDevice(script.clock), threads=1, requested_s=0.0)
    scenario = Scenario(workload="scripted_workload:build", device="cpu", batch_size=4)
    session.run(
        scenario, Plan(steps=10), place, lambda s, rate: told_at.append((s, script.clock.now_s))
    )
    stages = [stage for stage, _ in told_at]
    measuring = ["measuring steps", "measuring phases", "counting operations"]
    assert stages == ["building", "warming up", *measuring]
    at = dict(told_at)
    # Lead-in of one step, then ten, and nothing in between.
    assert at["measuring phases"] - at["measuring steps"] == pytest.approx(11 * 0.05)


def test_a_loss_that_is_not_finite_is_empty_and_noted() -> None:
    record = run(Script(forward_s=0.05))
    assert record.final_loss is not None

    def diverging() -> Any:
        workload = scripted_workload_build()
        return dataclasses.replace(
            workload, loss_fn=lambda out, target: (out - target).sum() * 1e38 * 1e38
        )

    scripted_workload_build = scripted_workload.build
    scripted_workload.build = diverging  # type: ignore[assignment]
    try:
        record = run(Script(forward_s=0.05))
    finally:
        scripted_workload.build = scripted_workload_build
    assert record.final_loss is None
    assert any("diverges" in note for note in record.notes)


def evaluated(**axes: Any) -> tuple[RankRecord, list[tuple[bool, bool, bool]], Any]:
    """A measured evaluation; of each forward: training, gradients, inference mode; the model."""
    script = Script(sample_s=0.001, forward_s=0.020, backward_s=0.030, optimizer_s=0.005)
    seen: list[tuple[bool, bool, bool]] = []
    models: list[Any] = []

    def spy(module: Any, _inputs: Any) -> None:
        grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        seen.append((module.training, grad, inference))

    def spied() -> Any:
        workload = scripted_workload_build()
        workload.model.register_forward_pre_hook(spy)
        models.append(workload.model)
        return workload

    scripted_workload_build = scripted_workload.build
    scripted_workload.build = spied  # type: ignore[assignment]
    try:
        return run(script, **axes), seen, models[0]
    finally:
        scripted_workload.build = scripted_workload_build


@pytest.mark.parametrize("task", ["evaluate", "infer"])
@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ({}, (False, False, False)),
        ({"no_grad": False}, (False, True, False)),
        ({"inference_mode": True}, (False, False, True)),
    ],
)
def test_evaluation_leaves_the_model_as_it_is_and_records_gradients_only_if_asked_to(
    task: str, axes: dict[str, bool], expected: tuple[bool, bool, bool]
) -> None:
    record, seen, model = evaluated(task=task, **axes)
    # After the windows operations are counted, on a copy without data.
    num_measured = 1 + record.warmup.num_steps + record.window.num_steps
    assert set(seen[:num_measured]) == {expected}
    assert model.training, "put back"
    torch.manual_seed(0)
    assert torch.equal(model.linear.weight, scripted_workload.build().model.linear.weight)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("task", ["evaluate", "infer"])
def test_phases_of_an_evaluation_sum_to_its_step_and_none_of_them_is_of_training(task: str) -> None:
    record, _, _ = evaluated(task=task)
    named = dataclasses.asdict(record.phases)
    step_s = named.pop("step_s")
    assert sum(named.values()) == pytest.approx(step_s)
    assert step_s == pytest.approx(4 * 0.001 + 0.020)
    assert (named["forward_s"], named["data_wait_s"]) == pytest.approx((0.020, 0.004))
    assert named["backward_s"] == named["optimizer_s"] == 0.0
    assert record.window.step_s == pytest.approx([0.024] * 10)


def test_inference_has_no_loss_and_evaluation_has_one() -> None:
    assert evaluated(task="infer")[0].final_loss is None
    assert evaluated(task="evaluate")[0].final_loss is not None
