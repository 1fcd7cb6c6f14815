"""A management library that plays tapes back, in place of NVIDIA's, for machines without a GPU.

It answers at the C boundary, so that pynvml's own packing and error mapping run. What comes of it
carries the backend ``replay``.

    {"devices": [{"uuid": "GPU-...", "quantities": {"power_w": 250.0, "energy_j": ...}}]}

A quantity (see `stepmark.nvml.quantities`) is a number, pairs of seconds since the start and
numbers, with straight lines between them, or such with an error of NVML's for some time:
``{"error": 3, "from_s": 0.5, "until_s": 0.7, "else": 250.0}``.
Functions in ``missing`` are not in the library, as in an old driver.
"""

import bisect
import ctypes
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pynvml

VARIABLE = "STEPMARK_NVML_REPLAY"

_NVML: Any = pynvml
_POINTER = ctypes.c_void_p
_UINT = ctypes.c_uint


def load(file: str) -> dict[str, Any]:
    """A tape's JSON."""
    data: dict[str, Any] = json.loads(Path(file).read_text())
    return data


def install(data: dict[str, Any], now_s: Callable[[], float] = time.monotonic) -> None:
    """Have pynvml call a replay from now on, in this process."""
    _NVML._nvmlGetFunctionPointer_cache.clear()
    _NVML.nvmlLib = Library(data, now_s)


class Library:
    """What pynvml takes for the loaded library: functions of C, as attributes."""

    def __init__(self, data: dict[str, Any], now_s: Callable[[], float]) -> None:
        self._devices: list[dict[str, Any]] = data.get("devices", [])
        self._init_error = int(data.get("init_error", 0))
        self._now_s, self._start_s = now_s, now_s()
        self._texts: dict[int, Any] = {}
        for name, (kinds, function) in self._functions().items():
            if name not in data.get("missing", ()):
                setattr(self, name, ctypes.CFUNCTYPE(*kinds)(function))
        # Not a c_char_p: ctypes would free what a callback of that type returned too early.
        self.nvmlErrorString = ctypes.CFUNCTYPE(_POINTER, _UINT)(self._text_of)

    def _functions(self) -> dict[str, tuple[tuple[Any, ...], Callable[..., int]]]:
        """By name: return type and arguments' types, and what answers."""
        ask, asked = (_UINT, _POINTER, _POINTER), (_UINT, _POINTER, _UINT, _POINTER)

        def one(name: str, kind: Any, scale: float = 1.0) -> Callable[[int, int], int]:
            return lambda device, out: self._answer(device, name, out, kind, scale)

        def chosen(names: Sequence[str], kind: Any, scale: float = 1.0) -> Callable[..., int]:
            return lambda device, which, out: self._answer(device, names[which], out, kind, scale)

        clocks = ["", "sm_clock_mhz", "memory_clock_mhz"]
        pcie = ["pcie_tx_bytes_per_s", "pcie_rx_bytes_per_s"]
        reasons = one("clock_reasons", ctypes.c_ulonglong)
        return {
            "nvmlInitWithFlags": ((_UINT, _UINT), lambda _flags: self._init_error),
            "nvmlShutdown": ((_UINT,), lambda: 0),
            "nvmlDeviceGetHandleByUUID": ((_UINT, ctypes.c_char_p, _POINTER), self._find),
            "nvmlDeviceGetTotalEnergyConsumption": (
                ask,
                one("energy_j", ctypes.c_ulonglong, 1e3),
            ),
            "nvmlDeviceGetFieldValues": ((_UINT, _POINTER, ctypes.c_int32, _POINTER), self._fields),
            "nvmlDeviceGetPowerUsage": (ask, one("power_w", _UINT, 1e3)),
            "nvmlDeviceGetEnforcedPowerLimit": (ask, one("power_limit_w", _UINT, 1e3)),
            "nvmlDeviceGetMemoryInfo": (ask, self._memory),
            "nvmlDeviceGetUtilizationRates": (ask, one("utilisation", _UINT, 100)),
            "nvmlDeviceGetClockInfo": (asked, chosen(clocks, _UINT)),
            "nvmlDeviceGetCurrentClocksEventReasons": (ask, reasons),
            "nvmlDeviceGetCurrentClocksThrottleReasons": (ask, reasons),
            "nvmlDeviceGetTemperatureV": (ask, self._temperature),
            "nvmlDeviceGetTemperature": (
                asked,
                lambda device, _sensor, out: self._answer(device, "temperature_c", out, _UINT),
            ),
            **{
                f"nvmlDeviceGetComputeRunningProcesses_{version}": (
                    (_UINT, _POINTER, _POINTER, _POINTER),
                    self._processes,
                )
                for version in ("v2", "v3")
            },
            "nvmlDeviceGetPcieThroughput": (asked, chosen(pcie, _UINT, 1 / 1024)),
        }

    def _text_of(self, code: int) -> int:
        text = _NVML.NVMLError._errcode_to_string.get(code, f"Unknown Error ({code})")
        buffer = self._texts.setdefault(code, ctypes.create_string_buffer(text.encode()))
        return ctypes.addressof(buffer)

    def _find(self, uuid: bytes, out: int) -> int:
        for number, device in enumerate(self._devices):
            if device["uuid"].encode() == uuid:
                # Never 0: that would be no pointer.
                _POINTER.from_address(out).value = number + 1
                return 0
        return int(_NVML.NVML_ERROR_NOT_FOUND)

    def _value(self, device: int, name: str) -> tuple[int, float]:
        """Error and value of a quantity, now."""
        tape = self._devices[device - 1]["quantities"].get(name)
        since_s = self._now_s() - self._start_s
        if tape is None:
            return int(_NVML.NVML_ERROR_NOT_SUPPORTED), 0.0
        if isinstance(tape, dict):
            if tape.get("from_s", 0.0) <= since_s < tape.get("until_s", math.inf):
                return int(tape["error"]), 0.0
            tape = tape["else"]
        return 0, _at(tape, since_s)

    def _answer(self, device: int, name: str, out: int, kind: Any, scale: float = 1.0) -> int:
        error, value = self._value(device, name)
        if not error:
            kind.from_address(out).value = round(value * scale)
        return error

    def _fields(self, device: int, count: int, out: int) -> int:
        for field in (_NVML.c_nvmlFieldValue_t * count).from_address(out):
            known = field.fieldId == _NVML.NVML_FI_DEV_POWER_INSTANT
            error, value = self._value(device, "power_instant_w" if known else "")
            field.nvmlReturn = error
            field.value.uiVal = round(1e3 * value)
        return 0

    def _memory(self, device: int, out: int) -> int:
        error, value = self._value(device, "memory_used_bytes")
        if not error:
            _NVML.c_nvmlMemory_t.from_address(out).used = round(value)
        return error

    def _temperature(self, device: int, out: int) -> int:
        error, value = self._value(device, "temperature_c")
        if not error:
            _NVML.c_nvmlTemperature_v1_t.from_address(out).temperature = round(value)
        return error

    def _processes(self, device: int, count: int, out: int | None) -> int:
        error, number = self._value(device, "num_processes")
        held = _UINT.from_address(count)
        too_few = not error and held.value < round(number)
        if not error:
            held.value = round(number)
        return int(_NVML.NVML_ERROR_INSUFFICIENT_SIZE) if too_few else error


def _at(tape: float | Sequence[Sequence[float]], since_s: float) -> float:
    if not isinstance(tape, Sequence):
        return float(tape)
    times = [point[0] for point in tape]
    after = bisect.bisect_right(times, since_s)
    if after == 0 or after == len(tape):
        return float(tape[max(0, after - 1)][1])
    (t0, v0), (t1, v1) = tape[after - 1], tape[after]
    return float(v0 + (v1 - v0) * (since_s - t0) / (t1 - t0))
