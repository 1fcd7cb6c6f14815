"""What a step is held back by: which of this machine's ceilings accounts for most of it."""

from stepmark.result import Result

# Where no ceiling accounts for so much of a step, something else holds it back.
BINDING = 0.3

# Of what is counted of a step, the ceiling it is held against, and what that is called.
_LIMITS = (
    ("flops_per_step", "attainable_compute", "compute"),
    ("least_bytes_per_step", "attainable_memory", "memory"),
    ("h2d_bytes_per_step", "attainable_h2d", "copies"),
    ("all_reduce_bytes_per_step", "attainable_all_reduce", "all-reduce"),
    ("jpeg_pixels_per_step", "attainable_jpeg_decode", "JPEG decoding"),
)
LIMITS = tuple(name for _, _, name in _LIMITS)


def shares(result: Result) -> dict[str, float]:
    """Part of a step that each ceiling alone accounts for; those that are not known left out.

    One that comes to more than the step is no ceiling of it: caches hold what was counted as
    moved, or another decoder is faster. It is left out, too; but not compute, of which more than
    all would be a mistake that must be seen.
    """
    step_s = _step_s(result)
    found = {}
    for counted, attainable, name in _LIMITS:
        amount, rate = (result.reading_of_any(reading) for reading in (counted, attainable))
        if amount is None or not rate:
            continue
        share = amount / rate / step_s
        if share <= 1 or name == "compute":
            found[name] = share
    return found


def binding(result: Result) -> str:
    """What a step is held back by, in a word; empty where that is not known."""
    found = shares(result)
    row = result.row()
    if row["data_wait_s"] > BINDING * row["phase_step_s"]:
        decodes = found.get("JPEG decoding", 0.0) >= BINDING
        return "data: JPEG decoding" if decodes else "data"
    if result.attainable_fraction is None:
        return ""
    most = max(found, key=lambda name: found[name], default="")
    if most and found[most] >= BINDING:
        return most
    # What is not known may be what holds it back.
    moved, bandwidth = (
        result.reading_of_any(name) for name in ("least_bytes_per_step", "attainable_memory")
    )
    return "none of these" if moved and bandwidth else ""


def _step_s(result: Result) -> float:
    row = result.row()
    return float(row["window_s"] / row["steps"])
