"""How a GPU is set up, in steady facts."""

from typing import Any

import pynvml

from stepmark.nvml.quantities import NVMLError, handle_of

_NVML: Any = pynvml


def power_limit_w(uuid: str) -> int | None:
    """The power at which the device's clocks are held back; ``None`` if it cannot be told.

    Args:
        uuid: as CUDA tells it.
    """
    try:
        _NVML.nvmlInit()
        try:
            milliwatts: int = _NVML.nvmlDeviceGetEnforcedPowerLimit(handle_of(uuid))
            return round(milliwatts / 1e3)
        finally:
            _NVML.nvmlShutdown()
    except NVMLError:
        return None
