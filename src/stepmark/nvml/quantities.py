"""What is sampled, and the calls of NVML that tell it, in units of this project."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pynvml

# Without types: the package has none, and makes its exceptions while it is imported.
_NVML: Any = pynvml
NVMLError: type[Exception] = _NVML.NVMLError

TICK_S = 0.02
_OFTEN, _SOMETIMES, _RARELY = 1, 5, 50  # ticks between two samples


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One figure of a device.

    Attributes:
        name: of its series on a tape.
        read: from a device's handle to a number.
        every: ticks between two samples.
    """

    name: str
    read: Callable[[Any], float]
    every: int


# What a driver answers that knows another form of a call.
_OTHER_VERSION = (
    _NVML.NVML_ERROR_FUNCTION_NOT_FOUND,
    _NVML.NVML_ERROR_NOT_SUPPORTED,
    _NVML.NVML_ERROR_INVALID_ARGUMENT,
    _NVML.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
)


def either(*names: str) -> Callable[..., Any]:
    """A call of NVML that has had several names, the newest first.

    Drivers lack what is newer than they are, and the package drops what is deprecated.
    """

    def call(*arguments: Any) -> Any:
        for name in names:
            try:
                return getattr(_NVML, name)(*arguments)
            except AttributeError:
                continue
            except NVMLError as error:
                if name == names[-1] or error.value not in _OTHER_VERSION:  # type: ignore[attr-defined]
                    raise
        raise _NVML.NVMLError(_NVML.NVML_ERROR_FUNCTION_NOT_FOUND)

    return call


def handle_of(uuid: str) -> Any:
    """The device of that UUID, with NVML's prefix (``GPU-`` or ``MIG-``).

    By UUID, since NVML's order of devices need not be CUDA's, nor be changed by
    ``CUDA_VISIBLE_DEVICES``.

    Raises:
        NVMLError: there is none.
    """
    return _NVML.nvmlDeviceGetHandleByUUID(uuid)


_clock_reasons = either(
    "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"
)
_processes = either(
    "nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2"
)
_temperature = either("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature")


def _instant_power_w(device: Any) -> float:
    """Not the mean of the last second, which newer devices tell when they are asked for power."""
    (field,) = _NVML.nvmlDeviceGetFieldValues(device, [_NVML.NVML_FI_DEV_POWER_INSTANT])
    if field.nvmlReturn:
        raise _NVML.NVMLError(field.nvmlReturn)
    return float(field.value.uiVal) / 1e3


def _pcie_bytes_per_s(device: Any, counter: int) -> float:
    return 1024.0 * float(_NVML.nvmlDeviceGetPcieThroughput(device, counter))


# The kernel measures PCIe for 20 ms at each call, so it is asked for last and rarely.
QUANTITIES = (
    Quantity(
        name="energy_j",
        read=lambda device: _NVML.nvmlDeviceGetTotalEnergyConsumption(device) / 1e3,
        every=_OFTEN,
    ),
    Quantity(name="power_instant_w", read=_instant_power_w, every=_OFTEN),
    Quantity(
        name="power_w",
        read=lambda device: _NVML.nvmlDeviceGetPowerUsage(device) / 1e3,
        every=_OFTEN,
    ),
    Quantity(
        name="memory_used_bytes",
        read=lambda device: _NVML.nvmlDeviceGetMemoryInfo(device).used,
        every=_SOMETIMES,
    ),
    Quantity(
        name="utilisation",
        read=lambda device: _NVML.nvmlDeviceGetUtilizationRates(device).gpu / 100,
        every=_SOMETIMES,
    ),
    Quantity(
        name="sm_clock_mhz",
        read=lambda device: _NVML.nvmlDeviceGetClockInfo(device, _NVML.NVML_CLOCK_SM),
        every=_SOMETIMES,
    ),
    Quantity(
        name="memory_clock_mhz",
        read=lambda device: _NVML.nvmlDeviceGetClockInfo(device, _NVML.NVML_CLOCK_MEM),
        every=_SOMETIMES,
    ),
    Quantity(name="clock_reasons", read=_clock_reasons, every=_SOMETIMES),
    Quantity(
        name="temperature_c",
        read=lambda device: _temperature(device, _NVML.NVML_TEMPERATURE_GPU),
        every=_SOMETIMES,
    ),
    Quantity(name="num_processes", read=lambda device: len(_processes(device)), every=_SOMETIMES),
    Quantity(
        name="pcie_tx_bytes_per_s",
        read=lambda device: _pcie_bytes_per_s(device, _NVML.NVML_PCIE_UTIL_TX_BYTES),
        every=_RARELY,
    ),
    Quantity(
        name="pcie_rx_bytes_per_s",
        read=lambda device: _pcie_bytes_per_s(device, _NVML.NVML_PCIE_UTIL_RX_BYTES),
        every=_RARELY,
    ),
)
