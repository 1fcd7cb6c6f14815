"""When windows end, and when warm-up is over."""

import pytest

from stepmark.record import EndedBy
from stepmark.windows import Budget, Stretch, settled, stretch_steps


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def now_s(self) -> float:
        return self.now


def run(budget: Budget, clock: Clock, step_s: float) -> int:
    for _ in budget:
        clock.now += step_s
    return budget.done


def test_a_budget_ends_at_its_steps() -> None:
    clock = Clock()
    budget = Budget(10, 1000.0, now_s=clock.now_s)
    assert run(budget, clock, 1.0) == 10
    assert budget.ended_by is EndedBy.STEPS


def test_a_budget_ends_at_its_seconds() -> None:
    clock = Clock()
    budget = Budget(10, 3.5, now_s=clock.now_s)
    assert run(budget, clock, 1.0) == 4
    assert budget.ended_by is EndedBy.SECONDS


def test_ranks_end_together_at_the_slowest_ones_time() -> None:
    # This rank believes 4 s have passed, another one 20 s: all must stop.
    clock = Clock()
    budget = Budget(10, 8.0, now_s=clock.now_s, agree=lambda mine: 5 * mine)
    assert run(budget, clock, 1.0) == 2
    assert budget.ended_by is EndedBy.SECONDS


def test_ranks_ask_each_other_about_ten_times_a_budget() -> None:
    clock = Clock()
    asked: list[float] = []

    def agree(mine: float) -> float:
        asked.append(mine)
        return mine

    budget = Budget(1000, 1.0, now_s=clock.now_s, agree=agree, expected_step_s=2**-9)
    # 512 steps fill the budget; it is noticed when they ask the next time.
    assert 512 <= run(budget, clock, 2**-9) <= 512 * 1.1
    assert 10 <= len(asked) <= 11


def test_a_single_rank_looks_at_its_clock_about_a_hundred_times_a_budget() -> None:
    clock = Clock()
    looks = 0

    def now_s() -> float:
        nonlocal looks
        looks += 1
        return clock.now_s()

    budget = Budget(10_000, 1.0, now_s=now_s, expected_step_s=2**-11)
    assert 2048 <= run(budget, clock, 2**-11) <= 2048 * 1.01
    assert 100 <= looks <= 105


def test_steps_that_turn_out_far_longer_than_expected_end_within_a_quarter_of_the_plan() -> None:
    clock = Clock()
    budget = Budget(48, 1.0, now_s=clock.now_s, expected_step_s=2**-12)
    assert run(budget, clock, 0.125) == 12
    assert budget.ended_by is EndedBy.SECONDS


def test_without_an_expected_step_the_clock_is_looked_at_after_every_step() -> None:
    clock = Clock()
    budget = Budget(10_000, 1.0, now_s=clock.now_s)
    assert run(budget, clock, 0.3) == 4


def stretch(step_s: float, scale: float = 1.0) -> Stretch:
    return Stretch(num_steps=10, seconds=10 * step_s, scale=scale)


@pytest.mark.parametrize(
    ("previous_s", "last_s", "expected"),
    [(1.0, 1.0, True), (1.0, 0.91, True), (0.91, 1.0, True), (1.0, 0.89, False), (0.5, 1.0, False)],
)
def test_stretches_that_agree_within_a_tenth_have_settled(
    previous_s: float, last_s: float, expected: bool
) -> None:
    assert settled(stretch(previous_s), stretch(last_s)) is expected


def test_a_gradient_scaler_that_still_lowers_its_scale_has_not_settled() -> None:
    assert not settled(stretch(1.0, scale=65536.0), stretch(1.0, scale=32768.0))
    assert settled(stretch(1.0, scale=32768.0), stretch(1.0, scale=65536.0))


@pytest.mark.parametrize(("step_s", "expected"), [(0.001, 50), (0.01, 5), (1.0, 5), (0.0, 5)])
def test_a_stretch_is_some_steps_and_some_time(step_s: float, expected: int) -> None:
    assert stretch_steps(step_s) == expected
