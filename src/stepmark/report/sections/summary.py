"""The summary in words: statements with figures, each from scenarios that differ in one thing."""

from collections import Counter
from collections.abc import Iterator, Sequence

from stepmark.report.advised import Advised
from stepmark.report.blocks import Block, Finding, Findings, Heading, Paragraph, Table
from stepmark.report.cells import Cell, Group, num_off_default
from stepmark.report.contrast import SINGLE_PROCESS_BAND, THROUGHPUT, typical_spread
from stepmark.report.findings import as_fast, group_findings, plain_partner
from stepmark.report.material import Material
from stepmark.report.sections.doubts import doubted
from stepmark.report.wording import EMPTY, count, listed, percent, sentence, spanned
from stepmark.result import Outcome
from stepmark.units import format_change, format_percent, format_rate

# Spread between processes, as a fraction, above which a run says little.
_TOO_NOISY = 0.5


def summary(material: Material) -> Sequence[Block]:
    """What was found, for each run by itself; runs are not compared here."""
    blocks: list[Block] = []
    if not material.results:
        return ()
    if material.several_runs:
        text = "Each run by itself. To compare two of them: stepmark compare BASE HEAD."
        blocks.append(Paragraph(text=text))
    for run in material.runs:
        if not material.runs[run].results:
            continue  # it is of a training, which has a section of its own
        if material.several_runs:
            blocks.append(Heading(text=run))
        blocks.append(Findings(items=list(_overview(material, run))))
        groups = material.groups(run)
        if len(groups) > 1:
            blocks.append(_at_a_glance(material, groups))
        for group in groups:
            blocks.append(Heading(text=group.title))
            blocks.append(Findings(items=list(group_findings(material, group))))
    return blocks


def _overview(material: Material, run: str) -> Iterator[Finding]:
    if material.runs[run].trials:
        yield _advice(Advised(material.runs[run]))
    yield _outcomes(material, run)
    cells = [cell for cell in material.cells if cell.run == run]
    if cells:
        yield _noise(material, run, cells)
        found = [f"{lead.lower()} ({number})" for lead, number in doubted(material, run)]
        if found:
            text = f"{sentence(listed(found))} of {count(len(cells), 'scenario')}; see Doubts."
            yield Finding(lead="Doubts", text=text)


def _at_a_glance(material: Material, groups: Sequence[Group]) -> Table:
    header = (
        "workload and device", "fastest", "samples/s", "as fast, within noise", "plain loop",
        "data wait",
    )  # fmt: skip
    rows = [_glance(material, group) for group in groups]
    caption = (
        "Samples/s of the fastest scenario (smallest to largest of its processes), how many others "
        "cannot be told from it, and samples/s of the plain loop at its batch size and threads"
    )
    return Table(header=header, rows=rows, caption=caption, text_columns=frozenset({0, 1}))


def _glance(material: Material, group: Group) -> tuple[str, ...]:
    best = group.fastest
    if best is None:
        return (group.title, *[EMPTY] * 5)
    plain = plain_partner(material, best) if num_off_default(best.scenario) else best
    return (
        group.title,
        group.label(best),
        spanned(best.samples_per_s, best.values(THROUGHPUT), format_rate),
        f"{len(as_fast(group))} of {len(group.trusted) - 1}" if len(group.trusted) > 1 else EMPTY,
        format_rate(plain.samples_per_s) if plain else EMPTY,
        percent(best.share("data_wait")),
    )


def _advice(advised: Advised) -> Finding:
    text = f"{advised.in_words()}."
    if advised.best is not None:
        trial, change = advised.best
        text += (
            f" The best that was found, of what trains the same: {trial.with_it.id}, throughput "
            f"{format_change(change)} in turns with {trial.without.id}."
        )
    return Finding(lead="Advice", text=text)


def _outcomes(material: Material, run: str) -> Finding:
    results = material.runs[run].results
    failures = [failure.result for failure in material.failures if failure.run == run]
    num_scenarios = len({result.scenario for result in results})
    num_ok = len(results) - len(failures)
    text = (
        f"{count(num_scenarios, 'scenario')}, {count(len(results), 'measurement')} "
        f"(one per scenario and repeat): {num_ok} ok"
    )
    by_outcome = Counter(result.outcome for result in failures)
    words = {Outcome.OOM: "out of memory", Outcome.TIMEOUT: "timed out", Outcome.OK: "empty"}
    for outcome, number in by_outcome.items():
        text += f", {number} {words.get(outcome, outcome.value)}"
    missing = len(material.runs[run].missing)
    if missing and material.runs[run].trials:
        text += f". {missing} more were not measured"
    elif missing:
        text += f". The run was interrupted, {missing} more planned"
    reasons = Counter(result.reason for result in failures).most_common(3)
    if reasons:
        text += f". Reasons: {'; '.join(f'{reason} ({number})' for reason, number in reasons)}"
    return Finding(lead="Measured", text=f"{text}.")


def _noise(material: Material, run: str, cells: Sequence[Cell]) -> Finding:
    spread = typical_spread(cells)
    if spread is None:
        text = (
            "Every scenario was measured in one process only, and a single process cannot tell "
            "small differences: fresh processes of unchanged code had a spread of 15 % on a noisy "
            f"machine. Ratios below {1 + SINGLE_PROCESS_BAND:g}× are therefore not called a "
            "difference here; --repeats 3 shows smaller ones."
        )
        return Finding(lead="Noise", text=text)
    widest = max(cells, key=lambda cell: cell.spread(THROUGHPUT) or 0.0)
    group = next(g for g in material.groups(run) if widest in g.cells)
    text = (
        f"Between fresh processes of one scenario, throughput lies {format_percent(spread)} apart "
        f"(largest minus smallest over median; the median of all scenarios), at worst "
        f"{percent(widest.spread(THROUGHPUT) or 0.0)} ({group.title}, {group.label(widest)}). A "
        "difference is only called one where it clearly exceeds this spread."
    )
    if spread > _TOO_NOISY:
        text += (
            " That is too noisy for anything but very large effects: something else used the "
            "machine. Read these figures as a trial, see the doubts below, and measure again when "
            "it is quiet, or with one compute thread (--threads 1)."
        )
    return Finding(lead="Noise", text=text)
