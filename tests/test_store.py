import dataclasses
import json
import os
import random
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from stepmark import store
from stepmark.choices import (
    CompileMode,
    LossName,
    OptimizerImpl,
    OptimizerName,
    Precision,
    Task,
)
from stepmark.errors import StepmarkError, StoreError, UsageError
from stepmark.fingerprint import Commit, DeviceInfo, Machine
from stepmark.record import EndedBy, Memory, Phases, RankRecord, Reading, StartUp, WarmUp, Window
from stepmark.result import COLUMNS, Outcome, Result
from stepmark.scenario import Plan, Scenario
from stepmark.store import RunFolder, RunPlan
from tests.factories import make_result, make_run, make_scenario, save_run

GOLDEN_V1, GOLDEN_V2, GOLDEN_V3, GOLDEN = (
    Path(__file__).parent / "golden" / f"result_v{n}.json" for n in (1, 2, 3, 4)
)

# Every field of a result, each with a value of its own. Files of this format are in users' hands:
# a change here needs a new SCHEMA, a new golden file, and the older ones still read.
RESULT_V1 = Result(
    scenario=Scenario(
        workload="torchvision:resnet18?classes=10",
        device="cuda",
        batch_size=32,
        num_workers=2,
        precision=Precision.BF16,
        accumulation=4,
        world_size=1,
        pin_memory=True,
        prefetch_factor=3,
        persistent_workers=True,
        threads=6,
        ddp=True,
    ),
    plan=Plan(steps=2, warmup=1, max_seconds=7.5, repeats=3, timeout=60.0),
    repeat=2,
    outcome=Outcome.OK,
    reason="",
    ranks=(
        RankRecord(
            rank=0,
            device_name="NVIDIA H200",
            num_threads=6,
            settings={"matmul_precision": "ieee", "OMP_WAIT_POLICY": "passive"},
            data="FashionMNIST (generated)",
            startup=StartUp(
                process_s=0.05,
                import_s=0.25,
                build_s=0.5,
                process_group_s=0.125,
                first_batch_s=0.75,
                first_step_s=1.5,
            ),
            warmup=WarmUp(num_steps=12, seconds=0.6, settled=False),
            window=Window(num_steps=2, window_s=0.1, step_s=(0.04, 0.06), ended_by=EndedBy.STEPS),
            phase_window=Window(num_steps=1, window_s=7.5, step_s=(7.5,), ended_by=EndedBy.SECONDS),
            phases=Phases(
                data_wait_s=0.5,
                h2d_s=0.25,
                forward_s=2.0,
                backward_s=3.0,
                optimizer_s=1.0,
                other_s=0.75,
                step_s=7.5,
            ),
            memory=Memory(
                peak_allocated_bytes=1048576,
                peak_reserved_bytes=2097152,
                peak_host_bytes=4194304,
                workers_bytes=524288,
                nvml_used_bytes=None,
            ),
            first_loss=2.302585092994046,
            final_loss=0.1,
            skipped_steps=1,
            readings=(
                Reading(
                    name="power",
                    unit="W",
                    scope="device",
                    value=350.5,
                    series=(350.0, 351.0),
                    note="every 100 ms",
                ),
                Reading(name="epoch_turn", unit="s", scope="rank", value=None),
            ),
            notes=("step times had not settled",),
        ),
    ),
    machine=Machine(
        host="bench-1",
        hardware={"cpu": "Example CPU", "cpus": "8", "cuda": "1 x NVIDIA H200"},
        software={"python": "3.12.1", "torch": "2.11.0", "cuda": "13.0"},
        devices=(
            DeviceInfo(kind="cuda", names=("NVIDIA H200",), max_ranks=1, precisions={"fp32": ""}),
            DeviceInfo(kind="cpu", names=("Example CPU",), precisions={"fp16": "needs a GPU"}),
        ),
        unfit=("CPU frequency governor 'powersave' lets clocks wander: set another",),
    ),
    commit=Commit(
        id="0123456789abcdef0123456789abcdef01234567",
        branch="main",
        dirty=True,
        time="2026-01-02T03:04:05+01:00",
    ),
    started_at="2026-01-02T03:05:06+00:00",
    wall_s=12.25,
    detail="",
)
RESULT_V2 = dataclasses.replace(
    RESULT_V1,
    ranks=tuple(
        dataclasses.replace(
            rank,
            window=dataclasses.replace(rank.window, began_s=123.5),
            device_uuid="GPU-01234567-89ab-cdef-0123-456789abcdef",
            unfit=("the GPU was slowed down (power brake, 50.0 % of the window)",),
        )
        for rank in RESULT_V1.ranks
    ),
    machine=dataclasses.replace(
        RESULT_V1.machine,
        devices=(
            dataclasses.replace(RESULT_V1.machine.devices[0], power_limits_w=(700,)),
            *RESULT_V1.machine.devices[1:],
        ),
    ),
)


def plan_of(
    *scenarios: Scenario, created_at: str = "2026-01-02T03:04:05+00:00", **plan: Any
) -> RunPlan:
    return RunPlan(created_at=created_at, plan=Plan(**plan), scenarios=scenarios)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "run", plan_of())


RESULT_V4 = dataclasses.replace(
    RESULT_V2,
    scenario=dataclasses.replace(
        RESULT_V2.scenario,
        task=Task.EVALUATE,
        no_grad=False,
        inference_mode=True,
        compile=CompileMode.MAX_AUTOTUNE,
        channels_last=True,
        optimizer=OptimizerName.SGD_MOMENTUM,
        lr=0.5,
        optimizer_impl=OptimizerImpl.FOR_LOOP,
        loss=LossName.KL_DIV,
        clip_norm=0.25,
        set_to_none=False,
        pipeline_stages=2,
        split_layers=True,
    ),
)

# --- the format


@pytest.mark.parametrize(
    ("golden", "result"),
    [
        (GOLDEN_V1, RESULT_V1),
        (GOLDEN_V2, RESULT_V2),
        (GOLDEN_V3, RESULT_V2),
        (GOLDEN, RESULT_V4),
    ],
    ids=["v1", "v2", "v3", "v4"],
)
def test_the_golden_file_reads_back_as_exactly_this_result(
    folder: RunFolder, golden: Path, result: Result
) -> None:
    folder.save(result).write_bytes(golden.read_bytes())
    assert folder.find(result.scenario, result.repeat) == result


def test_this_result_is_written_as_exactly_the_golden_file(folder: RunFolder) -> None:
    assert folder.save(RESULT_V4).read_text() == GOLDEN.read_text()


def test_a_result_that_did_not_run_is_read_back_with_its_reason_and_detail(
    folder: RunFolder,
) -> None:
    result = make_result(
        outcome=Outcome.FAILED, reason="ValueError: “no”", detail="Traceback\n  …", commit=None
    )
    folder.save(result)
    assert folder.find(result.scenario, 0) == result


def test_text_that_is_no_valid_unicode_can_still_be_saved(folder: RunFolder) -> None:
    """A traceback may hold a file name of arbitrary bytes, as Python decodes them."""
    detail = "cannot open " + os.fsdecode(b"data-\xff")
    result = make_result(outcome=Outcome.FAILED, reason="r", detail=detail)
    folder.save(result)
    assert folder.find(result.scenario, 0) == result


def test_a_number_that_is_not_finite_is_refused_and_nothing_is_written(folder: RunFolder) -> None:
    result = make_result(rank={"final_loss": float("nan")})
    with pytest.raises(ValueError, match="strict JSON"):
        folder.save(result)
    assert names_in(folder.path) == {"run.json"}


# --- damaged and foreign files


def edited(**changes: Any) -> str:
    return json.dumps({**json.loads(GOLDEN.read_text()), **changes})


def without(name: str) -> str:
    return json.dumps({k: v for k, v in json.loads(GOLDEN.read_text()).items() if k != name})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "damaged, not JSON; delete it, then measure it again with --resume"),
        (GOLDEN.read_text()[:-20], "damaged, not JSON"),
        ("\x00" * 100, "damaged, not JSON"),
        ("[]", "not a file of this suite"),
        ("{}", "not a file of this suite"),
        (without("schema"), "it has no 'schema'"),
        (edited(schema="1"), "not a file of this suite"),
        (edited(schema=None), "not a file of this suite"),
        (edited(schema=True), "not a file of this suite"),
        (edited(schema=0), "not a file of this suite"),
        (edited(schema=5), "format 5 is newer than 4.*; update stepmark to read it"),
        (edited(colour="red"), r"not a file of this suite \(Result: unknown field 'colour'\)"),
        (edited(wall_s="12"), "Result.wall_s: expected float, found str"),
        (edited(repeat=1.0), "Result.repeat: expected int, found float"),
        (edited(outcome="fine"), "Result.outcome: 'fine' is none of"),
        (edited(scenario={"workload": "w", "batch_size": 0}), "batch_size=0: must be at least 1"),
        (edited(ranks=[{}]), r"Result.ranks\[0\]: .*missing"),
        (without("machine"), "missing .*'machine'"),
        (edited(wall_s=float("nan")), "damaged|wall_s"),
    ],
)
def test_a_file_that_is_no_result_is_refused_by_path_and_fault(
    folder: RunFolder, text: str, message: str
) -> None:
    path = folder.save(RESULT_V1)
    path.write_text(text)
    with pytest.raises(StoreError, match=message) as caught:
        folder.find(RESULT_V1.scenario, RESULT_V1.repeat)
    assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(StoreError, match=message):
        store.open_run("run", folder.path.parent)


def test_bytes_that_are_no_text_are_refused(folder: RunFolder) -> None:
    folder.save(RESULT_V1).write_bytes(b"\xff\xfe{}")
    with pytest.raises(StoreError, match="damaged"):
        store.open_run("run", folder.path.parent)


def test_a_result_in_place_of_a_plan_is_refused(folder: RunFolder) -> None:
    (folder.path / "run.json").write_text(GOLDEN.read_text())
    with pytest.raises(StoreError, match=r"run\.json: not a file of this suite \(RunPlan: "):
        RunFolder.reopen(folder.path.parent, "run")


# --- writing


def test_a_reader_sees_whole_files_only_while_they_are_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    texts = ["a" * 300_000, "b" * 200_000]
    store.write_text(path, texts[0])
    done = threading.Event()

    def rewrite() -> None:
        for number in range(60):
            store.write_text(path, texts[number % 2])
        done.set()

    writer = threading.Thread(target=rewrite)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(path.read_text())
    writer.join()
    assert seen <= set(texts)
    assert names_in(tmp_path) == {"x.json"}


def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    store.write_text(path, "old")
    code = (
        "import resource, sys; from pathlib import Path; from stepmark import errors, store\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: store.write_text(Path(sys.argv[1]), 'x' * 5000)\n"
        "except errors.StoreError as error: print(error)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == f"{path}: cannot be written (File too large)"
    assert path.read_text() == "old"
    assert names_in(tmp_path) == {"x.json"}


def test_a_file_cannot_be_written_where_there_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"x\.json: cannot be written \(No such file"):
        store.write_text(tmp_path / "gone" / "x.json", "text")


def test_results_can_be_read_by_everybody(folder: RunFolder) -> None:
    assert stat.S_IMODE(folder.save(make_result()).stat().st_mode) == 0o644


def test_what_a_killed_writer_left_is_not_taken_for_a_result(folder: RunFolder) -> None:
    folder.save(make_result())
    (folder.path / ".abc123.tmp").write_text('{"sche')
    (folder.path / ".hidden.json").write_text('{"sche')
    assert len(store.open_run("run", folder.path.parent).results) == 1


# --- file names

WORKLOADS = [
    "mlp-toy",
    "a.b",
    "a/b",
    "a%2Fb",
    "a%252Fb",
    "a b",
    "a\tb",
    "A/B.py:build",
    "../../etc/x.py:build",
    "/abs/olute.py:f",
    "..",
    ".",
    ".hidden.py:f",
    "%2Ehidden.py:f",
    "run",
    "run.json",
    "gpt?width=128&depth=2",
    "torchvision:resnet18",
    "C:\\x\\y.py:f",
    "café.py:f",
    "cafe\u0301.py:f",
    "模型.py:构建",
    "*?[]",
    "x" * 300,
    "x" * 300 + "y",
    "y" + "x" * 300,
    "模" * 100 + ".py:f",
]


def test_every_workload_gets_a_file_of_its_own_right_in_the_folder(folder: RunFolder) -> None:
    results = [make_result(make_scenario(workload=workload)) for workload in WORKLOADS]
    assert all(folder.find(result.scenario, 0) is None for result in results)
    paths = [folder.save(result) for result in results]
    assert {path.parent for path in paths} == {folder.path}
    assert len(set(paths)) == len(WORKLOADS)
    assert names_in(folder.path) == {"run.json", *(path.name for path in paths)}
    for result in results:
        assert folder.find(result.scenario, 0) == result
    assert len(store.open_run("run", folder.path.parent).results) == len(WORKLOADS)


def test_file_names_are_plain_ascii_that_a_shell_and_a_url_can_hold(folder: RunFolder) -> None:
    for workload in WORKLOADS:
        name = folder.save(make_result(make_scenario(workload=workload))).name
        assert name.isascii()
        assert not set(name) & set("/\\:*?\"'<>| \t[]&")
        assert not name.startswith((".", "-"))
        assert len(name) <= 255


def test_repeats_and_scenarios_have_files_of_their_own(folder: RunFolder) -> None:
    one, two = make_scenario(batch_size=1), make_scenario(batch_size=1, accumulation=2)
    for repeat in range(3):
        folder.save(make_result(one, repeat=repeat))
    assert folder.find(one, 2) is not None
    assert folder.find(one, 3) is None
    assert folder.find(two, 0) is None


def test_a_result_saved_again_replaces_the_first(folder: RunFolder) -> None:
    folder.save(make_result(samples_per_s=10.0))
    folder.save(make_result(samples_per_s=20.0))
    (result,) = store.open_run("run", folder.path.parent).results
    assert result.samples_per_s == pytest.approx(20.0)


# --- runs


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".x", "a/b", "/a", "a\\b", "a b", "-x", "a\n", "é", "a:b", "a\x00", "x" * 256],
)
def test_a_name_that_is_no_plain_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    results = tmp_path / "results"
    for use in (
        lambda: store.check_name(name),
        lambda: RunFolder.create(results, name, plan_of()),
        lambda: RunFolder.reopen(results, name),
        lambda: store.free_name(results, name),
    ):
        with pytest.raises(UsageError, match="name "):
            use()
    assert not results.exists()


@pytest.mark.parametrize("name", ["a", "0001", "_x", "v1.2+cu13-a_b", "a..", "run.json", "x" * 100])
def test_a_plain_folder_name_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    assert RunFolder.create(tmp_path / "new" / "results", name, plan_of()).path.name == name


def test_a_name_that_is_taken_is_refused_and_the_run_untouched(folder: RunFolder) -> None:
    path = folder.save(make_result())
    before = path.read_bytes()
    with pytest.raises(UsageError, match="exists already; choose another name, or give --resume"):
        RunFolder.create(folder.path.parent, "run", plan_of(make_scenario()))
    assert path.read_bytes() == before


def test_a_free_name_is_numbered_where_the_plain_one_is_taken(tmp_path: Path) -> None:
    for expected in ("base", "base-2", "base-3"):
        name = store.free_name(tmp_path, "base")
        assert name == expected
        RunFolder.create(tmp_path, name, plan_of())


def test_a_name_made_from_the_time_is_a_plain_name() -> None:
    name = store.new_name()
    assert store.check_name(name) == name


def test_a_results_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("")
    with pytest.raises(StepmarkError, match="run"):
        RunFolder.create(tmp_path / "results", "run", plan_of())


def test_results_are_read_in_the_order_in_which_they_were_measured(tmp_path: Path) -> None:
    results = [
        make_result(
            make_scenario(batch_size=size), started_at=f"2026-01-02T03:{minute:02}:00+00:00"
        )
        for minute, size in enumerate([7, 1, 64, 3, 100])
    ]
    shuffled = random.Random(4).sample(results, len(results))
    save_run(tmp_path, make_run(*shuffled, name="run"))
    assert list(store.open_run("run", tmp_path).results) == results


def test_an_interrupted_run_is_resumed_with_its_plan_and_names_what_is_missing(
    tmp_path: Path,
) -> None:
    one, two = make_scenario(batch_size=1), make_scenario(batch_size=2)
    planned = plan_of(one, two, repeats=2)
    folder = RunFolder.create(tmp_path, "run", planned)
    folder.save(make_result(one, plan=planned.plan))
    folder.save(make_result(two, plan=planned.plan, outcome=Outcome.OOM))

    resumed = RunFolder.reopen(tmp_path, "run")
    assert resumed.planned == planned
    assert resumed.find(one, 0) is not None
    assert resumed.find(one, 1) is None
    missing = ((one.id, 1), (two.id, 1))
    assert store.open_run("run", tmp_path).missing == missing
    assert not store.open_run("run", tmp_path).by_pytest

    for scenario in (one, two):
        resumed.save(make_result(scenario, repeat=1, plan=planned.plan))
    assert store.open_run("run", tmp_path).missing == ()


def test_a_run_planned_without_scenarios_misses_nothing(folder: RunFolder) -> None:
    folder.save(make_result())
    run = store.open_run("run", folder.path.parent)
    assert run.missing == ()
    assert run.by_pytest, "which plans no scenarios"


def test_resuming_a_run_that_is_not_there_names_those_that_are(folder: RunFolder) -> None:
    with pytest.raises(UsageError, match="no run to resume; runs here: run"):
        RunFolder.reopen(folder.path.parent, "rum")


def test_a_run_without_results_is_refused_with_a_remedy(folder: RunFolder) -> None:
    with pytest.raises(UsageError, match="holds no results yet; resume it with --resume"):
        store.open_run("run", folder.path.parent)


def test_a_run_is_opened_by_name_and_by_folder(tmp_path: Path) -> None:
    path = save_run(tmp_path, make_run(make_result(), name="base"))
    by_name, by_folder = store.open_run("base", tmp_path), store.open_run(str(path), tmp_path)
    assert by_name == by_folder
    assert (by_name.name, by_name.path) == ("base", path)


@pytest.mark.parametrize("name", ["bas", "", "../base", "base/run.jsn", "x" * 300, "a\x00b"])
def test_a_run_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path, name: str) -> None:
    results = tmp_path / "results"
    save_run(results, make_run(make_result(), name="base"))
    with pytest.raises(UsageError, match=r"no such run; give a name under .*\(base\)"):
        store.open_run(name, results)


def test_an_empty_results_folder_has_no_latest_run(tmp_path: Path) -> None:
    assert store.run_names(tmp_path / "results") == []
    with pytest.raises(UsageError, match="holds no run yet; measure one with 'stepmark run'"):
        store.latest_run(tmp_path / "results")


def test_runs_are_listed_in_the_order_in_which_they_were_begun_whatever_their_files_say(
    tmp_path: Path,
) -> None:
    """A clone or a copy gives an old run's files the time of the copying."""
    names = ["c", "a", "b"]
    for minute, name in enumerate(names):
        planned = plan_of(created_at=f"2026-01-02T03:{minute:02}:00+00:00")
        RunFolder.create(tmp_path, name, planned).save(make_result())
        os.utime(tmp_path / name / "run.json", (1e9 - minute, 1e9 - minute))
    (tmp_path / "no-run").mkdir()
    (tmp_path / "file.json").write_text("{}")
    assert store.run_names(tmp_path) == names
    assert store.latest_run(tmp_path).name == "b"


def test_the_table_has_a_row_for_each_result_and_empty_cells_for_the_unknown() -> None:
    skipped = make_result(make_scenario(batch_size=1), outcome=Outcome.SKIPPED)
    table = make_run(make_result(), skipped).table()
    assert tuple(table.columns) == COLUMNS
    assert list(table["outcome"]) == ["ok", "skipped"]
    assert table["steps"].tolist()[0] == 50
    assert str(table["steps"].dtype) == "Int64"
    measured = list(COLUMNS[COLUMNS.index("samples_per_s") :])
    assert table.loc[1, measured].isna().all()
    assert table["energy_j"].isna().all()


def test_the_table_of_nothing_has_the_columns() -> None:
    assert tuple(store.table([]).columns) == COLUMNS


# --- pytest-benchmark's files


def benchmark_file(path: Path, *infos: Any, **extra: Any) -> Path:
    benchmarks = [{"name": f"test_{i}", "extra_info": info} for i, info in enumerate(infos)]
    data = {"machine_info": {}, "commit_info": {}, "benchmarks": benchmarks, **extra}
    path.write_text(json.dumps(data))
    return path


def test_a_pytest_benchmark_file_alone_is_a_run(tmp_path: Path) -> None:
    first = make_result(make_scenario(batch_size=2), started_at="2026-01-02T03:01:00+00:00")
    second = make_result(make_scenario(batch_size=1), started_at="2026-01-02T03:02:00+00:00")
    skipped = make_result(
        make_scenario(batch_size=3),
        outcome=Outcome.SKIPPED,
        started_at="2026-01-02T03:03:00+00:00",
    )
    path = benchmark_file(
        tmp_path / "0001_base.json",
        {"stepmark": store.pack([second])},
        {},
        {"stepmark": store.pack([first]), "samples_per_s": 1.0},
        stepmark=store.pack([skipped]),
    )
    run = store.open_run(str(path), tmp_path / "results")
    assert run.results == (first, second, skipped)
    assert (run.name, run.path, run.missing) == ("0001_base", path, ())
    assert run.by_pytest


def test_packed_results_unpack_to_equal_ones_through_json_text(tmp_path: Path) -> None:
    results = [RESULT_V1, make_result(outcome=Outcome.TIMEOUT)]
    assert store.unpack(json.loads(json.dumps(store.pack(results))), tmp_path) == results


def test_a_file_without_a_benchmark_of_ours_is_refused_as_such(tmp_path: Path) -> None:
    path = benchmark_file(tmp_path / "x.json", {}, {"other": 1})
    with pytest.raises(UsageError, match="none of its benchmarks was measured by stepmark"):
        store.open_run(str(path), tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged, not JSON"),
        ("[]", "not a pytest-benchmark file"),
        ('{"benchmarks": {}}', "not a pytest-benchmark file"),
        ('{"benchmarks": [3]}', "not a pytest-benchmark file"),
        ('{"benchmarks": [{"extra_info": null}]}', "not a pytest-benchmark file"),
        ('{"benchmarks": [{"extra_info": {"stepmark": 1}}]}', "not a file of this suite"),
        ('{"benchmarks": [], "stepmark": {"schema": 5}}', "format 5 is newer than 4"),
        ('{"benchmarks": [], "stepmark": {"schema": 1}}', "not a "),
        ('{"benchmarks": [], "stepmark": {"schema": 1, "results": null}}', "not a "),
        ('{"benchmarks": [], "stepmark": {"schema": 1, "results": [{}]}}', "Result: .*missing"),
    ],
)
def test_a_foreign_or_damaged_benchmark_file_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(StoreError, match=message) as caught:
        store.open_run(str(path), tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
