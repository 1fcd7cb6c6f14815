"""Advice: what is said of a trial, in which order pairs are measured, and what is combined."""

import contextlib
import dataclasses
import io
import json
import math
import random
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stepmark import advising, suite
from stepmark.advice import ADVICE, FASTER, Claim, Quantity, Standing, Trial, claims_of, judge
from stepmark.advice.judgement import FEWEST_PAIRS, MOST_PAIRS
from stepmark.advice.output import Best, as_json, as_text, command
from stepmark.choices import CompileMode, OptimizerImpl, OptimizerName, Precision, Task
from stepmark.cli import advice_command, axes
from stepmark.cli.app import app
from stepmark.errors import StepmarkError
from stepmark.fingerprint import DeviceInfo
from stepmark.gate import pairs
from stepmark.scenario import Plan, Scenario
from stepmark.units import parse_duration
from tests.commands import stepmark
from tests.factories import (
    MIB,
    make_commit,
    make_machine,
    make_measured,
    make_result,
    make_run,
    make_scenario,
    make_trial,
    save_run,
)

LESS_MEMORY = Claim(says="it needs less memory", quantity=Quantity.MEMORY)
SOONER = Claim(says="epochs follow each other faster", quantity=Quantity.EPOCH)
CPU = DeviceInfo(
    kind="cpu", names=("C",), precisions={"fp32": "", "bf16": "", "fp16": "", "tf32": "no tf32"}
)
MACHINE = make_machine(devices=(CPU,))

# Pairs that agree on a ratio to about a percent.
STEADY = (1.01, 0.99, 1.0, 1.005, 0.995)


def around(ratio: float) -> list[float]:
    return [ratio * factor for factor in STEADY]


# --- what is said


@pytest.mark.parametrize(
    ("ratios", "standing"),
    [
        (around(1.5), Standing.HOLDS),
        (around(0.5), Standing.DOES_NOT_HOLD),
        (around(1.0), Standing.NO_DIFFERENCE),
        (around(1.02), Standing.NO_DIFFERENCE),
        ([0.5, 2.0, 3.0, 0.9, 1.5], Standing.NO_DIFFERENCE),
        (around(1.5)[:4], Standing.NOT_DECIDED),
        ([], Standing.NOT_DECIDED),
    ],
    ids=["more", "less", "none", "below what matters", "scattered", "too few pairs", "no pairs"],
)
def test_a_claim_stands_by_its_interval_and_by_what_matters(
    ratios: list[float], standing: Standing
) -> None:
    assert judge(make_trial(ratios=ratios), FASTER).standing is standing


def test_the_interval_is_students_for_the_logarithms() -> None:
    ratios = [1.10, 1.20, 1.15, 1.30, 1.25]
    found = judge(make_trial(ratios=ratios), FASTER)
    logs = [math.log(ratio) for ratio in ratios]
    middle = sum(logs) / 5
    deviation = math.sqrt(sum((log - middle) ** 2 for log in logs) / 4)
    # 4.604 is the 99.5th percentile of Student's distribution with 4 degrees of freedom.
    off = 4.6041 * deviation / math.sqrt(5)
    assert found.change == pytest.approx(math.expm1(middle))
    assert found.low == pytest.approx(math.expm1(middle - off), rel=1e-4)
    assert found.high == pytest.approx(math.expm1(middle + off), rel=1e-4)
    assert (found.without, found.num_pairs) == (pytest.approx(1000.0), 5)


def test_a_claim_on_memory_holds_where_less_is_held() -> None:
    trial = make_trial(ratios=around(1.0), memory=around(0.5))
    assert judge(trial, LESS_MEMORY).standing is Standing.HOLDS
    more = make_trial(ratios=around(1.0), memory=around(1.5))
    assert judge(more, LESS_MEMORY).standing is Standing.DOES_NOT_HOLD


def test_on_a_cpu_memory_must_differ_by_more_than_from_server_to_server() -> None:
    """Pairs of one server lay out their memory alike, and agree without meaning it."""
    on_cpu = make_trial(ratios=around(1.0), memory=[0.9] * 5)
    found = judge(on_cpu, LESS_MEMORY)
    assert (found.standing, found.detectable) == (Standing.NO_DIFFERENCE, "13.0 % would have shown")
    assert found.high == pytest.approx(0.9 * 1.15 - 1)
    on_gpu = {name: make_scenario(device="cuda") for name in ("without", "with_it")}
    assert judge(dataclasses.replace(on_cpu, **on_gpu), LESS_MEMORY).standing is Standing.HOLDS


def test_less_memory_than_allocators_round_to_does_not_matter() -> None:
    trial = make_trial(ratios=around(1.0))
    pairs = [
        dataclasses.replace(
            pair,
            without=make_measured(peak_bytes=4 * MIB),
            with_it=make_measured(peak_bytes=3 * MIB),
        )
        for pair in trial.pairs
    ]
    found = judge(dataclasses.replace(trial, pairs=tuple(pairs)), LESS_MEMORY)
    assert found.standing is Standing.NO_DIFFERENCE
    assert "2 MiB" in found.reason


def test_an_epoch_counts_with_the_turn_to_the_next_one() -> None:
    """1000 samples at 1000 a second and half a second of turn: 666.7 a second."""
    assert make_measured().epoch_samples_per_s == pytest.approx(1000 / 1.5)
    trial = make_trial("persistent-workers", around(1.0))
    quicker = [
        dataclasses.replace(pair, with_it=make_measured(epoch_turn_s=0.0)) for pair in trial.pairs
    ]
    found = judge(dataclasses.replace(trial, pairs=tuple(quicker)), SOONER)
    assert found.standing is Standing.HOLDS
    assert found.change == pytest.approx(0.5)


def test_what_is_not_known_here_cannot_be_tried_and_is_no_zero() -> None:
    trial = make_trial(ratios=around(1.0))
    unknown = [
        dataclasses.replace(pair, without=make_measured(peak_bytes=None)) for pair in trial.pairs
    ]
    found = judge(dataclasses.replace(trial, pairs=tuple(unknown)), LESS_MEMORY)
    assert found.standing is Standing.CANNOT_BE_TRIED
    assert "not known here" in found.reason


def test_an_obstacle_is_the_reason() -> None:
    found = judge(make_trial(obstacle="no cuda device on this machine"), FASTER)
    assert found.standing is Standing.CANNOT_BE_TRIED
    assert found.reason == "no cuda device on this machine"
    assert found.change is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"skipped_steps": 80}, "with it the gradient scaler skipped 400 of 400 steps"),
        ({"skipped_steps": None}, "steps skipped are not known"),
        ({"diverges": True}, "with it the loss is not finite"),
    ],
)
def test_steps_that_train_nothing_are_no_gain(changes: dict[str, Any], reason: str) -> None:
    """Skipped ones update nothing and look fast."""
    trial = make_trial("fp16", around(1.5), with_it=make_scenario(precision=Precision.FP16))
    pairs = [
        dataclasses.replace(pair, with_it=dataclasses.replace(pair.with_it, **changes))
        for pair in trial.pairs
    ]
    trial = dataclasses.replace(trial, pairs=tuple(pairs))
    found = judge(trial, FASTER)
    assert found.standing is Standing.CANNOT_BE_TRIED
    assert reason in found.reason
    assert combined([trial]) == []


def test_a_late_failure_leaves_what_was_measured_before_it() -> None:
    trial = make_trial(ratios=around(1.5), failure="with it: timeout: not finished (pair 6)")
    found = judge(trial, FASTER)
    assert found.standing is Standing.HOLDS
    assert "pair 6" in found.remark


def test_compiling_is_told_with_what_it_costs_and_when_it_has_paid() -> None:
    """9 s at 1000 against 1500 samples a second: 9 / (1/1000 - 1/1500) = 27,000 samples."""
    trial = make_trial("compile", [1.5] * 5, with_it=make_scenario(compile=CompileMode.DEFAULT))
    first, *others = trial.pairs
    cold = dataclasses.replace(first.with_it, first_step_s=9.01)
    pairs = (dataclasses.replace(first, with_it=cold), *others)
    found = judge(dataclasses.replace(trial, pairs=pairs), FASTER)
    assert "9.00 s longer" in found.remark
    assert "after 27,000 samples" in found.remark
    together = dataclasses.replace(trial, advice="combination", pairs=pairs)
    assert judge(together, FASTER).remark == "", "its parts were compiled before"


def test_pairs_of_the_same_code_hardly_ever_come_to_a_verdict() -> None:
    order = random.Random(1)
    verdicts = [
        judge(make_trial(ratios=[math.exp(order.gauss(0, 0.04)) for _ in range(10)]), FASTER)
        for _ in range(300)
    ]
    decided = [v for v in verdicts if v.standing is not Standing.NO_DIFFERENCE]
    assert len(decided) <= 9, "one in a hundred is what the interval allows"


# --- the catalogue


def test_every_piece_of_advice_has_a_name_of_its_own_and_sides_that_differ() -> None:
    assert len({advice.name for advice in ADVICE}) == len(ADVICE)
    for advice in ADVICE:
        without, with_it = advice.sides(make_scenario(), MACHINE)
        assert without != with_it, advice.name
        assert advice.claims
        assert claims_of(advice.name) == advice.claims


def test_the_articles_claims_are_all_there() -> None:
    """`num_workers=0` slow, AMP, accumulation, the GPU, `no_grad` and DDP."""
    names = {advice.name for advice in ADVICE if "article" in advice.source}
    assert names >= {"workers", "bf16", "fp16", "accumulation", "gpu", "no-grad", "ddp"}


def test_accumulation_takes_as_many_samples_a_step_as_the_large_batch() -> None:
    (advice,) = (advice for advice in ADVICE if advice.name == "accumulation")
    without, with_it = advice.sides(make_scenario(batch_size=16), MACHINE)
    assert without.samples_per_step == with_it.samples_per_step == 64
    assert (without.batch_size, with_it.batch_size) == (64, 16)


def test_advice_on_a_machine_without_a_gpu_says_what_cannot_be_tried() -> None:
    trials = {t.advice: t for t in advising.plan_trials(make_scenario(), MACHINE)}
    assert len(trials) == len(ADVICE)
    assert trials["gpu"].obstacle == "no cuda device on this machine"
    assert trials["tf32"].obstacle == "no tf32"
    assert "pin_memory" in trials["pin-memory"].obstacle
    assert not trials["workers"].obstacle


def test_evaluation_can_be_tried_whatever_the_training_is() -> None:
    scenario = make_scenario(world_size=2, accumulation=4, set_to_none=False)
    for trial in advising.plan_trials(scenario, MACHINE, ["no-grad", "inference-mode"]):
        assert not trial.obstacle


def test_the_gpu_is_whatever_accelerator_there_is() -> None:
    mps = DeviceInfo(kind="mps", names=("M",), max_ranks=1, precisions={"fp32": ""})
    (trial,) = advising.plan_trials(make_scenario(), make_machine(devices=(mps, CPU)), ["gpu"])
    assert (trial.without.device, trial.with_it.device) == ("cpu", "mps")


def test_advice_keeps_what_the_scenario_has_beside_it() -> None:
    scenario = make_scenario(batch_size=7, threads=1, optimizer=OptimizerName.ADAM)
    for trial in advising.plan_trials(scenario, MACHINE, ["workers", "no-grad"]):
        for side in (trial.without, trial.with_it):
            assert (side.batch_size, side.threads) == (7, 1)
            assert not side.obstacle(MACHINE)


# --- the order of measuring


class Script:
    """Measures from a script: a ratio for each pair of each trial, and the time that it takes."""

    def __init__(
        self,
        ratios: dict[str, Sequence[float]],
        budget_s: float = math.inf,
        wall_s: dict[str, float] | None = None,
    ) -> None:
        self.ratios = ratios
        self.left_s = budget_s
        self.wall_s = wall_s or {}
        self.log: list[str] = []

    def add(self, trial: Trial) -> Trial:
        self.log.append(trial.advice)
        wall_s = self.wall_s.get(trial.advice, 1.0)
        self.left_s -= wall_s
        ratio = self.ratios[trial.advice][len(trial.pairs)]
        if math.isnan(ratio):
            return dataclasses.replace(trial, failure="with it: oom: out of memory")
        (pair,) = make_trial(ratios=[ratio], wall_s=wall_s).pairs
        return dataclasses.replace(trial, pairs=(*trial.pairs, pair))

    def run(self) -> dict[str, Trial]:
        trials = {name: make_trial(name) for name in self.ratios}
        for trial in advising.pursue(list(trials.values()), self.add, lambda: self.left_s):
            trials[trial.advice] = trial
        return trials


def test_each_trial_gets_its_pairs_in_turn() -> None:
    script = Script({"workers": around(1.5), "bf16": around(1.0)})
    trials = script.run()
    assert script.log == ["workers"] * FEWEST_PAIRS + ["bf16"] * FEWEST_PAIRS
    assert {len(trial.pairs) for trial in trials.values()} == {FEWEST_PAIRS}


def test_those_that_scatter_get_more_wherever_their_pairs_lie() -> None:
    wild = [0.8, 1.25] * MOST_PAIRS
    script = Script({"workers": around(1.0), "bf16": wild, "ddp": [2 * r for r in wild]})
    trials = script.run()
    assert len(trials["workers"].pairs) == FEWEST_PAIRS
    assert len(trials["bf16"].pairs) == len(trials["ddp"].pairs) == MOST_PAIRS


def test_three_pairs_are_enough_where_each_says_a_lot() -> None:
    """And no more are measured because they scatter."""
    gross, large = [0.1, 0.08, 0.12], [3.5, 2.9, *[3.5, 4.0] * MOST_PAIRS]
    script = Script({"fp16": gross, "workers": large})
    trials = script.run()
    assert [len(trials[name].pairs) for name in ("fp16", "workers")] == [3, MOST_PAIRS]
    found = judge(trials["fp16"], FASTER)
    assert (found.standing, found.num_pairs) == (Standing.DOES_NOT_HOLD, 3)
    two = dataclasses.replace(trials["fp16"], pairs=trials["fp16"].pairs[:2])
    assert judge(two, FASTER).reason == "2 of at least 3 pairs measured"


def test_what_takes_long_waits_until_the_others_have_their_pairs() -> None:
    ratios = {"workers": around(1.0), "fp16": around(1.0), "bf16": around(1.0)}
    script = Script(ratios, wall_s={"fp16": 60.0})
    trials = script.run()
    assert script.log == ["workers"] * 5 + ["fp16"] + ["bf16"] * 5 + ["fp16"] * 4
    assert {len(trial.pairs) for trial in trials.values()} == {5}
    script = Script(ratios, budget_s=80, wall_s={"fp16": 60.0})
    assert [len(trial.pairs) for trial in script.run().values()] == [5, 1, 5]


def test_a_trial_that_fails_is_left_at_once() -> None:
    script = Script({"workers": [1.0, math.nan], "bf16": around(1.0)})
    trials = script.run()
    assert script.log.count("workers") == 2
    assert trials["workers"].failure
    assert len(trials["bf16"].pairs) == FEWEST_PAIRS


def test_no_trial_is_begun_that_there_is_no_time_to_end() -> None:
    """Six seconds hold the five pairs of the first trial; the second's first pair shows it."""
    script = Script({"workers": around(1.0), "bf16": around(1.0)}, budget_s=6)
    trials = script.run()
    assert len(trials["workers"].pairs) == 5
    assert len(trials["bf16"].pairs) == 1
    assert judge(trials["bf16"], FASTER).standing is Standing.NOT_DECIDED


def test_short_runs_one_after_another_come_to_an_end() -> None:
    """Each has the time of two pairs, where five are needed."""
    trials = {"workers": make_trial("workers")}
    for _ in range(3):
        script = Script({"workers": around(1.0)}, budget_s=2)
        for trial in advising.pursue(list(trials.values()), script.add, lambda s=script: s.left_s):
            trials[trial.advice] = trial
    assert len(trials["workers"].pairs) == FEWEST_PAIRS


def test_what_cannot_be_brought_to_its_end_comes_before_what_scatters() -> None:
    script = Script({"workers": [0.8, 1.25] * MOST_PAIRS, "bf16": around(1.0)}, budget_s=8)
    script.run()
    assert (script.log.count("workers"), script.log.count("bf16")) == (FEWEST_PAIRS, 3)


def test_what_does_not_train_is_not_measured_on() -> None:
    (pair,) = make_trial(ratios=[1.0]).pairs
    trial = make_trial(pairs=(dataclasses.replace(pair, with_it=make_measured(diverges=True)),))
    script = Script({"workers": around(1.0)})
    assert list(advising.pursue([trial], script.add, lambda: math.inf)) == []
    assert advising.needed_s([trial]) == 0
    # A scaler may have skipped one step of few; more pairs tell whether it goes on.
    skipping = make_measured(num_steps=50, skipped_steps=1)
    again = dataclasses.replace(trial, pairs=(dataclasses.replace(pair, with_it=skipping),))
    assert len(list(advising.pursue([again], script.add, lambda: math.inf))) == FEWEST_PAIRS - 1


@pytest.mark.parametrize("is_vague", [True, False])
def test_that_nothing_gains_is_said_with_how_to_see_more(tmp_path: Path, is_vague: bool) -> None:
    folder = suite.begin(tmp_path, "a", [make_scenario()], Plan())
    runner: Any = SimpleNamespace(machine=MACHINE)
    session = advising.AdviceSession(folder, runner, advising.Watch(), math.inf)
    session.best = session.scenario
    ratios = [0.8, 1.25] * 3 if is_vague else around(1.0)
    session.trials = {"workers": make_trial(ratios=ratios)}
    text = advice_command.ending(session)
    assert text.startswith("nothing that was tried is shown to make this training faster")
    assert ("stepmark advice --resume --save a" in text) == is_vague


def test_a_trial_is_gone_on_with_from_the_pairs_it_has() -> None:
    script = Script({"workers": around(1.0)})
    begun = make_trial("workers", around(1.0)[:3])
    trials = list(advising.pursue([begun], script.add, lambda: math.inf))
    assert len(trials) == 2
    assert len(trials[-1].pairs) == FEWEST_PAIRS


# --- what held at once


def tried(name: str, ratio: float, scenario: Scenario | None = None) -> Trial:
    scenario = scenario or make_scenario()
    (trial,) = advising.plan_trials(scenario, MACHINE, [name])
    return dataclasses.replace(trial, pairs=make_trial(ratios=around(ratio)).pairs)


def combined(trials: Sequence[Trial], scenario: Scenario | None = None) -> list[Scenario]:
    found = advising.combination(scenario or make_scenario(), trials, MACHINE)
    return [trial.with_it for trial in found]


def test_what_held_is_put_together_and_the_best_alone_stands_beside_it() -> None:
    trials = [tried("workers", 1.5), tried("bf16", 1.2), tried("fused-optimizer", 1.0)]
    assert combined(trials) == [
        make_scenario(num_workers=2, precision=Precision.BF16),
        make_scenario(num_workers=2),
    ]


def test_of_two_precisions_the_one_that_gains_more_is_taken() -> None:
    trials = [tried("fp16", 1.5), tried("bf16", 1.2)]
    assert combined(trials) == [make_scenario(precision=Precision.FP16)]


def test_workers_that_persist_come_with_workers_or_not_at_all() -> None:
    persistent = tried("persistent-workers", 1.0)
    quicker = [
        dataclasses.replace(pair, with_it=make_measured(epoch_turn_s=0.0))
        for pair in persistent.pairs
    ]
    persistent = dataclasses.replace(persistent, pairs=tuple(quicker))
    assert combined([persistent]) == []
    both = combined([persistent, tried("workers", 1.1)])
    assert both[0] == make_scenario(num_workers=2, persistent_workers=True)


def test_what_the_scenario_has_and_loses_by_is_taken_back() -> None:
    scenario = make_scenario(num_workers=2)
    assert combined([tried("workers", 0.5, scenario)], scenario) == [make_scenario()]


@pytest.mark.parametrize(
    ("own", "name", "ratio"),
    [
        ({"precision": Precision.BF16}, "fp16", 2.5),
        ({"precision": Precision.BF16}, "fp16", 0.05),
        ({"compile": CompileMode.REDUCE_OVERHEAD}, "compile", 3.0),
        ({"optimizer_impl": OptimizerImpl.FOREACH}, "fused-optimizer", 2.0),
        ({"optimizer_impl": OptimizerImpl.FOREACH}, "fused-optimizer", 0.5),
    ],
)
def test_what_the_scenario_has_is_not_replaced_by_what_it_was_not_tried_against(
    own: dict[str, Any], name: str, ratio: float
) -> None:
    """fp16 over fp32 says nothing on fp16 over the scenario's own bf16."""
    scenario = make_scenario(**own)
    assert combined([tried(name, ratio, scenario)], scenario) == []


def test_what_epochs_gain_is_never_the_best_alone() -> None:
    scenario = make_scenario(num_workers=2)
    persistent = tried("persistent-workers", 1.0, scenario)
    quicker = [
        dataclasses.replace(pair, with_it=make_measured(epoch_turn_s=0.0))
        for pair in persistent.pairs
    ]
    persistent = dataclasses.replace(persistent, pairs=tuple(quicker))
    found = combined([persistent, tried("bf16", 1.3, scenario)], scenario)
    bf16 = make_scenario(num_workers=2, precision=Precision.BF16)
    assert found == [dataclasses.replace(bf16, persistent_workers=True), bf16]
    assert combined([persistent], scenario) == []


def test_what_trains_otherwise_or_is_no_training_is_not_combined() -> None:
    trials = [tried(name, 3.0) for name in ("larger-batch", "accumulation", "ddp", "no-grad")]
    assert combined(trials) == []


def test_the_best_is_the_combination_that_gains_most_or_the_scenario_itself() -> None:
    scenario, both, one = (
        make_scenario(),
        make_scenario(num_workers=2, precision=Precision.BF16),
        make_scenario(num_workers=2),
    )

    def trial(name: str, side: Scenario, ratio: float) -> Trial:
        return make_trial(name, around(ratio), without=scenario, with_it=side)

    more = [trial("combination", both, 1.3), trial("best-alone", one, 1.5)]
    assert advising.best(scenario, more) == one
    assert advising.best(scenario, [trial("combination", both, 1.0)]) == scenario
    assert advising.best(scenario, []) == scenario


# --- what is shown


def test_the_command_of_a_scenario_makes_that_scenario() -> None:
    scenario = make_scenario(
        batch_size=32,
        num_workers=2,
        persistent_workers=True,
        precision=Precision.BF16,
        threads=1,
        optimizer=OptimizerName.SGD_MOMENTUM,
        lr=0.1,
        clip_norm=0.0,
        channels_last=True,
        set_to_none=False,
    )
    words = shlex.split(command(scenario))[2:]
    given = {k[2:].replace("-", "_"): v for k, v in zip(words[::2], words[1::2], strict=True)}
    options = {name: axis.default for name, axis in axes.AXES.items()} | given
    assert axes.scenarios({**options, "workload": [given["workload"]]}) == [scenario]


def test_text_and_json_hold_every_claim_with_its_verdict() -> None:
    trials = [
        make_trial("bf16", around(1.5), memory=around(1.0)),
        make_trial("gpu", obstacle="no cuda device on this machine"),
    ]
    text = as_text(trials)
    assert "+50.0 %" in text
    assert "cannot be tried: no cuda device on this machine" in text
    best = Best(make_scenario(num_workers=2), 1.2)
    data = json.loads(as_json(trials, make_scenario(), best, {}))
    assert [len(entry["claims"]) for entry in data["advice"]] == [2, 1]
    assert data["advice"][0]["claims"][0]["verdict"] == "holds"
    assert data["advice"][1]["claims"][0]["change"] is None
    assert data["best"]["command"].startswith("stepmark run --workload mlp-toy")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), (" 2h ", 7200)]
)
def test_a_duration_is_read_in_its_unit(text: str, seconds: float) -> None:
    assert parse_duration("--budget", text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "ten", "5d", "1e3"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(StepmarkError, match="give a time such as"):
        parse_duration("--budget", text)


def test_what_is_needed_is_told_from_what_pairs_took() -> None:
    begun = make_trial("workers", around(1.0)[:3], wall_s=10.0)
    decided = make_trial("bf16", around(1.0), wall_s=60.0)
    gross = make_trial("fp16", [0.1, 0.1], wall_s=40.0)
    blocked = dataclasses.replace(make_trial("gpu"), obstacle="no cuda device")
    assert advising.needed_s([make_trial("ddp")]) == 0
    assert advising.needed_s([begun, decided, blocked]) == 2 * 10
    # Another pair of fp16, and five of ddp as long as the median of the others'.
    assert advising.needed_s([begun, decided, gross, make_trial("ddp")]) == 20 + 40 + 5 * 40
    # The first pair compiled.
    first, second = make_trial("compile", around(1.0)[:2], wall_s=7.0).pairs
    cold = make_trial("compile", pairs=(dataclasses.replace(first, wall_s=35.0), second))
    assert advising.needed_s([cold]) == 3 * 7


def test_what_was_kept_for_a_combination_is_used_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 60 s 24 are kept; pairs take 10 s, and five are needed: 30 s hold three of them."""
    now_s = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    script = Script({"workers": around(1.0)}, wall_s={"workers": 10.0})

    def add(trial: Trial) -> Trial:
        now_s[0] += 10.0
        return script.add(trial)

    folder = suite.begin(tmp_path, "a", [make_scenario()], Plan())
    runner: Any = SimpleNamespace(machine=MACHINE)
    session = advising.AdviceSession(folder, runner, advising.Watch(), 60.0)
    session.results = [make_result()]
    session.plan(("workers",))
    measuring: Any = SimpleNamespace(add_to=add)
    session.pursue(measuring)
    assert len(session.trials["workers"].pairs) == FEWEST_PAIRS
    assert not session.combinations


def test_a_trials_pairs_may_be_of_several_commits() -> None:
    first, second = make_trial(ratios=[1.0, 1.0]).pairs
    then, now = make_commit(), make_commit(dirty=True)
    trial = make_trial(commit=then, pairs=(first, dataclasses.replace(second, commit=now)))
    assert trial.commits == (then, now)
    assert dataclasses.replace(trial, pairs=()).commits == ()


def test_a_budget_that_is_too_small_is_told_after_the_first_pair(tmp_path: Path) -> None:
    told: list[tuple[float, float]] = []

    class Told(advising.Watch):
        def on_estimate(self, needed_s: float, left_s: float) -> None:
            told.append((needed_s, left_s))

    script = Script({name: around(1.0) for name in ("workers", "channels-last")})
    for budget_s, wall_s in ((100.0, 30.0), (1000.0, 30.0)):
        script.wall_s = dict.fromkeys(script.ratios, wall_s)
        folder = suite.begin(tmp_path, f"b{budget_s:g}", [make_scenario()], Plan())
        end_s = time.monotonic() + budget_s
        runner: Any = SimpleNamespace(machine=MACHINE)
        session = advising.AdviceSession(folder, runner, Told(), end_s)
        session.results = [make_result()]
        session.plan(tuple(script.ratios))
        measuring: Any = SimpleNamespace(add_to=script.add)
        session.pursue(measuring)
    (found,) = told
    assert found[0] == 9 * 30
    assert 0 < found[1] < 100


# --- for real

SLOW_DATA = """
import time
import torch
from stepmark import Workload


class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        time.sleep(0.003)
        return torch.zeros(4), index % 2


def build():
    return Workload(
        model=torch.nn.Linear(4, 2),
        dataset=Slow(),
        loss_fn=torch.nn.CrossEntropyLoss(),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
    )
"""


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two pieces of advice on a dataset that sleeps 3 ms a sample."""
    folder = tmp_path_factory.mktemp("advice")
    (folder / "slow.py").write_text(SLOW_DATA)
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        patch.setattr(pairs, "_PAIR_S", 0.5)
        patch.setattr(pairs, "_FEWEST_ROUNDS", 4)
        patch.setattr(advising.pairs, "_WARM_UP_S", 0.5)
        patch.setattr(advice_command, "_STEPS", 5)
        patch.setattr(advice_command, "interrupt_once", lambda *_: None)
        words = ["--workload", "slow.py:build", "--batch-size", "8", "--threads", "1"]
        words += ["--only", "workers,gpu", "--budget", "10m", "--save", "a", "--json"]
        with contextlib.redirect_stdout(output):
            assert app(["advice", *words], standalone_mode=False) == 0
    (folder / "out.json").write_text(output.getvalue())
    return folder


def claims_in(folder: Path) -> dict[str, Any]:
    data = json.loads((folder / "out.json").read_text())
    return {entry["name"]: entry["claims"][0] for entry in data["advice"]}


def test_workers_help_a_dataset_that_makes_the_loop_wait(slow: Path) -> None:
    found = claims_in(slow)["workers"]
    assert found["verdict"] == "holds"
    assert found["num_pairs"] >= FEWEST_PAIRS


def test_the_best_combination_is_measured_in_fresh_processes(slow: Path) -> None:
    data = json.loads((slow / "out.json").read_text())
    assert "--num-workers" in data["best"]["command"]
    assert data["best"]["gain_in_fresh_processes"] > 1.2
    assert {len(rates) for rates in data["samples_per_s"].values()} == {3}
    assert len(data["samples_per_s"]) == 2


def test_a_run_of_advice_is_gone_on_with_without_measuring_anything_again(slow: Path) -> None:
    before = {p: p.read_bytes() for p in (slow / "results" / "a").rglob("*.json")}
    done = stepmark("advice", "--resume", "--save", "a", "--budget", "30s", cwd=slow)
    assert done.returncode == 0, done.stderr
    assert "workers" in done.stdout
    assert "the best that was found, " in done.stdout
    assert {p: p.read_bytes() for p in (slow / "results" / "a").rglob("*.json")} == before


def test_the_report_has_a_section_with_a_plot(slow: Path) -> None:
    done = stepmark("report", "a", cwd=slow)
    assert done.returncode == 0, done.stderr
    text = (slow / "reports" / "report.md").read_text()
    assert "Does the advice hold here?" in text
    assert "no cuda device on this machine" in text
    assert "stepmark run --workload slow.py:build" in text
    assert list((slow / "reports" / "plots").glob("*-throughput-by-advice-*.png"))


def test_a_scenario_that_cannot_run_ends_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def build():\n    raise ValueError('no such model')\n")
    done = stepmark("advice", "--workload", "broken.py:build", "--only", "workers", cwd=tmp_path)
    assert done.returncode == 1
    assert "no such model" in done.stderr
    assert "Traceback" not in done.stdout


def test_a_device_that_is_not_there_is_no_success(tmp_path: Path) -> None:
    done = stepmark(
        "advice", "--workload", "mlp-toy", "--device", "mps", "--only", "workers", "--json",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert json.loads(done.stdout)["outcome"] == "skipped"
    assert "no mps device on this machine" in done.stderr


def test_nothing_is_called_the_best_while_nothing_is_decided(tmp_path: Path) -> None:
    words = ("--workload", "mlp-toy", "--only", "workers", "--save", "a")
    done = stepmark("advice", *words, "--budget", "0.01s", cwd=tmp_path)
    assert done.returncode == 0
    assert "not decided: 0 of at least 5 pairs" in done.stdout
    assert "nothing that was tried" not in done.stdout
    assert "the budget ran out before all was decided" in done.stderr


def test_another_commands_run_is_not_gone_on_with(tmp_path: Path) -> None:
    save_run(tmp_path / "results", make_run(make_result(), name="plain"))
    done = stepmark("advice", "--resume", "--save", "plain", cwd=tmp_path)
    assert done.returncode == 2
    assert "is no run of 'stepmark advice'" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "magic"], "choose from workers, "),
        (["--batch-size", "1,2"], "make 2 scenarios; give one value to each"),
        (["--task", "evaluate"], "advice is tried on training"),
        (["--budget", "soon"], "give a time such as 90s, 10m or 1h"),
        (["--resume"], "say which run with --save NAME"),
        (["--resume", "--save", "nope"], "no run to resume"),
        (["--resume", "--save", "a", "--only", "bf16"], "has its own scenario and advice"),
        (["--workload", "nope"], "no such built-in workload"),
    ],
)
def test_a_mistake_is_said_before_anything_is_measured(
    tmp_path: Path, words: list[str], message: str
) -> None:
    done = stepmark("advice", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


def test_inference_is_no_part_of_what_is_combined() -> None:
    trial = tried("inference-mode", 2.0)
    assert trial.with_it.task is Task.EVALUATE
    assert combined([trial]) == []
