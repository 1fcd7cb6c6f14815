"""What a device must be able to do to be measured on."""

import itertools
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.profiler import ProfilerActivity

from stepmark.fingerprint import DeviceInfo


@dataclass(frozen=True, kw_only=True)
class DeviceMemory:
    """Bytes on one device; ``None`` where there is no such figure.

    Attributes:
        peak_allocated_bytes: most held by tensors since the last reset.
        peak_reserved_bytes: most held by the caching allocator since then.
        in_use_bytes: in use on the whole device now, by anyone.
    """

    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    in_use_bytes: int | None = None


class Marks(Protocol):
    """Points on a device's timeline."""

    def mark(self) -> None:
        """Set the next point; cheap, and never waits for the device."""

    def intervals_s(self) -> list[float]:
        """Seconds between neighbouring points; call it after a synchronization."""


class Device(Protocol):
    """One device as one rank uses it.

    Attributes:
        torch_device: for ``tensor.to``.
        name: for people, such as ``NVIDIA H200``.
        uuid: what NVIDIA's management library knows it by; empty where it knows none.
        activities: what torch.profiler can see of it.
        marks_steps: points can be set without waiting for the device. Where they cannot, steps
            are not timed one by one, and phases come from a pass that waits at each point.
    """

    torch_device: torch.device
    name: str
    uuid: str
    activities: tuple[ProfilerActivity, ...]
    marks_steps: bool

    def now_s(self) -> float:
        """The host's clock, in seconds."""

    def synchronize(self) -> None:
        """Wait until the device has done everything it was given."""

    def to_device(self, batch: Any) -> Any:
        """A micro-batch, moved here from where the loader made it."""

    def marks(self, capacity: int) -> Marks:
        """Room for ``capacity`` points, made beforehand so that setting one costs little."""

    def configure(self, *, tf32: bool) -> None:
        """Set precision switches: IEEE single precision, or tf32."""

    def settings(self) -> dict[str, str]:
        """Precision switches as torch has them now."""

    def reset_peaks(self) -> None:
        """Begin a new period for `memory`."""

    def memory(self) -> DeviceMemory:
        """Peaks since `reset_peaks`."""

    def memory_history(self, file: Path) -> AbstractContextManager[bool]:
        """A context whose allocations go to a file; gives whether they can."""

    def autocast(self, dtype: torch.dtype) -> Any:
        """A context in which forward and loss run in ``dtype`` where that is safe."""

    def scaler(self) -> torch.amp.GradScaler:
        """A gradient scaler for this device."""


class Backend(Protocol):
    """A kind of device."""

    process_group: str  # torch.distributed backend for its ranks

    def info(self) -> DeviceInfo | None:
        """What is there, and what it can do; ``None`` if the machine has none."""

    def software(self) -> dict[str, str]:
        """Versions of its runtime and driver; empty if the machine has none."""

    def open(self, local_rank: int) -> Device:
        """The device of one rank."""

    def open_pair(self) -> "tuple[Device, Device] | None":
        """Two devices for one process's layers; ``None`` where there is but one."""


class HostMarks:
    """Points on the host's clock; one costs about 0.1 µs."""

    def __init__(self) -> None:
        self._points_ns: list[int] = []

    def mark(self) -> None:
        """See `Marks`."""
        self._points_ns.append(time.perf_counter_ns())

    def intervals_s(self) -> list[float]:
        """See `Marks`."""
        return [(b - a) / 1e9 for a, b in itertools.pairwise(self._points_ns)]


class TorchDevice:
    """What torch's devices have in common; a device that has more overrides it."""

    activities: tuple[ProfilerActivity, ...] = (ProfilerActivity.CPU,)

    def __init__(self, torch_device: torch.device, name: str, uuid: str = "") -> None:
        self.torch_device = torch_device
        self.name = name
        self.uuid = uuid

    def autocast(self, dtype: torch.dtype) -> Any:
        """See `Device.autocast`."""
        return torch.autocast(self.torch_device.type, dtype=dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """See `Device.scaler`."""
        return torch.amp.GradScaler(self.torch_device.type)

    def to_device(self, batch: Any) -> Any:
        """See `Device.to_device`."""
        return moved(batch, self.torch_device)

    def now_s(self) -> float:
        """See `Device.now_s`."""
        return time.perf_counter()

    def settings(self) -> dict[str, str]:
        """No precision switches."""
        return {}

    def reset_peaks(self) -> None:
        """No peaks."""

    def memory(self) -> DeviceMemory:
        """None of the figures exist; an empty cell is honest."""
        return DeviceMemory()

    def memory_history(self, file: Path) -> AbstractContextManager[bool]:
        """There is none."""
        return nullcontext(False)


def moved(batch: Any, device: torch.device) -> Any:
    """A batch moved to a device, whatever its layout of tensors, tuples, lists and mappings.

    From pinned memory the copy runs beside the host; from pageable memory torch waits for it. What
    comes from a device is waited for: the host would read it before it has arrived.
    """
    if isinstance(batch, list):  # what default_collate makes of a pair
        return [moved(item, device) for item in batch]
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=device.type != "cpu")
    if hasattr(batch, "to"):  # libraries' own batch types may take a device alone
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: moved(item, device) for key, item in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(item, device) for item in batch))
    if isinstance(batch, tuple):
        return tuple(moved(item, device) for item in batch)
    return batch
