"""The pool of recorded pairs: of the same code, and with planted slowdowns.

Pairs lie in docs/validation/pairs/CLASS.PART.jsonl, a line each as it was measured, so that an
interrupted recording goes on; they are packed when all are there. A pair is kept as means of its
turns and quantiles of its steps, which is what decisions are made from, and as a thinned series of
its steps. Times are in microseconds.
"""

import gzip
import json
import math
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stepmark.gate.pairs import (
    STEADY_MEMORY,
    Pair,
    PairFailedError,
    Side,
    SideRecord,
    cpus_for,
    measure_pair,
)
from stepmark.gate.trial import PERCENTILE
from stepmark.runner import Runner
from stepmark.scenario import Plan, Scenario

HERE = Path(__file__).resolve().parent
POOL = HERE.parents[1] / "docs" / "validation" / "pairs"
# What it was recorded on.
MACHINE = POOL.parent / "machine.json"
# Function in planted.py, and axes.
CLASSES = {
    "mlp": ("mlp", {"batch_size": 64}),
    "cnn": ("cnn", {"batch_size": 64}),
    "loader": ("loader", {"batch_size": 16, "num_workers": 2}),
    "ddp": ("ddp", {"batch_size": 64, "world_size": 2}),
}
PARTS = (0.0, 0.03, 0.05, 0.1)
QUANTILES = (0, 1, 2, 5, 10, 15, 20, 25, 35, 50, 75, 90, 95)
# Quantiles are kept of the first half of the turns too, to tell what shorter pairs would give.
HALF, WHOLE = 0.5, 1.0
PARTS_OF_TURNS = (HALF, WHOLE)
NUM_THINNED = 40
PLAN = Plan(warmup=5, steps=1, max_seconds=0.5, timeout=60)


def record(minutes: float, num_same: int, num_planted: int, classes: Sequence[str]) -> None:
    """Record what the pool lacks, a pair of each kind after another, until time is up."""
    POOL.mkdir(parents=True, exist_ok=True)
    deadline_s = time.monotonic() + 60 * minutes
    order = random.Random(time.time_ns())
    files = {(c, p): POOL / f"{c}.{p:g}.jsonl" for c in classes for p in PARTS}
    num_pairs = {kind: len(load(*kind)) for kind in files}
    wanted = {kind: num_planted if kind[1] else num_same for kind in files}
    with Runner(environment=STEADY_MEMORY) as runner:
        _keep_to_one_machine({**runner.machine.software, **runner.machine.hardware})
        while time.monotonic() < deadline_s:
            # The kind that lacks the largest part of its pairs.
            kind = max(files, key=lambda k: 1 - num_pairs[k] / wanted[k])
            if num_pairs[kind] >= wanted[kind]:
                break
            try:
                pair = measure(runner, *kind, number=num_pairs[kind], order=order)
            except PairFailedError as error:
                print(f"{kind[0]} {kind[1]:g}: {error}\n{error.ending.detail}", file=sys.stderr)
                continue
            with files[kind].open("a") as file:
                file.write(json.dumps(summary(pair), separators=(",", ":")) + "\n")
            num_pairs[kind] += 1
            print(
                f"{sum(num_pairs.values())} of {sum(wanted.values())} pairs: {kind[0]} "
                f"{kind[1]:g} in {pair.wall_s:.1f} s",
                flush=True,
            )
    if all(num_pairs[kind] >= wanted[kind] for kind in files):
        for kind, file in files.items():
            lines = [json.dumps(pair, separators=(",", ":")) for pair in load(*kind)]
            packed = gzip.compress("\n".join(lines).encode(), mtime=0)
            file.with_suffix(".jsonl.gz").write_bytes(packed)
            file.unlink(missing_ok=True)


def _keep_to_one_machine(facts: dict[str, str]) -> None:
    if MACHINE.exists():
        known = json.loads(MACHINE.read_text())
        differing = [key for key in ("cpu", "cpus", "torch") if known[key] != facts[key]]
        if differing:
            sys.exit(f"{POOL}: was recorded with other {', '.join(differing)}; remove it first")
    MACHINE.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")


def measure(runner: Runner, name: str, part: float, *, number: int, order: random.Random) -> Pair:
    """One pair: the plain workload as base, the planted one as head."""
    function, axes = CLASSES[name]
    base = _side_of("base", function, 0.0)
    head = _side_of("head", function, part)
    scenario = Scenario(workload="side.py:build", device="cpu", threads=1, **axes)
    cpus = cpus_for(scenario, 1, sorted(os.sched_getaffinity(0)), number)
    return measure_pair((runner, runner), (base, head), (scenario, scenario), PLAN, cpus, order)


def _side_of(name: str, function: str, part: float) -> Side:
    """A folder whose ``side.py`` builds the workload with that slowdown."""
    directory = POOL.parent / ".sides" / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "side.py").write_text(
        f"import functools, planted\nbuild = functools.partial(planted.{function}, part={part})\n"
    )
    return Side(name=name, directory=directory, sys_path=(str(HERE), *sys.path))


def summary(pair: Pair) -> dict[str, object]:
    """What is kept of a pair; times in microseconds."""
    return {
        "at": round(time.time()),
        "wall_s": round(pair.wall_s, 2),
        "num_steps": pair.base.num_steps,
        **{name: _side(record) for name, record in (("base", pair.base), ("head", pair.head))},
    }


def _side(record: SideRecord) -> dict[str, list[object]]:
    turns_us = 1e6 * np.asarray(record.windows_s) / record.num_steps
    steps_us = 1e6 * np.concatenate([np.asarray(steps) for steps in record.steps_s])
    kept = np.linspace(0, len(steps_us) - 1, NUM_THINNED).round().astype(int)
    return {
        "turn_means_us": _short(turns_us),
        "steps_us": _short(steps_us[kept]),
        "step_quantiles_us": [
            _short(np.percentile(steps_us[: round(part * len(steps_us))], QUANTILES))
            for part in PARTS_OF_TURNS
        ],
    }


def _short(values: np.ndarray) -> list[object]:
    """To 5 digits, and no more characters than that takes."""
    return [int(value) if value >= 1e4 else float(f"{value:.5g}") for value in values]


def load(name: str, part: float) -> list[dict[str, Any]]:
    """All pairs of a kind, in the order of their recording."""
    file = POOL / f"{name}.{part:g}.jsonl"
    packed = file.with_suffix(".jsonl.gz")
    lines = gzip.decompress(packed.read_bytes()).decode().splitlines() if packed.exists() else []
    lines += file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines]


def log_ratio(name: str, pair: dict[str, Any], part_of_turns: float = WHOLE) -> float:
    """What the gate takes a recorded pair for; the same as ``stepmark.gate.trial.log_ratio``."""

    def step_us(side: dict[str, Any]) -> float:
        if "num_workers" in CLASSES[name][1]:
            turns_us = side["turn_means_us"]
            return float(np.mean(turns_us[: round(part_of_turns * len(turns_us))]))
        # From the end: the earliest pairs have the first quarter, too.
        quantiles_us = side["step_quantiles_us"][(HALF, WHOLE).index(part_of_turns) - 2]
        return float(quantiles_us[QUANTILES.index(int(PERCENTILE))])

    return math.log(step_us(pair["head"]) / step_us(pair["base"]))


def pair_s(pair: dict[str, Any], part_of_turns: float = WHOLE) -> float:
    """How long a pair took, or had taken with fewer turns."""
    turns_us = sum(sum(pair[side]["turn_means_us"]) for side in ("base", "head"))
    return float(pair["wall_s"] - (1 - part_of_turns) * 1e-6 * turns_us * pair["num_steps"])
