"""How often advice would be told to hold, or not to, where nothing differs.

    python scripts/validation/advice_errors.py --minutes 20    # record pairs of advice's own
    python scripts/validation/advice_errors.py                 # judge what is recorded

The same judging as in ``stepmark advice``, on trials drawn from pairs of processes: those that
advice measures itself, of two scenarios that differ in nothing but a learning rate's last digit
(docs/validation/advice_pairs.jsonl, a line each as it was measured), and the gate's pool (see
`pool.py`), which has slowdowns planted, too.
"""

import argparse
import dataclasses
import json
import math
import random
import time
from collections import Counter
from collections.abc import Sequence

import pool

from stepmark import codec
from stepmark.advice import FASTER, Measured, MeasuredPair, Standing, Trial, judge
from stepmark.advice.judgement import FEWEST_PAIRS, MOST_PAIRS, THRESHOLD, log_ratios, reach
from stepmark.advising.pairs import Pairs
from stepmark.choices import OptimizerName, Precision
from stepmark.fingerprint import Machine
from stepmark.scenario import Scenario

NUM_TRIALS = 4000
OWN = pool.POOL.parent / "advice_pairs.jsonl"
MACHINE = Machine(host="", hardware={}, software={}, devices=())
SCENARIO = Scenario(workload="recorded", device="cpu")
# What advice is mostly given on; each with whatever cores it finds.
KINDS = {
    "mlp": Scenario(workload="mlp-fashion-mnist", batch_size=64),
    "mlp, 2 workers": Scenario(workload="mlp-fashion-mnist", batch_size=64, num_workers=2),
    "mlp, 2 ranks": Scenario(workload="mlp-fashion-mnist", batch_size=64, world_size=2),
    "resnet18, 64 px": Scenario(workload="torchvision:resnet18?size=64", batch_size=8),
    "resnet18, bf16": Scenario(
        workload="torchvision:resnet18?size=64", batch_size=8, precision=Precision.BF16
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, help="record for so long, then judge")
    minutes = parser.parse_args().minutes
    if minutes is not None:
        record(minutes)
    order = random.Random(0)
    print(f"{'kind':<20} recorded  holds  does not  no difference  pairs  interval +-")
    for name, pairs in own_pairs().items():
        if pairs:
            tell(name, pairs, order)
            tell_memory(pairs)
    for kind in pool.CLASSES:
        for part in pool.PARTS:
            pairs = [recorded(pair) for pair in pool.load(kind, part)]
            tell(f"gate's {kind}, {part:.0%} slower", pairs, order)


def record(minutes: float) -> None:
    """Measure pairs of two scenarios that are the same, a server a round."""
    deadline_s = time.monotonic() + 60 * minutes
    while time.monotonic() < deadline_s:
        with Pairs(timeout=120) as measuring, OWN.open("a") as file:
            for name, scenario in KINDS.items():
                sides = [
                    dataclasses.replace(
                        scenario, device="cpu", threads=1, optimizer=OptimizerName.SGD, lr=lr
                    )
                    for lr in (1e-3, 1.001e-3)
                ]
                trial = measuring.add_to(trial_of(sides[0], sides[1]))
                if not trial.pairs:
                    raise SystemExit(f"{name}: {trial.failure or trial.obstacle}")
                file.write(json.dumps({"kind": name, **codec.encode(trial.pairs[0])}) + "\n")
                print(f"{name}: {trial.pairs[0].wall_s:.1f} s", flush=True)


def trial_of(without: Scenario, with_it: Scenario, pairs: tuple[MeasuredPair, ...] = ()) -> Trial:
    """A trial of some advice on throughput."""
    return Trial(
        advice="workers",
        without=without,
        with_it=with_it,
        machine=MACHINE,
        started_at="",
        pairs=pairs,
    )


def own_pairs() -> dict[str, list[MeasuredPair]]:
    """Pairs recorded, by kind."""
    found: dict[str, list[MeasuredPair]] = {name: [] for name in KINDS}
    for line in OWN.read_text().splitlines() if OWN.exists() else []:
        data = json.loads(line)
        found[data.pop("kind")].append(codec.decode(MeasuredPair, data))
    return found


def tell(name: str, pairs: Sequence[MeasuredPair], order: random.Random) -> None:
    """Print what trials drawn from these pairs come to."""
    trials = [drawn(pairs, order) for _ in range(NUM_TRIALS)]
    found = Counter(judge(trial, FASTER).standing for trial in trials)
    num_pairs = sum(len(trial.pairs) for trial in trials) / NUM_TRIALS
    reaches = sorted(reach(log_ratios(trial, FASTER.quantity)) for trial in trials)
    shares = [
        f"{100 * found[standing] / NUM_TRIALS:.1f} %"
        for standing in (Standing.HOLDS, Standing.DOES_NOT_HOLD, Standing.NO_DIFFERENCE)
    ]
    print(
        f"{name:<24} {len(pairs):4} {shares[0]:>6} {shares[1]:>9} {shares[2]:>14} "
        f"{num_pairs:6.1f} {100 * reaches[NUM_TRIALS // 2]:11.1f} %"
    )


def tell_memory(pairs: Sequence[MeasuredPair]) -> None:
    """Print how far apart peaks of one scenario lie, within a pair and from server to server."""
    peaks = [(p.without.peak_bytes or 0, p.with_it.peak_bytes or 0) for p in pairs]
    within = max(abs(math.log(b / a)) for a, b in peaks)
    every = [peak for pair in peaks for peak in pair]
    print(
        f"{'':<24} peak memory {min(every) / 2**20:.0f} to {max(every) / 2**20:.0f} MiB, within a "
        f"pair at most {100 * within:.1f} % apart"
    )


def recorded(pair: dict[str, dict[str, list[float]]]) -> MeasuredPair:
    """A pair of the gate's pool as if it had been measured for advice."""
    sides = (
        Measured(
            windows_s=tuple(pair[side]["turn_means_us"]),
            samples_per_turn=1,
            peak_bytes=None,
            epoch_turn_s=None,
            num_samples=1,
            first_step_s=0.0,
            num_steps=1,
        )
        for side in ("base", "head")
    )
    without, with_it = sides
    return MeasuredPair(without=without, with_it=with_it, wall_s=0.0)


def drawn(pairs: Sequence[MeasuredPair], order: random.Random) -> Trial:
    """A trial of pairs drawn at random: as many as `stepmark.advising.pursue` would measure."""
    picked = tuple(order.choices(pairs, k=MOST_PAIRS))
    trial = trial_of(SCENARIO, SCENARIO, picked)
    ratios = log_ratios(trial, FASTER.quantity)
    sizes = range(FEWEST_PAIRS, MOST_PAIRS + 1)
    enough = next((k for k in sizes if reach(ratios[:k]) <= math.log1p(THRESHOLD)), MOST_PAIRS)
    return dataclasses.replace(trial, pairs=picked[:enough])


if __name__ == "__main__":
    main()
