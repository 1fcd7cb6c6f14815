"""Apple's GPU: no cheap points on its timeline, so phases come from a pass that waits at each."""

import torch

from stepmark.devices.base import Device, HostMarks, TorchDevice
from stepmark.devices.cpu import CpuBackend
from stepmark.fingerprint import DeviceInfo


class WaitingMarks(HostMarks):
    """Points on the host's clock, each after waiting for the device: true, but serialised."""

    def mark(self) -> None:
        """Waits for the device; see `MpsDevice.marks_steps`."""
        torch.mps.synchronize()
        super().mark()


class MpsDevice(TorchDevice):
    """See `stepmark.devices.Device`."""

    marks_steps = False

    def synchronize(self) -> None:
        """See `stepmark.devices.Device`."""
        torch.mps.synchronize()

    def marks(self, capacity: int) -> WaitingMarks:
        """See `stepmark.devices.Device`."""
        return WaitingMarks()

    def configure(self, *, tf32: bool) -> None:
        """There are no precision switches."""


class MpsBackend:
    """See `stepmark.devices.Backend`."""

    process_group = "gloo"

    def info(self) -> DeviceInfo | None:
        """See `stepmark.devices.Backend`."""
        if not torch.backends.mps.is_available():
            return None
        return DeviceInfo(
            kind="mps",
            names=("Apple GPU",),
            max_ranks=1,
            precisions={
                "fp32": "",
                "tf32": "tf32 needs a CUDA device of compute capability 8.0 or higher",
                "bf16": "",
                "fp16": "",
            },
        )

    def software(self) -> dict[str, str]:
        """Nothing beyond the operating system's version."""
        return {}

    def open(self, local_rank: int) -> Device:
        """The only one there is."""
        return MpsDevice(torch.device("mps"), "Apple GPU")

    def open_pair(self) -> tuple[Device, Device]:
        """The GPU with the CPU."""
        return self.open(0), CpuBackend().open(0)
