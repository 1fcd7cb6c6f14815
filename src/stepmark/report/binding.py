"""What a step is held back by: which of this machine's ceilings accounts for most of it."""

from stepmark.result import Result

# Where no ceiling accounts for so much of a step, something else holds it back.
BINDING = 0.3

_DECODING = "JPEG decoding"
# Of what is counted of a step, the ceiling it is held against, and what that is called.
_LIMITS = (
    ("flops_per_step", "attainable_compute", "compute"),
    ("least_bytes_per_step", "attainable_memory", "memory"),
    ("h2d_bytes_per_step", "attainable_h2d", "copies"),
    ("all_reduce_bytes_per_step", "attainable_all_reduce", "all-reduce"),
    ("jpeg_pixels_per_step", "attainable_jpeg_decode", _DECODING),
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
    # Beside the step, unless the step waits for it.
    decoding = found.pop(_DECODING, 0.0)
    row = result.row()
    if row["data_wait_s"] > BINDING * row["phase_step_s"]:
        return f"data: {_DECODING}" if decoding >= BINDING else "data"
    most = max(found, key=lambda name: found[name], default="")
    if most and found[most] >= BINDING:
        return most
    return "none of these" if _all_known(result) else ""


def _all_known(result: Result) -> bool:
    """Whether compute, memory and all else that was counted have a ceiling each.

    What is not known may be what holds a step back.
    """
    amounts = {counted: result.reading_of_any(counted) for counted, _, _ in _LIMITS}
    rates = {counted: result.reading_of_any(attainable) for counted, attainable, _ in _LIMITS}
    needed = {
        "flops_per_step",
        "least_bytes_per_step",
        *(a for a in amounts if _is_there(result, a)),
    }
    return all(amounts[name] is not None and rates[name] for name in needed)


def _is_there(result: Result, name: str) -> bool:
    return any(reading.name == name for rank in result.ranks for reading in rank.readings)


def _step_s(result: Result) -> float:
    row = result.row()
    return float(row["window_s"] / row["steps"])
