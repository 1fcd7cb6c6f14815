"""How often `stepmark compare` calls a difference, on recorded processes drawn as two sides."""

import json
import random
from pathlib import Path

from stepmark.compare import Rules, Verdict, judge_floors

DATA = Path(__file__).parents[2] / "docs" / "validation" / "process_floors.json"
NUM_DRAWS = 2000


def main() -> None:
    source = random.Random(0)
    floors_us = json.loads(DATA.read_text())["floors_us"]
    print(f"called SLOWER (A2: SLOWER or FASTER) in {NUM_DRAWS} draws")
    for scenario, variants in floors_us.items():
        for number in (3, 5, 10, 20):
            cells = [f"{scenario:15} {number:2} processes a side:"]
            for variant in ("A2", "B3", "B5", "B10"):
                wanted = {Verdict.SLOWER, Verdict.FASTER} if variant == "A2" else {Verdict.SLOWER}
                num_called = 0
                for _ in range(NUM_DRAWS):
                    blocks = source.sample(range(len(variants["A"])), 2 * number)
                    base = [variants["A"][block] for block in blocks[:number]]
                    head = [variants[variant][block] for block in blocks[number:]]
                    num_called += judge_floors(base, head, Rules()).verdict in wanted
                cells.append(f"{variant} {num_called / NUM_DRAWS:6.1%}")
            print("  ".join(cells))


if __name__ == "__main__":
    main()
