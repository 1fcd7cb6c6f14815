"""CUDA: work is queued on a stream, so points on its timeline are events on that stream."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from stepmark.devices.base import Device, DeviceMemory, TorchDevice
from stepmark.devices.cpu import CpuBackend
from stepmark.fingerprint import DeviceInfo
from stepmark.nvml import power_limit_w

_MOST_ALLOCATIONS = 100_000
_BELOW_AMPERE = "{} needs compute capability 8.0 or higher, {} has {}.{}"


# Without types: submodules that are objects at run time, and functions that torch left untyped.
_BACKENDS: Any = torch.backends
_CUDA: Any = torch.cuda


class EventMarks:
    """Events on the current stream, allocated beforehand; resolution about 0.5 µs."""

    def __init__(self, capacity: int) -> None:
        self._events = [_CUDA.Event(enable_timing=True) for _ in range(capacity)]
        # torch creates the CUDA event at its first record; do that outside the window.
        for event in self._events:
            event.record()
        self._used = 0

    def mark(self) -> None:
        """See `stepmark.devices.Marks`."""
        self._events[self._used].record()
        self._used += 1

    def intervals_s(self) -> list[float]:
        """See `stepmark.devices.Marks`."""
        events = self._events[: self._used]
        return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(events)]


class CudaDevice(TorchDevice):
    """See `stepmark.devices.Device`."""

    activities: tuple[ProfilerActivity, ...] = (ProfilerActivity.CPU, ProfilerActivity.CUDA)
    marks_steps = True

    def synchronize(self) -> None:
        """See `stepmark.devices.Device`."""
        torch.cuda.synchronize(self.torch_device)

    def marks(self, capacity: int) -> EventMarks:
        """See `stepmark.devices.Device`."""
        return EventMarks(capacity)

    def configure(self, *, tf32: bool) -> None:
        """fp32 means fp32: cuDNN's own default would round convolutions to tf32."""
        wanted = "tf32" if tf32 else "ieee"
        _BACKENDS.cuda.matmul.fp32_precision = wanted
        _BACKENDS.cudnn.conv.fp32_precision = wanted
        _BACKENDS.cudnn.rnn.fp32_precision = wanted

    def settings(self) -> dict[str, str]:
        """See `stepmark.devices.Device`."""
        return {
            "cuda.matmul.fp32_precision": _BACKENDS.cuda.matmul.fp32_precision,
            "cudnn.conv.fp32_precision": _BACKENDS.cudnn.conv.fp32_precision,
            "cudnn.rnn.fp32_precision": _BACKENDS.cudnn.rnn.fp32_precision,
            "cudnn.benchmark": str(_BACKENDS.cudnn.benchmark),
        }

    def reset_peaks(self) -> None:
        """See `stepmark.devices.Device`."""
        torch.cuda.reset_peak_memory_stats(self.torch_device)

    @contextlib.contextmanager
    def memory_history(self, file: Path) -> Iterator[bool]:
        """As a snapshot for https://pytorch.org/memory_viz."""
        _CUDA.memory._record_memory_history(stacks="python", max_entries=_MOST_ALLOCATIONS)
        try:
            yield True
            self.synchronize()
            _CUDA.memory._dump_snapshot(str(file))
        finally:
            _CUDA.memory._record_memory_history(enabled=None)

    def memory(self) -> DeviceMemory:
        """See `stepmark.devices.Device`."""
        free_bytes, total_bytes = torch.cuda.mem_get_info(self.torch_device)
        return DeviceMemory(
            in_use_bytes=total_bytes - free_bytes,
            peak_allocated_bytes=torch.cuda.max_memory_allocated(self.torch_device),
            peak_reserved_bytes=torch.cuda.max_memory_reserved(self.torch_device),
        )


def _uuid(properties: Any) -> str:
    """As NVML writes it. An instance of a shared device must not be taken for the whole."""
    return f"{'MIG' if ' MIG ' in properties.name else 'GPU'}-{properties.uuid}"


class CudaBackend:
    """See `stepmark.devices.Backend`."""

    process_group = "nccl"

    def info(self) -> DeviceInfo | None:
        """See `stepmark.devices.Backend`."""
        if not torch.cuda.is_available():
            return None
        count = torch.cuda.device_count()
        properties = [torch.cuda.get_device_properties(i) for i in range(count)]
        oldest = min(properties, key=lambda p: (p.major, p.minor))
        limits = [power_limit_w(_uuid(p)) for p in properties]
        tf32_and_bf16 = {
            precision: ""
            if oldest.major >= 8
            else _BELOW_AMPERE.format(precision, oldest.name, oldest.major, oldest.minor)
            for precision in ("tf32", "bf16")
        }
        return DeviceInfo(
            kind="cuda",
            names=tuple(p.name for p in properties),
            max_ranks=count,
            precisions={"fp32": "", **tf32_and_bf16, "fp16": ""},
            pins_memory=True,
            power_limits_w=tuple(watts for watts in limits if watts is not None),
        )

    def software(self) -> dict[str, str]:
        """Versions of CUDA, cuDNN, NCCL and the driver."""
        if not torch.cuda.is_available():
            return {}
        found = {"cuda": str(torch.version.cuda), "cudnn": str(_BACKENDS.cudnn.version())}
        if torch.distributed.is_nccl_available():
            found["nccl"] = ".".join(map(str, _CUDA.nccl.version()))
        import pynvml

        try:
            pynvml.nvmlInit()
            found["driver"] = str(pynvml.nvmlSystemGetDriverVersion())
            pynvml.nvmlShutdown()
        except pynvml.NVMLError as error:
            found["driver"] = f"unknown ({error})"
        return found

    def open(self, local_rank: int) -> Device:
        """One device per rank, in CUDA's order."""
        torch.cuda.set_device(local_rank)
        properties = torch.cuda.get_device_properties(local_rank)
        return CudaDevice(torch.device("cuda", local_rank), properties.name, uuid=_uuid(properties))

    def open_pair(self) -> tuple[Device, Device]:
        """The first two accelerators, or the only one with the CPU."""
        second = self.open(1) if torch.cuda.device_count() > 1 else CpuBackend().open(0)
        return self.open(0), second
