"""From the request for a scenario until its first step is done, from a warm server."""

import statistics
from pathlib import Path

from stepmark import Plan, Scenario, measure

NETWORKS = Path(__file__).parent / "networks.py"


def main() -> None:
    for world_size, target_s in ((1, 0.15), (2, 1.0)):
        scenario = Scenario(
            workload=f"{NETWORKS}:tiny", device="cpu", batch_size=4, world_size=world_size
        )
        seconds = []
        for _ in range(12):
            result = measure(scenario, Plan(steps=1, warmup=0))
            assert result.ranks, result.reason
            seconds.append(max(rank.startup.total_s for rank in result.ranks))
        warm = seconds[1:]
        print(
            f"{world_size} rank(s): median {statistics.median(warm):.3f} s, "
            f"{min(warm):.3f} to {max(warm):.3f} s over {len(warm)} (target {target_s} s)"
        )


if __name__ == "__main__":
    main()
