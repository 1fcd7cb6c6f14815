"""Sleeps of known length, planted in every phase, against what comes back in that phase.

What ``time.sleep`` really takes is measured beside. The arithmetic around the sleeps, on cold
caches, adds some 0.5 ms to each phase, which is why the sleeps are long.
"""

import statistics
import time
from pathlib import Path

from stepmark import Plan, Scenario, measure

NETWORKS = Path(__file__).parent / "networks.py"
BATCH_SIZE = 8
FORWARD_S, BACKWARD_S, OPTIMIZER_S = 0.050, 0.060, 0.040
# Seconds of loading a sample, loader workers, accumulation. With two workers the first loads faster
# than the step computes; the second does not, and the loop must wait for the rest.
CASES = ((0.010, 0, 1), (0.010, 0, 2), (0.010, 2, 1), (0.060, 2, 1))


def real_sleep_s(seconds: float) -> float:
    """What a sleep of this length takes here."""
    taken = []
    for _ in range(50):
        start_s = time.perf_counter()
        time.sleep(seconds)
        taken.append(time.perf_counter() - start_s)
    return statistics.median(taken)


def main() -> None:
    forward_s, backward_s, optimizer_s = map(real_sleep_s, (FORWARD_S, BACKWARD_S, OPTIMIZER_S))
    for sample_s, num_workers, accumulation in CASES:
        load_s = BATCH_SIZE * real_sleep_s(sample_s)
        compute_s = accumulation * (forward_s + backward_s) + optimizer_s
        wait_s = max(0.0, load_s / num_workers - compute_s) if num_workers else load_s
        scenario = Scenario(
            workload=f"{NETWORKS}:sleepy?sample_s={sample_s}&forward_s={FORWARD_S}"
            f"&backward_s={BACKWARD_S}&optimizer_s={OPTIMIZER_S}",
            device="cpu",
            batch_size=BATCH_SIZE,
            num_workers=num_workers,
            accumulation=accumulation,
        )
        result = measure(scenario, Plan(steps=40, max_seconds=60))
        assert result.slowest is not None, result.reason
        expected = {
            "data_wait_s": wait_s * accumulation,
            "forward_s": forward_s * accumulation,
            "backward_s": backward_s * accumulation,
            "optimizer_s": optimizer_s,
        }
        print(f"{sample_s * 1e3:g} ms a sample, {num_workers} workers, accumulation {accumulation}")
        for phase, seconds in expected.items():
            found = getattr(result.slowest.phases, phase)
            error = f"{found / seconds - 1:+.2%}" if seconds else "nothing was planted"
            print(
                f"  {phase:<12} planted {seconds * 1e3:8.3f} ms, found {found * 1e3:8.3f}: {error}"
            )
        rate = BATCH_SIZE * accumulation / sum(expected.values())
        assert result.samples_per_s is not None
        found = result.samples_per_s
        print(f"  samples/s    by theory {rate:8.2f}, found {found:11.2f}: {found / rate - 1:+.2%}")


if __name__ == "__main__":
    main()
