"""Traces with known answers, made by hand, and the files of torch.profiler itself."""

import gzip
import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import stepmark

from stepmark.errors import StoreError
from stepmark.trace import (
    Attribution,
    Breakdown,
    Trace,
    attribute,
    break_down,
    memory_timeline,
    read_trace,
)
from stepmark.trace.attribution import OUTSIDE
from stepmark.trace.coverage import Coverage
from stepmark.trace.events import from_events

MAIN, AUTOGRAD = 1, 2
_numbers = itertools.count(1)


TRACES = Path(__file__).parent / "traces"


def event(cat: str, name: str, start_us: float, end_us: float, **args: Any) -> dict[str, Any]:
    """A host event on the main thread; ``thread`` is another one."""
    thread = args.pop("thread", MAIN)
    return {
        "ph": "X", "cat": cat, "name": name, "pid": 77, "tid": thread,
        "ts": start_us, "dur": end_us - start_us, "args": args,
    }  # fmt: skip


def step(number: int, start_us: float, end_us: float) -> dict[str, Any]:
    return event("user_annotation", f"ProfilerStep#{number}", start_us, end_us)


def launched(
    name: str, launch_us: float, start_us: float, end_us: float, *, stream: int = 7,
    cat: str = "kernel", thread: int = MAIN, device: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    """Work on the device, and the call that launched it (2 µs long)."""
    number = next(_numbers)
    call = "cudaLaunchKernel" if cat == "kernel" else "cudaMemcpyAsync"
    work = {
        "ph": "X", "cat": cat, "name": name, "pid": device, "tid": stream,
        "ts": start_us, "dur": end_us - start_us, "args": {"device": device, "correlation": number},
    }  # fmt: skip
    return [
        event("cuda_runtime", call, launch_us, launch_us + 2, correlation=number, thread=thread),
        work,
    ]


def seconds(breakdown: Breakdown) -> tuple[float, ...]:
    """Its parts, in microseconds."""
    b = breakdown
    parts = (b.wall_s, b.compute_s, b.exposed_comm_s, b.memcpy_s, b.idle_s)
    return tuple(round(part * 1e6, 3) for part in parts)


def test_kernels_hide_communication_and_both_hide_copies() -> None:
    trace = from_events(
        [
            step(1, 0, 100),
            *launched("gemm", 1, 10, 40),
            *launched("relu", 2, 30, 50, stream=8),  # overlaps the first
            *launched("ncclDevKernel_AllReduce", 3, 45, 70, stream=20),  # 20 of it alone
            *launched("Memcpy HtoD", 4, 60, 80, stream=9, cat="gpu_memcpy"),  # 10 of it alone
            *launched("Memset", 5, 90, 95, cat="gpu_memset"),
        ]
    )
    total = break_down(trace)
    assert seconds(total) == (100, 40, 20, 15, 25)
    assert total.comm_s == pytest.approx(25e-6)
    assert total.device == 0
    assert [seconds(s) for s in total.steps] == [(100, 40, 20, 15, 25)]


def test_a_step_lasts_until_the_next_one_begins_and_the_steps_sum_to_all() -> None:
    trace = from_events(
        [
            *launched("before", 0, 2, 12),  # 2 of it in the first step
            step(3, 10, 50),
            step(4, 53, 90),
            *launched("across", 20, 40, 60),
            *launched("after", 80, 85, 120),  # until the last step's end
        ]
    )
    total = break_down(trace)
    assert [seconds(s) for s in total.steps] == [(43, 15, 0, 0, 28), (37, 12, 0, 0, 25)]
    assert seconds(total) == (80, 27, 0, 0, 53)


def test_the_busiest_of_several_devices_counts() -> None:
    trace = from_events(
        [
            step(1, 0, 50),
            *launched("a", 0, 5, 10, device=1),
            *launched("b", 0, 20, 25, device=1),
            *launched("other", 0, 0, 50, device=0),
        ]
    )
    assert break_down(trace).device == 1
    assert seconds(break_down(trace)) == (50, 10, 0, 0, 40)


def test_without_an_accelerator_operators_compute() -> None:
    trace = from_events(
        [
            step(1, 0, 100),
            event("cpu_op", "aten::linear", 10, 40),
            event("cpu_op", "aten::addmm", 12, 38),
            event("user_annotation", "gloo:all_reduce", 35, 60, thread=AUTOGRAD),
        ]
    )
    total = break_down(trace)
    assert total.device is None
    assert seconds(total) == (100, 30, 20, 0, 50)


def test_a_trace_without_steps_is_one_span() -> None:
    trace = from_events([event("cpu_op", "a", 5, 10), event("cpu_op", "b", 20, 30)])
    assert seconds(break_down(trace)) == (25, 15, 0, 0, 10)


@pytest.mark.parametrize("seed", range(20))
def test_parts_sum_to_wall_exactly_on_random_traces(seed: int) -> None:
    """Against a sweep over every nanosecond's owner, done the slow way."""
    source = random.Random(seed)
    names = ("gemm", "ncclKernel", "Memcpy")
    cats = ("kernel", "kernel", "gpu_memcpy")
    events = [step(k, 0.1 * k * 100, 0.1 * (k + 1) * 100 - source.random()) for k in range(4)]
    owners = np.full(40_000, 3)
    spans = []
    for _ in range(30):
        kind, start = source.randrange(3), source.randrange(39_000)
        end = min(start + source.randrange(1, 3_000), 39_900)
        spans.append((kind, start, end))
        events += launched(
            names[kind], start / 1000, start / 1000, end / 1000, stream=kind, cat=cats[kind]
        )
    for kind, start, end in spans:
        owners[start:end] = np.minimum(owners[start:end], kind)
    total = break_down(from_events(events))
    wall_ns = round(total.wall_s * 1e9)
    expected = [int((owners[:wall_ns] == kind).sum()) for kind in range(4)]
    parts = (total.compute_s, total.exposed_comm_s, total.memcpy_s, total.idle_s)
    assert [round(part * 1e9) for part in parts] == expected
    assert sum(round(part * 1e9) for part in parts) == wall_ns
    assert sum(round(s.wall_s * 1e9) for s in total.steps) == wall_ns


def swept_us(file: Path, device: int) -> tuple[float, ...]:
    """Wall, and time by the foremost of kernels, NCCL's kernels and copies: edge by edge."""
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    spans = [e for e in events if e.get("ph") == "X"]
    steps = [
        e
        for e in spans
        if e["name"].startswith("ProfilerStep") and e["cat"].lower() == "user_annotation"
    ]
    begin = min(e["ts"] for e in steps or spans)
    end = max(e["ts"] + e["dur"] for e in steps or spans)
    edges = []
    for e in spans:
        category = e.get("cat", "").lower()
        if category in ("kernel", "gpu_memcpy", "gpu_memset") and e["args"]["device"] == device:
            layer = 2 if category != "kernel" else int("nccl" in e["name"].lower())
            edges += [(e["ts"], layer, 1), (e["ts"] + e["dur"], layer, -1)]
    totals, open_layers, last = [0.0, 0.0, 0.0, 0.0], [0, 0, 0], begin
    for at, layer, change in sorted(edges):
        at = min(max(at, begin), end)
        owner = next((k for k in range(3) if open_layers[k]), 3)
        totals[owner] += at - last
        open_layers[layer] += change
        last = at
    totals[3] += end - last
    return (end - begin, *totals)


@pytest.mark.parametrize("name", ["a100_ddp_2rank_nccl_rank0", "alexnet_gpu"])
def test_real_traces_of_gpus_are_broken_down_as_a_sweep_over_their_edges_does(name: str) -> None:
    file = TRACES / f"{name}.json.gz"
    total = break_down(read_trace(file))
    assert total.device is not None
    parts = (total.compute_s, total.exposed_comm_s, total.memcpy_s, total.idle_s)
    found_us = [1e6 * value for value in (total.wall_s, *parts)]
    assert found_us == pytest.approx(swept_us(file, total.device), abs=0.5)
    assert total.compute_s > 0
    assert sum(parts) == pytest.approx(total.wall_s, abs=1e-12)


def test_the_trace_of_two_ranks_has_the_parts_that_are_known_of_it() -> None:
    total = break_down(read_trace(TRACES / "a100_ddp_2rank_nccl_rank0.json.gz"))
    values = (total.compute_s, total.exposed_comm_s, total.memcpy_s, total.idle_s, total.comm_s)
    assert [round(1000 * v / total.wall_s) for v in values] == [173, 59, 3, 764, 70]


def test_merged_intervals() -> None:
    covered = Coverage(np.array([30, 0, 5, 20]), np.array([40, 10, 8, 30]))
    assert covered.start_ns.tolist() == [0, 20]
    assert covered.end_ns.tolist() == [10, 40]
    times = np.array([-5, 0, 4, 10, 15, 25, 40, 99])
    assert covered.before(times).tolist() == [0, 0, 4, 10, 10, 15, 30, 30]
    empty = np.array([], dtype=np.int64)
    assert Coverage(empty, empty).before(times).tolist() == [0] * 8


def a_gpu_step() -> Trace:
    """Forward, backward on a thread of its own, and a loss that is looked at."""
    return from_events(
        [
            step(1, 0, 200),
            event("user_annotation", "stepmark:forward", 10, 60),
            event("cpu_op", "aten::linear", 15, 55),
            event("cpu_op", "aten::addmm", 20, 50),
            *launched("gemm", 25, 40, 80),
            event("user_annotation", "stepmark:backward", 60, 120),
            event("cpu_op", "MmBackward", 65, 110, thread=AUTOGRAD),
            *launched("gemm_bw", 100, 130, 150, thread=AUTOGRAD),
            event("python_function", "train.py(12): log_loss", 125, 185),
            event("python_function", "torch/_tensor.py(9): item", 126, 184),
            event("cpu_op", "aten::item", 127, 180),
            event("cpu_op", "aten::_local_scalar_dense", 128, 179),
            *launched("Memcpy DtoH", 129, 155, 157, cat="gpu_memcpy"),
            event("cuda_runtime", "cudaStreamSynchronize", 132, 170),
        ]
    )


def operators(found: Attribution) -> dict[str, tuple[int, float, float]]:
    return {
        o.name: (o.calls, round(o.host_s * 1e6, 3), round(o.device_s * 1e6, 3))
        for o in found.operators
    }


def test_work_belongs_to_the_operator_that_launched_it() -> None:
    found = operators(attribute(a_gpu_step()))
    assert found["aten::linear"] == (1, 10, 0)
    assert found["aten::addmm"] == (1, 30, 40)
    assert found["MmBackward"] == (1, 45, 20)
    assert found["aten::_local_scalar_dense"] == (1, 51, 2)
    assert found["aten::item"] == (1, 2, 0)
    main_thread = sum(host for name, (_, host, _) in found.items() if name != "MmBackward")
    assert main_thread == 200, "the step, with what lies outside of operators"
    assert found[OUTSIDE][1] == 200 - 40 - 53


def test_phases_sum_to_the_step_and_find_backwards_kernels() -> None:
    phases = {p.name: p for p in attribute(a_gpu_step()).phases}
    assert list(phases) == ["forward", "backward", "other"]
    host = {name: round(p.host_s * 1e6) for name, p in phases.items()}
    assert host == {"forward": 50, "backward": 60, "other": 90}
    device = {name: round(p.device_s * 1e6) for name, p in phases.items()}
    assert device == {"forward": 40, "backward": 20, "other": 2}
    assert [p.launches for p in phases.values()] == [1, 1, 1]


def test_a_place_that_waits_for_the_device_is_named_with_its_line() -> None:
    (wait,) = attribute(a_gpu_step()).waits
    assert (wait.call, wait.operator, wait.calls) == ("cudaStreamSynchronize", "aten::item", 1)
    assert wait.line == "train.py(12): log_loss"
    assert wait.wait_s == pytest.approx(38e-6)


def test_a_device_that_waits_for_launches_is_starved() -> None:
    """Idle from 0 to 40, launched at 25; from 80 to 130, at 100; from 150 on, at 129; then none."""
    assert attribute(a_gpu_step()).starved_s == pytest.approx((25 + 20 + 0 + 43) * 1e-6)


def test_kernels_are_counted_by_name() -> None:
    trace = from_events(
        [
            step(1, 0, 100),
            *launched("gemm", 0, 10, 20),
            *launched("gemm", 0, 30, 45),
            *launched("ncclKernel_AllReduce", 0, 50, 60),
            *launched("late", 0, 150, 160),
        ]
    )
    kernels = attribute(trace).kernels
    assert [(k.name, k.calls, round(k.device_s * 1e6)) for k in kernels] == [
        ("gemm", 2, 25),
        ("ncclKernel_AllReduce", 1, 10),
    ]
    assert [k.is_communication for k in kernels] == [False, True]


def test_events_that_begin_together_nest_by_their_length() -> None:
    inner, outer = event("cpu_op", "inner", 10, 20), event("cpu_op", "outer", 10, 30)
    for events in ([inner, outer], [outer, inner]):
        found = operators(attribute(from_events([step(1, 10, 40), *events])))
        assert found == {"outer": (1, 10, 0), "inner": (1, 10, 0), OUTSIDE: (0, 10, 0)}


def test_a_file_is_read_packed_or_not(tmp_path: Path) -> None:
    text = json.dumps({"traceEvents": [step(1, 0.5, 10.5), {"ph": "M", "name": "meta"}]})
    plain, packed = tmp_path / "trace.json", tmp_path / "trace.json.gz"
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))
    for path in (plain, packed):
        assert seconds(break_down(read_trace(path)))[0] == 10
    plain.write_text(json.dumps([step(1, 0, 3)]))
    assert seconds(break_down(read_trace(plain)))[0] == 3


def test_only_the_list_of_events_counts_wherever_it_stands(tmp_path: Path) -> None:
    marked = step(1, 0, 3)
    marked["args"] = {"traceEvents": [step(2, 0, 9)], "quoted": 'a "]" and {'}
    data = {"first": {"traceEvents": [step(3, 0, 8)]}, "traceEvents": [marked], "last": [{}, "]"]}
    path = tmp_path / "trace.json"
    for text in (json.dumps(data), "\ufeff" + json.dumps(data, indent=1)):
        path.write_text(text, encoding="utf-8")
        assert seconds(break_down(read_trace(path)))[0] == 3
    path.write_text('{"traceEvents": []}')
    assert len(read_trace(path)) == 0


def timed(start: str, more: bytes = b"") -> bytes:
    event = b'{"ph": "X", "name": "x", "dur": 1, "ts": ' + start.encode() + more + b"}"
    return b'{"traceEvents": [' + event + b"]}"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "cannot be read"),
        (b"", "no chrome trace, or cut off"),
        (b"{", "no chrome trace, or cut off"),
        (gzip.compress(b"{}" * 1000, mtime=0)[:30], "no chrome trace, or cut off"),
        (b"\xff\xfe\x00", "no chrome trace, or cut off"),
        (b"{}", "has no list of 'traceEvents'"),
        (b'{"traceEvents": [{"ph": "X", "dur": 1}]}', "no trace of torch.profiler"),
        (b'{"traceEvents": [1]}', "no trace of torch.profiler"),
        (b'{"a": 1}', "has no list of 'traceEvents'"),
        (b'{"traceEvents": {}}', "has no list of 'traceEvents'"),
        (b'{"traceEvents": []} x', "more at character 20"),
        (b'{"traceEvents": [{}', "no '\\]' at character"),
        (b'{"traceEvents": [{},]}', "no chrome trace, or cut off"),
        (b'{"a": ' + b"[" * 100_000, "RecursionError|no chrome trace"),
        (timed("NaN"), "a time that is no number"),
        (timed("1e400"), "a time that is no number"),
        (timed("1", b', "args": {"correlation": 99999999999999999999}'), "OverflowError"),
    ],
    ids=str,
)
def test_what_is_no_trace_is_refused(tmp_path: Path, data: bytes | None, message: str) -> None:
    path = tmp_path / "trace.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(StoreError, match=message):
        read_trace(path)


def test_a_trace_without_events_is_all_zero() -> None:
    assert seconds(break_down(from_events([]))) == (0, 0, 0, 0, 0)
    assert attribute(from_events([])).operators == ()


def test_a_real_trace_of_the_host_sums_to_its_steps(tmp_path: Path) -> None:
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function, schedule

    model = torch.nn.Linear(64, 64)
    path = tmp_path / "trace.json"
    with profile(
        activities=[ProfilerActivity.CPU],
        schedule=schedule(wait=0, warmup=1, active=3, repeat=1),
        on_trace_ready=lambda profiler: profiler.export_chrome_trace(str(path)),
    ) as profiler:
        for _ in range(4):
            with record_function("stepmark:forward"):
                loss = model(torch.randn(8, 64)).sum()
            with record_function("stepmark:backward"):
                loss.backward()
            profiler.step()
    trace = read_trace(path)
    total = break_down(trace)
    assert len(total.steps) == 3
    parts = total.compute_s + total.exposed_comm_s + total.memcpy_s + total.idle_s
    assert parts == pytest.approx(total.wall_s, abs=1e-12)
    found = attribute(trace)
    assert "aten::linear" in {o.name for o in found.operators}
    assert sum(p.host_s for p in found.phases) == pytest.approx(total.wall_s)
    assert [p.name for p in found.phases] == ["forward", "backward", "other"]


def test_the_command_shows_what_programs_read(tmp_path: Path) -> None:
    events = [
        step(1, 0, 100),
        *launched("gemm", 1, 10, 40),
        *launched("ncclDevKernel_AllReduce", 3, 35, 70, stream=20),
    ]
    path = tmp_path / "trace.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    done = stepmark("profile", "--trace", path, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    names = ("wall_s", "compute_s", "exposed_comm_s", "memcpy_s", "idle_s")
    assert [data[name] for name in names] == [1e-4, 3e-5, 3e-5, 0.0, 4e-5]
    assert [data["steps"][0][name] for name in names] == [data[name] for name in names]
    shown = stepmark("profile", "--trace", path, cwd=tmp_path).stdout
    assert "exposed communication" in shown
    assert "launch-bound" in shown
    refused = stepmark("profile", "--trace", "nope.json", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == "error: nope.json: cannot be read (No such file or directory)\n"


# --- memory over a step


def allocation(at_us: float, allocated: int, *, device: int = -1, reserved: int = 0) -> Any:
    return {
        "ph": "i", "cat": "cpu_instant_event", "name": "[memory]", "ts": at_us,
        "args": {
            "Device Type": int(device >= 0), "Device Id": device,
            "Total Allocated": allocated, "Total Reserved": reserved, "Bytes": 1,
        },
    }  # fmt: skip


def test_memory_over_the_last_step_is_the_accelerators_where_there_is_one() -> None:
    events = [
        step(0, 0, 100),
        step(1, 100, 200),
        event("user_annotation", "stepmark:forward", 110, 150),
        event("user_annotation", "stepmark:backward", 150, 190),
        event("user_annotation", "stepmark:drain", 190, 195),
        event("kernel", "k", 120, 130, device=1),
        allocation(50, 9999, device=1, reserved=9999),  # of the step before
        allocation(160, 700, device=1, reserved=2000),
        allocation(120, 500, device=1, reserved=1000),  # allocators of several threads
        allocation(130, 8000),
        allocation(170, 600, device=1, reserved=2000),
    ]
    found = memory_timeline(from_events(events))
    assert found is not None
    assert found.device == 1
    assert found.at_s == pytest.approx((20e-6, 60e-6, 70e-6))
    assert found.allocated_bytes == (500, 700, 600)
    assert found.reserved_bytes == (1000, 2000, 2000)
    assert [(p.name, p.start_s, p.end_s) for p in found.phases] == [
        ("forward", pytest.approx(10e-6), pytest.approx(50e-6)),
        ("backward", pytest.approx(50e-6), pytest.approx(90e-6)),
    ]
    assert (found.peak_bytes, found.peak_phase) == (700, "backward")


def test_memory_of_a_host_alone_has_no_reserve_and_keeps_its_peak_when_it_is_thinned() -> None:
    rng = random.Random(0)
    levels = [rng.randrange(1000) for _ in range(5000)]
    levels[3210] = 5000
    events = [step(0, 0, 5000), *(allocation(k, level) for k, level in enumerate(levels))]
    found = memory_timeline(from_events(events))
    assert found is not None
    assert found.device is None
    assert found.reserved_bytes == ()
    assert len(found.at_s) <= 300
    assert list(found.at_s) == sorted(set(found.at_s))
    assert (found.peak_bytes, found.peak_phase) == (5000, "other")
    assert found.at_s[found.allocated_bytes.index(5000)] == pytest.approx(3210e-6)
    assert found.at_s[-1] == pytest.approx(4999e-6), "what is freed at the end is seen"
    for at_s, level in zip(found.at_s, found.allocated_bytes, strict=True):
        assert levels[round(at_s * 1e6)] == level


def test_a_trace_without_allocations_has_no_timeline() -> None:
    assert memory_timeline(from_events([])) is None
    assert memory_timeline(from_events([allocation(5, 100)])) is None, "of no step"
    older = allocation(5, 100)
    del older["args"]["Total Allocated"]  # as profilers before it told the total
    before = allocation(1, 100)
    assert memory_timeline(from_events([step(0, 2, 10), older, before])) is None
