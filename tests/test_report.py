"""The report: what it says, that it stands alone, and that it refuses politely."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from stepmark import report
from stepmark.choices import Precision
from stepmark.record import EndedBy, Reading, WarmUp
from stepmark.report import wording
from stepmark.report.binding import binding
from stepmark.report.blocks import Findings, Plot, Table
from stepmark.report.cells import AXES, Group, axis_default, axis_key
from stepmark.report.contrast import Verdict, contrast, contrast_in
from stepmark.report.drawing import Line, draw_lines, is_signed
from stepmark.report.material import Material
from stepmark.report.sections import SECTIONS
from stepmark.report.sections.breakdown import phases
from stepmark.report.sections.doubts import doubts
from stepmark.report.sections.summary import summary
from stepmark.report.sections.tables import every_scenario
from stepmark.result import Outcome, Result
from stepmark.scenario import Scenario, matrix
from stepmark.store import Run
from stepmark.training import EndOfTraining, TrainPlan
from tests.factories import (
    MIB,
    make_commit,
    make_epoch,
    make_machine,
    make_memory,
    make_profile,
    make_repeats,
    make_result,
    make_run,
    make_scenario,
    make_training,
    make_trial,
    make_window,
    save_run,
)

WAITING = {"data_wait": 0.62, "h2d": 0.01, "forward": 0.12, "backward": 0.2, "optimizer": 0.04}
FED = {"data_wait": 0.08, "h2d": 0.02, "forward": 0.3, "backward": 0.5, "optimizer": 0.08}


# A step of 3.2 GFLOP that moves 100 MB, on a machine of 100 GFLOP/s and 20 GB/s.
WORK = tuple(
    Reading(name=name, unit=unit, scope="node", value=value)
    for name, unit, value in (
        ("flops_per_step", "flop", 3.2e9),
        ("least_bytes_per_step", "bytes", 1e8),
        ("attainable_compute", "flop/s", 100e9),
        ("attainable_memory", "bytes/s", 20e9),
    )
)


def steady(scenario: Scenario, samples_per_s: float, **overrides: object) -> list[Result]:
    """Three repeats that differ by 1 %."""
    rates = [samples_per_s * factor for factor in (0.995, 1.0, 1.005)]
    return make_repeats(scenario, samples_per_s=rates, **overrides)


def rendered(out: Path, *runs: Run) -> tuple[str, str]:
    """The report of runs as HTML and as Markdown."""
    index = report.render(runs, out)
    return index.read_text("utf-8"), (out / "report.md").read_text("utf-8")


def findings(*results: Result, lead: str) -> list[str]:
    """The statements with this lead, in summary and doubts of one run."""
    material = Material([make_run(*results)])
    blocks = [*summary(material), *doubts(material)]
    items = [item for block in blocks if isinstance(block, Findings) for item in block.items]
    return [item.text for item in items if item.lead == lead]


def headings(markdown: str) -> list[str]:
    return re.findall(r"^## (.*)$", markdown, re.MULTILINE)


def only_group(results: Sequence[Result]) -> Group:
    (group,) = Material([make_run(*results)]).groups()
    return group


# What the summary says.


def test_fastest_scenario_is_named_with_its_lead_over_slowest_and_plain_loop() -> None:
    results = [
        *steady(make_scenario(batch_size=16), 500.0),
        *steady(make_scenario(batch_size=64), 1000.0),
        *steady(make_scenario(batch_size=64, precision="bf16"), 2000.0),
    ]
    (text,) = findings(*results, lead="Fastest")
    assert text == (
        "Batch 64, bf16: 2,000 samples/s (3 processes: 1,990 to 2,010), 32.0 ms a step. That is "
        "4.00× the slowest (batch 16, fp32: 500) and 2.00× the plain loop at that batch size "
        "(batch 64, fp32: 1,000)."
    )


def test_scenarios_within_the_noise_of_the_fastest_are_named_beside_it() -> None:
    results = [
        *steady(make_scenario(batch_size=64), 1000.0),
        *steady(make_scenario(batch_size=128), 1004.0),
        *steady(make_scenario(batch_size=16), 500.0),
    ]
    (text,) = findings(*results, lead="Fastest")
    assert text.startswith("Batch 128:")
    assert "Too close to the fastest to be told from it: batch 64: 1,000." in text


def test_the_overview_shows_the_fastest_with_its_range_and_what_is_doubtful(tmp_path: Path) -> None:
    results = [
        *make_repeats(make_scenario(threads=1), samples_per_s=[500.0, 1000.0, 1100.0]),
        *steady(make_scenario(threads=1, precision="bf16"), 1005.0),
        *steady(make_scenario(threads=1, precision="bf16", batch_size=32), 100.0),
        *steady(make_scenario(workload="gpt"), 10.0),
    ]
    html, markdown = rendered(tmp_path, make_run(*results))
    assert (
        "| mlp-toy on cpu | batch 64, bf16, 1 thread | 1,005 (1,000 to 1,010) | 1 of 2 | 1,000 |"
        in markdown
    )
    (text,) = findings(*results, lead="Doubts")
    assert text.startswith("Processes disagree (1)")
    assert "of 4 scenarios; see Doubts." in text
    assert re.search(r"\d\u00a0%", html), "no line breaks before a percent sign"
    assert not re.search(r"\d %", re.sub(r"<(style|script|pre).*?</\1>", "", html, flags=re.DOTALL))


def test_a_plot_of_one_line_names_it_in_its_title() -> None:
    points = {1.0: [1.0], 2.0: [2.0]}
    alone = draw_lines([Line(label="bf16", points=points)], title="T", x_label="x", y_label="y")
    assert alone.axes[0].get_title(loc="left") == "T\nbf16"
    assert alone.axes[0].get_legend() is None
    lines = [Line(label=label, points=points) for label in ("fp32", "bf16")]
    both = draw_lines(lines, title="T", x_label="x", y_label="y").axes[0]
    assert both.get_title(loc="left") == "T"
    legend = both.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["fp32", "bf16"]
    first, second = (container.lines[0].get_xdata() for container in both.containers)
    assert all(a < b for a, b in zip(first, second, strict=True)), "whiskers stand side by side"


def test_how_to_measure_again_is_told_of_a_run_by_pytest_and_by_command(tmp_path: Path) -> None:
    run = make_run(make_result())
    _, by_command = rendered(tmp_path / "a", run)
    assert "stepmark run --workload mlp-toy" in by_command
    _, by_pytest = rendered(tmp_path / "b", dataclasses.replace(run, by_pytest=True))
    assert "stepmark run" not in by_pytest
    assert "pytest bench/ --benchmark-save" in by_pytest


def test_difference_within_the_spread_of_repeats_is_not_claimed() -> None:
    results = [
        *make_repeats(make_scenario(), samples_per_s=[900.0, 1000.0, 1100.0]),
        *make_repeats(make_scenario(precision="bf16"), samples_per_s=[950.0, 1060.0, 1150.0]),
    ]
    (text,) = findings(*results, lead="Precision")
    assert text.startswith(
        "bf16 against fp32 is not shown to pay here: no clear difference (1.06×; clear only "
        "above 1.30×), at batch 64, bf16."
    )
    (fastest,) = findings(*results, lead="Fastest")
    assert "no clear difference from the slowest" in fastest


def test_single_processes_tell_large_differences_only() -> None:
    def verdict(samples_per_s: float) -> Verdict:
        group = only_group(
            [
                make_result(make_scenario(), samples_per_s=1000.0),
                make_result(make_scenario(precision="bf16"), samples_per_s=samples_per_s),
            ]
        )
        return contrast(group.cells[1], group.cells[0], group.cells).verdict

    assert verdict(1400.0) is Verdict.NOT_SHOWN
    assert verdict(700.0) is Verdict.NOT_SHOWN
    assert verdict(1600.0) is Verdict.MORE
    assert verdict(600.0) is Verdict.LESS
    (text,) = findings(make_result(), lead="Noise")
    assert "a single process cannot tell small differences" in text
    assert "--repeats 3" in text


def test_repeats_that_agree_by_chance_are_held_against_the_typical_spread() -> None:
    lucky = [
        *make_repeats(make_scenario(batch_size=64), samples_per_s=[1000.0, 1000.0, 1000.0]),
        *make_repeats(make_scenario(batch_size=128), samples_per_s=[1050.0, 1050.0, 1050.0]),
    ]
    noisy = [
        result
        for size in (8, 16, 32)
        for result in make_repeats(
            make_scenario(batch_size=size), samples_per_s=[900.0, 1000.0, 1100.0]
        )
    ]
    alone, among = only_group(lucky), only_group([*lucky, *noisy])
    assert contrast(alone.cells[1], alone.cells[0], alone.cells).verdict is Verdict.MORE
    assert contrast(among.cells[4], among.cells[3], among.cells).verdict is Verdict.NOT_SHOWN


def test_precision_is_judged_on_matched_pairs_alone() -> None:
    # bf16 was only measured with workers and fp32 without: no pair is equal but for precision.
    unmatched = [
        *steady(make_scenario(), 1000.0),
        *steady(make_scenario(precision="bf16", num_workers=2), 3000.0),
    ]
    assert findings(*unmatched, lead="Precision") == []
    matched = [*unmatched, *steady(make_scenario(precision="bf16"), 1500.0)]
    (text,) = findings(*matched, lead="Precision")
    assert text.startswith(
        "bf16 against fp32 pays here: faster, 1.50×, at batch 64, 0 workers, bf16."
    )


def test_many_pairs_are_counted_by_verdict() -> None:
    results = [
        result
        for size, bf16_per_s in ((16, 500.0), (64, 1002.0), (256, 1500.0), (512, 1600.0))
        for result in (
            *steady(make_scenario(batch_size=size), 1000.0),
            *steady(make_scenario(batch_size=size, precision="bf16"), bf16_per_s),
        )
    ]
    (text,) = findings(*results, lead="Precision")
    assert text.startswith(
        "bf16 against fp32 pays in part: faster in 2 of 4 matched pairs (1.50× to 1.60×, most at "
        "batch 512, bf16); slower in 1 (0.50× at batch 16, bf16); no clear difference in 1 "
        "(1.00×"
    )


def test_pairs_with_skipped_optimizer_steps_are_left_out() -> None:
    results = [
        *steady(make_scenario(), 1000.0),
        *steady(make_scenario(precision="fp16"), 3000.0, rank={"skipped_steps": 4}),
    ]
    (text,) = findings(*results, lead="Precision")
    assert text == (
        "fp16 against fp32: not compared. Left out: 1 scenario in which the gradient scaler "
        "skipped steps."
    )
    (fastest,) = findings(*results, lead="One scenario")
    assert fastest.startswith("Batch 64, fp32: 1,000 samples/s")


def test_results_of_different_commits_are_not_paired() -> None:
    results = [
        *steady(make_scenario(), 1000.0),
        *steady(make_scenario(precision="bf16"), 2000.0, commit=make_commit(id="f" * 40)),
    ]
    assert findings(*results, lead="Precision") == []
    assert "2 commits" in findings(*results, lead="Different commits")[0]


def test_loader_bound_scenario_is_told_with_what_workers_change() -> None:
    results = [
        *steady(make_scenario(), 1000.0, shares=WAITING),
        *steady(make_scenario(num_workers=2), 2400.0, shares=FED),
    ]
    (text,) = findings(*results, lead="Data wait")
    assert text == (
        "At most 62 % of the step, at batch 64, 0 workers: loader-bound. With 2 workers in place "
        "of 0, all else equal, it goes from 62 % to 8 %; throughput: 2.40×."
    )
    (workers,) = findings(*results, lead="Workers")
    assert workers == (
        "2 workers against 0: faster, 2.40×, at batch 64, 2 workers. Data wait is 8 % of the "
        "step, against 62 %."
    )


def test_a_step_of_two_processes_is_that_of_their_throughput() -> None:
    results = make_repeats(make_scenario(), samples_per_s=[1000.0, 2000.0])
    (cell,) = Material([make_run(*results)]).cells
    assert cell.mean_step_s == pytest.approx(64 / 1500)


def test_waiting_for_data_without_another_worker_count_says_so() -> None:
    (text,) = findings(make_result(shares=WAITING), lead="Data wait")
    assert "Not measured with another number of workers" in text


@pytest.mark.parametrize(
    ("mib", "verdict"), [(108, Verdict.NOT_SHOWN), (120, Verdict.MORE), (84, Verdict.LESS)]
)
def test_host_memory_must_differ_by_more_than_from_server_to_server(
    mib: int, verdict: Verdict
) -> None:
    """Processes of one server agree on it, and do not mean it."""

    def memory(peak_mib: int) -> dict[str, object]:
        return {"memory": make_memory(peak_host_bytes=peak_mib * MIB)}

    results = [
        *steady(make_scenario(), 1000.0, rank=memory(100)),
        *steady(make_scenario(precision=Precision.BF16), 1000.0, rank=memory(mib)),
    ]
    fp32, bf16 = Material([make_run(*results)]).cells
    found = contrast_in("peak_host_bytes", bf16, fp32, [fp32, bf16])
    assert found is not None
    assert found.verdict is verdict


def test_accumulation_is_held_against_one_large_batch_in_speed_and_memory() -> None:
    def memory(peak_mib: int) -> dict[str, object]:
        return {"memory": make_memory(peak_host_bytes=peak_mib * MIB)}

    results = [
        *steady(make_scenario(batch_size=256), 1000.0, rank=memory(400)),
        *steady(make_scenario(batch_size=64, accumulation=4), 800.0, rank=memory(100)),
    ]
    (text,) = findings(*results, lead="Accumulation")
    assert text == (
        "4 micro-batches a step against one batch of as many samples: slower, 0.80×, at batch 64, "
        "accumulation 4. Peak host memory: less, 0.25×, at batch 64, accumulation 4."
    )


def test_ddp_efficiency_is_against_world_size_times_one_process(tmp_path: Path) -> None:
    sync = Reading(name="ddp_sync", unit="s", scope="rank", value=0.008)
    results = [
        *steady(make_scenario(), 1000.0),
        *steady(make_scenario(ddp=True), 990.0),
        *steady(make_scenario(world_size=2), 1600.0, rank={"num_threads": 1, "readings": (sync,)}),
    ]
    (text,) = findings(*results, lead="DDP")
    assert text.startswith(
        "2 ranks against one process: faster, 1.60×, at batch 64, 2 ranks. Efficiency, the "
        "throughput over 2 times that of one: 80 % (as far as this run can tell, 79 % to 81 %). "
        "The ranks share this machine's CPUs: compute threads per rank 1, in one process 2. "
        "Synchronizing gradients costs 8.00 ms a step, 10 % of it. One process wrapped in DDP "
        "against the plain loop: no clear difference"
    )
    _, markdown = rendered(tmp_path, make_run(*results))
    assert "| batch 64, 2 ranks | 1 | 1,600 | 80.0 % | 80.8 % | 80.0 ms | 8.00 ms |" in markdown


def test_a_cost_of_ddp_that_some_process_did_not_see_is_not_called_one() -> None:
    results = [
        *steady(make_scenario(), 1000.0),
        *(
            make_result(
                make_scenario(world_size=2),
                repeat=repeat,
                samples_per_s=1600.0,
                rank={"readings": (Reading(name="ddp_sync", unit="s", scope="node", value=cost),)},
            )
            for repeat, cost in enumerate((-0.001, 0.002, 0.004))
        ),
    ]
    (text,) = findings(*results, lead="DDP")
    assert "no cost that this run can show (-1.00 ms to 4.00 ms a step)" in text


def test_a_cost_of_ddp_that_one_scenario_shows_is_told_beside_one_that_does_not() -> None:
    def sync(cost_s: float) -> dict[str, object]:
        return {"readings": (Reading(name="ddp_sync", unit="s", scope="node", value=cost_s),)}

    results = [
        *steady(make_scenario(), 1000.0),
        *steady(make_scenario(batch_size=32), 1000.0),
        *steady(make_scenario(world_size=2), 1600.0, rank=sync(0.008)),
        *steady(make_scenario(world_size=2, batch_size=32), 1600.0, rank=sync(-0.001)),
    ]
    (text,) = findings(*results, lead="DDP")
    assert "a cost that this run shows in 1 of 2 scenarios" in text


def test_an_efficiency_of_single_processes_has_no_range() -> None:
    results = [make_result(make_scenario(world_size=n), samples_per_s=n * 800.0) for n in (1, 2)]
    (text,) = findings(*results, lead="DDP")
    assert "times that of one: 100 %. " in text


def test_an_efficiency_beyond_all_noise_is_called_unusual() -> None:
    results = [
        *steady(make_scenario(), 1000.0),
        *steady(make_scenario(world_size=2), 3000.0),
    ]
    (text,) = findings(*results, lead="DDP")
    assert "150 %" in text
    assert "more than linear" in text


def test_a_rise_and_fall_with_the_batch_size_is_only_told_where_it_is_clear() -> None:
    clear = [(16, 1000.0), (32, 2000.0), (64, 1500.0)]
    results = [r for b, rate in clear for r in steady(make_scenario(batch_size=b), rate)]
    (text,) = findings(*results, lead="Batch size")
    assert "Above 32 it falls: 0.75× at 64." in text
    results = [
        make_result(make_scenario(batch_size=b), repeat=i, samples_per_s=rate * factor)
        for b, rate in ((16, 1000.0), (32, 1040.0), (64, 1020.0))
        for i, factor in enumerate((0.9, 1.0, 1.1))
    ]
    (text,) = findings(*results, lead="Batch size")
    assert "falls" not in text


def test_an_axis_without_words_of_its_own_is_compared_too() -> None:
    results = [
        *steady(make_scenario(num_workers=2), 1000.0),
        *steady(make_scenario(num_workers=2, persistent_workers=True), 1300.0),
    ]
    (text,) = findings(*results, lead="Persistent workers")
    assert "faster, 1.30×" in text


OFF_DEFAULT = {
    "task": "infer", "no_grad": False, "inference_mode": True, "compile": "max-autotune",
    "channels_last": True, "optimizer": "adam", "lr": 0.5, "optimizer_impl": "fused",
    "loss": "l1", "clip_norm": 0.0, "set_to_none": False, "pipeline_stages": 2,
    "split_layers": True,
}  # fmt: skip


def test_every_axis_has_words_for_all_its_values() -> None:
    assert set(wording._AXIS_WORDS) == set(AXES)
    for axis, value in OFF_DEFAULT.items():
        words = [wording.axis_words(axis, v) for v in (axis_default(axis), value)]
        assert len(set(words)) == 2
        assert not any("None" in word or "_impl" in word for word in words)


def test_values_of_any_axis_sort_beside_its_default() -> None:
    for axis, value in OFF_DEFAULT.items():
        own = getattr(make_scenario(**{axis: value}), axis)
        assert len(sorted([own, axis_default(axis), own], key=axis_key)) == 3
    precisions = sorted([Precision.FP16, Precision.FP32, Precision.TF32], key=axis_key)
    assert precisions == [Precision.FP32, Precision.TF32, Precision.FP16]


def test_evaluation_stands_apart_and_is_held_against_training() -> None:
    results = [
        *steady(make_scenario(), 1000.0),
        *steady(make_scenario(task="evaluate"), 3000.0),
        *steady(make_scenario(task="evaluate", no_grad=False), 2000.0),
    ]
    training, evaluation = Material([make_run(*results)]).groups()
    assert (training.title, evaluation.title) == (
        "mlp-toy on cpu", "mlp-toy on cpu, evaluation",
    )  # fmt: skip
    (text,) = findings(*results, lead="Task")
    assert text.startswith("Evaluation against training: faster")
    (text,) = findings(*results, lead="no_grad")
    assert text == "Gradients recorded against no gradients recorded: slower, 0.67×, at batch 64."
    fastest = findings(*results, lead="Fastest")
    assert "3,000 samples/s" in fastest[0], "of evaluation: training has one scenario alone"


def compiled(samples_per_s: float) -> list[Result]:
    """Compiled in 2 + 4 seconds, beside an eager loop of 64 samples in 64 ms."""
    costs = tuple(
        Reading(name=name, unit="s", scope="rank", value=value)
        for name, value in (("compiler_start", 2.0), ("compile_time", 4.0))
    )
    counts = tuple(
        Reading(name=name, unit="count", scope="rank", value=value)
        for name, value in (("compiled_graphs", 3.0), ("graph_breaks", 2.0))
    )
    scenario = make_scenario(compile="default")
    return [
        *steady(make_scenario(), 1000.0),
        *steady(scenario, samples_per_s, rank={"readings": costs + counts}),
    ]


@pytest.mark.parametrize(
    ("samples_per_s", "written"),
    [(1280.0, "429 steps"), (800.0, "never"), (1004.0, "unclear")],
)
def test_compiling_is_paid_back_after_its_cost_over_what_a_step_saves(
    tmp_path: Path, samples_per_s: float, written: str
) -> None:
    # 64 ms less 50 ms are 14 ms a step: 6 s are saved after 428.6 steps.
    _, markdown = rendered(tmp_path, make_run(*compiled(samples_per_s)))
    (row,) = [r for r in markdown.splitlines() if r.startswith("| batch 64, compiled | 2.00 s |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[-1] == written
    assert cells[1:3] == ["2.00 s", "4.00 s"]
    assert cells[4:6] == ["3", "2"]


def test_a_summary_says_what_compiling_costs_and_when_it_is_paid_back() -> None:
    (text,) = findings(*compiled(1280.0), lead="torch.compile")
    assert text == (
        "Compiled against not compiled: faster, 1.28×, at batch 64. Compiling takes 6.00 s, paid "
        "back after 429 steps."
    )
    (text,) = findings(*compiled(800.0), lead="torch.compile")
    assert text.endswith(
        "Compiling takes 6.00 s; this run does not show that it is ever paid back."
    )


def test_devices_are_compared_pair_by_pair() -> None:
    results = [
        *steady(make_scenario(batch_size=16), 1000.0),
        *steady(make_scenario(batch_size=256), 1000.0),
        *steady(make_scenario(batch_size=16, device="cuda"), 500.0),
        *steady(make_scenario(batch_size=256, device="cuda"), 9000.0),
    ]
    (text,) = findings(*results, lead="Device")
    assert text == (
        "cuda against cpu: faster in 1 of 2 matched pairs (9.00× at batch 256); slower in 1 "
        "(0.50× at batch 16)."
    )


# Doubts, failures, and what is shown where.


@pytest.mark.parametrize(
    ("lead", "overrides"),
    [
        ("Warm-up not settled", {"warmup": WarmUp(num_steps=9, seconds=1.0, settled=False)}),
        ("Phase marks disturb", {"phase_window": make_window(step_s=0.07)}),
        ("Few steps", {"window": make_window(num_steps=4, ended_by=EndedBy.SECONDS)}),
        ("Skipped optimizer steps", {"skipped_steps": 2}),
        ("Skipped steps unknown", {"skipped_steps": None}),
        ("Generated data", {"data": "FashionMNIST (generated)"}),
        ("Note", {"notes": ("the loss ended at nan",)}),
    ],
)
def test_doubtful_records_raise_their_doubt_and_sound_ones_do_not(
    lead: str, overrides: dict[str, object]
) -> None:
    assert len(findings(make_result(rank=overrides), lead=lead)) == 1
    assert findings(make_result(), lead=lead) == []


def test_doubts_of_a_run_are_told() -> None:
    unfit = make_machine(unfit=("the governor is powersave: set it to performance",))
    elsewhere = make_machine(host="bench-2", hardware={"cpu": "Another", "cpus": "8"})
    results = [
        make_result(machine=unfit, commit=make_commit(dirty=True)),
        make_result(repeat=1, machine=elsewhere, samples_per_s=2000.0),
    ]
    for lead in (
        "Unfit machine",
        "Different machines",
        "Uncommitted changes",
        "Processes disagree",
    ):
        assert len(findings(*results, lead=lead)) == 1, lead


def test_every_outcome_is_shown_with_its_reason(tmp_path: Path) -> None:
    reasons = {
        Outcome.SKIPPED: "2 ranks need 2 cuda devices, found 1",
        Outcome.OOM: "out of memory at 8 GiB",
        Outcome.TIMEOUT: "killed after 300 s",
        Outcome.FAILED: "RuntimeError: shapes differ",
    }
    results = [make_result(make_scenario(batch_size=1))] + [
        make_result(
            make_scenario(batch_size=size),
            outcome=outcome,
            reason=reason,
            detail="Traceback: the whole of it" if outcome is Outcome.FAILED else "",
        )
        for size, (outcome, reason) in enumerate(reasons.items(), 2)
    ]
    run = make_run(*results, missing=[("mlp-toy-cpu-bs99", 0)])
    html, markdown = rendered(tmp_path, run)
    for outcome, reason in reasons.items():
        assert f"| {outcome.value} | 0 | {reason} |" in markdown
    assert "| mlp-toy-cpu-bs99 | missing | 0 | planned, but the run was interrupted" in markdown
    assert "Traceback: the whole of it" in markdown
    assert re.search(r"<details>\s*<summary>mlp-toy-cpu-bs5, repeat 0: failed", html)
    assert "1 ok, 1 skipped, 1 out of memory, 1 timed out, 1 failed" in markdown


def test_a_run_where_all_failed_still_gives_a_report(tmp_path: Path) -> None:
    result = make_result(outcome=Outcome.FAILED, reason="boom")
    _, markdown = rendered(tmp_path, make_run(result))
    assert headings(markdown) == [
        "Summary",
        "Did not run",
        "Doubts about these numbers",
        "Machine, software and settings",
    ]
    assert list((tmp_path / "plots").iterdir()) == []


def test_sections_with_nothing_to_show_leave_themselves_out(tmp_path: Path) -> None:
    _, markdown = rendered(tmp_path, make_run(make_result()))
    assert headings(markdown) == [
        "Summary",
        "Where the step's time goes",
        "Memory",
        "Start-up",
        "Every scenario",
        "Doubts about these numbers",
        "Machine, software and settings",
    ]


def test_a_full_matrix_shows_every_section(tmp_path: Path) -> None:
    power = Reading(name="power", unit="W", scope="device", value=71.5, note="read once")
    energy = Reading(name="energy", unit="J", scope="device", value=640.0)
    scenarios = [
        *matrix(workload="mlp-toy", device="cpu", batch_size=[16, 64], num_workers=[0, 1]),
        make_scenario(accumulation=4),
        make_scenario(world_size=2),
        make_scenario(precision="bf16"),
        make_scenario(compile="default"),
        make_scenario(pipeline_stages=2),
    ]
    results = [make_result(s, rank={"readings": (power, energy, *WORK)}) for s in scenarios]
    results.append(make_result(make_scenario(device="cuda"), outcome=Outcome.SKIPPED))
    run = dataclasses.replace(
        make_run(*results),
        profiles=(make_profile(scenarios[0]),),
        trials=(make_trial(ratios=[1.2, 1.21, 1.19, 1.2, 1.22]),),
        trainings=(make_training(),),
    )
    _, markdown = rendered(tmp_path, run)
    assert headings(markdown) == [title for title, _ in SECTIONS]
    rows = [r for r in markdown.splitlines() if r.startswith("| mlp-toy-cpu-bs64-bf16 |")]
    assert any("| 71.5 W |" in row for row in rows)
    assert "- **power:** read once" in markdown
    for image in re.findall(r"!\[.*\]\((.*)\)", markdown):
        assert (tmp_path / image).is_file()


def test_a_training_shows_what_is_known_of_its_epochs_and_how_it_ended(tmp_path: Path) -> None:
    first = make_epoch(checkpoint_s=None, checkpoint_bytes=None)
    second = make_epoch(epoch=2, valid_loss=None, is_best=False, num_phase_steps=10)
    plan = TrainPlan(epochs=9, patience=1)
    run = dataclasses.replace(
        make_run(),
        trainings=(
            make_training(first, second, plan=plan, ended_by=EndOfTraining.PATIENCE),
            make_training(plan=plan, ended_by=None, outcome=None, num_resumed=2),
            make_training(
                plan=plan, ended_by=None, outcome=Outcome.OOM, reason="out of host memory"
            ),
        ),
    )
    _, markdown = rendered(tmp_path, run)
    assert "- **Ended:** After 2 epochs of 9: 1 epoch without a lower loss." in markdown
    assert "- **Ended:** Interrupted after 1 epoch of 9. Resumed 2 times." in markdown
    assert "- **Ended:** After 1 epoch of 9: oom: out of host memory." in markdown
    assert "| 1 (best) | 0.9 | 0.8 | 0.7000 | 0.6 | 0.7500 | 0.1 |\n" in markdown
    assert "| 1 | 500 | 2.00 s | 250 ms | — | — |\n" in markdown
    assert "| 2 | 0.9 | 0.8 | 0.7000 | — | 0.7500 |" in markdown
    assert "phases of a mean step, over their first 20 steps" in markdown
    assert "training 87.9 % (4.00 s), validation 11.0 % (500 ms), checkpoints 1.1 %" in markdown
    assert "stepmark train --workload mlp-toy" in markdown


def test_a_run_of_advice_is_summed_up_and_its_command_is_told(tmp_path: Path) -> None:
    scenario = make_scenario(batch_size=8)
    bf16 = dataclasses.replace(scenario, precision=Precision.BF16)
    steady = (1.01, 0.99, 1.0, 1.005, 0.995)
    faster, slower = ([ratio * factor for factor in steady] for ratio in (1.5, 0.5))
    run = dataclasses.replace(
        make_run(make_result(scenario)),
        trials=(
            make_trial("channels-last", slower, without=scenario),
            make_trial("workers", without=scenario),
            make_trial("ddp", steady, without=scenario),
            make_trial("tf32", without=scenario, obstacle="no tf32 here"),
            make_trial("combination", faster, without=scenario, with_it=bf16),
        ),
        missing=((bf16.id, 0), (bf16.id, 1)),
    )
    _, markdown = rendered(tmp_path, run)
    assert (
        "- **Advice:** Of 4 claims, 1 does not hold, 1 had no difference that could be seen, 1 "
        "cannot be tried and 1 is not decided. The best that was found, of what trains the same: "
        f"{bf16.id}, throughput +50.0 % in turns with {scenario.id}." in markdown
    )
    assert ". 2 more were not measured." in markdown
    assert (
        "stepmark advice --workload mlp-toy --batch-size 8 --device cpu "
        "--only channels-last,workers,ddp,tf32\n" in markdown
    )
    assert "stepmark run --workload mlp-toy --device cpu --batch-size 8 --precision bf16" in (
        markdown
    )


def test_a_regression_has_no_column_and_no_plot_of_accuracy(tmp_path: Path) -> None:
    epoch = make_epoch(train_accuracy=None, valid_accuracy=None, phases=None, num_phase_steps=0)
    run = dataclasses.replace(make_run(), trainings=(make_training(epoch),))
    _, markdown = rendered(tmp_path, run)
    assert "accuracy" not in markdown.partition("- **Best epoch")[2]
    (image,) = re.findall(r"!\[.*\]\((.*)\)", markdown)
    assert "learning" in image


def test_a_profile_says_where_steps_went_and_who_waited(tmp_path: Path) -> None:
    run = dataclasses.replace(make_run(make_result()), profiles=(make_profile(),))
    _, markdown = rendered(tmp_path, run)
    assert "| 10.0 ms | 1.25× | 40 % | 10 % | 5 % | 45 % | 25 % |" in markdown
    assert "| aten::mm | 12 | 2.00 ms | 6.00 ms |" in markdown
    assert "| sgemm_128x64 | 12 | 6.00 ms |" in markdown
    assert "in 2 calls of cudaStreamSynchronize, from train.py(12): step." in markdown
    assert "| optimizer state | 8.00 MiB | 8.00 MiB |" in markdown
    assert "| workspace and the rest | — | -1.00 MiB |" in markdown
    assert "mlp.rank0.trace.json.gz" in markdown
    (plot,) = re.findall(r"!\[(Memory over a step: .*)\]\(.*\)", markdown)
    assert plot.endswith("batch 64")


def test_ranks_of_a_profile_stand_beside_each_other(tmp_path: Path) -> None:
    profile = make_profile(make_scenario(world_size=2))
    (first,), (total,) = profile.ranks, profile.totals
    second = dataclasses.replace(first, rank=1, profiled_step_s=0.02)
    waiting = dataclasses.replace(total, idle_s=0.001, exposed_comm_s=0.01)
    profile = dataclasses.replace(profile, ranks=(first, second), totals=(total, waiting))
    run = make_run(make_result(make_scenario(world_size=2)))
    _, markdown = rendered(tmp_path, dataclasses.replace(run, profiles=(profile,)))
    rows = [r for r in markdown.splitlines() if re.match(r"\| .*, rank \d \| \d\d\.\d ms", r)]
    assert [row.split(" | ")[1] for row in rows] == ["10.0 ms", "20.0 ms"]
    assert rows[0].endswith("| 10 % | 5 % | 45 % | 25 % |")
    assert rows[1].endswith("| 50 % | 5 % | 5 % | — |"), "whose launches were late is not known"


@pytest.mark.parametrize(("device", "has_column"), [(0, True), (None, False)], ids=["gpu", "cpu"])
def test_only_a_device_can_be_starved(tmp_path: Path, device: int | None, has_column: bool) -> None:
    run = dataclasses.replace(make_run(make_result()), profiles=(make_profile(device=device),))
    _, markdown = rendered(tmp_path, run)
    (header,) = [r for r in markdown.splitlines() if r.startswith("| scenario | profiled step |")]
    assert header.endswith("| idle | starved |" if has_column else "| outside of operators |")


@pytest.mark.parametrize(
    ("flops", "moved", "shares", "expected"),
    [
        (3.2e9, 1e8, FED, "compute"),
        (3.2e8, 9e8, FED, "memory"),
        (3.2e8, 1e8, FED, "none of these"),
        (3.2e8, 5e9, FED, "none of these"),  # more than could be moved: caches hold it
        (3.2e9, 1e8, WAITING, "data"),
    ],
)
def test_the_ceiling_that_holds_a_step_back_is_named(
    flops: float, moved: float, shares: dict[str, float], expected: str
) -> None:
    """A step takes 64 ms, in which this machine attains 6.4 GFLOP and moves 1.28 GB."""
    readings = tuple(
        dataclasses.replace(reading, value={"flops_per_step": flops, "least_bytes_per_step": moved}
                            .get(reading.name, reading.value))
        for reading in WORK
    )  # fmt: skip
    assert binding(make_result(shares=shares, rank={"readings": readings})) == expected


@pytest.mark.parametrize(
    ("counted", "attainable", "shares", "expected"),
    [
        ("h2d_bytes_per_step", "attainable_h2d", FED, "copies"),
        ("all_reduce_bytes_per_step", "attainable_all_reduce", FED, "all-reduce"),
        # Workers decode beside the step, which does not wait for them.
        ("jpeg_pixels_per_step", "attainable_jpeg_decode", FED, "compute"),
        ("jpeg_pixels_per_step", "attainable_jpeg_decode", WAITING, "data: JPEG decoding"),
        ("h2d_bytes_per_step", "attainable_h2d", WAITING, "data"),
    ],
)
def test_copies_gradients_and_files_hold_steps_back_too(
    counted: str, attainable: str, shares: dict[str, float], expected: str
) -> None:
    """As much of it as 45 ms of a step of 64 ms take, and of compute half of it."""
    work = (
        Reading(name=counted, unit="bytes", scope="rank", value=45e6),
        Reading(name=attainable, unit="bytes/s", scope="rank", value=1e9),
    )
    assert binding(make_result(shares=shares, rank={"readings": (*WORK, *work)})) == expected


def test_a_ceiling_that_is_not_known_is_not_acquitted_and_others_need_no_flops() -> None:
    idle = dataclasses.replace(WORK[0], value=3.2e8), *WORK[1:]
    gradients = Reading(name="all_reduce_bytes_per_step", unit="bytes", scope="rank", value=45e6)
    assert binding(make_result(shares=FED, rank={"readings": idle})) == "none of these"
    assert binding(make_result(shares=FED, rank={"readings": (*idle, gradients)})) == ""
    rate = Reading(name="attainable_all_reduce", unit="bytes/s", scope="rank", value=1e9)
    found = make_result(shares=FED, rank={"readings": (gradients, rate)})
    assert binding(found) == "all-reduce"
    nothing = make_result(shares=FED)
    assert binding(nothing) == ""


def test_what_needs_no_flops_is_in_the_table_without_them(tmp_path: Path) -> None:
    readings = (
        Reading(name="flops_per_step", unit="flop", scope="node", value=None, note="an LSTM"),
        Reading(name="h2d_bytes_per_step", unit="bytes", scope="rank", value=45e6),
        Reading(name="attainable_h2d", unit="bytes/s", scope="rank", value=1e9),
    )
    _, markdown = rendered(tmp_path, make_run(make_result(shares=FED, rank={"readings": readings})))
    assert "| 70 % | copies |" in markdown


@pytest.mark.parametrize(("flops", "expected"), [(3.2e9, "compute"), (3.2e8, "")])
def test_where_the_least_traffic_is_not_known_memory_is_not_acquitted(
    flops: float, expected: str
) -> None:
    readings = (dataclasses.replace(WORK[0], value=flops), WORK[2], WORK[3])
    assert binding(make_result(shares=FED, rank={"readings": readings})) == expected


def test_without_ceilings_no_part_of_them_is_told(tmp_path: Path) -> None:
    _, markdown = rendered(tmp_path, make_run(make_result(rank={"readings": WORK[:2]})))
    assert "What the machine could attain" not in headings(markdown)


def test_energy_is_told_by_sample(tmp_path: Path) -> None:
    readings = (
        Reading(name="energy", unit="J", scope="device", value=640.0),
        Reading(name="power", unit="W", scope="device", value=200.0),
    )
    result = make_result(rank={"readings": readings})
    assert result.joules_per_sample == pytest.approx(640 / (64 * 50))
    _, markdown = rendered(tmp_path, make_run(result))
    assert "| 0.2 J | 200 W |" in markdown


def test_unfit_windows_are_in_doubt_with_their_reasons(tmp_path: Path) -> None:
    reason = "the GPU was slowed down (power brake, 12.0 % of the window)"
    _, markdown = rendered(tmp_path, make_run(make_result(rank={"unfit": (reason,)})))
    assert "**Unfit windows:**" in markdown
    assert "The GPU was slowed down (power brake, 12.0 % of the window)" in markdown


def test_missing_numbers_are_empty_and_never_zero(tmp_path: Path) -> None:
    blind = dataclasses.replace(make_window(step_s=0.064), step_s=())
    results = [
        make_result(make_scenario(batch_size=64), rank={"window": blind}),
        make_result(make_scenario(batch_size=128)),
    ]
    _, markdown = rendered(tmp_path, make_run(*results))
    assert "| mlp-toy-cpu-bs64 | 1,000 | 1 | — | — | — | 1.00× |" in markdown


def test_several_runs_are_labelled_by_run(tmp_path: Path) -> None:
    base = make_run(*steady(make_scenario(), 1000.0), name="base")
    head = make_run(*steady(make_scenario(), 900.0), name="head")
    _, markdown = rendered(tmp_path, base, head)
    assert "| base: batch 64 |" in markdown
    assert "| head: batch 64 |" in markdown
    assert "stepmark compare" in markdown


def test_a_run_given_twice_is_shown_once(tmp_path: Path) -> None:
    run = make_run(make_result())
    assert rendered(tmp_path / "twice", run, run) == rendered(tmp_path / "once", run)


def test_the_command_to_run_again_names_the_measured_scenarios(tmp_path: Path) -> None:
    scenarios = matrix(
        workload="my train.py:build", device="cpu", batch_size=[64, 16], precision=["fp32", "bf16"]
    )
    scenarios.append(make_scenario(workload="my train.py:build", batch_size=16, ddp=True))
    results = [result for s in scenarios for result in steady(s, 1000.0)]
    _, markdown = rendered(tmp_path, make_run(*results))
    again = re.findall(r"^stepmark run .*$", markdown, re.MULTILINE)
    name = "stepmark run --workload 'my train.py:build'"
    assert again == [
        f"{name} --batch-size 16,64 --precision fp32,bf16 --device cpu --repeats 3",
        f"{name} --batch-size 16 --ddp true --device cpu --repeats 3",
    ]


# The files.


def test_page_asks_for_nothing_outside_itself(tmp_path: Path) -> None:
    results = [make_result(s) for s in matrix(workload="w", device="cpu", batch_size=[1, 2])]
    html, _ = rendered(tmp_path, make_run(*results))
    targets = re.findall(r"""(?:src|href|action|srcset)\s*=\s*["']?([^"'\s>]+)""", html)
    assert targets
    assert all(target.startswith(("data:", "#")) for target in targets)
    assert not re.search(r"url\(|@import|<script|<iframe|<object", html)
    assert html.count("data:image/png;base64,") == len(list((tmp_path / "plots").iterdir()))


def test_untrusted_text_is_escaped_everywhere(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script> | *b* $\\frac$ `"
    reading = Reading(name=evil, unit="s", scope="rank", value=1.0, note=evil)
    scenarios = [make_scenario(workload=f"{evil}.py:build", batch_size=size) for size in (1, 2)]
    results = [
        *(make_result(s, rank={"readings": (reading,), "notes": (evil,)}) for s in scenarios),
        make_result(
            make_scenario(workload=evil), outcome=Outcome.FAILED, reason=evil, detail=f"```\n{evil}"
        ),
    ]
    html, markdown = rendered(tmp_path, make_run(*results))
    assert "<script" not in html
    assert "&lt;script&gt;alert(" in html
    outside_code = re.sub(r"^(`{3,})text\n.*?^\1$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    assert re.search(r"(?<!\\)<script", outside_code) is None
    assert "\\<script\\>alert('x')\\</script\\> \\| \\*b\\* \\$" in outside_code
    assert "\n````text\n```\n" in markdown


def test_stale_plots_are_removed_and_pictures_of_others_are_not(tmp_path: Path) -> None:
    results = [make_result(s) for s in matrix(workload="w", device="cpu", batch_size=[1, 2])]
    report.render([make_run(*results)], tmp_path)
    plots = tmp_path / "plots"
    first = {path.name for path in plots.iterdir()}
    (plots / "holiday.png").write_bytes(b"\x89PNG, but not drawn here")
    report.render([make_run(make_result())], tmp_path)
    second = {path.name for path in plots.iterdir()}
    assert any("batch-size" in name for name in first)
    assert not any("batch-size" in name for name in second)
    assert "holiday.png" in second
    assert all(is_signed((plots / n).read_bytes()) for n in second - {"holiday.png"})


def test_sixty_scenarios_are_split_into_readable_plots() -> None:
    scenarios = matrix(
        workload="examples/training/my_train.py:build",
        device="cpu",
        batch_size=[8, 16, 32, 64, 128],
        num_workers=[0, 1, 2],
        precision=["fp32", "bf16"],
        accumulation=[1, 4],
    )
    material = Material([make_run(*(make_result(s) for s in scenarios))])
    bars = [len(b.figure.axes[0].get_yticks()) for b in phases(material) if isinstance(b, Plot)]
    assert bars == [20, 20, 20]
    (table,) = (b for b in every_scenario(material) if isinstance(b, Table))
    assert len(table.rows) == 60


# The command, and what it imports.


def test_report_of_the_latest_run_is_written_and_its_paths_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_run(tmp_path / "results", make_run(make_result(), name="first"))
    out = tmp_path / "deep" / "reports"
    assert report.main(["--results", str(tmp_path / "results"), "-o", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [str(out / "index.html"), str(out / "report.md"), str(out / "plots")]
    assert "stepmark: first" in (out / "index.html").read_text("utf-8")


def test_missing_run_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main(["nowhere", "--results", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: 'nowhere': no such run")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_unwritable_folder_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_run(tmp_path / "results", make_run(make_result(), name="first"))
    (tmp_path / "file").write_text("in the way")
    arguments = ["first", "--results", str(tmp_path / "results"), "-o", str(tmp_path / "file")]
    assert report.main(arguments) == 2
    assert re.fullmatch(r"error: .*file: cannot be written \(.*\)\n", capsys.readouterr().err)


def test_importing_and_running_the_report_imports_no_torch(tmp_path: Path) -> None:
    save_run(tmp_path / "results", make_run(make_result(), name="first"))
    program = (
        "import sys, bench.report\n"
        f"code = bench.report.main(['--results', {str(tmp_path / 'results')!r}, "
        f"'-o', {str(tmp_path / 'out')!r}])\n"
        "assert code == 0\n"
        "assert 'torch' not in sys.modules\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)
