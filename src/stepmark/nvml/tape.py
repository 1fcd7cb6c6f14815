"""What was sampled of a device, and what a window of it comes to."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from stepmark.record import Reading
from stepmark.stats import FloatArray
from stepmark.units import format_percent

# Shorter windows hold too few of the counter's own steps, which are up to 0.1 s apart.
LEAST_ENERGY_S = 2.0
# By so much a tape may end before a window does.
_LATE_S = 0.2
# What was sampled so close to a window tells of it.
_CLOSE_S = 0.11
# What one series keeps of a window, for plots.
_MOST_VALUES = 200

# Bits of the clock event reasons (nvml.h). The first four slow the device down for reasons that
# are not the work's; the others are how it was set up, or how work limits itself.
_SLOWED = {
    0x08: "hardware slowdown",
    0x20: "thermal slowdown by the driver",
    0x40: "thermal slowdown by the hardware",
    0x80: "power brake",
}
_HELD = {0x02: "application clocks", 0x04: "power cap", 0x10: "sync boost", 0x100: "display clock"}


@dataclass(frozen=True, kw_only=True)
class Series:
    """One quantity over time.

    Attributes:
        at_s: when it was read, by ``time.monotonic``.
        values: what it was.
        error: why it could not be read, or no further; empty if it could.
    """

    at_s: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Tape:
    """All that was sampled of one device.

    Attributes:
        backend: ``nvml``, or ``replay`` for what no device told.
        series: by the names of `stepmark.nvml.quantities`.
        error: why nothing could be sampled; empty otherwise.
    """

    backend: str = "nvml"
    series: dict[str, Series] = field(default_factory=dict)
    error: str = ""


def readings(tape: Tape, start_s: float, end_s: float) -> tuple[Reading, ...]:
    """What a window of a tape comes to; what cannot be told says why.

    Args:
        tape: of the device.
        start_s, end_s: the window's edges, by ``time.monotonic``.
    """
    return tuple(_reading(tape, figure, start_s, end_s) for figure in _FIGURES)


def unfit(tape: Tape, start_s: float, end_s: float, num_own: int) -> Iterator[str]:
    """Why a window is not to be trusted.

    Args:
        tape: of the device.
        start_s, end_s: as for `readings`.
        num_own: processes of this measurement that use the device.
    """
    reasons = _within(tape, "clock_reasons", start_s, end_s)
    for bit, name in _SLOWED.items():
        part = _part_with(reasons, bit)
        if part:
            yield f"the GPU was slowed down ({name}, {format_percent(part)} of the window)"
    num_foreign = _num_processes(tape, start_s, end_s) - num_own
    if num_foreign > 0:
        yield f"{num_foreign} more processes than this measurement's used the GPU"


def blind(tape: Tape, start_s: float, end_s: float, num_own: int) -> Iterator[str]:
    """What could not be looked for; arguments as for `unfit`."""
    if tape.error:
        yield f"nothing is known of the GPU's clocks, heat and other users ({tape.error})"
    elif _num_processes(tape, start_s, end_s) < num_own:
        yield (
            "the driver does not list this measurement's own processes (in a container it "
            "seldom does), so others on the GPU would not be seen"
        )


def _num_processes(tape: Tape, start_s: float, end_s: float) -> int:
    return int(_within(tape, "num_processes", start_s, end_s).max(initial=0))


@dataclass(frozen=True, kw_only=True)
class _Figure:
    """How a reading comes from a series; in one of two ways.

    Attributes:
        name, unit, note: the reading's.
        series: it comes from.
        instead: a series to take where the device does not have that one, and what to note of it.
        level: from the values within the window.
        growth: from times and values of the whole tape, and the window's edges.
    """

    name: str
    unit: str
    note: str
    series: str
    instead: tuple[str, str] | None = None
    level: Callable[[FloatArray], float] | None = None
    growth: Callable[[FloatArray, FloatArray, float, float], float] | None = None


class _UnavailableError(Exception):
    """A reading that a tape does not come to; the message says why."""


def _reading(tape: Tape, figure: _Figure, start_s: float, end_s: float) -> Reading:
    source = "" if tape.backend == "nvml" else f"{tape.backend}: "
    if figure.instead is not None and not tape.series.get(figure.series, Series()).values:
        other, note = figure.instead
        figure = replace(figure, series=other, note=note, instead=None)
    bare = Reading(name=figure.name, unit=figure.unit, scope="device", value=None)
    try:
        if figure.growth is not None:
            value = _grown(tape, figure.series, figure.growth, start_s, end_s)
            return replace(bare, value=value, note=source + figure.note)
        assert figure.level is not None
        values = _within(tape, figure.series, start_s, end_s)
        if not len(values):
            raise _UnavailableError(_why_not(tape, figure.series))
        every = -(-len(values) // _MOST_VALUES)
        series = tuple(values[::every].tolist())
        return replace(bare, value=figure.level(values), series=series, note=source + figure.note)
    except _UnavailableError as error:
        return replace(bare, note=f"{source}unavailable: {error}")


def _grown(
    tape: Tape,
    name: str,
    growth: Callable[[FloatArray, FloatArray, float, float], float],
    start_s: float,
    end_s: float,
) -> float:
    """What has grown within a window, which must have been sampled whole."""
    if end_s - start_s < 0.999 * LEAST_ENERGY_S:
        raise _UnavailableError(
            f"a window of {end_s - start_s:.2g} s is too short, {LEAST_ENERGY_S:g} s are needed"
        )
    found = tape.series.get(name, Series())
    at_s, values = np.array(found.at_s), np.array(found.values)
    if not len(at_s) or at_s[0] > start_s or at_s[-1] < end_s - _LATE_S:
        why = "sampled in a part of the window alone"
        raise _UnavailableError(tape.error or found.error or why)
    value = growth(at_s, values, start_s, end_s)
    if value <= 0:
        raise _UnavailableError("it did not move")
    return value


def _within(tape: Tape, name: str, start_s: float, end_s: float) -> FloatArray:
    """What was sampled in a window; in one that is too short for that, close to it.

    Nothing, if sampling ended within it by an error.
    """
    found = tape.series.get(name, Series())
    at_s, values = np.array(found.at_s), np.array(found.values)
    if found.error and (not len(at_s) or at_s[-1] < end_s - _LATE_S):
        return values[:0]
    inside = (at_s >= start_s) & (at_s <= end_s)
    if not inside.any():
        inside = (at_s >= start_s - _CLOSE_S) & (at_s <= end_s + _CLOSE_S)
    return values[inside]


def _why_not(tape: Tape, name: str) -> str:
    found = tape.series.get(name, Series())
    return tape.error or found.error or "not sampled within the window"


def _part_with(reasons: FloatArray, bits: int) -> float:
    if not len(reasons):
        return 0.0
    return float(np.mean((reasons.astype(np.int64) & bits) != 0))


def _mean(values: FloatArray) -> float:
    return float(values.mean())


def _largest(values: FloatArray) -> float:
    return float(values.max())


def _held_back(values: FloatArray) -> float:
    return _part_with(values, sum(_SLOWED) | sum(_HELD))


def _counted(at_s: FloatArray, values: FloatArray, start_s: float, end_s: float) -> float:
    """A counter's growth. It moves in steps of its own, so only the moments it moved are known."""
    moved = np.flatnonzero(np.diff(values, prepend=-np.inf) > 0)
    at_s, values = at_s[moved], values[moved]
    if len(values) < 2:
        return 0.0
    edges = np.interp([start_s, end_s], at_s, values)
    # What came after the last move is not on the tape yet; it went on as before.
    late_s = max(0.0, end_s - at_s[-1])
    rate = (values[-1] - values[0]) / (at_s[-1] - at_s[0])
    return float(edges[1] - edges[0] + rate * late_s)


def _integral(at_s: FloatArray, values: FloatArray, start_s: float, end_s: float) -> float:
    edges = np.interp([start_s, end_s], at_s, values)
    inside = (at_s > start_s) & (at_s < end_s)
    times = np.concatenate([[start_s], at_s[inside], [end_s]])
    return float(np.trapezoid(np.concatenate([edges[:1], values[inside], edges[1:]]), times))


_LAGGING = "the driver's figures may be means of up to a second before"
_FIGURES = (
    _Figure(
        name="energy", unit="J", series="energy_j", growth=_counted,
        note="of the whole device over the window, by its own counter",
    ),
    _Figure(
        name="energy_integral", unit="J", series="power_instant_w", growth=_integral,
        note="of the whole device over the window, power integrated",
        instead=("power_w", f"of the whole device over the window, power integrated; {_LAGGING}"),
    ),
    _Figure(
        name="power", unit="W", series="power_instant_w", level=_mean,
        note="mean of the window, of the whole device",
        instead=("power_w", f"mean of the window, of the whole device; {_LAGGING}"),
    ),
    _Figure(
        name="nvml_memory_used", unit="bytes", series="memory_used_bytes", level=_largest,
        note="most that was in use on the whole device, by anyone",
    ),
    _Figure(
        name="gpu_utilisation", unit="fraction", series="utilisation", level=_mean,
        note="of the time some kernel ran, however small; not how well the device is used",
    ),
    _Figure(
        name="sm_clock", unit="MHz", series="sm_clock_mhz", level=_mean,
        note="mean of the window",
    ),
    _Figure(
        name="memory_clock", unit="MHz", series="memory_clock_mhz", level=_mean,
        note="mean of the window",
    ),
    _Figure(
        name="clocks_held_back", unit="fraction", series="clock_reasons", level=_held_back,
        note="of the time something kept clocks from rising: a power cap, heat, or settings",
    ),
    _Figure(
        name="gpu_temperature", unit="°C", series="temperature_c", level=_largest,
        note="highest of the window",
    ),
    _Figure(
        name="pcie_sent", unit="bytes/s", series="pcie_tx_bytes_per_s", level=_mean,
        note="mean of moments of 20 ms, from the device",
    ),
    _Figure(
        name="pcie_received", unit="bytes/s", series="pcie_rx_bytes_per_s", level=_mean,
        note="mean of moments of 20 ms, to the device",
    ),
)  # fmt: skip
