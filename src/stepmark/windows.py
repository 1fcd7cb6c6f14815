"""Stretches of steps: how long they last, and when warm-up is over."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from stepmark.record import EndedBy

# Two neighbouring stretches of warm-up whose mean steps differ by less count as settled. Within
# one process, stretches of a steady loop agree far better; while caches, clocks and allocators
# settle they differ by tens of percent.
SETTLED_WITHIN = 0.10
# A stretch shorter than this is dominated by single interruptions by the operating system.
STRETCH_MIN_STEPS = 5
STRETCH_MIN_S = 0.05

Agree = Callable[[float], float]


def alone(value: float) -> float:
    """The agreement of a single rank: its own value."""
    return value


class Budget:
    """Steps to run: as many as planned, or as fit into some seconds. Iterate over it once.

    Ranks that stopped at different steps would wait for each other for ever, so they agree on
    the time that has passed (``agree`` gives the largest of all). Asking costs a message
    between ranks, so they ask about ten times in a budget; a single rank looks at its clock
    about a hundred times, and four times in the planned steps. Where no step's length is known
    yet, both ask at every step.

    Args:
        num_steps: planned steps, at least 1.
        max_seconds: no step begins later than this after the first one began, but for those
            between one look at the clock and the next.
        now_s: clock.
        agree: largest value over all ranks.
        expected_step_s: how long a step is expected to take, the same on all ranks.
    """

    def __init__(
        self,
        num_steps: int,
        max_seconds: float,
        *,
        now_s: Callable[[], float],
        agree: Agree = alone,
        expected_step_s: float = 0.0,
    ) -> None:
        self.num_steps = num_steps
        self.max_seconds = max_seconds
        self.done = 0
        self.ended_by = EndedBy.STEPS
        self._now_s = now_s
        self._agree = agree
        expected_steps = max_seconds / expected_step_s if expected_step_s > 0 else 0.0
        between_looks = expected_steps / 10
        if agree is alone:
            # Steps may turn out far longer than expected: the planned ones hold some looks too.
            between_looks = min(expected_steps / 100, num_steps / 4)
        self._check_every = max(1, int(between_looks))

    def __iter__(self) -> Iterator[int]:
        start_s = self._now_s()
        while self.done < self.num_steps:
            if self.done and self.done % self._check_every == 0:
                passed_s = self._agree(self._now_s() - start_s)
                if passed_s >= self.max_seconds:
                    self.ended_by = EndedBy.SECONDS
                    return
            yield self.done
            self.done += 1


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Some steps of warm-up.

    Attributes:
        num_steps: optimizer steps.
        seconds: how long they took, synchronized.
        scale: the gradient scaler's scale afterwards.
    """

    num_steps: int
    seconds: float
    scale: float

    @property
    def step_s(self) -> float:
        """Mean seconds per step."""
        return self.seconds / self.num_steps


def settled(previous: Stretch, last: Stretch) -> bool:
    """Two neighbouring stretches agree, and the gradient scaler has stopped lowering its scale."""
    slower = max(previous.step_s, last.step_s)
    return (
        slower - min(previous.step_s, last.step_s) <= SETTLED_WITHIN * slower
        and last.scale >= previous.scale
    )


def stretch_steps(step_s: float) -> int:
    """How many steps of this length make a stretch."""
    return max(STRETCH_MIN_STEPS, round(STRETCH_MIN_S / step_s) if step_s > 0 else 0)
