import dataclasses
import json
import random
from typing import Any

import pytest

from stepmark.record import PHASES, Phases, Reading, StartUp
from stepmark.result import COLUMNS, Outcome, Result
from tests.factories import (
    MIB,
    make_memory,
    make_phases,
    make_rank,
    make_result,
    make_scenario,
    make_startup,
    make_window,
)

# Word for word from the contract.
CONTRACT = """
scenario_id, workload, device, batch_size, num_workers, precision, accumulation, world_size, repeat, outcome, reason,
samples_per_s, steps, window_s, step_s_median, step_s_p90, step_s_p99, step_s_min,
data_wait_s, h2d_s, forward_s, backward_s, optimizer_s, other_s, phase_step_s,
peak_allocated_bytes, peak_reserved_bytes, peak_host_bytes, nvml_used_bytes, energy_j, first_step_s, final_loss,
flops_per_step, attainable_fraction
"""  # noqa: E501
UNMARKED = dataclasses.replace(make_window(num_steps=50, window_s=2.0), step_s=())
OUTCOMES = ["ok", "skipped", "oom", "timeout", "failed"]


def of_two_ranks(first: dict[str, Any], second: dict[str, Any]) -> Result:
    ranks = (make_rank(rank=0, **first), make_rank(rank=1, **second))
    return make_result(make_scenario(world_size=2), ranks=ranks)


def test_columns_are_the_contracts_in_its_order() -> None:
    assert tuple(name.strip() for name in CONTRACT.replace("\n", " ").split(",")) == COLUMNS


@pytest.mark.parametrize("outcome", list(Outcome))
def test_a_row_has_every_column_whatever_the_outcome(outcome: Outcome) -> None:
    assert tuple(make_result(outcome=outcome).row()) == COLUMNS


def test_outcomes_are_the_contracts() -> None:
    assert [outcome.value for outcome in Outcome] == OUTCOMES


def test_throughput_counts_micro_batches_and_ranks_over_the_slowest_ranks_window() -> None:
    scenario = make_scenario(batch_size=4, accumulation=3, world_size=2)
    windows = [make_window(num_steps=10, window_s=s) for s in (2.0, 2.5)]
    result = make_result(
        scenario, ranks=tuple(make_rank(rank=i, window=w) for i, w in enumerate(windows))
    )
    # 4 samples * 3 micro-batches * 2 ranks * 10 steps = 240 samples in 2.5 s
    assert result.samples_per_s == 96.0
    row = result.row()
    assert (row["samples_per_s"], row["steps"], row["window_s"]) == (96.0, 10, 2.5)


def test_throughput_does_not_depend_on_the_order_of_ranks() -> None:
    slow = {"window": make_window(num_steps=10, window_s=2.5)}
    fast = {"window": make_window(num_steps=10, window_s=2.0)}
    assert of_two_ranks(slow, fast).samples_per_s == of_two_ranks(fast, slow).samples_per_s


def test_throughput_comes_from_the_window_and_not_from_its_steps() -> None:
    """Batches fetched ahead make single steps look fast; the window holds all of them."""
    window = dataclasses.replace(
        make_window(num_steps=4, window_s=4.0), step_s=(0.1, 0.1, 0.1, 3.7)
    )
    result = make_result(make_scenario(batch_size=8), ranks=(make_rank(window=window),))
    assert result.samples_per_s == 8.0
    assert result.row()["step_s_median"] == 0.1


def test_throughput_of_random_scenarios_follows_the_contracts_formula() -> None:
    source = random.Random(3)
    for _ in range(100):
        batch_size, accumulation, world_size, steps = (source.randint(1, 9) for _ in range(4))
        scenario = make_scenario(
            batch_size=batch_size, accumulation=accumulation, world_size=world_size
        )
        windows_s = [source.uniform(0.1, 9) for _ in range(world_size)]
        ranks = tuple(
            make_rank(rank=i, window=make_window(num_steps=steps, window_s=s))
            for i, s in enumerate(windows_s)
        )
        expected = batch_size * accumulation * world_size * steps / max(windows_s)
        assert make_result(scenario, ranks=ranks).samples_per_s == pytest.approx(expected)


def test_step_times_are_the_slowest_ranks() -> None:
    steps_s = tuple(0.1 * i for i in range(1, 11))
    window = dataclasses.replace(make_window(num_steps=10, window_s=5.5), step_s=steps_s)
    row = of_two_ranks({"step_s": 0.01, "num_steps": 10}, {"window": window}).row()
    # Ten order statistics: the 90th percentile lies 0.1 of the way from the ninth to the tenth.
    assert row["step_s_median"] == pytest.approx(0.55)
    assert row["step_s_p90"] == pytest.approx(0.91)
    assert row["step_s_p99"] == pytest.approx(0.991)
    assert row["step_s_min"] == pytest.approx(0.1)


def test_steps_that_cannot_be_marked_leave_their_columns_empty() -> None:
    row = make_result(rank={"window": UNMARKED}).row()
    for name in ("step_s_median", "step_s_p90", "step_s_p99", "step_s_min"):
        assert row[name] is None
    assert row["samples_per_s"] == 64 * 50 / 2.0


def test_steps_and_phases_are_those_of_the_rank_with_the_longest_window() -> None:
    first = {"window": make_window(window_s=9.0), "phases": make_phases(step_s=0.02)}
    second = {
        "window": make_window(window_s=1.0),
        "phase_window": make_window(window_s=20.0),
        "phases": make_phases(step_s=0.04, shares={"forward": 0.25, "backward": 0.5}),
    }
    row = of_two_ranks(first, second).row()
    assert row["window_s"] == 9.0
    assert row["phase_step_s"] == 0.02


def test_among_ranks_that_exchange_gradients_the_slowest_is_the_one_slowest_alone() -> None:
    """Their windows have one length, whoever waits for whom."""

    def alone(seconds: float) -> Reading:
        return Reading(name="free_step", unit="s", scope="rank", value=seconds)

    first = {
        "window": make_window(window_s=9.0),
        "phases": make_phases(step_s=0.02),
        "readings": (alone(0.001),),
    }
    second = {
        "window": make_window(window_s=8.9),
        "phases": make_phases(step_s=0.04, shares={"forward": 0.25, "backward": 0.5}),
        "readings": (alone(0.031),),
    }
    row = of_two_ranks(first, second).row()
    assert row["window_s"] == 9.0  # throughput is over the longest window all the same
    assert row["phase_step_s"] == 0.04
    assert (row["forward_s"], row["backward_s"]) == (0.01, 0.02)


def test_the_six_phases_of_a_row_sum_to_its_step() -> None:
    row = make_result().row()
    assert sum(row[f"{phase}_s"] for phase in PHASES) == pytest.approx(row["phase_step_s"])


def test_phases_have_a_field_for_each_phase_and_one_for_the_step() -> None:
    names = [field.name for field in dataclasses.fields(Phases)]
    assert names == [*(f"{phase}_s" for phase in PHASES), "step_s"]


def test_device_memory_is_the_worst_ranks_and_host_memory_adds_up() -> None:
    first = make_memory(
        peak_allocated_bytes=10,
        peak_reserved_bytes=30,
        peak_host_bytes=5 * MIB,
        nvml_used_bytes=300,
    )
    second = make_memory(
        peak_allocated_bytes=20,
        peak_reserved_bytes=25,
        peak_host_bytes=6 * MIB,
        nvml_used_bytes=400,
    )
    row = of_two_ranks({"memory": first}, {"memory": second}).row()
    assert row["peak_allocated_bytes"] == 20
    assert row["peak_reserved_bytes"] == 30
    assert row["peak_host_bytes"] == 11 * MIB
    assert row["nvml_used_bytes"] == 400


def test_a_figure_that_one_rank_lacks_is_empty_and_not_the_other_ranks() -> None:
    unknown = make_memory(peak_host_bytes=None)
    known = make_memory(peak_allocated_bytes=20, peak_host_bytes=5)
    row = of_two_ranks(
        {"memory": known, "final_loss": 1.0}, {"memory": unknown, "final_loss": None}
    ).row()
    for name in ("peak_allocated_bytes", "peak_host_bytes", "final_loss"):
        assert row[name] is None


def test_a_measured_zero_stays_a_zero() -> None:
    row = make_result(rank={"memory": make_memory(peak_host_bytes=0), "final_loss": 0.0}).row()
    assert row["peak_host_bytes"] == 0
    assert row["final_loss"] == 0.0


def test_final_loss_is_the_mean_over_ranks_and_first_step_the_slowest_ones() -> None:
    row = of_two_ranks(
        {"final_loss": 1.0, "startup": make_startup(first_step_s=0.5)},
        {"final_loss": 2.0, "startup": make_startup(first_step_s=0.7)},
    ).row()
    assert row["final_loss"] == 1.5
    assert row["first_step_s"] == 0.7


@pytest.mark.parametrize("outcome", [o for o in Outcome if o is not Outcome.OK])
def test_what_did_not_run_has_a_reason_and_no_figure(outcome: Outcome) -> None:
    result = make_result(outcome=outcome, reason="2 ranks need 2 cuda devices, found 1")
    row = result.row()
    assert row["outcome"] == outcome.value
    assert row["reason"] == "2 ranks need 2 cuda devices, found 1"
    measured = COLUMNS[COLUMNS.index("samples_per_s") :]
    assert {name: row[name] for name in measured} == dict.fromkeys(measured)
    assert result.samples_per_s is None
    assert result.observer_effect is None
    assert result.slowest is None
    assert result.reading("epoch_turn") is None
    assert result.notes == ()


def test_a_row_that_ran_has_no_reason() -> None:
    row = make_result().row()
    assert row["outcome"] == "ok"
    assert row["reason"] is None


def test_a_row_holds_plain_values_that_json_can_write() -> None:
    row = make_result(make_scenario(precision="bf16", accumulation=2), repeat=3).row()
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert {type(value) for value in row.values()} <= {str, int, float, type(None)}
    assert row["precision"] == "bf16"
    assert row["repeat"] == 3
    assert row["scenario_id"] == "mlp-toy-cpu-bs64-bf16-acc2"


def test_observer_effect_compares_mean_steps_of_windows_of_different_length() -> None:
    rank = {
        "window": make_window(num_steps=50, window_s=1.0),
        "phase_window": make_window(num_steps=10, window_s=0.25),
    }
    assert make_result(rank=rank).observer_effect == pytest.approx(0.025 / 0.02)


def test_a_reading_is_the_slowest_ranks() -> None:
    def read(value: float | None) -> tuple[Reading, ...]:
        return (Reading(name="epoch_turn", unit="s", scope="rank", value=value),)

    result = of_two_ranks(
        {"step_s": 0.02, "readings": read(0.5)}, {"step_s": 0.01, "readings": read(0.1)}
    )
    assert result.reading("epoch_turn") == 0.5
    assert result.reading("energy") is None


def test_notes_of_all_ranks_appear_once_each_in_order() -> None:
    result = of_two_ranks({"notes": ("b", "a")}, {"notes": ("a", "c")})
    assert result.notes == ("b", "a", "c")


def test_start_up_is_the_sum_of_its_parts() -> None:
    parts = [field.name for field in dataclasses.fields(StartUp)]
    startup = StartUp(**{name: 10.0**i for i, name in enumerate(parts)})
    assert startup.total_s == 111111.0
