"""Whose work it was: operators, kernels, phases of the step, and calls that wait for the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stepmark.trace.breakdown import busiest_device, communication_kernels, step_edges
from stepmark.trace.coverage import Coverage
from stepmark.trace.events import DEVICE_CATEGORIES, STEP, BoolArray, IntArray, Trace
from stepmark.trace.nesting import Nesting, nest

LAUNCHES = ("cuda_runtime", "cuda_driver", "hip_runtime")
# Phases as the profiled loop marks them.
PHASE = "stepmark:"
# Where the profiled loop itself waits for the last step's end.
DRAIN = "stepmark:drain"
OUTSIDE = "(outside of operators)"
# Calls that return when the device has done what it was asked for.
_WAITING = (
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "cuStreamSynchronize",
    "cuCtxSynchronize",
    "hipStreamSynchronize",
    "hipDeviceSynchronize",
)
_NONE = -1
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An operator over all profiled steps.

    Attributes:
        name: torch's.
        calls: how many.
        host_s: on the host, less the operators inside of it.
        device_s: of the kernels, copies and settings that it launched itself.
    """

    name: str
    calls: int
    host_s: float
    device_s: float


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel over all profiled steps."""

    name: str
    calls: int
    device_s: float
    is_communication: bool


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A phase of the step over all profiled steps.

    Attributes:
        name: as in a result: ``forward`` and so on; ``other`` is what lies in none.
        host_s: on the host's main thread; all phases sum to the steps.
        device_s: that something it launched ran; phases may overlap on the device.
        launches: how many.
    """

    name: str
    host_s: float
    device_s: float
    launches: int


@dataclass(frozen=True, kw_only=True)
class Wait:
    """A place that waits for the device.

    Attributes:
        call: what waited, such as ``cudaStreamSynchronize``.
        operator: what led to it, such as ``aten::item``; empty if no operator did.
        line: of Python, ``file.py(12): function``; empty if the trace has no stacks.
        calls: how many.
        wait_s: how long the host stood there.
    """

    call: str
    operator: str
    line: str
    calls: int
    wait_s: float


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """Whose work the profiled steps were.

    Attributes:
        operators: most time first; with `OUTSIDE` their host times sum to the main thread's steps,
            and to what other threads did beside it.
        kernels: most time first.
        phases: in the order in which a step passes through them.
        waits: longest first.
        starved_s: the device was idle, and what it did next had not been launched yet: the host
            was too slow.
    """

    operators: tuple[Operator, ...]
    kernels: tuple[Kernel, ...]
    phases: tuple[Phase, ...]
    waits: tuple[Wait, ...]
    starved_s: float


def attribute(trace: Trace) -> Attribution:
    """Find out whose work the profiled steps were; the whole trace if it marks none."""
    edges = step_edges(trace)
    inside = (trace.start_ns >= edges[0]) & (trace.start_ns < edges[-1])
    nesting = nest(trace)
    device = busiest_device(trace)
    work = trace.of(*DEVICE_CATEGORIES) & (trace.device == device) & inside
    launch_of = _launches(trace, work)
    return Attribution(
        operators=_operators(trace, nesting, inside, work, launch_of),
        kernels=_kernels(trace, work),
        phases=_phases(trace, edges, work, launch_of),
        waits=_waits(trace, nesting, inside),
        starved_s=_starved_ns(trace, edges, work, launch_of) / 1e9,
    )


def _launches(trace: Trace, work: BoolArray) -> IntArray:
    """Of each event on the device, the host's call that launched it; -1 where it is not known."""
    calls = np.flatnonzero(trace.of(*LAUNCHES) & (trace.correlation >= 0))
    found = np.full(len(trace), _NONE, dtype=np.int64)
    if not len(calls):
        return found
    order = calls[np.argsort(trace.correlation[calls], kind="stable")]
    known = trace.correlation[order]
    wanted = np.flatnonzero(work)
    place = np.minimum(np.searchsorted(known, trace.correlation[wanted]), len(known) - 1)
    matches = known[place] == trace.correlation[wanted]
    found[wanted[matches]] = order[place[matches]]
    return found


def _operators(
    trace: Trace, nesting: Nesting, inside: BoolArray, work: BoolArray, launch_of: IntArray
) -> tuple[Operator, ...]:
    """Time of whatever lies between two operators is the outer one's."""
    is_operator = trace.of("cpu_op")
    nearest = nesting.nearest(is_operator)
    in_step = nesting.nearest(trace.named(STEP)) >= 0
    counted = inside & trace.of("cpu_op", "user_annotation", "python_function", *LAUNCHES)
    counted &= in_step | (nearest >= 0)
    # By the operator's name, those of none first.
    names = (OUTSIDE, *trace.names)
    numbers = np.append(trace.name + 1, 0)  # of the event -1, too
    on_host = numbers[nearest[counted]]
    launches = launch_of[work]
    on_device = numbers[np.where(launches >= 0, nearest[launches], _NONE)]
    host_ns = _sums(on_host, nesting.self_ns[counted], names)
    device_ns = _sums(on_device, (trace.end_ns - trace.start_ns)[work], names)
    calls = np.bincount(numbers[:-1][inside & is_operator], minlength=len(names))
    operators = [
        Operator(
            name=names[k],
            calls=int(calls[k]),
            host_s=float(host_ns[k]) / 1e9,
            device_s=float(device_ns[k]) / 1e9,
        )
        for k in np.union1d(on_host, on_device).tolist()
    ]
    return tuple(sorted(operators, key=lambda o: (-o.device_s, -o.host_s, o.name)))


def _sums(of: IntArray, values: IntArray, names: Sequence[str]) -> FloatArray:
    """Sums of whole numbers by name; exact, since all are far below 2 to the 53."""
    return np.bincount(of, weights=values, minlength=len(names)).astype(np.float64)


def _kernels(trace: Trace, work: BoolArray) -> tuple[Kernel, ...]:
    communication = communication_kernels(trace)
    of = trace.name[work]
    device_ns = _sums(of, (trace.end_ns - trace.start_ns)[work], trace.names)
    calls = np.bincount(of, minlength=len(trace.names))
    communicating = set(trace.name[work & communication].tolist())
    kernels = [
        Kernel(
            name=trace.names[k],
            calls=int(calls[k]),
            device_s=float(device_ns[k]) / 1e9,
            is_communication=k in communicating,
        )
        for k in np.flatnonzero(calls).tolist()
    ]
    return tuple(sorted(kernels, key=lambda kernel: (-kernel.device_s, kernel.name)))


def _phases(
    trace: Trace, edges: IntArray, work: BoolArray, launch_of: IntArray
) -> tuple[Phase, ...]:
    """By when the host launched it: backward's kernels come from autograd's own thread."""
    marks = np.flatnonzero(trace.of("user_annotation") & trace.named(PHASE))
    if not len(marks):
        return ()
    launched = np.flatnonzero(work & (launch_of >= 0))
    times = trace.start_ns[launch_of[launched]]
    place = np.searchsorted(trace.start_ns[marks], times, side="right") - 1
    mark = marks[np.maximum(place, 0)]
    within = (place >= 0) & (times < trace.end_ns[mark])
    phase_of = np.where(within, trace.name[mark], _NONE)
    phases = []
    host_left_ns = int(edges[-1] - edges[0])
    for name in dict.fromkeys(trace.name[marks].tolist()):
        these = marks[trace.name[marks] == name]
        host_ns = int((trace.end_ns[these] - trace.start_ns[these]).sum())
        host_left_ns -= host_ns
        phases.append(
            _phase(
                trace, trace.names[name].removeprefix(PHASE), host_ns, launched[phase_of == name]
            )
        )
    return (*phases, _phase(trace, "other", host_left_ns, launched[phase_of == _NONE]))


def _phase(trace: Trace, name: str, host_ns: int, launched: IntArray) -> Phase:
    covered = Coverage(trace.start_ns[launched], trace.end_ns[launched])
    return Phase(
        name=name,
        host_s=host_ns / 1e9,
        device_s=float((covered.end_ns - covered.start_ns).sum()) / 1e9,
        launches=len(launched),
    )


def _waits(trace: Trace, nesting: Nesting, inside: BoolArray) -> tuple[Wait, ...]:
    is_operator = trace.of("cpu_op")
    operator = nesting.nearest(is_operator)
    line = nesting.nearest(_own_lines(trace))
    waits_here = inside & trace.with_name(lambda name: name in _WAITING)
    drained = nesting.nearest(trace.named(DRAIN)) >= 0
    found: dict[tuple[str, str, str], list[int]] = {}
    for event in np.flatnonzero(waits_here & ~drained).tolist():
        key = tuple(
            "" if k < 0 else trace.names[trace.name[k]]
            for k in (event, _outermost(nesting, is_operator, operator[event]), line[event])
        )
        found.setdefault(key, []).append(int(trace.end_ns[event] - trace.start_ns[event]))  # type: ignore[arg-type]
    waits = [
        Wait(call=call, operator=op, line=at, calls=len(times), wait_s=sum(times) / 1e9)
        for (call, op, at), times in found.items()
    ]
    return tuple(sorted(waits, key=lambda wait: -wait.wait_s))


def _outermost(nesting: Nesting, is_operator: BoolArray, operator: int) -> int:
    """``aten::item``, rather than the ``aten::_local_scalar_dense`` inside of it."""
    while operator >= 0 and (parent := nesting.parent[operator]) >= 0 and is_operator[parent]:
        operator = int(parent)
    return operator


def _own_lines(trace: Trace) -> BoolArray:
    """Calls of Python functions that are not torch's own."""
    foreign = ("torch/", "<built-in", "nn.Module:", "<")
    return trace.of("python_function") & trace.with_name(
        lambda name: not name.startswith(foreign) and "/torch/" not in name
    )


def _starved_ns(trace: Trace, edges: IntArray, work: BoolArray, launch_of: IntArray) -> int:
    """Of each gap on the device, the part before the launch of the work that ended it."""
    busy = Coverage(trace.start_ns[work], trace.end_ns[work])
    gap_start = np.concatenate([edges[:1], busy.end_ns])
    gap_end = np.concatenate([busy.start_ns, edges[-1:]])
    first = np.flatnonzero(work & (launch_of >= 0))
    place = np.searchsorted(trace.start_ns[first], busy.start_ns)
    launched = np.full(len(gap_end), edges[-1])
    known = place < len(first)
    launched[:-1][known] = trace.start_ns[launch_of[first[place[known]]]]
    return int(np.maximum(0, np.minimum(launched, gap_end) - gap_start).sum())
