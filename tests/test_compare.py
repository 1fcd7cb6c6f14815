"""Two saved runs to verdicts, exit codes and files for CI."""

import dataclasses
import json
import math
import random
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from commands import stepmark

from stepmark.compare import (
    Comparison,
    Rules,
    Verdict,
    command,
    compare_runs,
    exit_code,
    judge_floors,
)
from stepmark.compare.command import parse_fraction
from stepmark.compare.output import write
from stepmark.compare.verdict import Counter, drift
from stepmark.errors import UsageError
from stepmark.result import Outcome, Result
from stepmark.scenario import Plan, Scenario
from tests.factories import (
    make_machine,
    make_memory,
    make_repeats,
    make_result,
    make_run,
    make_scenario,
    make_window,
    save_run,
)


def processes(
    factor: float = 1.0,
    *,
    number: int = 10,
    noise: float = 0.005,
    seed: int = 0,
    scenario: Scenario | None = None,
    **overrides: Any,
) -> list[Result]:
    """Repeats whose steps take ``factor`` times as long, with that noise between processes."""
    source = random.Random(seed)
    rates = [1000.0 / factor * math.exp(-source.expovariate(1 / noise)) for _ in range(number)]
    return make_repeats(scenario, samples_per_s=rates, **overrides)


def compared(
    base: Sequence[Result], head: Sequence[Result], rules: Rules | None = None
) -> Comparison:
    (comparison,) = compare_runs(make_run(*base), make_run(*head), rules or Rules())
    return comparison


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(1.0, Verdict.SAME), (1.1, Verdict.SLOWER), (0.9, Verdict.FASTER), (1.01, Verdict.SAME)],
)
@pytest.mark.parametrize("number", [4, 10])
def test_processes_tell_what_became_of_the_step(
    factor: float, verdict: Verdict, number: int
) -> None:
    found = compared(processes(number=number), processes(factor, number=number, seed=1))
    assert found.verdict is verdict
    assert found.change == pytest.approx(factor - 1, abs=0.01)
    assert found.low is not None
    assert found.high is not None
    assert found.low < factor - 1 < found.high
    assert (found.num_base, found.num_head) == (number, number)


def test_a_change_within_the_noise_is_inconclusive_and_says_what_could_be_found() -> None:
    found = compared(processes(noise=0.1), processes(1.05, noise=0.1, seed=1))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.detectable is not None
    assert 0.05 < found.detectable < 1
    assert "may hide in the noise" in found.reason


def test_one_process_a_side_is_inconclusive_however_large_the_change() -> None:
    found = compared([make_result()], [make_result(samples_per_s=100.0)])
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.change == pytest.approx(9.0)
    assert "--repeats 5" in found.reason


def test_two_processes_that_differ_wildly_are_inconclusive_in_readable_words() -> None:
    found = judge_floors([1.0, 1.0], [1.0, 1e9], Rules())
    assert found.verdict is Verdict.INCONCLUSIVE
    text = write([found], "table", title="a -> b")
    assert "over +10000 %" in text
    assert max(map(len, text.splitlines())) < 200
    assert json.loads(write([found], "json", title="a -> b"))["comparisons"][0]["high"] > 10


def test_false_alarms_between_unchanged_processes_are_rare() -> None:
    # One-sided noise with a long tail, as machines have it; 300 comparisons of 5 against 5.
    source = random.Random(3)
    alarms = 0
    for _ in range(300):
        sides = [
            make_repeats(
                samples_per_s=[1000.0 / (1 + source.paretovariate(2) * 0.03) for _ in range(5)]
            )
            for _ in range(2)
        ]
        alarms += compared(*sides).verdict in (Verdict.SLOWER, Verdict.FASTER)
    assert alarms <= 9, "3 % of the comparisons; the interval is one of 99 %"


@pytest.mark.parametrize("scenario", ["mlp, 1 thread", "cnn, 1 thread", "cnn, 2 threads"])
def test_recorded_processes_of_the_same_code_raise_few_alarms(scenario: str) -> None:
    # Their medians lie 15 % apart, some of them 100 times as long as others.
    text = (Path(__file__).parent.parent / "docs/validation/process_floors.json").read_text()
    floors = json.loads(text)["floors_us"][scenario]
    source = random.Random(4)
    alarms = 0
    for _ in range(400):
        blocks = source.sample(range(50), 10)
        base = [floors["A"][block] for block in blocks[:5]]
        head = [floors["A2"][block] for block in blocks[5:]]
        verdict = judge_floors(base, head, Rules()).verdict
        alarms += verdict in (Verdict.SLOWER, Verdict.FASTER)
    assert alarms <= 12, "3 %; 1 % is what the interval promises"


def test_the_threshold_is_what_matters_to_the_caller() -> None:
    base, head = processes(), processes(1.1, seed=1)
    assert compared(base, head, Rules(threshold=0.2)).verdict is Verdict.SAME
    assert compared(base, head, Rules(threshold=0.05)).verdict is Verdict.SLOWER


def test_a_scenario_that_one_side_lacks_or_failed_is_missing() -> None:
    other = processes(scenario=make_scenario(batch_size=8))
    first, second = compare_runs(
        make_run(*processes()), make_run(*processes(seed=1), *other), Rules()
    )
    assert (first.verdict, second.verdict) == (Verdict.SAME, Verdict.MISSING)
    assert second.reason == "base: was not measured"
    failed = make_result(outcome=Outcome.OOM, reason="out of memory")
    found = compared(processes(), [failed])
    assert (found.verdict, found.reason) == (Verdict.MISSING, "head: oom: out of memory")
    one_of_ten = compared(processes(), [*processes()[1:], failed])
    assert one_of_ten.verdict is Verdict.MISSING, "nine good ones do not hide a death"


def test_what_neither_side_could_run_is_left_out() -> None:
    skipped = make_result(outcome=Outcome.SKIPPED)
    assert compare_runs(make_run(skipped), make_run(skipped), Rules()) == []


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        ({"hardware": {"cpu": "Another", "cpus": "2"}}, "other hardware: cpu is Example CPU 3.0"),
        ({"software": {"torch": "9.9"}}, "give --across "),
    ],
)
def test_another_machine_or_other_software_is_not_compared(
    machine: dict[str, Any], reason: str
) -> None:
    found = compared(processes(), processes(seed=1, machine=make_machine(**machine)))
    assert found.verdict is Verdict.INCOMPARABLE
    assert reason in found.reason


def test_software_that_is_compared_on_purpose_is_shown() -> None:
    there = make_machine()
    newer = make_machine(software={**there.software, "torch": "9.9"})
    rules = Rules(compared_software=frozenset({"torch"}))
    found = compared(processes(), processes(1.1, seed=1, machine=newer), rules)
    assert found.verdict is Verdict.SLOWER
    assert f"torch {there.software['torch']} -> 9.9" in found.remarks


def test_other_settings_are_not_compared() -> None:
    found = compared(processes(), processes(seed=1, rank={"num_threads": 1}))
    assert found.reason == "other setting: threads is 2 in base and 1 in head"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Plan(steps=2000), "other plan: steps is 50 in base and 2000 in head"),
        (Plan(max_seconds=1.0), "other plan: max_seconds is 10 in base and 1 in head"),
    ],
)
def test_windows_of_another_length_are_not_compared(other: Plan, message: str) -> None:
    """The fastest of more steps is faster."""
    found = compared(processes(plan=Plan()), processes(seed=1, plan=other))
    assert found.verdict is Verdict.INCOMPARABLE
    assert found.reason == message


def test_what_an_interrupted_run_lacks_is_said() -> None:
    scenario, never = make_scenario(), make_scenario(batch_size=128)
    base = make_run(*processes(scenario=scenario))
    cut = [(scenario.id, 8), (scenario.id, 9), (never.id, 0)]
    head = dataclasses.replace(
        make_run(*processes(seed=1, number=8, scenario=scenario)), missing=tuple(cut)
    )
    found, missing = compare_runs(base, head, Rules())
    assert found.verdict is Verdict.SAME
    assert found.remarks == ("head was interrupted, 2 of its repeats lack here",)
    assert missing.verdict is Verdict.MISSING
    assert missing.reason == "base: was not measured"


def test_windows_that_are_not_to_be_trusted_decide_nothing() -> None:
    hot = make_result(rank={"unfit": ("the GPU was slowed down (power brake)",)})
    found = compared(processes(), [*processes(1.5, seed=1), hot])
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.reason == (
        "1 of 21 windows are unfit (the GPU was slowed down (power brake)); measure again"
    )


def test_a_step_of_no_time_is_no_figure() -> None:
    window = make_window(num_steps=5, window_s=0.0, step_s=(0.0,) * 5)
    nothing = make_result(rank={"window": window})
    assert compared(processes(), [nothing]).verdict is Verdict.MISSING


def test_waiting_for_data_is_told_when_it_became_much_more() -> None:
    waiting = [
        dataclasses.replace(
            result,
            ranks=tuple(
                dataclasses.replace(
                    rank,
                    phases=dataclasses.replace(rank.phases, data_wait_s=rank.phases.step_s * 0.6),
                )
                for rank in result.ranks
            ),
        )
        for result in processes(seed=1)
    ]
    (remark,) = compared(processes(), waiting).remarks
    assert remark.startswith("60.0 % of a step is waiting for data, ")


def test_another_host_with_the_same_hardware_is_advisory_only() -> None:
    found = compared(processes(), processes(1.1, seed=1, machine=make_machine(host="bench-2")))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "SLOWER, but base was measured on bench-1, head on bench-2" in found.reason


def test_skipped_optimizer_steps_are_not_compared() -> None:
    found = compared(processes(), processes(seed=1, rank={"skipped_steps": 3}))
    assert found.verdict is Verdict.INCOMPARABLE


def test_memory_that_grew_is_a_regression_of_its_own() -> None:
    def memory(mib: int) -> dict[str, Any]:
        return {"memory": make_memory(peak_allocated_bytes=mib << 20)}

    found = compared(processes(rank=memory(100)), processes(seed=1, rank=memory(110)))
    assert found.verdict is Verdict.SAME, "of the step's time"
    assert found.is_regression
    assert exit_code([found]) == 1
    less = compared(processes(rank=memory(100)), processes(seed=1, rank=memory(90)))
    assert [c.is_regression for c in less.counters] == [False]


def test_another_loss_is_told_and_decides_nothing() -> None:
    found = compared(processes(), processes(seed=1, rank={"first_loss": 2.31}))
    assert [(c.name, c.base, c.head) for c in found.counters] == [("first_loss", "2.3", "2.31")]
    assert exit_code([found]) == 0


def test_batches_that_lie_ready_do_not_make_a_floor() -> None:
    # With two workers, six batches may lie ready: six fast steps in a row say nothing.
    scenario = make_scenario(num_workers=2)
    ready = (0.001,) * 6 + (0.012,) * 44
    steady = (sum(ready) / 50,) * 50

    def run(step_s: tuple[float, ...]) -> list[Result]:
        window = make_window(step_s=step_s[0], window_s=sum(step_s))
        window = dataclasses.replace(window, step_s=step_s)
        return processes(scenario=scenario, number=5, rank={"window": window})

    found = compared(run(steady), run(ready))
    assert found.change is not None
    assert found.change > -0.95, "not the single step of 1 ms"


def test_stalls_and_tails_are_told_and_decide_nothing() -> None:
    stalled = dataclasses.replace(
        make_window(step_s=0.064), step_s=(0.064,) * 45 + (1.0,) * 5, window_s=0.064 * 45 + 5
    )
    found = compared(
        processes(noise=0.0001), processes(seed=1, noise=0.0001, rank={"window": stalled})
    )
    assert found.verdict is Verdict.SAME
    assert any(remark.startswith("mean step +") for remark in found.remarks)
    assert any(remark.startswith("p99 step +") for remark in found.remarks)


def verdicts(*values: Verdict) -> list[Comparison]:
    return [
        Comparison(scenario_id=f"s{i}", verdict=v, reason="r", change=0.1)
        for i, v in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ((), 5),
        ((Verdict.SAME, Verdict.FASTER), 0),
        ((Verdict.SAME, Verdict.INCONCLUSIVE), 4),
        ((Verdict.INCONCLUSIVE, Verdict.MISSING), 3),
        ((Verdict.INCONCLUSIVE, Verdict.INCOMPARABLE), 3),
        ((Verdict.MISSING, Verdict.INCONCLUSIVE, Verdict.SLOWER), 1),
    ],
)
def test_the_exit_code_is_that_of_the_worst(values: tuple[Verdict, ...], code: int) -> None:
    assert exit_code(verdicts(*values)) == code


def test_many_scenarios_that_move_the_same_way_are_called_drift() -> None:
    assert "2 of 5 scenarios are SLOWER" in drift(
        verdicts(*[Verdict.SLOWER] * 2, *[Verdict.SAME] * 3)
    )
    assert drift(verdicts(Verdict.SLOWER, *[Verdict.SAME] * 4)) == ""
    assert drift(verdicts(Verdict.SLOWER, Verdict.SLOWER)) == "", "too few to tell"


def test_junit_has_failures_errors_and_skips() -> None:
    found = verdicts(
        Verdict.SLOWER, Verdict.INCONCLUSIVE, Verdict.MISSING, Verdict.INCOMPARABLE, Verdict.SAME
    )
    found = [dataclasses.replace(c, reason='less < "more" & \x1b[0m') for c in found]
    suite = ElementTree.fromstring(write(found, "junit", title="a -> b"))
    assert [[child.tag for child in case] for case in suite] == [
        ["failure"], ["skipped"], ["error"], ["error"], [],
    ]  # fmt: skip
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "5", "failures": "1", "errors": "2", "skipped": "1"}


def test_what_was_skipped_is_in_every_format() -> None:
    skipped = {"mlp-cuda": "no CUDA <device> here"}
    found = verdicts(Verdict.SAME)
    written = {
        name: write(found, name, title="a -> b", skipped=skipped)
        for name in ("table", "markdown", "json", "junit")
    }
    assert "mlp-cuda: skipped: no CUDA <device> here" in written["table"]
    assert "1 SAME, 1 skipped" in written["table"]
    assert "| skipped | no CUDA &lt;device&gt; here |" in written["markdown"]
    assert json.loads(written["json"])["skipped"] == skipped
    suite = ElementTree.fromstring(written["junit"])
    assert (suite.get("tests"), suite.get("skipped")) == ("2", "1")
    assert [child.tag for case in suite for child in case] == ["skipped"]


def test_markdown_says_the_counts_first_and_keeps_to_its_columns() -> None:
    (comparison,) = verdicts(Verdict.SLOWER)
    text = write([dataclasses.replace(comparison, reason="a | b")], "markdown", title="a -> b")
    lines = text.splitlines()
    assert lines[2] == "**1 SLOWER**"
    assert lines[-1].replace("\\|", "").count("|") == lines[-3].count("|")


def test_json_holds_every_field_and_the_exit_code() -> None:
    data = json.loads(write(verdicts(Verdict.SLOWER), "json", title="a -> b"))
    assert data["exit_code"] == 1
    (comparison,) = data["comparisons"]
    assert {"scenario_id", "verdict", "change", "low", "high", "detectable"} <= set(comparison)


@pytest.mark.parametrize(("text", "value"), [("3%", 0.03), ("0.03", 0.03), (" 2.5 %", 0.025)])
def test_a_threshold_is_a_part_or_percent(text: str, value: float) -> None:
    assert parse_fraction("--threshold", text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "3 percent", "-3%", "0", "100%", "1", "nan", "1e-2"])
def test_any_other_threshold_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--threshold .*: give a part such as 3% or 0\.03"):
        parse_fraction("--threshold", text)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with three runs of ten processes: base, again (the same) and slow (10 %)."""
    for name, factor, seed in (("base", 1.0, 0), ("again", 1.0, 1), ("slow", 1.1, 2)):
        save_run(tmp_path / "results", make_run(*processes(factor, seed=seed), name=name))
    return tmp_path


@pytest.mark.parametrize(("head", "code"), [("again", 0), ("slow", 1)])
def test_the_command_prints_a_table_and_ends_with_the_code(
    saved: Path, head: str, code: int
) -> None:
    done = stepmark("compare", "base", head, cwd=saved)
    assert (done.returncode, done.stderr) == (code, "")
    title, heading, row, *_ = done.stdout.splitlines()
    assert title == f"base -> {head}"
    assert heading.split() == [
        "scenario", "base", "head", "change", "interval", "detectable", "verdict",
    ]  # fmt: skip
    assert row.split()[-1] == ("SLOWER" if code else "SAME")


def test_the_command_also_goes_by_bench_compare(saved: Path) -> None:
    repository = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "bench.compare", "base", "slow", "--format", "json",
         "--results", str(saved / "results")],
        cwd=repository, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert json.loads(done.stdout)["comparisons"][0]["verdict"] == "SLOWER"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("base", "nope"), "'nope': no such run"),
        (("base", "base"), "is both base and head; name two runs"),
        (("base", "again", "--threshold", "much"), "--threshold 'much': give a part"),
        (("base", "again", "--format", "xml"), "--format 'xml': choose from table, markdown"),
    ],
)
def test_the_commands_mistakes_are_one_message(
    saved: Path, words: tuple[str, ...], message: str
) -> None:
    done = stepmark("compare", *words, cwd=saved)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["compare", "bench"])
def test_a_reader_that_has_seen_enough_takes_nothing_from_the_exit_code(
    saved: Path, command: str
) -> None:
    """As ``| head -1`` does; more is printed than a pipe would hold."""
    words = {"compare": ["-m", "stepmark", "compare"], "bench": ["-m", "bench.compare"]}[command]
    code = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, *sys.argv[1:]], "
        "stdout=subprocess.PIPE); p.stdout.close(); sys.exit(p.wait())"
    )
    options = ["--results", str(saved / "results"), "--format", "json"]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "base", "slow", *options],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""


def test_a_mistake_of_stepmarks_own_is_no_verdict(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(command, "compare_runs", fail)
    assert command.main(["base", "again", "--results", str(saved / "results")]) == 2
    assert "stepmark itself failed (RuntimeError: a bug)" in capsys.readouterr().err


def test_runs_without_a_common_scenario_are_not_passed(tmp_path: Path) -> None:
    for name, batch_size in (("a", 1), ("b", 2)):
        results = processes(scenario=make_scenario(batch_size=batch_size))
        save_run(tmp_path / "results", make_run(*results, name=name))
    assert stepmark("compare", "a", "b", cwd=tmp_path).returncode == 3


@pytest.mark.parametrize(
    ("base", "head", "shown"),
    [
        ("0.69210773706, 0.69 after 3 steps", "0.6931239366, 0.69 after 3 steps", "0.692108, 0.69"),
        ("2.3000000001 after 3 steps", "2.3000000002 after 3 steps", "2.3000000001 after"),
        ("64", "65", "loss 64 -> 65"),
        ("0.6921077, 0.500000001", "0.7021077, 0.500000002", "0.500000001 -> "),
    ],
)
def test_exact_figures_are_shown_with_as_many_digits_as_tell_them_apart(
    base: str, head: str, shown: str
) -> None:
    comparison = Comparison(
        scenario_id="s", verdict=Verdict.SAME, reason="",
        counters=(Counter(name="loss", base=base, head=head),),
    )  # fmt: skip
    assert shown in write([comparison], "table", title="")
