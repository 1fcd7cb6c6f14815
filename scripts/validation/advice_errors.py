"""How often advice would be told to hold, or not to, over recorded pairs of processes.

The same judging as in ``stepmark advice``, on pairs drawn from the pool (see `pool.py`): of the
same code on both sides, and with planted slowdowns.
"""

import math
import random
from collections import Counter

import pool

from stepmark.advice import FASTER, Measured, MeasuredPair, Standing, Trial, judge
from stepmark.advice.judgement import FEWEST_PAIRS, MOST_PAIRS, THRESHOLD, log_ratios, reach
from stepmark.fingerprint import Machine
from stepmark.scenario import Scenario

NUM_TRIALS = 4000
MACHINE = Machine(host="", hardware={}, software={}, devices=())
SCENARIO = Scenario(workload="recorded")


def main() -> None:
    order = random.Random(0)
    print("kind     slower by  holds  does not  no difference  pairs  interval +-")
    for name in pool.CLASSES:
        for part in pool.PARTS:
            pairs = [recorded(pair) for pair in pool.load(name, part)]
            trials = [drawn(pairs, order) for _ in range(NUM_TRIALS)]
            found = Counter(judge(trial, FASTER).standing for trial in trials)
            num_pairs = sum(len(trial.pairs) for trial in trials) / NUM_TRIALS
            reaches = sorted(reach(log_ratios(trial, FASTER.quantity)) for trial in trials)
            shares = [
                f"{100 * found[standing] / NUM_TRIALS:.1f} %"
                for standing in (Standing.HOLDS, Standing.DOES_NOT_HOLD, Standing.NO_DIFFERENCE)
            ]
            print(
                f"{name:<8} {part:9.0%} {shares[0]:>6} {shares[1]:>9} {shares[2]:>14} "
                f"{num_pairs:6.1f} {100 * reaches[NUM_TRIALS // 2]:11.1f} %"
            )


def recorded(pair: dict[str, dict[str, list[float]]]) -> MeasuredPair:
    """A pair of the pool as if it had been measured for advice."""
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


def drawn(pairs: list[MeasuredPair], order: random.Random) -> Trial:
    """A trial of pairs drawn at random: as many as `stepmark.advising.pursue` would measure."""
    trial = Trial(
        advice="workers",
        without=SCENARIO,
        with_it=SCENARIO,
        machine=MACHINE,
        started_at="",
        pairs=tuple(order.choices(pairs, k=MOST_PAIRS)),
    )
    ratios = log_ratios(trial, FASTER.quantity)
    sizes = range(FEWEST_PAIRS, MOST_PAIRS + 1)
    enough = next((k for k in sizes if reach(ratios[:k]) <= math.log1p(THRESHOLD)), MOST_PAIRS)
    return Trial(
        advice=trial.advice,
        without=SCENARIO,
        with_it=SCENARIO,
        machine=MACHINE,
        started_at="",
        pairs=trial.pairs[:enough],
    )


if __name__ == "__main__":
    main()
