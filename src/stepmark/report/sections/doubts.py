"""Doubts about the numbers: what happened, where, and what to try."""

import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence

from stepmark.record import EndedBy, RankRecord
from stepmark.report.advised import commits_of
from stepmark.report.blocks import Block, Finding, Findings, Paragraph
from stepmark.report.cells import Cell
from stepmark.report.contrast import SINGLE_PROCESS_BAND, THROUGHPUT
from stepmark.report.material import Material
from stepmark.report.wording import count, listed, percent, sentence
from stepmark.result import Result

_LARGEST_OBSERVER_EFFECT = 0.05
_FEWEST_STEPS = 10
# A spread of 15 % between processes of unchanged code was measured on a noisy two-core machine.
_WIDE_SPREAD = 0.15


def doubts(material: Material) -> Sequence[Block]:
    """Everything that a reader should hold against the numbers above."""
    items = [*_of_runs(material), *_of_cells(material)]
    if not material.results:
        return ()  # of trainings alone, whose section says what there is to say
    if not items:
        return (Paragraph(text="None of the checks found anything to hold against them."),)
    return (Findings(items=items),)


def doubted(material: Material, run: str) -> list[tuple[str, int]]:
    """The checks that found something among a run's cells, and in how many."""
    cells = [cell for cell in material.cells if cell.run == run]
    found = [(lead, sum(holds(cell) for cell in cells)) for lead, _, _, holds in _CHECKS]
    return [(lead, number) for lead, number in found if number]


def _of_runs(material: Material) -> Iterator[Finding]:
    for label, run in material.runs.items():
        where = f" ({label})" if material.several_runs else ""
        unfit = dict.fromkeys(text for result in run.results for text in result.machine.unfit)
        for text in unfit:
            yield Finding(lead="Unfit machine", text=f"{sentence(text)}{where}")
        if run.missing:
            yield Finding(
                lead="Incomplete",
                text=f"The run was interrupted, {count(len(run.missing), 'planned measurement')} "
                f"missing{where}. Complete it with --resume.",
            )
    results = material.results
    machines = dict.fromkeys(result.machine.host for result in results)
    if len({_hardware(result) for result in results}) > 1:
        yield Finding(
            lead="Different machines",
            text=f"Results come from machines that differ in hardware ({listed(list(machines))}). "
            "Do not compare numbers across them: measure on one machine.",
        )
    if len({_software(result) for result in results}) > 1:
        yield Finding(
            lead="Different software",
            text="Results come from different versions of torch, its driver or the system, listed "
            "below. Compare across them only if that is the question.",
        )
    trials = [trial for run in material.runs.values() for trial in run.trials]
    known = [result.commit for result in results if result.commit] + list(commits_of(trials))
    commits = dict.fromkeys(commit.id for commit in known)
    if len(commits) > 1:
        yield Finding(
            lead="Different commits",
            text=f"Results come from {len(commits)} commits "
            f"({listed([commit[:12] for commit in commits])}). To decide whether one is slower, "
            "measure both in turns on one machine.",
        )
    if any(commit.dirty for commit in known):
        yield Finding(
            lead="Uncommitted changes",
            text="Tracked files differed from the commit that is named, so the commit does not say "
            "what was measured. Commit, then measure again.",
        )


def _hardware(result: Result) -> frozenset[tuple[str, str]]:
    return frozenset(result.machine.hardware.items())


def _software(result: Result) -> frozenset[tuple[str, str]]:
    return frozenset(result.machine.software.items())


def _of_cells(material: Material) -> Iterator[Finding]:
    groups = material.groups()
    labels = {
        id(cell): f"{group.title}, {group.label(cell)}" for group in groups for cell in group.cells
    }

    def at(cells: Iterable[Cell]) -> str:
        named = [labels[id(cell)] for cell in cells]
        if len(named) == len(material.cells) > 1:
            return "every scenario"
        more = f"; and {len(named) - 5} more" if len(named) > 5 else ""
        return "; ".join(named[:5]) + more

    for lead, what, remedy, holds in _CHECKS:
        cells = [cell for group in groups for cell in group.cells if holds(cell)]
        if cells:
            text = f"{sentence(what)}. Where: {at(cells)}. What to try: {remedy}."
            yield Finding(lead=lead, text=text)
    # Notes that differ in their figures alone are one: the first is shown.
    notes: dict[str, tuple[str, dict[int, Cell]]] = {}
    for cell in material.cells:
        remarks = (text for result in cell.results for text in (*result.unfit, *result.notes))
        for note in remarks:
            _, cells_with = notes.setdefault(re.sub(r"\d+", "0", note), (note, {}))
            cells_with[id(cell)] = cell
    for note, cells_with in notes.values():
        yield Finding(lead="Note", text=f"{sentence(note)} ({at(cells_with.values())})")


def _ranks(cell: Cell) -> list[RankRecord]:
    return [rank for result in cell.results for rank in result.ranks]


def _observer_effect_is_off(cell: Cell) -> bool:
    effects = [e for result in cell.results if (e := result.observer_effect) is not None]
    return bool(effects) and abs(statistics.median(effects) - 1) > _LARGEST_OBSERVER_EFFECT


def _ended_early(cell: Cell) -> bool:
    return any(
        rank.window.ended_by is EndedBy.SECONDS and rank.window.num_steps < _FEWEST_STEPS
        for rank in _ranks(cell)
    )


# What is called in doubt, in words; what to try; and for which cells it holds.
_CHECKS: tuple[tuple[str, str, str, Callable[[Cell], bool]], ...] = (
    (
        "Unfit windows",
        "the machine was disturbed while it was measured: slowed down by heat or a power brake, "
        "used by others, or short of memory; each is named below",
        "measure again when the cause is gone",
        lambda cell: any(result.unfit for result in cell.results),
    ),
    (
        "One process per scenario",
        "the difference between fresh processes of the same scenario is unknown; on a noisy "
        f"machine it was seen to be {percent(_WIDE_SPREAD)}, so ratios below "
        f"{1 + SINGLE_PROCESS_BAND:g} are not called a difference",
        "3 repeats or more (--repeats 3)",
        lambda cell: len(cell.results) == 1,
    ),
    (
        "Processes disagree",
        f"throughput of the repeats lies more than {percent(_WIDE_SPREAD)} apart",
        "stop other programs, take a machine of its own, more repeats",
        lambda cell: (cell.spread(THROUGHPUT) or 0.0) > _WIDE_SPREAD,
    ),
    (
        "Warm-up not settled",
        "step times (or the gradient scaler's scale) were still moving when measuring began",
        "a larger warmup and max_seconds of the plan (--warmup, --max-seconds); max_seconds bounds "
        "warm-up too",
        lambda cell: any(not rank.warmup.settled for rank in _ranks(cell)),
    ),
    (
        "Phase marks disturb",
        "the mean step with phase marks differs from the one without by more than "
        f"{percent(_LARGEST_OBSERVER_EFFECT)}: the marks cost something, or the machine's speed "
        "changed between the two windows. Throughput is not touched; take the phases as shares, "
        "not as seconds",
        "more steps; a larger batch, if steps are very short",
        _observer_effect_is_off,
    ),
    (
        "Few steps",
        f"the window ended by its seconds with fewer than {_FEWEST_STEPS} steps, so its "
        "percentiles say little and one slow step weighs much",
        "a larger max_seconds of the plan (--max-seconds)",
        _ended_early,
    ),
    (
        "Skipped optimizer steps",
        "the gradient scaler skipped steps in the window, and a skipped step is a fast one: "
        "throughput is too high. These are left out of comparisons",
        "a larger warmup of the plan (--warmup), or bf16",
        lambda cell: cell.skipped_steps > 0,
    ),
    (
        "Skipped steps unknown",
        "the optimizer takes the gradient scale itself and does not tell whether it skipped steps",
        "bf16, which needs no scaler",
        lambda cell: any(rank.skipped_steps is None for rank in _ranks(cell)),
    ),
    (
        "Generated data",
        "the samples were generated, not read from the real data set: reading and decoding cost "
        "may differ, and losses and accuracies are not those of the real data",
        "put the real data set in place",
        lambda cell: any("generated" in rank.data.lower() for rank in _ranks(cell)),
    ),
)
