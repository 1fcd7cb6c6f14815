"""Backends behind one protocol. Only this package asks which device it is.

To add one: write its file and add a line to `BACKENDS`.
"""

from stepmark.devices.base import Backend, Device, Marks
from stepmark.devices.cpu import CpuBackend
from stepmark.devices.cuda import CudaBackend
from stepmark.devices.mps import MpsBackend
from stepmark.devices.pair import DevicePair
from stepmark.fingerprint import DeviceInfo

# The preferred kind first: "auto" takes the first that is present.
BACKENDS: dict[str, Backend] = {"cuda": CudaBackend(), "mps": MpsBackend(), "cpu": CpuBackend()}

__all__ = ["BACKENDS", "Backend", "Device", "DevicePair", "Marks", "describe", "software"]


def describe() -> tuple[DeviceInfo, ...]:
    """The devices of this machine, the preferred kind first."""
    found = (backend.info() for backend in BACKENDS.values())
    return tuple(info for info in found if info is not None)


def software() -> dict[str, str]:
    """Versions that only the backends know, such as CUDA's and the driver's."""
    return {
        key: value for backend in BACKENDS.values() for key, value in backend.software().items()
    }
