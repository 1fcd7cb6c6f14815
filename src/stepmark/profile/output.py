"""A profile for people and for programs."""

import dataclasses
import json
from pathlib import Path

from stepmark.codec import encode
from stepmark.columns import aligned
from stepmark.profile.record import Profile, RankProfile
from stepmark.trace import output
from stepmark.units import format_bytes, format_percent, format_seconds


def as_json(profile: Profile, folder: Path) -> str:
    """The breakdown as of a trace alone, and beside it the scenario, ranks, files and memory."""
    assert profile.attribution is not None
    data = {
        "scenario_id": profile.scenario.id,
        "trace": str(folder / profile.ranks[0].trace),
        **dataclasses.asdict(profile.totals[0]),
        **dataclasses.asdict(profile.attribution),
        "ranks": encode(profile.ranks),
        "totals": encode(profile.totals),
        "timeline": encode(profile.timeline),
    }
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def as_text(profile: Profile, folder: Path) -> str:
    """What a terminal shows."""
    assert profile.attribution is not None
    blocks = (
        output.as_text(profile.totals[0], profile.attribution).splitlines(),
        _ranks(profile),
        _ledger(profile.ranks[0]),
        _remarks(profile, folder),
    )
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _ranks(profile: Profile) -> list[str]:
    """Ranks beside each other; nothing for one alone."""
    if len(profile.ranks) == 1:
        return []
    parts = profile.parts
    rows = [
        (
            str(rank.rank),
            format_seconds(rank.profiled_step_s),
            *(format_percent(getattr(total, field) / total.wall_s) for field in parts.values()),
        )
        for rank, total in zip(profile.ranks, profile.totals, strict=True)
    ]
    return aligned(("rank", "profiled step", *parts), rows)


def _ledger(rank: RankProfile) -> list[str]:
    rows = [
        (h.name, _size(h.predicted_bytes), _size(h.measured_bytes), h.note) for h in rank.ledger
    ]
    return aligned(("memory", "predicted", "measured", ""), rows, left=(0, 3))


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else format_bytes(size_bytes)


def _remarks(profile: Profile, folder: Path) -> list[str]:
    first = profile.ranks[0]
    lines = [
        f"a step under the profiler: {format_seconds(first.profiled_step_s)}, "
        f"{first.overhead:.2f} times the one without ({format_seconds(first.plain_step_s)})"
    ]
    if profile.timeline is not None:
        held = "" if profile.timeline.device is not None else " beyond what was held before"
        lines.append(
            f"over a step tensors held at most {format_bytes(profile.timeline.peak_bytes)}{held}, "
            f"in {profile.timeline.peak_phase}"
        )
    lines += [f"note: {note}" for note in first.notes]
    for rank in profile.ranks:
        where = f" of rank {rank.rank}" if len(profile.ranks) > 1 else ""
        files = {"trace": rank.trace, "in detail": rank.detailed_trace, "memory": rank.snapshot}
        lines += [f"{what}{where}: {folder / name}" for what, name in files.items() if name]
    lines.append("open a trace at https://ui.perfetto.dev")
    return lines
