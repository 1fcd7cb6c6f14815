"""What decisions come to over the pool: ``docs/validation/gate.md`` and its plot."""

import datetime
import functools
import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import live
import numpy as np
import pool
import usual
from matplotlib.axes import Axes
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
STEPS = {"fastest step": 0, "first decile": 10, "lower quartile": 25, "median": 50}
SCREEN_S, FOUND = 15.0, 0.95  # what is aimed at
_DASHES = ("--", "-.", ":", (0, (5, 1, 1, 1)))

Kind = tuple[str, float]


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """How many of each."""

    verdicts: Counter[Verdict]


@dataclass(frozen=True, kw_only=True)
class Rates(Verdicts):
    """Decisions on pairs of one kind.

    Attributes:
        slowdown: as the pool's pairs show it; the planted one was calibrated before.
        pairs, screen_pairs: the mean number of pairs of a decision, and of its screen.
        pair_s: seconds of a pair.
        num_recorded: pairs in the pool.
    """

    slowdown: float
    pairs: float
    screen_pairs: float
    pair_s: float
    num_recorded: int

    @property
    def screen_s(self) -> float:
        return self.screen_pairs * self.pair_s

    @property
    def wall_s(self) -> float:
        return self.pairs * self.pair_s


def judge() -> None:
    """Draw decisions from the pool, and write the page."""
    start_s = time.monotonic()
    kinds = [(name, part) for name in pool.CLASSES for part in pool.PARTS]
    rates = {kind: _decisions(*kind) for kind in kinds}
    exact = {name: _decisions(name, live.SLOWDOWN, moved=True) for name in pool.CLASSES}
    short = {
        (name, part): _decisions(name, part, part_of_turns=pool.HALF, moved=part > 0)
        for name in pool.CLASSES
        for part in (0.0, live.SLOWDOWN)
    }
    usual_rates = {(gate, *kind): _usual(gate, *kind) for gate in usual.GATES for kind in kinds}
    spreads = {name: _spread(name) for name in pool.CLASSES}
    plot = PAGE.with_suffix(".png")
    _draw(rates, usual_rates, spreads, plot)
    PAGE.write_text(_page(rates, exact, short, usual_rates, spreads))
    print(f"{PAGE} and {plot.name} in {time.monotonic() - start_s:.0f} s")


def wilson(num: int, total: int) -> tuple[float, float]:
    """The 95 % interval of Wilson (1927) for a part."""
    z = 1.959964
    part, scale = num / total, 1 + z * z / total
    middle = (part + z * z / (2 * total)) / scale
    half = z * math.sqrt(part * (1 - part) / total + z * z / (4 * total * total)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


def _decisions(
    name: str, part: float, *, part_of_turns: float = pool.WHOLE, moved: bool = False
) -> Rates:
    """The gate's own decision, pairs drawn from the pool with replacement.

    Args:
        name: of a class.
        part: the slowdown that was planted.
        part_of_turns: as if pairs were that much shorter.
        moved: all of them, together, to where the slowdown is exactly the planted one.
    """
    pairs = pool.load(name, part)
    ratios = [pool.log_ratio(name, pair, part_of_turns) for pair in pairs]
    if moved:
        off = stats.center(ratios, TRIMMED).estimate - math.log1p(part)
        ratios = [ratio - off for ratio in ratios]
    source = random.Random(0)
    number = NUM_SLOWER if part else NUM_SAME
    decisions = [decide(lambda: source.choice(ratios), THRESHOLD) for _ in range(number)]
    return Rates(
        slowdown=math.expm1(stats.center(ratios, TRIMMED).estimate),
        verdicts=Counter(decision.verdict for decision in decisions),
        pairs=float(np.mean([len(d.screened) + len(d.confirmed) for d in decisions])),
        screen_pairs=float(np.mean([len(d.screened) for d in decisions])),
        pair_s=float(np.median([pool.pair_s(pair, part_of_turns) for pair in pairs])),
        num_recorded=len(pairs),
    )


def _spread(name: str) -> float:
    return _scatter([pool.log_ratio(name, pair) for pair in pool.load(name, 0.0)])


def _scatter(ratios: Sequence[float]) -> float:
    return stats.center(ratios, TRIMMED).standard_error * math.sqrt(len(ratios))


def _turn_scatter(name: str) -> float:
    """Of single turns of base's, in a typical process."""
    turns = [np.log(pair["base"]["turn_means_us"]) for pair in pool.load(name, 0.0)]
    return float(np.median([np.std(of_process, ddof=1) for of_process in turns]))


def _scatters(name: str) -> dict[str, float]:
    """By what a process might count by instead."""
    pairs = pool.load(name, 0.0)

    def scatter(way: Callable[[dict[str, Any]], float]) -> float:
        return _scatter([math.log(way(pair["head"]) / way(pair["base"])) for pair in pairs])

    def quantile(percent: int, side: dict[str, Any]) -> float:
        return float(side["step_quantiles_us"][-1][pool.QUANTILES.index(percent)])

    def all_turns(side: dict[str, Any]) -> float:
        return float(np.mean(side["turn_means_us"]))

    steps = {title: scatter(functools.partial(quantile, q)) for title, q in STEPS.items()}
    return {**steps, "all turns": scatter(all_turns)}


def _usual(gate: str, name: str, part: float) -> float:
    """Alarms of a usual gate: base and head are of two pairs, run at two times."""
    base, head = pool.load(name, 0.0), pool.load(name, part)
    source = random.Random(1)
    alarms = 0
    for _ in range(NUM_USUAL):
        first, second = source.choice(base), source.choice(head)
        while second["at"] == first["at"]:
            second = source.choice(head)
        alarms += usual.GATES[gate](first["base"], second["head"])
    return alarms / NUM_USUAL


def _page(
    rates: dict[Kind, Rates],
    exact: dict[str, Rates],
    short: dict[Kind, Rates],
    usual_rates: dict[tuple[str, str, float], float],
    spreads: dict[str, float],
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pool.HERE),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters.update(percent=format_percent, share=_share)
    days = {
        datetime.datetime.fromtimestamp(pair["at"], datetime.UTC).date().isoformat()
        for kind in rates
        for pair in pool.load(*kind)
    }
    same = [rates[name, 0.0].verdicts for name in TITLES]
    alarms, total = sum(v[Verdict.SLOWER] for v in same), sum(v.total() for v in same)
    low, high = wilson(alarms, total)
    return environment.get_template("gate.md.j2").render(
        machine=json.loads(pool.MACHINE.read_text()),
        days=" and ".join(sorted(days)),
        threshold=THRESHOLD,
        titles=TITLES,
        parts=pool.PARTS[1:],
        rates=rates,
        exact=exact,
        short=short,
        spreads=spreads,
        scatters={name: _scatters(name) for name in TITLES},
        screen_s=SCREEN_S,
        slow_screens=[n for n in TITLES if rates[n, 0.0].screen_s > SCREEN_S],
        unfound=[n for n in TITLES if _found(exact[n]) < FOUND],
        turn_scatters={name: _turn_scatter(name) for name in TITLES},
        detectable={n: math.expm1(detectable(spread, BAR)) for n, spread in spreads.items()},
        suite=SUITE,
        suite_alarms=tuple(100 * (1 - (1 - p) ** SUITE) for p in (alarms / total, low, high)),
        num_same=NUM_SAME,
        num_slower=NUM_SLOWER,
        num_usual=NUM_USUAL,
        live=_live_rows(),
        remarks=live.REMARKS.read_text().strip() if live.REMARKS.exists() else "",
        slowdown=live.SLOWDOWN,
        gates=usual.GATES,
        usual=usual_rates,
    )


def _found(found: Rates) -> float:
    return found.verdicts[Verdict.SLOWER] / found.verdicts.total()


def _live_rows() -> list[dict[str, object]]:
    made = live.load()
    rows = []
    for kind in ("same", "slower"):
        for name, title in (*TITLES.items(), (None, "all")):
            these = [d for d in made if d["kind"] == kind and name in (d["class"], None)]
            if these:
                found = Verdicts(verdicts=Counter(Verdict(d["verdict"]) for d in these))
                median_s = stats.median([d["wall_s"] for d in these])
                rows.append({"title": title, "kind": kind, "found": found, "median_s": median_s})
    return rows


def _share(found: Verdicts, verdict: str, digits: int) -> str:
    """Of all decisions, with its interval."""
    num, total = found.verdicts[Verdict(verdict)], found.verdicts.total()
    low, high = wilson(num, total)
    return f"{100 * num / total:.{digits}f} % ({100 * low:.{digits}f} to {100 * high:.{digits}f})"


def _draw(
    rates: dict[Kind, Rates],
    usual_rates: dict[tuple[str, str, float], float],
    spreads: dict[str, float],
    path: Path,
) -> None:
    """Power against slowdown, a panel for each class."""
    with drawing.style():
        figure = Figure(figsize=(9.5, 7.4), layout="constrained")
        panels = figure.subplots(2, 2, sharex=True, sharey=True)
        for panel, (name, title) in zip(panels.flat, TITLES.items(), strict=True):
            of_class = {part: rates[name, part] for part in pool.PARTS}
            alarms = {g: [usual_rates[g, name, p] for p in pool.PARTS] for g in usual.GATES}
            _draw_class(panel, of_class, alarms, spreads[name])
            panel.set_title(f"{title}: a pair scatters by {format_percent(spreads[name])}")
        for panel in panels[1]:
            panel.set_xlabel("slowdown of head, as measured (%)")
        for panel in panels[:, 0]:
            panel.set_ylabel("called slower (%)")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
        figure.suptitle(
            "How often head is called slower: at 0 a false alarm; the grey line is 95 %"
        )
        figure.savefig(path, dpi=110)


def _draw_class(
    panel: Axes, rates: dict[float, Rates], alarms: dict[str, list[float]], spread: float
) -> None:
    percent = [100 * rates[part].slowdown if part else 0.0 for part in pool.PARTS]
    panel.axhline(95, color="#888888", linewidth=0.8)
    for k, (gate, parts) in enumerate(alarms.items()):
        called = [100 * part for part in parts]
        look = {"color": drawing.COLOURS[k + 1], "marker": "s^Dv"[k], "linestyle": _DASHES[k]}
        panel.plot(percent, called, markersize=5, linewidth=1.2, label=gate, **look)
    found = [rates[part].verdicts for part in pool.PARTS]
    called = [100 * v[Verdict.SLOWER] / v.total() for v in found]
    blue = drawing.COLOURS[0]
    panel.plot(percent, called, "o", color=blue, markersize=8, label="stepmark gate")
    axis = np.linspace(0, 0.12, 61)
    normal = [100 * power(math.log1p(s), spread, BAR) for s in axis]
    label = "stepmark gate, if pairs scattered normally"
    panel.plot(100 * axis, normal, color=blue, linewidth=1.4, label=label)
    panel.set_ylim(-3, 103)
