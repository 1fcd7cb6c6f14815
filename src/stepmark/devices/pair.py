"""Two devices of one process, each with a part of the model's layers."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from stepmark.devices.base import Device, DeviceMemory, HostMarks, TorchDevice, moved


class PairMarks(HostMarks):
    """Points on the host's clock, each after waiting for both devices: true, but serialised.

    A point on one device's timeline would know nothing of what the other one still does.
    """

    def __init__(self, pair: "DevicePair") -> None:
        super().__init__()
        self._pair = pair

    def mark(self) -> None:
        """Waits for both devices; see `Device.marks_steps`."""
        self._pair.synchronize()
        super().mark()


class DevicePair(TorchDevice):
    """Both as one; see `stepmark.devices.Device`. It has no UUID, which could name but one of them.

    Args:
        first: where batches' inputs go, and the first part of the layers.
        second: where targets go, and the rest of the layers.
    """

    marks_steps = False

    def __init__(self, first: Device, second: Device) -> None:
        super().__init__(first.torch_device, f"{first.name} + {second.name}")
        self.activities = first.activities
        self.first = first
        self.second = second

    def synchronize(self) -> None:
        """See `stepmark.devices.Device`."""
        self.first.synchronize()
        self.second.synchronize()

    def to_device(self, batch: Any) -> Any:
        """A pair of inputs and targets, each moved to where it is needed."""
        inputs, targets = batch
        return self.first.to_device(inputs), moved(targets, self.second.torch_device)

    def marks(self, capacity: int) -> PairMarks:
        """See `stepmark.devices.Device`."""
        return PairMarks(self)

    def configure(self, *, tf32: bool) -> None:
        """Of both: each kind of device has switches of its own."""
        self.first.configure(tf32=tf32)
        self.second.configure(tf32=tf32)

    def settings(self) -> dict[str, str]:
        """Of both; a name that both have is one switch of the process, for all of that kind."""
        return {**self.first.settings(), **self.second.settings()}

    def reset_peaks(self) -> None:
        """See `stepmark.devices.Device`."""
        self.first.reset_peaks()
        self.second.reset_peaks()

    def memory(self) -> DeviceMemory:
        """Of the one that tensors take more of."""
        both = (self.first.memory(), self.second.memory())
        return max(both, key=lambda memory: memory.peak_allocated_bytes or 0)

    def memory_history(self, file: Path) -> AbstractContextManager[bool]:
        """See `stepmark.devices.Device`."""
        return self.first.memory_history(file)

    @contextlib.contextmanager
    def autocast(self, dtype: torch.dtype) -> Iterator[None]:
        """See `stepmark.devices.Device`."""
        with self.first.autocast(dtype), self.second.autocast(dtype):
            yield
