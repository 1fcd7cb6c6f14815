"""The clock that pytest-benchmark is given: it replays what was measured elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

CLOCK_FIXTURE = "_stepmark_clock"


class RecordedClock:
    """A timer for pytest-benchmark that replays measured step times.

    pytest-benchmark reads its timer before and after each round; every second reading is
    the duration of a step after the first one, which is 0.
    """

    __name__ = "measured_steps"  # what pytest-benchmark calls its timer in a saved file

    def __init__(self) -> None:
        self.is_used = False
        self._readings: list[float] = []

    @property
    def is_read(self) -> bool:
        """All of it was asked for; otherwise another clock was."""
        return not self._readings

    def set(self, step_s: Sequence[float]) -> None:
        """Go through these steps."""
        self._readings = [reading for seconds in reversed(step_s) for reading in (seconds, 0.0)]

    def __call__(self) -> float:
        if not self._readings:
            pytest.fail(
                "benchmark: its times come from measure in this test; time a function of your "
                "own in another test",
                pytrace=False,
            )
        return self._readings.pop()
