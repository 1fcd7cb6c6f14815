"""On a real CUDA device; without one none of this is tested (README says what was never run)."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import stepmark

from stepmark import Plan, Scenario, measure
from stepmark.result import Outcome, Result
from stepmark.store import open_run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

WORKLOAD = """
import torch
from stepmark import Workload

CYCLES = {cycles}

class Points(torch.utils.data.Dataset):
    def __len__(self):
        return 4096

    def __getitem__(self, index):
        return torch.full((1024,), index / 4096), index % 10

def build():
    def compute_loss(model, batch):
        torch.cuda._sleep(CYCLES)
        loss = torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
        {extra}
        return loss

    model = torch.nn.Sequential(
        torch.nn.Linear(1024, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 10)
    )
    return Workload(
        model=model,
        dataset=Points(),
        compute_loss=compute_loss,
        optimizer=lambda parameters: torch.optim.Adam(parameters),
    )
"""
# Of a device's clock, some milliseconds.
CYCLES = 4_000_000


def write(folder: Path, *, cycles: int = 0, extra: str = "pass") -> str:
    (folder / "train.py").write_text(WORKLOAD.format(cycles=cycles, extra=extra))
    return f"{folder / 'train.py'}:build"


def run(workload: str, plan: Plan | None = None, **axes: Any) -> Result:
    scenario = Scenario(workload=workload, device="cuda", **axes)
    return measure(scenario, plan or Plan(steps=40, max_seconds=5))


SLEEP = """
import torch
start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
for _ in range(20):
    torch.cuda._sleep({cycles})
start.record()
for _ in range(20):
    torch.cuda._sleep({cycles})
end.record()
torch.cuda.synchronize()
print(start.elapsed_time(end) / 1e3 / 20)
"""


def ask(code: str) -> float:
    """In a process of its own: one here would stay on the device, where it counts as foreign."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def test_steps_are_marked_on_the_devices_timeline(tmp_path: Path) -> None:
    result = run(write(tmp_path, cycles=CYCLES), batch_size=16)
    assert result.outcome is Outcome.OK, result.reason
    (rank,) = result.ranks
    assert len(rank.window.step_s) == 40
    assert sum(rank.window.step_s) == pytest.approx(rank.window.window_s, rel=0.02)
    assert rank.device_uuid
    # The device sleeps in forward, whatever the host does meanwhile.
    expected_s = ask(SLEEP.format(cycles=CYCLES))
    assert rank.phases.forward_s == pytest.approx(expected_s, rel=0.1, abs=2e-4)
    assert rank.phases.step_s >= rank.phases.forward_s


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_precisions_are_set_and_read_back(tmp_path: Path, precision: str) -> None:
    result = run(write(tmp_path), Plan(steps=5, max_seconds=2), batch_size=16, precision=precision)
    assert result.outcome in (Outcome.OK, Outcome.SKIPPED), result.reason
    if result.ranks:
        wanted = "tf32" if precision == "tf32" else "ieee"
        assert result.ranks[0].settings["cuda.matmul.fp32_precision"] == wanted
        assert result.ranks[0].final_loss is not None


def test_memory_is_that_of_the_tensors(tmp_path: Path) -> None:
    result = run(write(tmp_path), batch_size=64)
    row = result.row()
    parameters = 4 * (1024 * 1024 + 1024 + 1024 * 10 + 10)
    assert row["peak_allocated_bytes"] > 3 * parameters, "and Adam's two moments"
    assert row["peak_allocated_bytes"] <= row["peak_reserved_bytes"]
    assert row["nvml_used_bytes"] is None or row["nvml_used_bytes"] > row["peak_reserved_bytes"]


def test_energy_of_a_window_is_that_of_its_power(tmp_path: Path) -> None:
    plan = Plan(steps=100_000, max_seconds=4)
    result = run(write(tmp_path, cycles=CYCLES), plan, batch_size=16)
    energy, integral = result.reading("energy"), result.reading("energy_integral")
    if energy is None:
        (note,) = [r.note for r in result.ranks[0].readings if r.name == "energy"]
        pytest.skip(note)
    assert integral is not None
    assert energy == pytest.approx(integral, rel=0.1)
    power = result.reading("power")
    assert power is not None
    assert energy == pytest.approx(power * result.ranks[0].window.window_s, rel=0.1)
    assert not [reason for reason in result.unfit if "processes" in reason]


def test_memory_that_is_not_there_is_an_outcome(tmp_path: Path) -> None:
    total_bytes = ask("import torch; print(torch.cuda.mem_get_info()[1])")
    extra = f"torch.empty({round(2 * total_bytes)}, dtype=torch.uint8, device='cuda')"
    result = run(write(tmp_path, extra=extra), batch_size=2)
    assert result.outcome is Outcome.OOM
    assert run(write(tmp_path), batch_size=2).outcome is Outcome.OK, "the next one is not hurt"


def test_workers_accumulation_and_pinned_memory(tmp_path: Path) -> None:
    axes = {"num_workers": 2, "accumulation": 2, "pin_memory": True, "batch_size": 32}
    result = run(write(tmp_path), **axes)
    assert result.outcome is Outcome.OK, result.reason
    assert result.reading("data_wait_host") is not None


def test_a_profile_sums_to_wall_time_and_names_who_waits(tmp_path: Path) -> None:
    workload = write(tmp_path, cycles=10 * CYCLES, extra="loss.item()")
    words = ("profile", "--workload", workload, "--device", "cuda", "--batch-size", "64")
    done = stepmark(*words, "--steps", "10", "--save", "p", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    parts = ("compute_s", "exposed_comm_s", "memcpy_s", "idle_s")
    for span in (found, *found["steps"]):
        assert sum(span[part] for part in parts) == pytest.approx(span["wall_s"], abs=1e-9)
    assert found["device"] == 0
    assert found["compute_s"] > 0.5 * found["wall_s"], "it sleeps in a kernel"
    waits = {wait["operator"]: wait["line"] for wait in found["waits"]}
    assert "train.py" in waits["aten::item"]
    sizes = {h["name"]: h["measured_bytes"] for h in found["ranks"][0]["ledger"]}
    assert sizes["context and others"] > 0
    assert sizes["cached"] >= 0
    assert sizes["workspace and the rest"] > -(1 << 20)
    assert (tmp_path / "results" / "p" / "profiles" / found["ranks"][0]["snapshot"]).is_file()
    timeline = found["timeline"]
    assert timeline["device"] == 0
    assert all(
        reserved >= allocated > 0
        for reserved, allocated in zip(
            timeline["reserved_bytes"], timeline["allocated_bytes"], strict=True
        )
    )
    # Parameters, gradients and Adam's state of 1.06 million, and then activations.
    assert 16 * 1_060_000 < max(timeline["allocated_bytes"]) < 100 << 20


def test_the_device_is_found_by_its_uuid_and_what_it_attains_is_measured(tmp_path: Path) -> None:
    done = stepmark("calibrate", "--device", "cuda", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = {(item["name"], item["precision"]): item["value"] for item in json.loads(done.stdout)}
    assert found["compute", "fp32"] > 1e12
    assert found["memory", ""] > 1e11
    assert found["h2d_pinned", ""] > 1e9
    words = ("--workload", write(tmp_path), "--device", "cuda", "--batch-size", "4096")
    measured = stepmark("run", *words, "--steps", "20", "--save", "r", cwd=tmp_path)
    assert measured.returncode == 0, measured.stderr
    (result,) = open_run("r", tmp_path / "results").results
    assert 0 < result.row()["attainable_fraction"] < 1
    assert result.reading("h2d_bytes_per_step") == 4096 * (1024 * 4 + 8)
    assert result.reading_of_any("attainable_h2d") == found["h2d_pageable", ""]
