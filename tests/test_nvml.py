"""What NVML tells, by tapes played back at the C boundary; pynvml's own code runs in between."""

import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pynvml
import pytest
from factories import make_rank, make_result, make_scenario, make_window

from stepmark.nvml import SamplerProcess, Tape, join, power_limit_w, readings, replay, unfit
from stepmark.nvml.quantities import TICK_S
from stepmark.nvml.sampler import Sampler
from stepmark.nvml.tape import blind
from stepmark.record import Reading

FIRST, SECOND = (f"GPU-{n}{n}-0000-0000-0000-000000000000" for n in ("1111", "2222"))
INSTANCE = "MIG-33333333-0000-0000-0000-000000000000"
BUSY = {
    "energy_j": [[0, 1000.0], [10, 3500.0]],
    "power_w": 250.0,
    "memory_used_bytes": [[0, 1e9], [5, 6e9], [10, 2e9]],
    "utilisation": 0.8,
    "sm_clock_mhz": 1980,
    "memory_clock_mhz": 3201,
    "clock_reasons": 0,
    "temperature_c": [[0, 40], [10, 60]],
    "num_processes": 1,
    "pcie_tx_bytes_per_s": 1024e3,
    "pcie_rx_bytes_per_s": 2048e3,
}


class Clock:
    """Moves when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def no_library() -> Iterator[None]:
    """What a test put in place of NVIDIA's library goes with it."""
    yield
    pynvml._nvmlGetFunctionPointer_cache.clear()
    pynvml.nvmlLib = None
    pynvml._nvmlLib_refcount = 0


def device(uuid: str = FIRST, **changes: Any) -> dict[str, Any]:
    return {"uuid": uuid, "quantities": {**BUSY, **changes}}


def sampled(data: dict[str, Any], *uuids: str, seconds: float = 10.0) -> dict[str, Tape]:
    """Tapes of devices watched for so long, on a clock of the test's own."""
    clock = Clock()
    replay.install(data, clock)
    sampler = Sampler(clock, backend="replay")
    for uuid in uuids or (FIRST,):
        sampler.watch(uuid)
    for tick in range(round(seconds / TICK_S) + 1):
        clock.now = tick * TICK_S
        sampler.sample(tick)
    return sampler.cut()


def read(tape: Tape, start_s: float = 2.0, end_s: float = 8.0) -> dict[str, Reading]:
    return {reading.name: reading for reading in readings(tape, start_s, end_s)}


def test_all_quantities_come_back_in_their_units() -> None:
    found = read(sampled({"devices": [device()]})[FIRST])
    values = {name: reading.value for name, reading in found.items()}
    assert values == {
        "energy": pytest.approx(1500, rel=0.005),
        "energy_integral": pytest.approx(1500, rel=0.005),
        "power": pytest.approx(250),
        "nvml_memory_used": pytest.approx(6e9, rel=0.01),
        "gpu_utilisation": pytest.approx(0.8),
        "sm_clock": 1980,
        "memory_clock": 3201,
        "clocks_held_back": 0,
        "gpu_temperature": pytest.approx(56, abs=1),
        "pcie_sent": pytest.approx(1024e3),
        "pcie_received": pytest.approx(2048e3),
    }
    assert all(reading.note.startswith("replay: ") for reading in found.values())
    assert {reading.scope for reading in found.values()} == {"device"}


def test_power_is_that_of_the_moment_where_the_device_tells_it() -> None:
    """The mean of the last second lags behind a device that has just begun to work."""
    moment = [[0, 100], [4.999, 100], [5, 700], [10, 700]]
    lagging = [[0, 100], [5, 100], [6, 700], [10, 700]]
    both = sampled({"devices": [device(power_w=lagging, power_instant_w=moment)]})[FIRST]
    found = read(both, 5.0, 7.5)
    assert found["power"].value == pytest.approx(700, rel=0.01)
    assert found["energy_integral"].value == pytest.approx(2.5 * 700, rel=0.005)
    assert "a second before" not in found["power"].note
    alone = read(sampled({"devices": [device(power_w=lagging)]})[FIRST], 5.0, 7.5)
    assert alone["energy_integral"].value == pytest.approx(2.5 * 700 - 300, rel=0.01)
    for name in ("power", "energy_integral"):
        assert alone[name].note.endswith("may be means of up to a second before")
    older = {"devices": [device()], "missing": ["nvmlDeviceGetFieldValues"]}
    assert read(sampled(older)[FIRST])["power"].value == pytest.approx(250)


@pytest.mark.parametrize(("start_s", "end_s"), [(1.0, 3.0), (0.333, 9.99), (4.4, 6.5)])
def test_energy_is_that_of_the_window_alone(start_s: float, end_s: float) -> None:
    """Power rises from 100 W to 700 W; energy is its integral, 100 t + 30 t^2."""
    points = [[t / 50, 100 * t / 50 + 30 * (t / 50) ** 2] for t in range(501)]
    tape = sampled({"devices": [device(energy_j=points, power_w=[[0, 100], [10, 700]])]})[FIRST]
    expected = 100 * (end_s - start_s) + 30 * (end_s**2 - start_s**2)
    found = read(tape, start_s, end_s)
    assert found["energy"].value == pytest.approx(expected, rel=0.005)
    assert found["energy_integral"].value == pytest.approx(expected, rel=0.005)


def test_a_counter_that_moves_ten_times_a_second_is_read_between_its_steps() -> None:
    steps = [
        [t + dt, 30.0 * k] for k in range(101) for t, dt in [(k / 10, 0), ((k + 1) / 10, -1e-6)]
    ]
    tape = sampled({"devices": [device(energy_j=steps, power_w=300.0)]})[FIRST]
    for start_s, end_s in ((1.01, 3.01), (1.09, 3.11), (2.05, 9.95), (1.0, 9.99)):
        found = read(tape, start_s, end_s)["energy"].value
        assert found == pytest.approx(300 * (end_s - start_s), rel=0.005)


def test_a_window_too_short_for_energy_has_none() -> None:
    found = read(sampled({"devices": [device()]})[FIRST], 2.0, 3.5)
    assert found["energy"].value is None
    assert found["energy_integral"].value is None
    assert "unavailable: a window of 1.5 s is too short, 2 s are needed" in found["energy"].note
    assert found["power"].value == pytest.approx(250)


def test_a_window_between_two_samples_has_what_was_sampled_close_to_it() -> None:
    tape = sampled({"devices": [device(clock_reasons=0x40)]})[FIRST]
    found = read(tape, 5.01, 5.015)
    assert found["nvml_memory_used"].value == pytest.approx(6e9, rel=0.01)
    assert found["sm_clock"].value == 1980
    assert len(list(unfit(tape, 5.01, 5.015, 1))) == 1


def test_a_window_outside_of_the_tape_has_nothing() -> None:
    found = read(sampled({"devices": [device()]}, seconds=3)[FIRST], 20.0, 30.0)
    assert {reading.value for reading in found.values()} == {None}
    assert found["power"].note == "replay: unavailable: not sampled within the window"


@pytest.mark.parametrize(("start_s", "end_s"), [(-0.5, 4.0), (7.0, 10.5)])
def test_energy_of_a_part_of_a_window_is_none(start_s: float, end_s: float) -> None:
    found = read(sampled({"devices": [device()]})[FIRST], start_s, end_s)
    assert found["energy"].value is None
    assert found["energy_integral"].note.endswith(
        "unavailable: sampled in a part of the window alone"
    )
    assert found["power"].value == pytest.approx(250)


def test_devices_are_found_by_uuid_whatever_their_order() -> None:
    data = {"devices": [device(SECOND, power_w=90.0), device(FIRST, power_w=400.0)]}
    tapes = sampled(data, FIRST, SECOND, seconds=3)
    assert {uuid: read(tape, 0.5, 2.9)["power"].value for uuid, tape in tapes.items()} == {
        FIRST: pytest.approx(400),
        SECOND: pytest.approx(90),
    }


def test_a_mig_instance_has_what_the_driver_tells_of_it() -> None:
    """Memory; power and the rest are the whole device's, and not supported."""
    data = {
        "devices": [
            device(SECOND),
            {"uuid": INSTANCE, "quantities": {"memory_used_bytes": 5e9}},
        ]
    }
    found = read(sampled(data, INSTANCE)[INSTANCE])
    assert found["nvml_memory_used"].value == pytest.approx(5e9)
    assert found["power"].value is None
    assert found["power"].note == "replay: unavailable: Not Supported"


def test_a_uuid_that_is_not_there_is_said_so() -> None:
    tape = sampled({"devices": [device()]}, SECOND)[SECOND]
    assert read(tape)["power"].note == (
        f"replay: unavailable: no device with UUID {SECOND} (Not Found)"
    )
    assert list(unfit(tape, 2.0, 8.0, 1)) == []


def test_without_a_library_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    monkeypatch.setattr(pynvml, "CDLL", missing)
    sampler = Sampler()
    sampler.watch(FIRST)
    assert not sampler.is_watching
    found = read(sampler.cut()[FIRST])
    assert found["power"].note == "unavailable: NVML Shared Library Not Found"
    assert {reading.value for reading in found.values()} == {None}


def test_a_driver_that_does_not_run_is_told() -> None:
    tape = sampled({"init_error": pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "devices": [device()]})[
        FIRST
    ]
    assert read(tape)["power"].note == "replay: unavailable: Driver Not Loaded"


@pytest.mark.parametrize(
    ("missing", "lost"),
    [
        (["nvmlDeviceGetCurrentClocksEventReasons"], set()),
        (
            ["nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPcieThroughput"],
            {"energy", "pcie_sent", "pcie_received"},
        ),
        (["nvmlDeviceGetComputeRunningProcesses_v3"], set()),
        (["nvmlDeviceGetTemperatureV"], set()),
    ],
    ids=["old name", "no counter", "old processes", "old temperature"],
)
def test_an_old_driver_gives_what_it_has(missing: list[str], lost: set[str]) -> None:
    tape = sampled({"devices": [device()], "missing": missing})[FIRST]
    assert set(tape.series["num_processes"].values) == {1.0}
    found = read(tape)
    assert {name for name, reading in found.items() if reading.value is None} == lost
    for name in lost:
        assert found[name].note == "replay: unavailable: Function Not Found"


def test_an_error_that_passes_costs_its_samples_alone() -> None:
    passing = {"error": pynvml.NVML_ERROR_UNKNOWN, "from_s": 4.0, "until_s": 4.03, "else": 250.0}
    tape = sampled({"devices": [device(power_w=passing)]})[FIRST]
    assert tape.series["power_w"].error == ""
    assert len(tape.series["power_w"].values) == pytest.approx(10 / TICK_S, abs=3)
    assert read(tape)["energy_integral"].value == pytest.approx(1500, rel=0.005)


def test_a_device_lost_after_the_window_does_not_concern_it() -> None:
    lost = {"error": pynvml.NVML_ERROR_GPU_IS_LOST, "from_s": 9.0}
    quantities = {name: {**lost, "else": value} for name, value in BUSY.items()}
    found = read(sampled({"devices": [{"uuid": FIRST, "quantities": quantities}]})[FIRST])
    assert found["power"].value == pytest.approx(250)
    assert found["energy"].value == pytest.approx(1500, rel=0.005)


def test_a_counter_that_does_not_move_is_no_energy() -> None:
    found = read(sampled({"devices": [device(energy_j=77.0)]})[FIRST])
    assert found["energy"].value is None
    assert found["energy"].note == "replay: unavailable: it did not move"


def test_what_a_device_does_not_support_is_empty_and_not_0() -> None:
    quantities = {name: value for name, value in BUSY.items() if name != "energy_j"}
    tape = sampled({"devices": [{"uuid": FIRST, "quantities": quantities}]})[FIRST]
    found = read(tape)
    assert found["energy"].value is None
    assert found["energy"].note == "replay: unavailable: Not Supported"
    assert found["energy_integral"].value == pytest.approx(1500, rel=0.005)


def test_a_device_that_is_lost_has_no_figure_of_a_window_it_did_not_see_whole() -> None:
    lost = {"error": pynvml.NVML_ERROR_GPU_IS_LOST, "from_s": 5.0}
    quantities = {name: {**lost, "else": value} for name, value in BUSY.items()}
    found = read(sampled({"devices": [{"uuid": FIRST, "quantities": quantities}]})[FIRST])
    assert {reading.value for reading in found.values()} == {None}
    assert found["power"].note == "replay: unavailable: GPU is lost"


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        (
            [[0, 0x20], [10, 0x20]],
            "the GPU was slowed down (thermal slowdown by the driver, 100.0 %",
        ),
        (
            [[0, 0x40], [10, 0x40]],
            "the GPU was slowed down (thermal slowdown by the hardware, 100.0",
        ),
        ([[0, 0x80], [5, 0x80], [5.001, 0], [10, 0]], "the GPU was slowed down (power brake, 50"),
    ],
)
def test_a_window_in_which_the_device_was_slowed_down_is_unfit(
    reasons: list[list[float]], expected: str
) -> None:
    tape = sampled({"devices": [device(clock_reasons=reasons)]})[FIRST]
    (remark,) = unfit(tape, 2.0, 8.0, 1)
    assert remark.startswith(expected)
    held_back = read(tape)["clocks_held_back"].value
    assert held_back is not None
    assert held_back >= 0.5


@pytest.mark.parametrize("reasons", [0x00, 0x01, 0x02, 0x04], ids=hex)
def test_a_power_cap_and_an_idle_device_are_no_reason(reasons: int) -> None:
    tape = sampled({"devices": [device(clock_reasons=reasons)]})[FIRST]
    assert list(unfit(tape, 2.0, 8.0, 1)) == []
    assert read(tape)["clocks_held_back"].value == float(reasons in (0x02, 0x04))


def test_a_slowdown_before_and_after_the_window_does_not_matter() -> None:
    reasons = [[0, 0x40], [1, 0x40], [1.001, 0], [9, 0], [9.001, 0x40], [10, 0x40]]
    tape = sampled({"devices": [device(clock_reasons=reasons)]})[FIRST]
    assert list(unfit(tape, 2.0, 8.0, 1)) == []


def test_where_processes_are_not_listed_it_is_said_that_others_would_not_be() -> None:
    """As in a container."""
    tape = sampled({"devices": [device(num_processes=0)]})[FIRST]
    assert list(unfit(tape, 2.0, 8.0, 1)) == []
    (remark,) = blind(tape, 2.0, 8.0, 1)
    assert "others on the GPU would not be seen" in remark
    assert list(blind(sampled({"devices": [device()]})[FIRST], 2.0, 8.0, 1)) == []


@pytest.mark.parametrize(("own", "foreign"), [(1, 2), (2, 1), (3, 0)])
def test_processes_of_others_make_a_window_unfit(own: int, foreign: int) -> None:
    tape = sampled({"devices": [device(num_processes=3)]})[FIRST]
    remarks = list(unfit(tape, 2.0, 8.0, own))
    expected = [f"{foreign} more processes than this measurement's used the GPU"]
    assert remarks == (expected if foreign else [])


@pytest.mark.parametrize(
    ("uuid", "limit"), [(FIRST, 700), (SECOND, None)], ids=["known", "unknown"]
)
def test_the_power_limit_is_read_by_uuid(uuid: str, limit: int | None) -> None:
    replay.install({"devices": [device(power_limit_w=700)]})
    assert power_limit_w(uuid) == limit


def test_what_was_sampled_joins_what_ranks_measured() -> None:
    window = make_window(num_steps=60, step_s=0.1, began_s=2.0)
    ranks = [
        make_rank(rank=0, window=window, device_uuid=FIRST),
        make_rank(rank=1, window=window, device_uuid=SECOND),
    ]
    data = {
        "devices": [
            device(SECOND, clock_reasons=0x40),
            device(energy_j=[[0, 0], [10, 1000]]),
        ]
    }
    result = make_result(make_scenario(device="cuda", world_size=2))
    result = dataclasses.replace(result, ranks=join(ranks, sampled(data, FIRST, SECOND)))
    row = result.row()
    assert row["energy_j"] == pytest.approx(600 + 1500, rel=0.005), "both ranks' devices"
    assert row["nvml_used_bytes"] == pytest.approx(6e9, rel=0.01)
    (reason,) = result.unfit
    assert "thermal slowdown by the hardware" in reason
    assert result.reading("power") == pytest.approx(250)


def test_ranks_without_a_device_to_sample_stay_as_they_are() -> None:
    rank = make_rank(rank=0)
    assert join([rank], {}) == (rank,)
    assert make_result(rank={"device_uuid": ""}).row()["energy_j"] is None


def test_a_device_without_a_counter_has_its_power_integrated() -> None:
    data = {"devices": [device()], "missing": ["nvmlDeviceGetTotalEnergyConsumption"]}
    window = make_window(num_steps=60, step_s=0.1, began_s=2.0)
    result = make_result()
    ranks = join([make_rank(rank=0, window=window, device_uuid=FIRST)], sampled(data))
    row = dataclasses.replace(result, ranks=ranks).row()
    assert row["energy_j"] == pytest.approx(1500, rel=0.005)


def play(folder: Path, data: dict[str, Any]) -> SamplerProcess:
    file = folder / "tape.json"
    file.write_text(json.dumps(data))
    return SamplerProcess({**os.environ, replay.VARIABLE: str(file)})


def wait_for(sampler: SamplerProcess) -> None:
    """Until it samples."""
    deadline_s = time.monotonic() + 30
    values: tuple[float, ...] = ()
    while not values:
        assert time.monotonic() < deadline_s, "it never samples"
        sampler.watch(FIRST)
        time.sleep(0.1)
        values = sampler.cut()[FIRST].series["power_w"].values


@pytest.fixture
def started() -> Callable[[], psutil.Process]:
    """The one child that this process has got since; other tests' helpers may still be there."""
    before = set(psutil.Process().children())

    def find() -> psutil.Process:
        (process,) = set(psutil.Process().children()) - before
        return process

    return find


def test_the_process_samples_while_it_is_told_to(
    tmp_path: Path, started: Callable[[], psutil.Process]
) -> None:
    points = [[0, 0.0], [60, 60 * 200.0]]
    with play(tmp_path, {"devices": [device(energy_j=points, power_w=200.0)]}) as sampler:
        assert sampler.cut() == {}
        wait_for(sampler)
        for _ in range(2):
            sampler.watch(FIRST)
            sampler.watch(SECOND)
            time.sleep(2.6)
            end_s = time.monotonic() - 0.1
            tapes = sampler.cut()
            found = read(tapes[FIRST], end_s - 2.1, end_s)
            assert found["energy"].value == pytest.approx(200 * 2.1, rel=0.005)
            assert found["energy"].note.startswith("replay: ")
            assert "no device with UUID" in tapes[SECOND].error
            expected = 2.5 / TICK_S
            assert 0.5 * expected < len(tapes[FIRST].series["power_w"].values) < 1.2 * expected
        process = started()
    assert not process.is_running()


def test_a_sampling_process_that_dies_is_said_so_and_the_next_one_serves(
    tmp_path: Path, started: Callable[[], psutil.Process]
) -> None:
    with play(tmp_path, {"devices": [device()]}) as sampler:
        sampler.watch(FIRST)
        started().kill()
        tape = sampler.cut()[FIRST]
        assert tape.error == "the sampling process died"
        assert math.isnan(next((r.value for r in readings(tape, 0, 9) if r.value), math.nan))
        wait_for(sampler)


def test_the_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    (tmp_path / "tape.json").write_text(json.dumps({"devices": [device()]}))
    code = (
        "import os, sys, psutil\n"
        "from stepmark.nvml import SamplerProcess\n"
        "sampler = SamplerProcess(os.environ)\n"
        f"sampler.watch({FIRST!r})\n"
        "print(psutil.Process().children()[0].pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, replay.VARIABLE: str(tmp_path / "tape.json")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    pid = int(done.stdout)
    deadline_s = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline_s, "it lives on"
        time.sleep(0.05)
