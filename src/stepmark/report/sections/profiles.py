"""What the profiler found: where steps went, whose work they were, what held the memory."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from stepmark.profile import Profile, RankProfile
from stepmark.report.blocks import Block, Finding, Findings, Heading, Paragraph, Plot, Table
from stepmark.report.cells import Group
from stepmark.report.drawing import draw_stacked_bars, draw_timeline
from stepmark.report.material import Material
from stepmark.report.wording import EMPTY, known, percent
from stepmark.trace import Timeline, Total
from stepmark.units import format_bytes, format_seconds

_MOST_OPERATORS = 10
_LONGEST_NAME = 60


def profiled(material: Material) -> Sequence[Block]:
    """Where the steps of profiled scenarios went, and whose work they were."""
    blocks: list[Block] = []
    for group, profiles in _groups(material):
        ranks = [rank for label, profile in profiles for rank in _ranks(label, profile)]
        parts = max(ranks, key=lambda rank: rank.total.device is not None).total.parts
        figure = draw_stacked_bars(
            [rank.label for rank in ranks],
            {
                name: [getattr(rank.total, field) / len(rank.total.steps) for rank in ranks]
                for name, field in parts.items()
                if any(getattr(rank.total, field) for rank in ranks)
            },
            title=group.title,
            quantity="mean step under the profiler",
        )
        blocks.append(Plot(title=f"Profile: {group.title}", figure=figure, wide=True))
        blocks.append(_parts_table(group, ranks, parts))
        for label, profile in profiles:
            blocks += _of_one(label, profile)
    explained = Paragraph(
        text="From a process of its own under torch.profiler, which slows a step down (profiled "
        "over plain): no throughput comes from here. On an accelerator compute is kernels, "
        "exposed communication and copies are what no compute hides, and idle is the rest; on a "
        "CPU compute is operators, and the rest is what Python and the loader do between them. "
        "The parts sum to the step exactly. Starved is the part in which the accelerator waited "
        "for a launch: much of it, and the step is bound by the host (under the profiler, which "
        "slows the host down)."
    )
    return (explained, *blocks) if blocks else ()


def ledger(material: Material) -> Sequence[Block]:
    """Who held the memory of profiled scenarios, predicted and found."""
    blocks: list[Block] = []
    for group, profiles in _groups(material):
        ranks = [(label, profile.ranks[0]) for label, profile in profiles]
        names = dict.fromkeys(holding.name for _, rank in ranks for holding in rank.ledger)
        parts = {name: [_at_peak(rank, name) for _, rank in ranks] for name in names}
        figure = draw_stacked_bars(
            [label for label, _ in ranks],
            {name: sizes for name, sizes in parts.items() if any(sizes)},
            title=group.title,
            quantity="memory",
            unit=(1 << 20, "MiB"),
        )
        blocks.append(Plot(title=f"Memory ledger: {group.title}", figure=figure, wide=True))
        rows = [
            (
                label,
                holding.name,
                known(holding.predicted_bytes, format_bytes),
                known(holding.measured_bytes, format_bytes),
                holding.note or EMPTY,
            )
            for label, rank in ranks
            for holding in rank.ledger
        ]
        header = ("scenario", "held by", "predicted", "measured", "")
        caption = f"{group.title}: memory ledger"
        words = frozenset({0, 1, 4})
        blocks.append(
            Table(header=header, rows=rows, caption=caption, text_columns=words, foldable=True)
        )
        blocks += [
            _timeline(group, label, profile.timeline)
            for label, profile in profiles
            if profile.timeline is not None
        ]
    explained = Paragraph(
        text="Of the first rank, in one step after warm-up. Parameters, gradients and optimizer "
        "state are predicted from shapes alone; on an accelerator what is held at the peak sums to "
        "what is allocated then, then reserved, then in use on the whole device. Over a step, "
        "under the profiler: what tensors hold; on a CPU beyond what they held before."
    )
    return (explained, *blocks) if blocks else ()


@dataclass(frozen=True, kw_only=True)
class _Rank:
    """One rank of a profiled scenario.

    Attributes:
        label: of the scenario, and of the rank if there are several.
        rank: what it said.
        total: where its steps went.
        starved_s: its accelerator waited for a launch; ``None`` where that is not known.
    """

    label: str
    rank: RankProfile
    total: Total
    starved_s: float | None


def _ranks(label: str, profile: Profile) -> Iterator[_Rank]:
    assert profile.attribution is not None
    for rank, total in zip(profile.ranks, profile.totals, strict=True):
        known_here = rank is profile.ranks[0] and total.device is not None
        yield _Rank(
            label=f"{label}, rank {rank.rank}" if len(profile.ranks) > 1 else label,
            rank=rank,
            total=total,
            starved_s=profile.attribution.starved_s if known_here else None,
        )


def _timeline(group: Group, label: str, timeline: Timeline) -> Plot:
    figure = draw_timeline(timeline, title=f"{group.title}\n{label}")
    return Plot(title=f"Memory over a step: {group.title}, {label}", figure=figure)


def _groups(material: Material) -> Iterator[tuple[Group, list[tuple[str, Profile]]]]:
    """Groups with the profiles of their cells, each with its label."""
    for group in material.groups():
        found = []
        for cell in group.cells:
            profile = material.profile(cell)
            if profile and profile.ranks:
                found.append((group.label(cell), profile))
        if found:
            yield group, found


def _parts_table(group: Group, ranks: Sequence[_Rank], parts: Mapping[str, str]) -> Table:
    rows = [
        (
            found.label,
            format_seconds(found.rank.profiled_step_s),
            f"{found.rank.overhead:.2f}×",
            *(percent(getattr(found.total, f) / found.total.wall_s) for f in parts.values()),
            EMPTY if found.starved_s is None else percent(found.starved_s / found.total.wall_s),
        )
        for found in ranks
    ]
    header = ("scenario", "profiled step", "over plain", *parts, "starved")
    caption = f"{group.title}: shares of a profiled step"
    return Table(header=header, rows=rows, caption=caption, foldable=True).without_empty_columns()


def _of_one(label: str, profile: Profile) -> Iterator[Block]:
    total, attribution = profile.totals[0], profile.attribution
    assert attribution is not None
    yield Heading(text=label)
    on_device = total.device is not None
    operators = sorted(
        attribution.operators, key=lambda o: -(o.device_s if on_device else o.host_s)
    )
    rows = [
        (
            _short(operator.name),
            str(operator.calls or EMPTY),
            format_seconds(operator.host_s),
            known(operator.device_s or None, format_seconds),
        )
        for operator in operators[:_MOST_OPERATORS]
    ]
    header = ("operator", "calls", "host, itself", "device")
    caption = f"{label}: operators that take longest, over {len(total.steps)} steps"
    yield Table(header=header, rows=rows, caption=caption).without_empty_columns()
    if attribution.kernels:
        kernels = [
            (_short(kernel.name), str(kernel.calls), format_seconds(kernel.device_s))
            for kernel in attribution.kernels[:_MOST_OPERATORS]
        ]
        caption = f"{label}: kernels that take longest"
        yield Table(header=("kernel", "calls", "device"), rows=kernels, caption=caption)
    waits = [
        Finding(
            lead=wait.operator or wait.call,
            text=f"The host waited {format_seconds(wait.wait_s)} in {wait.calls} calls of "
            f"{wait.call}{f', from {wait.line}' if wait.line else ''}.",
        )
        for wait in attribution.waits[:_MOST_OPERATORS]
    ]
    if waits:
        yield Findings(items=waits)
    yield Paragraph(text=f"Trace, for https://ui.perfetto.dev: {profile.ranks[0].trace}")


def _at_peak(rank: RankProfile, name: str) -> float:
    """For a bar; what is left over may come out below nothing, which the table has."""
    held = (h.measured_bytes or 0 for h in rank.ledger if h.name == name and h.at_peak)
    return float(max(0, next(held, 0)))


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 4]} ..."
