"""Numbers with units, for people. Values are kept in SI units (seconds, bytes, joules)."""

import re

from stepmark.errors import UsageError

_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_FLOPS = ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1e3, "kFLOP"))
_BYTES = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def format_seconds(value_s: float) -> str:
    """Three significant digits in the unit that fits: ``0.00123`` gives ``1.23 ms``."""
    for scale, unit in _SECONDS:
        # 0.9995 would be rounded to 1.00 of this unit, so it already belongs here.
        if abs(value_s) >= 0.9995 * scale:
            return f"{_three_digits(value_s / scale)} {unit}"
    return "0 s" if value_s == 0 else f"{value_s / 1e-9:.2g} ns"


def parse_duration(option: str, text: str) -> float:
    """``90``, ``90s``, ``10m`` or ``1.5h`` in seconds.

    Raises:
        UsageError: it is none of these, or not above 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([smh]?)", text.strip())
    value = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]] if found else 0.0
    if not 0 < value < float("inf"):
        raise UsageError(f"{option} {text!r}: give a time such as 90s, 10m or 1h")
    return value


def format_bytes(value_bytes: float) -> str:
    """Binary units: ``1536`` gives ``1.50 KiB``."""
    for scale, unit in _BYTES:
        if abs(value_bytes) >= scale:
            return f"{_three_digits(value_bytes / scale)} {unit}"
    return f"{value_bytes:.0f} B"


def format_rate(value_per_s: float) -> str:
    """Samples per second with thousands separators: ``12345.6`` gives ``12,346``."""
    return f"{value_per_s:,.0f}" if abs(value_per_s) >= 100 else _three_digits(value_per_s)


def format_flops(value: float) -> str:
    """Floating-point operations in the unit that fits: ``1.23e9`` gives ``1.23 GFLOP``."""
    for scale, unit in _FLOPS:
        if abs(value) >= 0.9995 * scale:
            return f"{_three_digits(value / scale)} {unit}"
    return f"{value:.0f} FLOP"


def format_percent(fraction: float) -> str:
    """``0.0312`` gives ``3.1 %``; more than a hundredfold is not told exactly."""
    return f"{fraction * 100:.1f} %" if fraction <= 100 else "over 10000 %"


def format_change(fraction: float) -> str:
    """``0.0312`` gives ``+3.1 %``; more than a hundredfold is not told exactly."""
    return f"{fraction * 100:+.1f} %" if fraction <= 100 else "over +10000 %"


def _three_digits(value: float) -> str:
    magnitude = abs(value)
    if magnitude >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if magnitude >= 9.995 else f"{value:.2f}"
