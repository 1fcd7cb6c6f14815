"""Where the time of steps went: compute, exposed communication, copies, idle; exactly all of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stepmark.trace.coverage import Coverage
from stepmark.trace.events import DEVICE_CATEGORIES, STEP, BoolArray, IntArray, Trace

# Of kernels that move data between ranks: NCCL, RCCL, MSCCL, NVSHMEM.
_COMMUNICATION_KERNELS = ("nccl", "rccl", "mscclkernel", "nvshmem")
# Of what the host does to the same end, with gloo.
_COMMUNICATION_CALLS = ("gloo:", "c10d::", "nccl:")

_PARTS_OF_DEVICE = {
    "compute": "compute_s",
    "exposed communication": "exposed_comm_s",
    "memory copies": "memcpy_s",
    "idle": "idle_s",
}
_PARTS_OF_HOST = {
    "compute": "compute_s",
    "exposed communication": "exposed_comm_s",
    "outside of operators": "idle_s",
}


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """Parts of a span of time, which sum to it.

    Attributes:
        wall_s: the span.
        compute_s: kernels ran that compute; without an accelerator, operators of the host did.
        exposed_comm_s: of the rest, ranks exchanged data.
        memcpy_s: of the rest, memory was copied or set on the accelerator.
        idle_s: nothing of that happened.
    """

    wall_s: float
    compute_s: float
    exposed_comm_s: float
    memcpy_s: float
    idle_s: float


@dataclass(frozen=True, kw_only=True)
class Total(Breakdown):
    """All steps of a trace together.

    Attributes:
        steps: each of them; from its beginning to the next one's.
        device: index of the accelerator; ``None`` for a trace of the host alone.
        comm_s: ranks exchanged data, beside compute or not.
    """

    steps: tuple[Breakdown, ...]
    device: int | None
    comm_s: float

    @property
    def parts(self) -> dict[str, str]:
        """What the parts are called, with their fields.

        A host alone copies nothing to a device, and is not idle while it runs Python.
        """
        if self.device is None:
            return _PARTS_OF_HOST
        return _PARTS_OF_DEVICE


def break_down(trace: Trace) -> Total:
    """Break the profiled steps down; the whole trace if it marks none.

    Work on several accelerators is that of the busiest one.
    """
    edges_ns = step_edges(trace)
    device = busiest_device(trace)
    layers = _host_layers(trace) if device is None else _device_layers(trace, device)
    # Compute hides communication, and both hide copies: the union of the first k layers, less that
    # of the first k - 1, is what the k-th alone accounts for.
    seen = np.zeros(len(trace), dtype=bool)
    covered = [np.zeros(len(edges_ns), dtype=np.int64)]
    for layer in layers:
        seen |= layer
        covered.append(_coverage(trace, seen).before(edges_ns))
    parts: IntArray = np.asarray(np.diff(np.array(covered), axis=0), dtype=np.int64)
    steps = tuple(
        _breakdown(edges_ns[k + 1] - edges_ns[k], parts[:, k + 1] - parts[:, k])
        for k in range(len(edges_ns) - 1)
    )
    whole = _breakdown(edges_ns[-1] - edges_ns[0], parts[:, -1] - parts[:, 0])
    comm = _coverage(trace, layers[1]).before(edges_ns[[0, -1]])
    return Total(**vars(whole), steps=steps, device=device, comm_s=float(comm[1] - comm[0]) / 1e9)


def step_edges(trace: Trace) -> IntArray:
    """Where steps begin, and where the last one ends."""
    steps = trace.of("user_annotation") & trace.named(STEP)
    if not steps.any():
        begin, end = (0, 0) if not len(trace) else (trace.start_ns.min(), trace.end_ns.max())
        return np.array([begin, end], dtype=np.int64)
    return np.append(trace.start_ns[steps], trace.end_ns[steps].max())


def busiest_device(trace: Trace) -> int | None:
    """The accelerator with most work in the trace; ``None`` if there is none."""
    on_device = trace.of(*DEVICE_CATEGORIES)
    if not on_device.any():
        return None
    devices, counts = np.unique(trace.device[on_device], return_counts=True)
    return int(devices[np.argmax(counts)])


def communication_kernels(trace: Trace) -> BoolArray:
    """Kernels that exchange data between ranks."""
    return trace.of("kernel") & trace.with_name(
        lambda name: any(word in name.lower() for word in _COMMUNICATION_KERNELS)
    )


def _device_layers(trace: Trace, device: int) -> Sequence[BoolArray]:
    here = trace.device == device
    communication = communication_kernels(trace) & here
    compute = trace.of("kernel") & here & ~communication
    return compute, communication, trace.of("gpu_memcpy", "gpu_memset") & here


def _host_layers(trace: Trace) -> Sequence[BoolArray]:
    communication = trace.with_name(lambda name: name.startswith(_COMMUNICATION_CALLS))
    compute = trace.of("cpu_op") & ~communication
    return compute, communication, np.zeros(len(trace), dtype=bool)


def _coverage(trace: Trace, which: BoolArray) -> Coverage:
    return Coverage(trace.start_ns[which], trace.end_ns[which])


def _breakdown(wall_ns: np.int64, parts_ns: IntArray) -> Breakdown:
    compute, communication, copies = (float(part) / 1e9 for part in parts_ns)
    idle = float(wall_ns - parts_ns.sum()) / 1e9
    return Breakdown(
        wall_s=float(wall_ns) / 1e9,
        compute_s=compute,
        exposed_comm_s=communication,
        memcpy_s=copies,
        idle_s=idle,
    )
