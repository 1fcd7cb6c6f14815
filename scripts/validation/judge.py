"""What decisions come to over the pool: ``docs/validation/gate.md`` and its plot."""

import datetime
import json
import math
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import live
import numpy as np
import pool
import usual
from matplotlib.figure import Figure

from stepmark import stats
from stepmark.compare.verdict import Verdict
from stepmark.gate.decision import TRIMMED, decide, detectable, power
from stepmark.report import drawing
from stepmark.units import format_percent

PAGE = pool.POOL.parent / "gate.md"
THRESHOLD = 0.03
BAR = math.log1p(THRESHOLD)
NUM_SAME, NUM_SLOWER, NUM_USUAL = 20_000, 4_000, 2_000
SUITE = 50
TITLES = {
    "mlp": "MLP, 1 ms",
    "cnn": "CNN, 6 ms",
    "loader": "loader-bound, 2 workers",
    "ddp": "DDP, 2 ranks",
}


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Decisions on pairs of one kind.

    Attributes:
        slowdown: as the pool's pairs show it; the planted one was calibrated before.
        verdicts: how many of each.
        pairs, screen_pairs: the mean number of pairs of a decision, and of its screen.
        pair_s: seconds of a pair.
        num_recorded: pairs in the pool.
    """

    slowdown: float
    verdicts: Counter[Verdict]
    pairs: float
    screen_pairs: float
    pair_s: float
    num_recorded: int

    def part(self, verdict: Verdict) -> float:
        """Of all decisions."""
        return self.verdicts[verdict] / self.verdicts.total()


def judge() -> None:
    """Draw decisions from the pool, and write the page."""
    start_s = time.monotonic()
    rates = {
        (name, part): _decisions(name, part, NUM_SLOWER if part else NUM_SAME)
        for name in pool.CLASSES
        for part in pool.PARTS
    }
    spreads = {name: _spread(name) for name in pool.CLASSES}
    usual_rates = {
        (gate, name, part): _usual(gate, name, part)
        for gate in usual.GATES
        for name in pool.CLASSES
        for part in pool.PARTS
    }
    plot = PAGE.with_suffix(".png")
    _draw(rates, usual_rates, spreads, plot)
    PAGE.write_text("\n".join(_page(rates, usual_rates, spreads)) + "\n")
    print(f"{PAGE} and {plot.name} in {time.monotonic() - start_s:.0f} s")


def wilson(num: int, total: int) -> tuple[float, float]:
    """The 95 % interval of Wilson (1927) for a part."""
    z = 1.959964
    part, scale = num / total, 1 + z * z / total
    middle = (part + z * z / (2 * total)) / scale
    half = z * math.sqrt(part * (1 - part) / total + z * z / (4 * total * total)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


def _decisions(name: str, part: float, number: int) -> Rates:
    """The gate's own decision, pairs drawn from the pool with replacement."""
    pairs = pool.load(name, part)
    ratios = [pool.log_ratio(name, pair) for pair in pairs]
    source = random.Random(0)
    decisions = [decide(lambda: source.choice(ratios), THRESHOLD) for _ in range(number)]
    return Rates(
        slowdown=math.expm1(stats.center(ratios, TRIMMED).estimate),
        verdicts=Counter(decision.verdict for decision in decisions),
        pairs=float(np.mean([len(d.screened) + len(d.confirmed) for d in decisions])),
        screen_pairs=float(np.mean([len(d.screened) for d in decisions])),
        pair_s=float(np.median([pair["wall_s"] for pair in pairs])),
        num_recorded=len(pairs),
    )


def _spread(name: str) -> float:
    ratios = [pool.log_ratio(name, pair) for pair in pool.load(name, 0.0)]
    return stats.center(ratios, TRIMMED).standard_error * math.sqrt(len(ratios))


def _usual(gate: str, name: str, part: float) -> float:
    """Alarms of a usual gate: base and head are of two pairs, run at two times."""
    base, head = pool.load(name, 0.0), pool.load(name, part)
    source = random.Random(1)
    alarms = 0
    for _ in range(NUM_USUAL):
        first, second = source.choice(base), source.choice(head)
        while second is first or second["at"] == first["at"]:
            second = source.choice(head)
        alarms += usual.GATES[gate](first["base"], second["head"])
    return alarms / NUM_USUAL


def _page(
    rates: dict[tuple[str, float], Rates],
    usual_rates: dict[tuple[str, str, float], float],
    spreads: dict[str, float],
) -> list[str]:
    return [
        "# How often the gate errs",
        "",
        "Written by `scripts/validate_gate judge`, from pairs of processes that `scripts/validate_gate record` recorded (`pairs/`) and "
        "from decisions of the real command (`scripts/validate_gate live`, `live.jsonl`). In brackets: Wilson's 95 % intervals.",
        "",
        _setting(rates),
        "",
        *_same_section(rates, spreads),
        *_slower_section(rates),
        *_live_section(),
        *_usual_section(usual_rates),
    ]


def _setting(rates: dict[tuple[str, float], Rates]) -> str:
    facts = json.loads(pool.MACHINE.read_text())
    days = sorted(
        {
            datetime.datetime.fromtimestamp(pair["at"], datetime.UTC).date().isoformat()
            for kind in rates
            for pair in pool.load(*kind)
        }
    )
    return (
        f"Machine: {facts['cpu']}, {facts['cpus']} CPUs, virtual: {facts['virtual']}; torch {facts['torch']}; recorded "
        f"{' and '.join(days)}. Threshold {format_percent(THRESHOLD)}. The classes: {', '.join(TITLES.values())}; the slowdowns are real "
        "work, calibrated in each process, and the table shows what they came to."
    )


def _same_section(rates: dict[tuple[str, float], Rates], spreads: dict[str, float]) -> list[str]:
    lines = [
        "## The same code on both sides",
        "",
        f"{NUM_SAME:,} decisions of each class, their pairs drawn with replacement from those recorded.",
        "",
        "| class | pairs recorded | a pair scatters by | smallest detectable slowdown | SLOWER | FASTER | INCONCLUSIVE | screen | whole decision |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    alarms = total = 0
    for name, title in TITLES.items():
        found = rates[name, 0.0]
        alarms += found.verdicts[Verdict.SLOWER]
        total += found.verdicts.total()
        lines.append(
            f"| {title} | {found.num_recorded} | {format_percent(spreads[name])} | "
            f"{format_percent(math.expm1(detectable(spreads[name], BAR)))} | {_share(found, Verdict.SLOWER, 2)} | "
            f"{_share(found, Verdict.FASTER, 2)} | {found.part(Verdict.INCONCLUSIVE):.1%} | "
            f"{found.screen_pairs * found.pair_s:.0f} s | {found.pairs * found.pair_s:.0f} s |"
        )
    low, middle, high = (
        1 - (1 - part) ** SUITE
        for part in (wilson(alarms, total)[0], alarms / total, wilson(alarms, total)[1])
    )
    return [
        *lines,
        "",
        f"A suite of {SUITE} scenarios, as many of each class, raises a false alarm in {middle:.2%} ({low:.2%} to {high:.2%}) of runs. The "
        "intervals are of the drawing; that the pool itself is one sample of this machine is not in them.",
        "",
    ]


def _slower_section(rates: dict[tuple[str, float], Rates]) -> list[str]:
    lines = [
        "## Slower code",
        "",
        f"{NUM_SLOWER:,} decisions for each row.",
        "",
        "| class | planted | measured | pairs recorded | found | INCONCLUSIVE | missed (SAME) | whole decision |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, title in TITLES.items():
        for part in pool.PARTS[1:]:
            found = rates[name, part]
            lines.append(
                f"| {title} | {part:.0%} | {format_percent(found.slowdown)} | {found.num_recorded} | "
                f"{_share(found, Verdict.SLOWER, 1)} | {found.part(Verdict.INCONCLUSIVE):.1%} | "
                f"{found.part(Verdict.SAME):.1%} | {found.pairs * found.pair_s:.0f} s |"
            )
    return [*lines, "", "![Power of the gate and of the usual ones](gate.png)", ""]


def _live_section() -> list[str]:
    made = live.load()
    lines = ["## The real command", ""]
    if not made:
        return [*lines, "Not run yet.", ""]
    lines += [
        "| class | code | decisions | SLOWER | INCONCLUSIVE | seconds, median |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for kind, what in (("same", "the same"), ("slower", f"{live.SLOWDOWN:.0%} slower")):
        for name in (*TITLES, None):
            these = [d for d in made if d["kind"] == kind and name in (d["class"], None)]
            if these:
                lines.append(_live_row(what, TITLES.get(name or "", "all"), these))
    return [*lines, ""]


def _live_row(what: str, title: str, these: list[dict[str, Any]]) -> str:
    counts = Counter(d["verdict"] for d in these)
    seconds = stats.median([d["wall_s"] for d in these])
    return (
        f"| {title} | {what} | {len(these)} | {_of(counts['SLOWER'], len(these), 1)} | "
        f"{_of(counts['INCONCLUSIVE'], len(these), 1)} | {seconds:.0f} |"
    )


def _usual_section(usual_rates: dict[tuple[str, str, float], float]) -> list[str]:
    lines = [
        "## The usual gates on the same processes",
        "",
        "One process a side, of two different pairs, as two runs one after the other would have them; "
        f"{NUM_USUAL:,} draws. False alarms / slowdowns found:",
        "",
        "| gate | " + " | ".join(TITLES.values()) + " |",
        "|---|" + "--:|" * len(TITLES),
    ]
    for gate in usual.GATES:
        cells = [
            f"{usual_rates[gate, name, 0.0]:.0%} / "
            + ", ".join(f"{usual_rates[gate, name, part]:.0%}" for part in pool.PARTS[1:])
            for name in TITLES
        ]
        lines.append(f"| {gate} | {' | '.join(cells)} |")
    parts = ", ".join(f"{part:.0%}" for part in pool.PARTS[1:])
    return [*lines, "", f"Found: planted {parts}."]


def _share(found: Rates, verdict: Verdict, digits: int) -> str:
    return _of(found.verdicts[verdict], found.verdicts.total(), digits)


def _of(num: int, total: int, digits: int) -> str:
    low, high = wilson(num, total)
    return f"{num / total:.{digits}%} ({low:.{digits}%} to {high:.{digits}%})"


def _draw(
    rates: dict[tuple[str, float], Rates],
    usual_rates: dict[tuple[str, str, float], float],
    spreads: dict[str, float],
    path: Path,
) -> None:
    """Power against slowdown, a panel for each class."""
    with drawing.style():
        figure = Figure(figsize=(9.5, 7.2), layout="constrained")
        panels = figure.subplots(2, 2, sharex=True, sharey=True)
        for panel, (name, title) in zip(panels.flat, TITLES.items(), strict=True):
            slowdowns = [
                max(0.0, rates[name, part].slowdown) if part else 0.0 for part in pool.PARTS
            ]
            for k, gate in enumerate(usual.GATES):
                panel.plot(
                    [100 * s for s in slowdowns],
                    [100 * usual_rates[gate, name, part] for part in pool.PARTS],
                    color=drawing.COLOURS[k + 1], marker="s^Dv"[k], linestyle=("--", "-.", ":", (0, (5, 1, 1, 1)))[k],
                    markersize=5, linewidth=1.2, label=gate,
                )  # fmt: skip
            panel.plot(
                [100 * s for s in slowdowns],
                [100 * rates[name, part].part(Verdict.SLOWER) for part in pool.PARTS],
                color=drawing.COLOURS[0], marker="o", linewidth=2.5, markersize=7, label="stepmark gate",
            )  # fmt: skip
            axis = np.linspace(0, 0.12, 61)
            panel.plot(
                100 * axis,
                [100 * power(math.log1p(s), spreads[name], BAR) for s in axis],
                color=drawing.COLOURS[0], linewidth=0.9, alpha=0.6, label="stepmark gate, if pairs scatter normally",
            )  # fmt: skip
            panel.axhline(95, color="#888888", linewidth=0.8)
            panel.set_title(f"{title}: a pair scatters by {format_percent(spreads[name])}")
            panel.set_ylim(-3, 103)
        for panel in panels[1]:
            panel.set_xlabel("slowdown of head, as measured (%)")
        for panel in panels[:, 0]:
            panel.set_ylabel("called slower (%)")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
        figure.suptitle(
            "How often head is called slower; at 0 it is a false alarm, the grey line is 95 %"
        )
        figure.savefig(path, dpi=110)
