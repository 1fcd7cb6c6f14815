"""What the gate's screen lets by and suspects, beside one look at three pairs, by simulation."""

import math

import numpy as np

from stepmark.gate.decision import NUM_SCREEN, pairs_screened, suspects

BAR, SLOWDOWN = math.log1p(0.03), math.log1p(0.05)
NUM_SCREENS = 200_000


def one_look(ratios: np.ndarray) -> np.ndarray:
    """Suspect: the middle pair beyond 2/3 of the threshold, or any beyond 5/3 of it."""
    first = ratios[:, :NUM_SCREEN]
    middle = np.abs(np.median(first, axis=1)) >= 2 / 3 * BAR
    return middle | (np.max(np.abs(first), axis=1) >= 5 / 3 * BAR)


def main() -> None:
    source = np.random.default_rng(1)
    print(f"threshold 3 %; {NUM_SCREENS} screens; pairs scatter normally")
    print("scatter   one look: suspects  misses 5 %   two looks: suspects  misses 5 %  pairs")
    for spread in (0.006, 0.01, 0.015, 0.02, 0.025, 0.036, 0.045):
        same = spread * source.standard_normal((NUM_SCREENS, 2 * NUM_SCREEN))
        slower = same + SLOWDOWN
        print(
            f"{spread:6.1%}  {one_look(same).mean():18.1%}  {1 - one_look(slower).mean():11.1%}"
            f"{suspects(same, BAR).mean():22.1%}  {1 - suspects(slower, BAR).mean():10.1%}"
            f"  {pairs_screened(same, BAR).mean():5.1f}"
        )


if __name__ == "__main__":
    main()
