"""A chrome trace as columns: one entry for each event that takes time."""

import gzip
import zlib
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stepmark.errors import StoreError
from stepmark.trace.stream import FormatError, events_of

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

# Categories of work on an accelerator; whatever else has a time is the host's.
DEVICE_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")
STEP = "ProfilerStep#"
_GZIP_MAGIC = b"\x1f\x8b"
_NONE = -1
# As the profiler names an allocation or a release, with ``profile_memory``.
_ALLOCATION = "[memory]"
_ON_HOST = 0


@dataclass(frozen=True, kw_only=True)
class Allocations:
    """Each time that memory was given out or taken back, in order.

    Attributes:
        time_ns: as of `Trace`.
        device: index of the accelerator; -1 on the host.
        allocated_bytes: that tensors held then; on the host, of what the profiler saw allocated.
        reserved_bytes: that the caching allocator held; 0 on the host.
    """

    time_ns: IntArray
    device: IntArray
    allocated_bytes: IntArray
    reserved_bytes: IntArray


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Events with a duration, in the order of their beginning. Times are whole nanoseconds.

    Attributes:
        start_ns, end_ns: from the first event's beginning.
        category, name: of each event, as indices of the next two.
        categories, names: the texts.
        allocations: of a trace that was recorded with memory; empty ones otherwise.
        thread: index of the host's thread, or the device's stream, that it ran on.
        device: index of the accelerator; -1 on the host.
        correlation: what a launch on the host and its work on the device share; -1 for none.
    """

    start_ns: IntArray
    end_ns: IntArray
    category: IntArray
    name: IntArray
    thread: IntArray
    device: IntArray
    correlation: IntArray
    categories: tuple[str, ...]
    names: tuple[str, ...]
    allocations: Allocations

    def __len__(self) -> int:
        return len(self.start_ns)

    def of(self, *categories: str) -> BoolArray:
        """Which events are of one of these categories."""
        wanted = np.array([category in categories for category in self.categories], dtype=bool)
        return wanted[self.category]

    def named(self, text: str) -> BoolArray:
        """Which events' names begin so."""
        return self.with_name(lambda name: name.startswith(text))

    def with_name(self, is_wanted: Callable[[str], bool]) -> BoolArray:
        """Which events have such a name."""
        wanted = np.array([is_wanted(name) for name in self.names], dtype=bool)
        return wanted[self.name]


def read_trace(path: Path) -> Trace:
    """Read what torch.profiler exported, compressed or not.

    Raises:
        StoreError: the file cannot be read, or is no chrome trace.
    """
    try:
        data = path.read_bytes()
        if data[:2] == _GZIP_MAGIC:
            data = gzip.decompress(data)
        text = data.decode("utf-8-sig")
        del data
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, EOFError, zlib.error) as error:
        raise StoreError(f"{path}: no chrome trace, or cut off ({error})") from None
    try:
        return from_events(events_of(text))
    except FormatError as error:
        raise StoreError(f"{path}: no chrome trace, or cut off ({error})") from None
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise StoreError(f"{path}: no trace of torch.profiler ({error!r})") from None


class _Numbers(dict[Any, int]):
    """A number for each key, in the order in which they are first asked for."""

    def __missing__(self, key: Any) -> int:
        number = self[key] = len(self)
        return number


def from_events(events: Iterable[Mapping[str, Any]]) -> Trace:
    """Columns of a chrome trace's events; of those without a duration, allocations alone."""
    categories, names, threads = _Numbers(), _Numbers(), _Numbers()
    starts, durations, rows = array("d"), array("d"), array("q")
    allocations: list[Mapping[str, Any]] = []
    for event in events:
        if event.get("ph") != "X":
            if event.get("name") == _ALLOCATION and "Total Allocated" in event["args"]:
                allocations.append(event)
            continue
        if "dur" not in event:
            continue
        category = event.get("cat", "").lower()
        arguments = event.get("args") or {}
        starts.append(event["ts"])
        durations.append(event["dur"])
        row = (
            categories[category],
            names[event["name"]],
            threads[event.get("pid"), event.get("tid")],
            int(arguments.get("device", 0)) if category in DEVICE_CATEGORIES else _NONE,
            int(arguments.get("correlation", _NONE)),
        )
        rows.extend(row)
    table = np.array(rows).reshape(-1, 5)
    start_us = np.array(starts)
    duration_us = np.array(durations)
    if not (np.isfinite(start_us).all() and np.isfinite(duration_us).all()):
        raise ValueError("a time that is no number")
    first_us = float(start_us.min()) if len(start_us) else 0.0
    start_ns = np.rint((start_us - first_us) * 1000)
    # Rounded together, so that an event that ends where another begins still does.
    end_ns = np.rint((start_us - first_us + duration_us) * 1000)
    order = np.argsort(start_ns, kind="stable")
    category, name, thread, device, correlation = table[order].T
    return Trace(
        start_ns=start_ns[order].astype(np.int64),
        end_ns=end_ns[order].astype(np.int64),
        category=category,
        name=name,
        thread=thread,
        device=device,
        correlation=correlation,
        categories=tuple(categories),
        names=tuple(map(str, names)),
        allocations=_allocations(allocations, first_us),
    )


def _allocations(events: Iterable[Mapping[str, Any]], first_us: float) -> Allocations:
    rows = []
    for event in events:
        said = event["args"]
        on_host = said["Device Type"] == _ON_HOST
        rows.append(
            (
                round((event["ts"] - first_us) * 1000),
                _NONE if on_host else int(said["Device Id"]),
                int(said["Total Allocated"]),
                0 if on_host else int(said["Total Reserved"]),
            )
        )
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    time_ns, device, allocated, reserved = table[np.argsort(table[:, 0], kind="stable")].T
    return Allocations(
        time_ns=time_ns, device=device, allocated_bytes=allocated, reserved_bytes=reserved
    )
