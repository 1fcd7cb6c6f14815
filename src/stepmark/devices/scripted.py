"""A device without real time: tests advance its clock, and durations come back exactly."""

import itertools

import torch

from stepmark.devices.base import TorchDevice


class ScriptedClock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds


class ScriptedMarks:
    """Points on a scripted clock."""

    def __init__(self, clock: ScriptedClock) -> None:
        self._clock = clock
        self._points_s: list[float] = []

    def mark(self) -> None:
        """See `stepmark.devices.Marks`."""
        self._points_s.append(self._clock.now_s)

    def intervals_s(self) -> list[float]:
        """See `stepmark.devices.Marks`."""
        points = self._points_s
        return [b - a for a, b in itertools.pairwise(points)]


class ScriptedDevice(TorchDevice):
    """Computes on the CPU, tells time by a `ScriptedClock`."""

    marks_steps = True

    def __init__(self, clock: ScriptedClock) -> None:
        super().__init__(torch.device("cpu"), "scripted")
        self.clock = clock
        self.num_synchronizations = 0

    def now_s(self) -> float:
        """See `stepmark.devices.Device`."""
        return self.clock.now_s

    def synchronize(self) -> None:
        """Counted, so that a test can tell how often it was asked for."""
        self.num_synchronizations += 1

    def marks(self, capacity: int) -> ScriptedMarks:
        """See `stepmark.devices.Device`."""
        return ScriptedMarks(self.clock)

    def configure(self, *, tf32: bool) -> None:
        """Nothing to set."""
