"""The CPU: work is done when the call returns, so the host's clock is the device's."""

from typing import Any

import psutil
import torch

from stepmark.devices.base import Device, HostMarks, TorchDevice
from stepmark.fingerprint import DeviceInfo

# Its submodules are objects with more attributes than their source shows.
_BACKENDS: Any = torch.backends
_OPERATIONS = ("matmul", "conv", "rnn")


class CpuDevice(TorchDevice):
    """See `stepmark.devices.Device`."""

    marks_steps = True

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def to_device(self, batch: Any) -> Any:
        """Loaders make batches here; looking for what to move would take a while at every step."""
        return batch

    def marks(self, capacity: int) -> HostMarks:
        """See `stepmark.devices.Device`."""
        return HostMarks()

    def configure(self, *, tf32: bool) -> None:
        """Keep oneDNN from rounding fp32 inputs to bf16 or tf32 where the CPU has units for it.

        tf32 is asked for only beside a GPU, of a model with layers on both; it is the GPU's.
        """
        for operation in _OPERATIONS:
            getattr(_BACKENDS.mkldnn, operation).fp32_precision = "ieee"

    def settings(self) -> dict[str, str]:
        """See `stepmark.devices.Device`."""
        return {
            f"mkldnn.{operation}.fp32_precision": getattr(
                _BACKENDS.mkldnn, operation
            ).fp32_precision
            for operation in _OPERATIONS
        }


class CpuBackend:
    """See `stepmark.devices.Backend`."""

    process_group = "gloo"

    def info(self) -> DeviceInfo:
        """A CPU is always there."""
        return DeviceInfo(
            kind="cpu",
            names=(f"{psutil.cpu_count() or 1} CPUs",),
            precisions={
                "fp32": "",
                "tf32": "tf32 needs a CUDA device of compute capability 8.0 or higher",
                "bf16": "",
                "fp16": "",
            },
        )

    def software(self) -> dict[str, str]:
        """Which vector units torch uses."""
        return {"cpu_capability": torch.backends.cpu.get_cpu_capability()}

    def open(self, local_rank: int) -> Device:
        """All ranks share the CPUs; their threads are set apart by the session."""
        return CpuDevice(torch.device("cpu"), "cpu")

    def open_pair(self) -> None:
        """There is no second one."""
