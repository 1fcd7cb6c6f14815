"""The gate's decision, on simulated pairs of every unpleasant kind."""

import gzip
import itertools
import json
import math
import random
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stepmark.compare.verdict import Verdict
from stepmark.gate import decision
from stepmark.gate.decision import MOST_PAIRS, Decision, decide, detectable, power

BAR = math.log1p(0.03)


def decide_all(
    pair: Callable[[random.Random], float], number: int, spread: float | None = None
) -> list[Decision]:
    """As many decisions over pairs that are drawn anew each time."""
    source = random.Random(7)
    return [decide(lambda: pair(source), 0.03, spread) for _ in range(number)]


def part(decisions: list[Decision], verdict: Verdict) -> float:
    return sum(d.verdict is verdict for d in decisions) / len(decisions)


def fixed(*ratios: float) -> Callable[[], float]:
    """These pairs, in this order, and no others."""
    source: Iterator[float] = iter(ratios)
    return lambda: next(source)


def test_three_quiet_pairs_are_enough() -> None:
    found = decide(fixed(0.001, -0.002, 0.004), 0.03)
    assert found.verdict is Verdict.SAME
    assert found.screened == (0.001, -0.002, 0.004)
    assert found.confirmed == ()
    assert found.change == pytest.approx(0.001, rel=0.01)
    assert found.low is None
    assert 0.03 <= found.detectable < 0.05


@pytest.mark.parametrize(
    "more", [(0.013, 0.012, 0.08), (0.0, 0.01, -0.02)], ids=["quieter", "quiet"]
)
@pytest.mark.parametrize(
    "first", [(0.013, 0.014, 0.0), (0.0, 0.0, 0.05), (-0.02, -0.02, 0.01)], ids=str
)
def test_where_three_pairs_leave_it_unsure_three_more_are_looked_at(
    first: tuple[float, ...], more: tuple[float, ...]
) -> None:
    found = decide(fixed(*first, *more), 0.03)
    assert found.verdict is Verdict.SAME
    assert found.screened == first + more


@pytest.mark.parametrize(
    "screen",
    [
        (0.035, 0.03, 0.0),
        (-0.035, -0.03, 0.0),
        (0.02, 0.02, 0.02, 0.02, 0.02, 0.0),
        (0.0, 0.02, 0.06, 0.02, 0.02, 0.02),
        (0.0, 0.005, 0.06, -0.08, -0.06, 0.08),
    ],
    ids=["loud", "faster", "unsure", "one-far-off", "wild"],
)
def test_a_suspect_is_judged_by_new_pairs_alone(screen: tuple[float, ...]) -> None:
    found = decide(fixed(*screen, *[0.001, -0.001] * 5), 0.03)
    assert found.verdict is Verdict.SAME
    assert found.confirmed == (0.001, -0.001) * 5
    assert abs(found.change) < 0.001
    assert "was suspected" in found.reason


def test_what_is_slower_and_what_is_faster_is_told_with_its_interval() -> None:
    near = [0.001 * k for k in range(-5, 5)]
    slower = decide(fixed(0.05, 0.05, 0.05, *(0.05 + r for r in near)), 0.03)
    faster = decide(fixed(-0.05, -0.05, -0.05, *(-0.05 + r for r in near)), 0.03)
    assert slower.verdict is Verdict.SLOWER
    assert faster.verdict is Verdict.FASTER
    assert "10 of 10 new pairs" in slower.reason
    for found, change in ((slower, 0.0507), (faster, -0.0492)):
        assert found.low is not None
        assert found.high is not None
        assert found.low < change < found.high
        assert found.change == pytest.approx(change, abs=0.001)


def test_a_few_pairs_that_are_far_slower_do_not_make_it_slower() -> None:
    """A stall hits three pairs of ten; the others are alike."""
    stalls = [0.4, 0.0, 0.001, 0.5, -0.001, 0.0, 0.3, 0.001, -0.002, 0.0]
    found = decide(fixed(0.3, 0.4, 0.0, *stalls, *[0.0] * 30), 0.03)
    assert found.verdict is not Verdict.SLOWER


@pytest.mark.parametrize("spread", [0.004, 0.012, 0.02, 0.033, 0.06])
def test_between_the_same_code_a_difference_is_all_but_never_found(spread: float) -> None:
    decisions = decide_all(lambda source: source.gauss(0, spread), 4000)
    # Two in ten thousand are one suite of fifty scenarios in a hundred.
    assert part(decisions, Verdict.SLOWER) <= 0.0005
    assert part(decisions, Verdict.FASTER) <= 0.0005


@pytest.mark.parametrize("spread", [0.004, 0.012, 0.02, 0.033])
def test_a_slowdown_of_what_is_called_detectable_is_found(spread: float) -> None:
    slowdown = detectable(spread, BAR)
    assert BAR < slowdown < 4 * spread + 2 * BAR
    decisions = decide_all(lambda source: source.gauss(slowdown, spread), 1000)
    # The power that detectable() counts on is that of a known spread; here it is estimated.
    assert part(decisions, Verdict.SLOWER) >= 0.90
    assert part(decisions, Verdict.SAME) <= 0.08


def test_the_smallest_detectable_change_grows_with_the_noise() -> None:
    found = [detectable(spread, BAR) for spread in (0.0, 0.001, 0.01, 0.03, 0.1, 0.5)]
    assert found == sorted(found)
    assert found[0] == pytest.approx(BAR, rel=2e-3)
    for spread, slowdown in zip((0.001, 0.01, 0.03, 0.1), found[1:], strict=False):
        assert power(slowdown, spread, BAR) >= 0.94
        assert power(0.9 * slowdown, spread, BAR) < 0.95


def test_power_is_what_deciding_comes_to() -> None:
    for slowdown in (0.03, 0.04, 0.05):
        decisions = decide_all(lambda source, s=slowdown: source.gauss(s, 0.02), 1500)
        assert part(decisions, Verdict.SLOWER) == pytest.approx(
            power(slowdown, 0.02, BAR), abs=0.05
        )


def test_what_scatters_too_much_is_inconclusive_and_hardly_ever_clean() -> None:
    decisions = decide_all(lambda source: source.gauss(0, 0.15), 300)
    assert part(decisions, Verdict.INCONCLUSIVE) > 0.98
    assert part(decisions, Verdict.SLOWER) + part(decisions, Verdict.FASTER) == 0
    assert all(len(d.confirmed) == MOST_PAIRS for d in decisions if d.confirmed)
    assert min(d.detectable for d in decisions if d.confirmed) > 0.05


def test_a_large_slowdown_is_found_through_much_noise() -> None:
    decisions = decide_all(lambda source: source.gauss(0.4, 0.15), 300)
    assert part(decisions, Verdict.SLOWER) > 0.98


@pytest.mark.parametrize("often", [0.1, 0.3, 0.5])
def test_processes_of_two_kinds_do_not_raise_false_alarms(often: float) -> None:
    """Some processes of either side are 8 % slower for as long as they live."""

    def pair(source: random.Random) -> float:
        slow = [0.08 * (source.random() < often) for _ in range(2)]
        return slow[1] - slow[0] + source.gauss(0, 0.003)

    decisions = decide_all(pair, 1000)
    assert part(decisions, Verdict.SLOWER) + part(decisions, Verdict.FASTER) <= 0.003


@pytest.mark.parametrize("often", [0.05, 0.15])
def test_stalls_do_not_raise_false_alarms(often: float) -> None:
    def pair(source: random.Random) -> float:
        stall = [source.expovariate(3) * (source.random() < often) for _ in range(2)]
        return stall[1] - stall[0] + source.gauss(0, 0.005)

    decisions = decide_all(pair, 1000)
    assert part(decisions, Verdict.SLOWER) + part(decisions, Verdict.FASTER) <= 0.003


def test_a_known_spread_saves_looking_for_it() -> None:
    """Of a noisy scenario as many pairs are asked for at once as will be needed."""
    suspect = (0.05, 0.05, 0.05)
    known = decision.pairs_needed(0.03, BAR)
    assert decision.FEWEST_PAIRS < known < MOST_PAIRS
    found = decide(fixed(*suspect, *([0.0, 0.001] * known)[:known]), 0.03, spread=0.03)
    assert len(found.confirmed) == known


def test_a_scenario_known_to_be_too_noisy_is_not_cleared_by_three_lucky_pairs() -> None:
    assert decide(fixed(0.0, 0.001, 0.002), 0.03, spread=0.01).verdict is Verdict.SAME
    found = decide(fixed(0.0, 0.001, 0.002), 0.03, spread=0.2)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.detectable > 0.1
    assert "may hide" in found.reason


def test_a_change_between_agreement_and_threshold_is_no_regression() -> None:
    """A quarter of the pairs says otherwise, so it is not called slower, however large."""
    ratios = [0.09, 0.09, 0.09, -0.01, 0.09, 0.09, 0.09, -0.01, 0.09, -0.01]
    found = decide(fixed(0.05, 0.05, 0.05, *ratios * 4), 0.03)
    assert found.verdict is Verdict.INCONCLUSIVE


def test_identical_times_are_no_noise_and_no_error() -> None:
    assert decide(fixed(0.0, 0.0, 0.0), 0.03).verdict is Verdict.SAME
    found = decide(fixed(*[0.05] * 13), 0.03)
    assert found.verdict is Verdict.SLOWER
    assert found.low == found.high == pytest.approx(math.expm1(0.05))


def test_sides_a_thousandfold_apart_are_told() -> None:
    found = decide(fixed(*[math.log(1e6)] * 13), 0.03)
    assert found.verdict is Verdict.SLOWER
    assert math.isfinite(found.change)


RECORDED = Path(__file__).parents[1] / "docs" / "validation" / "pairs"
LOWER_QUARTILE = 7  # of the quantiles that scripts/validation/pool.py keeps


def recorded(kind: str) -> list[float]:
    """Log ratios of real pairs of processes."""
    text = gzip.decompress((RECORDED / f"{kind}.jsonl.gz").read_bytes()).decode()

    def step_us(side: dict[str, Any]) -> float:
        if kind.startswith("loader"):
            return statistics.fmean(side["turn_means_us"])
        return float(side["step_quantiles_us"][-1][LOWER_QUARTILE])

    pairs = [json.loads(line) for line in text.splitlines()]
    return [math.log(step_us(pair["head"]) / step_us(pair["base"])) for pair in pairs]


@pytest.mark.parametrize("name", ["mlp", "cnn", "loader", "ddp"])
def test_recorded_pairs_of_the_same_code_are_never_slower(name: str) -> None:
    ratios = recorded(f"{name}.0")
    assert len(ratios) == 150
    decisions = decide_all(lambda source: source.choice(ratios), 1000)
    assert part(decisions, Verdict.SLOWER) == 0
    in_their_order = itertools.cycle(ratios)
    decisions = [decide(lambda: next(in_their_order), 0.03) for _ in range(50)]
    assert part(decisions, Verdict.SLOWER) == 0


@pytest.mark.parametrize("name", ["mlp", "cnn", "ddp"])
def test_recorded_pairs_with_five_percent_more_work_are_slower(name: str) -> None:
    ratios = recorded(f"{name}.0.05")
    assert len(ratios) == 60
    decisions = decide_all(lambda source: source.choice(ratios), 300)
    assert part(decisions, Verdict.SLOWER) >= 0.95


def test_recorded_pairs_of_a_noisy_loader_are_seldom_called_clean_when_they_are_slower() -> None:
    """Ten percent are found; five, which came out as 2.9 there, are told to be beyond judging."""
    ten, five = recorded("loader.0.1"), recorded("loader.0.05")
    decisions = decide_all(lambda source: source.choice(ten), 300)
    assert part(decisions, Verdict.SLOWER) >= 0.95
    decisions = decide_all(lambda source: source.choice(five), 300)
    assert part(decisions, Verdict.SAME) < 0.25
    assert part(decisions, Verdict.FASTER) == 0
