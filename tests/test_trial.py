"""Trials of scenarios, with pairs that are made up."""

import importlib
import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from factories import make_machine, make_scenario

from stepmark.compare.verdict import Verdict
from stepmark.gate import selftest
from stepmark.gate.decision import FEWEST_PAIRS, NUM_SCREEN
from stepmark.gate.pairs import Pair, PairFailedError, SideRecord
from stepmark.gate.record import Record
from stepmark.gate.suite import try_all
from stepmark.gate.trial import PERCENTILE, Rules, Trial, log_ratio, step_s, try_scenario
from stepmark.result import Outcome
from stepmark.runner.ending import Ending

RULES = Rules(threshold=0.03)
COUNTERS = {"batch": "64x8 float32, 64 int64", "loss": "2.3, 2.2 after 3 steps"}


def make_record(each_s: float = 0.001, *, noise: float = 0.0, **counters: str) -> SideRecord:
    """Ten turns of five steps; a step takes at least so long, and some take longer."""
    source = random.Random(repr((each_s, noise)))
    steps_s = tuple(
        tuple(each_s * (1 + noise * source.random()) for _ in range(5)) for _ in range(10)
    )
    return SideRecord(
        windows_s=tuple(map(sum, steps_s)),
        steps_s=steps_s,
        num_steps=5,
        counters={**COUNTERS, **counters},
    )


def make_pair(base: SideRecord | None = None, head: SideRecord | None = None) -> Pair:
    return Pair(base=base or make_record(), head=head or make_record(), wall_s=2.0)


def give(*pairs: Pair | Exception) -> Callable[[], Pair]:
    """These pairs, the last one again and again."""
    source: Iterator[Pair | Exception] = itertools.chain(pairs, itertools.repeat(pairs[-1]))

    def measure() -> Pair:
        pair = next(source)
        if isinstance(pair, Exception):
            raise pair
        return pair

    return measure


def dead(side: str) -> PairFailedError:
    return PairFailedError(side, Ending(Outcome.OOM, "out of memory: it asked for 4 GiB"))


def test_whole_steps_count_by_their_lower_quartile() -> None:
    steps_s = tuple((0.001 * k, 0.001 * (k + 1)) for k in range(1, 101, 2))
    record = SideRecord(
        windows_s=tuple(map(sum, steps_s)), steps_s=steps_s, num_steps=2, counters={}
    )
    assert step_s(record, make_scenario()) == pytest.approx(0.02575)


def test_steps_that_wait_for_a_loader_count_by_all_their_time() -> None:
    record = make_record(0.002, noise=1.0)
    expected = sum(record.windows_s) / 50
    assert step_s(record, make_scenario(num_workers=2)) == pytest.approx(expected)
    assert step_s(record, make_scenario()) < expected


def test_an_accelerator_counts_by_its_quicker_turns() -> None:
    record = SideRecord(
        windows_s=tuple(0.01 * k for k in range(10, 0, -1)),
        steps_s=((),) * 10,
        num_steps=5,
        counters={},
    )
    assert step_s(record, make_scenario(device="cuda")) == pytest.approx(0.0065)


def test_the_ratio_is_of_head_over_base() -> None:
    ratio = log_ratio(make_pair(head=make_record(0.002)), make_scenario())
    assert ratio == pytest.approx(0.6931, abs=1e-4)


def test_a_clean_scenario_takes_the_screens_pairs_alone() -> None:
    trial = try_scenario(make_scenario(), give(make_pair()), RULES)
    comparison = trial.comparison
    assert comparison.verdict is Verdict.SAME
    assert comparison.scenario_id == make_scenario().id
    assert len(trial.pairs) == comparison.num_base == comparison.num_head == NUM_SCREEN
    assert comparison.base_s == comparison.head_s == pytest.approx(0.001)


def test_a_slower_one_is_shown_by_the_pairs_that_judged_it() -> None:
    screen = [make_pair(head=make_record(0.0013))] * NUM_SCREEN
    trial = try_scenario(make_scenario(), give(*screen, make_pair(head=make_record(0.0011))), RULES)
    assert trial.comparison.verdict is Verdict.SLOWER
    assert trial.comparison.change == pytest.approx(0.1)
    assert trial.comparison.head_s == pytest.approx(0.0011)
    assert trial.comparison.num_base == FEWEST_PAIRS
    assert len(trial.pairs) == NUM_SCREEN + FEWEST_PAIRS


@pytest.mark.parametrize("after", [0, 2, NUM_SCREEN + 4])
@pytest.mark.parametrize("side", ["base", "head"])
def test_a_side_that_dies_is_missing_whenever_it_does(side: str, after: int) -> None:
    pairs = [make_pair(head=make_record(0.002))] * after
    trial = try_scenario(make_scenario(), give(*pairs, dead(side)), RULES)
    assert trial.comparison.verdict is Verdict.MISSING
    assert trial.comparison.reason == f"{side}: oom: out of memory: it asked for 4 GiB"
    assert len(trial.pairs) == after, "what was measured is kept"


def test_memory_that_both_sides_need_at_once_is_said_to_be_so() -> None:
    trial = try_scenario(make_scenario(device="cuda"), give(dead("head")), RULES)
    assert trial.comparison.reason.endswith("on the device together: try a smaller batch")


def test_batches_of_other_shapes_cannot_be_compared() -> None:
    other = make_record(batch="64x4 float32, 64 int64")
    trial = try_scenario(make_scenario(), give(make_pair(head=other)), RULES)
    assert trial.comparison.verdict is Verdict.INCOMPARABLE
    assert "64x8 float32, 64 int64 in base and 64x4 float32" in trial.comparison.reason
    assert len(trial.pairs) == 1


def test_batches_of_another_type_are_told() -> None:
    other = make_record(batch="64x8 uint8, 64 int64")
    trial = try_scenario(make_scenario(), give(make_pair(head=other)), RULES)
    assert trial.comparison.verdict is Verdict.SAME
    assert [c.name for c in trial.comparison.counters] == ["batch"]


@pytest.mark.parametrize(
    ("after", "is_regression"), [(1000, None), (1020, False), (1040, True), (900, False)]
)
def test_peak_memory_decides_by_itself(after: int, is_regression: bool | None) -> None:
    base = make_record(peak_allocated_bytes="1000")
    head = make_record(peak_allocated_bytes=str(after))
    comparison = try_scenario(make_scenario(), give(make_pair(base, head)), RULES).comparison
    assert comparison.verdict is Verdict.SAME
    if is_regression is None:
        assert comparison.counters == ()
    else:
        (counter,) = comparison.counters
        assert counter.is_regression is comparison.is_regression is is_regression


def test_a_figure_that_is_not_the_same_in_all_processes_of_a_side_says_nothing() -> None:
    wavering = [
        make_pair(
            make_record(peak_allocated_bytes=str(1000 + k)),
            make_record(peak_allocated_bytes="2000"),
        )
        for k in range(NUM_SCREEN)
    ]
    trial = try_scenario(make_scenario(), give(*wavering), RULES)
    assert trial.comparison.counters == ()


def test_another_loss_is_told_and_refused_only_where_it_was_asked_for() -> None:
    pair = make_pair(head=make_record(loss="2.4, 2.2 after 3 steps"))
    told = try_scenario(make_scenario(), give(pair), RULES).comparison
    assert told.verdict is Verdict.SAME
    assert [(c.name, c.head) for c in told.counters] == [("loss", "2.4, 2.2 after 3 steps")]
    slower = make_pair(head=make_record(0.002, loss="2.4, 2.2 after 3 steps"))
    for given, expected in (
        (pair, Verdict.INCOMPARABLE),
        (make_pair(), Verdict.SAME),
        (slower, Verdict.SLOWER),
    ):
        strict = Rules(threshold=0.03, same_loss=True)
        assert try_scenario(make_scenario(), give(given), strict).comparison.verdict is expected


def test_a_loss_that_wavers_is_not_the_same() -> None:
    """As of augmentation that draws from something nobody seeded."""
    pairs = [make_pair(make_record(loss=str(k)), make_record(loss=str(k + 0.5))) for k in range(3)]
    found = try_scenario(make_scenario(), give(*pairs), Rules(same_loss=True)).comparison
    assert found.verdict is Verdict.INCOMPARABLE
    assert "not the same from process to process" in found.reason
    assert try_scenario(make_scenario(), give(*pairs), RULES).comparison.verdict is Verdict.SAME


@pytest.mark.parametrize("name", ["cnn", "loader"])
def test_the_validations_pairs_count_as_the_gates_do(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was kept of recorded pairs gives the ratio that the gate took them for."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts" / "validation")
    pool = importlib.import_module("pool")
    pair = make_pair(make_record(0.001, noise=0.3), make_record(0.0011, noise=0.2))
    axes = {axis: v for axis, v in pool.CLASSES[name][1].items() if axis == "num_workers"}
    expected = log_ratio(pair, make_scenario(**axes))
    kept = pool.summary(pair)
    assert pool.log_ratio(name, kept) == pytest.approx(expected, rel=1e-3)
    # The earliest recorded pairs have one more part of their turns.
    for side in ("base", "head"):
        kept[side]["step_quantiles_us"].insert(0, [1e-9] * len(pool.QUANTILES))
    assert pool.log_ratio(name, kept) == pytest.approx(expected, rel=1e-3)


def test_stalls_are_told_though_they_do_not_decide() -> None:
    calm = make_record()
    stalling = [list(turn_s) for turn_s in calm.steps_s]
    for turn_s in stalling[::2]:
        turn_s[0] += 0.02
    head = SideRecord(
        windows_s=tuple(map(sum, stalling)),
        steps_s=tuple(map(tuple, stalling)),
        num_steps=5,
        counters=COUNTERS,
    )
    comparison = try_scenario(make_scenario(), give(make_pair(calm, head)), RULES).comparison
    assert comparison.verdict is Verdict.SAME
    assert [remark.partition(" +")[0] for remark in comparison.remarks] == ["mean step", "p95 step"]


def test_medians_that_do_not_come_to_the_change_are_explained() -> None:
    """The machine is as fast as ever in half of the pairs, and half as fast in the others."""
    fast, slow = make_record(0.010), make_record(0.020)
    faster, slower = make_record(0.0101), make_record(0.0202)
    pairs = itertools.cycle([make_pair(fast, faster), make_pair(slow, slower)])
    comparison = try_scenario(make_scenario(), lambda: next(pairs), RULES).comparison
    assert comparison.verdict is Verdict.SAME
    assert not comparison.remarks
    lopsided = itertools.cycle([make_pair(fast, faster), make_pair(slow, fast)])
    comparison = try_scenario(make_scenario(), lambda: next(lopsided), RULES).comparison
    assert comparison.verdict is Verdict.INCONCLUSIVE
    assert any("the change is from pair to pair" in remark for remark in comparison.remarks)


def take_turns(
    level: Callable[[float], float],
    source: random.Random,
    *,
    head: float = 1.0,
    in_turns: bool = True,
) -> Pair:
    """A pair on a machine of which a step takes ``level`` times as long at each moment.

    The side that plays next is drawn as `measure_pair` draws it; otherwise head plays after base.
    """
    now_s = 0.0
    steps_s: dict[str, list[tuple[float, ...]]] = {"base": [], "head": []}
    rounds = [source.sample(("base", "head"), 2) for _ in range(40)]
    plays = [side for order in rounds for side in order]
    for side in plays if in_turns else sorted(plays):
        turn_s = []
        for _ in range(30):
            alone_s = 0.001 * (head if side == "head" else 1.0) * (1 + 0.02 * source.random())
            turn_s.append(alone_s * level(now_s))
            now_s += turn_s[-1]
        steps_s[side].append(tuple(turn_s))
    records = {
        side: SideRecord(
            windows_s=tuple(map(sum, turns)), steps_s=tuple(turns), num_steps=30, counters=COUNTERS
        )
        for side, turns in steps_s.items()
    }
    return Pair(base=records["base"], head=records["head"], wall_s=3.0)


def phases(source: random.Random) -> Callable[[float], float]:
    """A neighbour comes and goes: for some tenths of a second each, steps take 40 % longer."""
    ends: list[float] = [0.0]

    def level(now_s: float) -> float:
        while ends[-1] <= now_s:
            ends.append(ends[-1] + source.uniform(0.1, 0.8))
        return 1.4 if sum(end <= now_s for end in ends) % 2 else 1.0

    return level


def stalls(source: random.Random) -> Callable[[float], float]:
    return lambda _: 30.0 if source.random() < 0.01 else 1.0


def drifts(source: random.Random) -> Callable[[float], float]:
    slope = source.uniform(-0.15, 0.3)
    return lambda now_s: 1 + slope * now_s


MACHINES: dict[str, Callable[[random.Random], Callable[[float], float]]] = {
    "drifts": drifts,
    "two levels": phases,
    "stalls": stalls,
}


@pytest.mark.parametrize("machine", MACHINES)
def test_windows_in_turns_are_judged_rightly_on_a_restless_machine(machine: str) -> None:
    source = random.Random(11)

    def tried(head: float) -> Verdict:
        def measure() -> Pair:
            return take_turns(MACHINES[machine](source), source, head=head)

        return try_scenario(make_scenario(), measure, RULES).comparison.verdict

    assert {tried(1.0) for _ in range(10)} == {Verdict.SAME}
    assert {tried(1.06) for _ in range(5)} == {Verdict.SLOWER}


def test_windows_one_after_the_other_would_be_judged_by_the_drift() -> None:
    source = random.Random(12)
    scenario = make_scenario()

    def ratio(*, in_turns: bool) -> float:
        pair = take_turns(lambda now_s: 1 + 0.2 * now_s, source, in_turns=in_turns)
        return log_ratio(pair, scenario)

    assert abs(ratio(in_turns=True)) < 0.02
    assert ratio(in_turns=False) > 0.1


def run_all(heads_s: Sequence[Sequence[float]]) -> list[Trial]:
    """One scenario for each: head's step in the first trial, and in the second."""
    listed = [make_scenario(batch_size=k) for k in range(1, len(heads_s) + 1)]
    tried: set[str] = set()
    later: set[str] = set()

    def measure(scenario: object) -> Pair:
        first, second = heads_s[listed.index(scenario)]  # type: ignore[arg-type]
        return make_pair(head=make_record(second if scenario.id in later else first))  # type: ignore[attr-defined]

    trials = []
    for trial in try_all(listed, measure, RULES, {}):
        tried.add(trial.scenario.id)
        if len(tried) == len(listed):
            later |= tried
        trials.append(trial)
    return trials


def test_a_few_slower_ones_are_tried_once() -> None:
    trials = run_all([(0.0011, 0.0)] + [(0.001, 0.0)] * 4)
    assert [t.comparison.verdict for t in trials] == [Verdict.SLOWER] + [Verdict.SAME] * 4


def test_many_that_moved_together_are_tried_again() -> None:
    trials = run_all([(0.0011, 0.0011), (0.0011, 0.001)] + [(0.001, 0.0)] * 3)
    assert len(trials) == 7
    again = {trial.scenario.batch_size: trial for trial in trials[5:]}
    assert again[1].comparison.verdict is Verdict.SLOWER
    assert "tried twice" in again[1].comparison.remarks[0]
    assert again[2].comparison.verdict is Verdict.INCONCLUSIVE
    assert "SLOWER first" in again[2].comparison.reason
    assert len(again[1].pairs) == 2 * (NUM_SCREEN + FEWEST_PAIRS)
    assert len(again[2].pairs) == NUM_SCREEN + FEWEST_PAIRS + NUM_SCREEN


def test_a_side_that_dies_when_it_is_tried_again_is_missing() -> None:
    listed = [make_scenario(batch_size=k) for k in range(1, 5)]
    num_pairs = 0

    def measure(scenario: object) -> Pair:
        nonlocal num_pairs
        num_pairs += 1
        if num_pairs > 4 * (NUM_SCREEN + FEWEST_PAIRS):
            raise dead("head")
        return make_pair(head=make_record(0.0011))

    *_, last = try_all(listed, measure, RULES, {})
    assert last.comparison.verdict is Verdict.MISSING


def noisy(spread: float, shift: float = 0.0) -> Callable[[], Pair]:
    source = random.Random(1)
    return lambda: make_pair(head=make_record(0.001 * (1 + shift + source.gauss(0, spread))))


def test_the_self_test_finds_the_noise() -> None:
    trial, found = selftest.try_same_code(make_scenario(), noisy(0.01), 0.03)
    assert trial.comparison.verdict is Verdict.SAME
    assert "can be judged here" in trial.comparison.reason
    assert found is not None
    assert found.spread == pytest.approx(0.01, rel=0.5)
    assert found.percentile == PERCENTILE
    assert found.num_pairs == selftest.NUM_PAIRS
    assert trial.comparison.detectable is not None
    assert 0.03 < trial.comparison.detectable < 0.06
    assert len(trial.pairs) == selftest.NUM_PAIRS


def test_the_self_test_says_what_cannot_be_judged() -> None:
    trial, _ = selftest.try_same_code(make_scenario(), noisy(0.2), 0.03)
    assert trial.comparison.verdict is Verdict.INCONCLUSIVE
    assert "cannot be judged here at 3.0 %" in trial.comparison.reason


def test_the_self_test_notices_sides_that_are_not_treated_alike() -> None:
    trial, _ = selftest.try_same_code(make_scenario(), noisy(0.002, shift=0.03), 0.03)
    assert trial.comparison.verdict is Verdict.INCONCLUSIVE
    assert "the same code came out +3." in trial.comparison.reason


def test_the_self_test_of_what_does_not_run_is_missing() -> None:
    trial, found = selftest.try_same_code(make_scenario(), give(make_pair(), dead("base")), 0.03)
    assert trial.comparison.verdict is Verdict.MISSING
    assert found is None
    assert len(trial.pairs) == 1


def test_the_self_test_takes_an_accelerators_steadiest_turns_and_the_gate_follows() -> None:
    """Its first turns waver from process to process, and its middle ones do not."""
    source = random.Random(2)

    def record(middle_s: float) -> SideRecord:
        turns_s = [0.005 * source.uniform(0.8, 1.0), *[0.005 * source.uniform(0.8, 1.0)] * 3]
        turns_s += [middle_s] * 6
        return SideRecord(
            windows_s=tuple(turns_s), steps_s=((),) * 10, num_steps=5, counters=COUNTERS
        )

    scenario = make_scenario(device="cuda")
    same = lambda: make_pair(record(0.0051), record(0.0051))  # noqa: E731
    trial, found = selftest.try_same_code(scenario, same, 0.03)
    assert found is not None
    assert found.percentile == 50.0
    assert trial.comparison.base_s == pytest.approx(0.00102)
    slower = lambda: make_pair(record(0.0051), record(0.0061))  # noqa: E731
    trial = try_scenario(scenario, slower, RULES, found)
    assert trial.comparison.verdict is Verdict.SLOWER
    assert trial.comparison.base_s == pytest.approx(0.00102)


def test_the_record_has_every_window_as_soon_as_it_was_measured(tmp_path: Path) -> None:
    machine = make_machine()
    record = Record(tmp_path, "base -> head", (machine, machine), {"threshold": "3%"})

    def saved() -> dict[str, Any]:
        data: dict[str, Any] = json.loads(record.path.read_text())
        return data

    assert saved()["exit_code"] == 5
    record.add_pair(make_pair())
    assert saved()["unfinished"][0]["head"]["windows_s"] == list(make_record().windows_s)
    trial = try_scenario(make_scenario(), give(make_pair(head=make_record(0.002))), RULES)
    record.add(trial)
    record.skip(make_scenario(device="cuda"), "no cuda device on this machine")
    record.miss(make_scenario(batch_size=9), "head: no, not here")
    data = saved()
    assert data["exit_code"] == 1
    assert data["threshold"] == "3%"
    assert data["unfinished"] == []
    assert list(data["skipped"].values()) == ["no cuda device on this machine"]
    tried, missed = data["comparisons"]
    assert missed["pairs"] == []
    assert len(tried["pairs"]) == NUM_SCREEN + FEWEST_PAIRS
    first = tried["pairs"][0]
    assert first["head"]["windows_s"] == list(make_record(0.002).windows_s)
    assert first["base"]["step_s"] == pytest.approx(0.001)
    assert first["base"]["counters"] == COUNTERS
