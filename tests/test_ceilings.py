"""What a machine can attain, and what results reach of it."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from commands import stepmark
from factories import make_machine, make_result, make_scenario

from stepmark import ceilings
from stepmark.ceilings import Ceiling, Ceilings, attach, datasheet_peak, merged
from stepmark.errors import StoreError
from stepmark.record import Reading
from stepmark.scenario import Precision
from stepmark.store import open_run


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
