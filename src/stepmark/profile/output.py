"""A profile for people and for programs."""

import dataclasses
import json
from pathlib import Path

from stepmark.codec import encode
from stepmark.columns import aligned
from stepmark.profile.record import Profile, RankProfile
from stepmark.trace import output
from stepmark.units import format_bytes, format_seconds


def as_json(profile: Profile, folder: Path) -> str:
    """The breakdown as of a trace alone, and beside it the scenario, files and memory."""
    assert profile.total is not None
    assert profile.attribution is not None
    data = {
        "scenario_id": profile.scenario.id,
        "trace": str(folder / profile.ranks[0].trace),
        **dataclasses.asdict(profile.total),
        **dataclasses.asdict(profile.attribution),
        "ranks": encode(profile.ranks),
    }
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def as_text(profile: Profile, folder: Path) -> str:
    """What a terminal shows."""
    assert profile.total is not None
    assert profile.attribution is not None
    first = profile.ranks[0]
    blocks = [output.as_text(profile.total, profile.attribution), _ledger(first)]
    blocks.append("\n".join(_remarks(profile, folder)) + "\n")
    return "\n".join(blocks)


def _ledger(rank: RankProfile) -> str:
    rows = [
        (h.name, _size(h.predicted_bytes), _size(h.measured_bytes), h.note) for h in rank.ledger
    ]
    lines = aligned(("memory", "predicted", "measured", ""), rows, left=(0, 3))
    return "\n".join(lines) + "\n"


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else format_bytes(size_bytes)


def _remarks(profile: Profile, folder: Path) -> list[str]:
    first = profile.ranks[0]
    lines = [
        f"a step under the profiler: {format_seconds(first.profiled_step_s)}, "
        f"{first.overhead:.2f} times the one without ({format_seconds(first.plain_step_s)})"
    ]
    lines += [f"note: {note}" for note in first.notes]
    for rank in profile.ranks:
        where = f" of rank {rank.rank}" if len(profile.ranks) > 1 else ""
        files = {"trace": rank.trace, "with stacks": rank.stacks, "memory": rank.snapshot}
        lines += [f"{what}{where}: {folder / name}" for what, name in files.items() if name]
    lines.append("open a trace at https://ui.perfetto.dev")
    return lines
