"""What a machine can attain, and what results reach of it."""

import dataclasses
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import stepmark
from factories import make_machine, make_result, make_scenario
from PIL import Image
from torch.utils.data import Subset, TensorDataset
from torchvision.datasets import ImageFolder

from stepmark import ceilings
from stepmark.ceilings import Ceiling, Ceilings, attach, datasheet_peak, merged
from stepmark.choices import Precision
from stepmark.cli.calibrate_command import _noted
from stepmark.errors import StoreError
from stepmark.nvml.tape import Series, Tape
from stepmark.probes.traffic import count_traffic
from stepmark.record import Reading
from stepmark.runner import Runner
from stepmark.scenario import Plan
from stepmark.store import open_run
from stepmark.workload import Workload


def compute(
    value: float | None, *, device: str = "cpu", precision: str = "fp32", threads: int = 0
) -> Ceiling:
    return Ceiling(
        name="compute", unit="flop/s", value=value, device=device, precision=precision,
        threads=threads,
    )  # fmt: skip


def known(*items: Ceiling) -> Ceilings:
    return Ceilings(
        hardware={}, software={}, measured_at="2026-01-02T03:04:05+00:00", items=tuple(items)
    )


CPU = known(
    compute(100e9, threads=1), compute(180e9, threads=2), compute(300e9, threads=4),
    compute(40e9, precision="bf16", threads=1), compute(None, precision="fp16", threads=1),
)  # fmt: skip
CUDA = known(
    compute(50e12, device="cuda"),
    compute(400e12, device="cuda", precision="tf32"),
    compute(800e12, device="cuda", precision="bf16"),
)


@pytest.mark.parametrize(
    ("threads", "axes", "expected"),
    [
        (1, {}, 100e9),
        (2, {}, 180e9),
        (3, {}, 300e9),
        (8, {}, 300e9),
        (1, {"world_size": 2}, 180e9),
        (2, {"world_size": 2}, 300e9),
        (1, {"precision": Precision.BF16}, 100e9),
        (1, {"precision": Precision.FP16}, 100e9),
    ],
    ids=str,
)
def test_cpus_attain_what_as_many_threads_do(
    threads: int, axes: dict[str, Any], expected: float
) -> None:
    """With autocast some operators stay in fp32, which may be the faster one."""
    assert CPU.compute(make_scenario(**axes), threads) == expected


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ({}, 50e12),
        ({"precision": Precision.TF32}, 400e12),
        ({"precision": Precision.BF16}, 800e12),
        ({"precision": Precision.BF16, "world_size": 4}, 3200e12),
    ],
    ids=str,
)
def test_each_rank_has_a_device_to_itself(axes: dict[str, Any], expected: float) -> None:
    assert CUDA.compute(make_scenario(device="cuda", **axes), 8) == expected


def test_more_threads_attain_no_less_than_fewer() -> None:
    """Of two ceilings that say otherwise one was disturbed."""
    disturbed = known(compute(100e9, threads=1), compute(80e9, threads=2))
    assert disturbed.compute(make_scenario(), 2) == 100e9
    assert disturbed.compute(make_scenario(), 1) == 100e9


def limit(name: str, value: float, device: str) -> Ceiling:
    return Ceiling(name=name, unit="bytes/s", value=value, device=device)


def test_copies_gradients_and_files_have_ceilings_of_one_rank() -> None:
    found = known(
        limit("h2d_pinned", 50e9, "cuda"), limit("h2d_pageable", 9e9, "cuda"),
        limit("all_reduce", 4e9, "cuda"), limit("all_reduce", 1e9, "cpu"),
        limit("jpeg_decode", 3e8, "cpu"),
    )  # fmt: skip
    on_gpu = make_scenario(device="cuda", pin_memory=True, world_size=4)
    assert found.h2d(on_gpu) == 50e9
    assert found.h2d(make_scenario(device="cuda")) == 9e9
    assert found.h2d(make_scenario()) is None
    assert found.all_reduce(on_gpu) == 4e9
    assert found.all_reduce(make_scenario(device="cuda")) is None, "nothing to exchange"
    for num_workers, world_size, cores in ((0, 1, 1), (3, 1, 3), (9, 1, 8), (9, 2, 4), (2, 16, 1)):
        scenario = make_scenario(num_workers=num_workers, world_size=world_size)
        assert found.jpeg(scenario, num_cpus=8) == cores * 3e8


def readings_of(found: Iterable[Reading]) -> dict[str, float | None]:
    return {reading.name: reading.value for reading in found}


def test_what_a_step_moves_is_counted_by_shapes() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.Linear(20, 5, bias=False))
    model[0].weight.requires_grad = False
    workload = Workload(
        model=model,
        dataset=TensorDataset(torch.zeros(64, 10), torch.zeros(64, dtype=torch.int64)),
        loss_fn=torch.nn.functional.cross_entropy,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    batch = {"x": torch.zeros(8, 10, device="meta"), "y": [torch.zeros(8, dtype=torch.int64)]}
    assert readings_of(count_traffic(workload, make_scenario(), batch)) == {}
    scenario = make_scenario(device="cuda", accumulation=3, world_size=2)
    assert readings_of(count_traffic(workload, scenario, batch)) == {
        "h2d_bytes_per_step": 3 * (8 * 10 * 4 + 8 * 8),
        "all_reduce_bytes_per_step": 4 * (20 + 20 * 5),
    }


def test_what_cannot_be_looked_into_is_empty_and_never_zero_nor_a_failure() -> None:
    class Graph:
        x = torch.zeros(8, 10)

    class Own:
        @property
        def samples(self) -> None:
            raise RuntimeError("not yet")

        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> int:
            return index

    workload = Workload(
        model=torch.nn.Linear(1, 1),
        dataset=Own(),  # type: ignore[arg-type]
        loss_fn=torch.nn.functional.cross_entropy,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    (reading,) = count_traffic(workload, make_scenario(device="cuda"), (Graph(), torch.zeros(3)))
    assert reading.value is None
    assert reading.note.endswith("looked into (Graph)")


def test_measuring_from_python_is_held_against_what_was_calibrated_here(tmp_path: Path) -> None:
    code = """
from pathlib import Path
from stepmark import Plan, Scenario, ceilings, measure
from stepmark.ceilings import Ceiling, Ceilings

scenario = Scenario(workload="mlp-mse", device="cpu", threads=1)
before = measure(scenario, Plan(steps=3, warmup=0))
item = Ceiling(
    name="compute", unit="flop/s", value=1e11, device="cpu", precision="fp32", threads=1
)
known = Ceilings(hardware={}, software={}, measured_at="2026-01-02", items=(item,))
ceilings.save(Path("results"), before.machine, known)
after = measure(scenario, Plan(steps=3, warmup=0))
print(*(result.reading_of_any("attainable_compute") for result in (before, after)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["None", "100000000000.0"], done.stderr


def test_what_disturbed_a_calibration_is_told_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is too hot, and one that nobody could look at."""
    hot = Series(at_s=(time.monotonic(),), values=(64.0,))
    tapes = {"GPU-1": Tape(series={"clock_reasons": hot}), "GPU-2": Tape(error="Driver Not Loaded")}
    with Runner() as runner:
        monkeypatch.setattr(runner, "_carry_out", lambda *_: SimpleNamespace(ending="ended"))
        monkeypatch.setattr(runner._sampler, "cut", lambda: tapes)
        ending, remarks = runner.calibrate(make_scenario(), Plan())
    assert ending == "ended"
    slowed, blind = (next(r for r in remarks if r.startswith(uuid)) for uuid in tapes)
    assert "the GPU was slowed down" in slowed
    assert "Driver Not Loaded" in blind
    noted = _noted(compute(1e12, device="cuda"), remarks)
    assert slowed in noted.note


@pytest.mark.parametrize(("suffix", "expected"), [("jpg", 32 * 3 * 0.5 * (400 + 1600)), ("png", 0)])
def test_files_of_jpeg_are_known_by_their_headers(
    tmp_path: Path, suffix: str, expected: float
) -> None:
    for number in range(40):
        path = tmp_path / f"class{number % 2}" / f"{number}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        side = 20 if number % 2 else 40
        Image.new("RGB", (side, side)).save(path)
    dataset = Subset(ImageFolder(tmp_path), range(40))
    workload = Workload(
        model=torch.nn.Linear(1, 1),
        dataset=dataset,
        loss_fn=torch.nn.functional.cross_entropy,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    scenario = make_scenario(batch_size=32, accumulation=3)
    found = readings_of(count_traffic(workload, scenario, ()))
    assert found == ({"jpeg_pixels_per_step": expected} if expected else {})


def test_what_was_not_calibrated_is_not_guessed() -> None:
    assert CUDA.compute(make_scenario(), 1) is None
    assert CPU.memory(make_scenario(), 1) is None
    result = make_result()
    assert attach(result, None) is result
    assert attach(result, CPU).row()["attainable_fraction"] is None, "its FLOPs are not counted"


def flops(value: float) -> dict[str, Any]:
    """Fields of a rank that counted so many for a step."""
    reading = Reading(name="flops_per_step", unit="flop", scope="node", value=value)
    return {"readings": (reading,), "num_threads": 1}


def test_a_result_says_what_part_of_the_attainable_it_reaches() -> None:
    # A step of 64 samples takes 64 ms, in which 100 GFLOP/s would come to 6.4 GFLOP.
    result = attach(make_result(rank=flops(1.6e9)), CPU)
    assert result.achieved_flops == pytest.approx(25e9)
    assert result.row()["attainable_fraction"] == pytest.approx(0.25)
    assert result.reading("attainable_compute") == 100e9
    assert result.reading("mfu_datasheet") is None


def test_ranks_count_their_flops_together() -> None:
    scenario = make_scenario(device="cuda", world_size=2, precision=Precision.BF16)
    rank = {**flops(1e12), "device_name": "NVIDIA H200"}
    result = make_result(scenario, rank=rank)
    result = dataclasses.replace(
        result,
        ranks=(result.ranks[0], dataclasses.replace(result.ranks[1], readings=())),
    )
    row = attach(result, CUDA).row()
    step_s = row["window_s"] / row["steps"]
    assert row["attainable_fraction"] == pytest.approx(1e12 / step_s / 1600e12)
    assert attach(result, CUDA).reading_of_any("mfu_datasheet") == pytest.approx(
        1e12 / step_s / (2 * 989.4e12)
    )


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA H200", "bf16", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5e12),
        ("Tesla T4", "bf16", None),
        ("NVIDIA L40S", "bf16", None),
        ("NVIDIA GeForce RTX 5090", "bf16", None),
        ("NVIDIA H200 NVL", "bf16", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", None),
        ("cpu", "fp32", None),
    ],
)
def test_datasheets_are_of_known_devices_alone(
    name: str, precision: str, expected: float | None
) -> None:
    assert datasheet_peak(name, precision) == expected


def test_ceilings_are_of_one_hardware_and_software(tmp_path: Path) -> None:
    here, elsewhere = make_machine(), make_machine(software={"torch": "2.99"})
    path = ceilings.save(tmp_path, here, CPU)
    assert ceilings.load(tmp_path, here) == CPU
    assert ceilings.load(tmp_path, elsewhere) is None
    unnumbered = json.loads(path.read_text())
    del unnumbered["schema"]
    path.write_text(json.dumps(unnumbered))
    assert ceilings.load(tmp_path, here) == CPU, "as they were once written"
    path.write_text("{}")
    with pytest.raises(StoreError, match="run 'stepmark calibrate' again"):
        ceilings.load(tmp_path, here)


def test_what_is_not_measured_again_stays_known() -> None:
    again = known(compute(110e9, threads=1))
    both = merged(known(*CPU.items, *CUDA.items), again)
    assert both.compute(make_scenario(), 1) == 110e9
    assert both.compute(make_scenario(), 2) == 180e9
    assert both.compute(make_scenario(device="cuda"), 1) == 50e12
    assert len(both.items) == len(CPU.items) + len(CUDA.items)
    assert merged(None, again) == again


def test_this_machine_is_calibrated_and_results_are_held_against_it(tmp_path: Path) -> None:
    done = stepmark("calibrate", "--device", "cpu", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    items = json.loads(done.stdout)
    values = {(i["name"], i["precision"], i["threads"]): i["value"] for i in items}
    assert values["compute", "fp32", 1] > 1e9
    assert values["memory", "", 1] > 1e8
    assert values["jpeg_decode", "", 1] > 1e6
    assert all(value is None or (value > 0 and math.isfinite(value)) for value in values.values())
    words = ("--workload", "cnn-mnist", "--device", "cpu", "--threads", "1", "--batch-size", "64")
    measured = stepmark("run", *words, "--steps", "10", "--save", "r", cwd=tmp_path)
    assert measured.returncode == 0, measured.stderr
    (result,) = open_run("r", tmp_path / "results").results
    fraction = result.row()["attainable_fraction"]
    assert 0.005 < fraction < 1
    assert result.reading_of_any("attainable_memory") == values["memory", "", 1]


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    done = stepmark("calibrate", "--device", "cpu,tpu", cwd=tmp_path)
    assert done.returncode == 2
    assert "--device 'tpu': this machine has " in done.stderr
