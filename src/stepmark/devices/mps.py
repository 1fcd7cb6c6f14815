"""Apple's GPU: no cheap points on its timeline, so phases come from a pass that waits at each."""

import itertools
import time

import torch

from stepmark.devices.base import Device, DeviceMemory, TorchDevice
from stepmark.fingerprint import DeviceInfo


class WaitingMarks:
    """Points on the host's clock, each after waiting for the device: true, but serialised."""

    def __init__(self) -> None:
        self._points_s: list[float] = []

    def mark(self) -> None:
        """Waits for the device; see `MpsDevice.marks_steps`."""
        torch.mps.synchronize()
        self._points_s.append(time.perf_counter())

    def intervals_s(self) -> list[float]:
        """See `stepmark.devices.Marks`."""
        points = self._points_s
        return [b - a for a, b in itertools.pairwise(points)]


class MpsDevice(TorchDevice):
    """See `stepmark.devices.Device`."""

    marks_steps = False

    def now_s(self) -> float:
        """See `stepmark.devices.Device`."""
        return time.perf_counter()

    def synchronize(self) -> None:
        """See `stepmark.devices.Device`."""
        torch.mps.synchronize()

    def marks(self, capacity: int) -> WaitingMarks:
        """See `stepmark.devices.Device`."""
        return WaitingMarks()

    def configure(self, *, tf32: bool) -> None:
        """There are no precision switches."""

    def settings(self) -> dict[str, str]:
        """There are no precision switches."""
        return {}

    def reset_peaks(self) -> None:
        """torch keeps no peak for MPS."""

    def memory(self) -> DeviceMemory:
        """torch tells current memory for MPS, but no peak; an empty cell is honest."""
        return DeviceMemory()


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
