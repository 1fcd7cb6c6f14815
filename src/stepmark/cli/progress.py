"""What a terminal shows while scenarios are measured; nothing at all if there is no terminal.

It draws when something happens, never on a timer: a display that woke up ten times a second
would take the core from what is being measured.
"""

import time
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from stepmark.result import Result
from stepmark.runner.messages import Stage
from stepmark.units import format_rate


class Display:
    """A line on how far a run is. Use as a context."""

    def __init__(self, stream: TextIO) -> None:
        console = Console(file=stream)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._shown = console.is_terminal
        self._num_tasks = self._num_done = 0
        self._num_measured = 0
        self._measured_s = 0.0
        self._name = ""

    def __enter__(self) -> "Display":
        if self._shown:
            self._live.start()
            self._draw("starting the measuring processes")
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._live.stop()

    def begin(self, num_tasks: int) -> None:
        """So many scenarios and repeats there are."""
        self._num_tasks = num_tasks

    def on_begin(self, scenario_id: str, repeat: int) -> None:
        """The next one begins."""
        self._name = f"{scenario_id}  repeat {repeat}" if repeat else scenario_id
        self._draw("starting")

    def on_stage(self, stage: Stage) -> None:
        """What the running one does, and how fast it seems to be."""
        rate = f"  {format_rate(stage.samples_per_s)} samples/s" if stage.samples_per_s else ""
        self._draw(stage.stage + rate)

    def on_result(self, result: Result) -> None:
        """One is done."""
        self._num_done += 1
        if result.ranks:
            self._num_measured += 1
            self._measured_s += result.wall_s
        if self._shown and result.outcome != "ok":
            self._live.console.print(f"{result.scenario.id}: {result.outcome}: {result.reason}")

    def _draw(self, what: str) -> None:
        if not self._shown:
            return
        parts = [what]
        if self._num_tasks:
            number = min(self._num_done + 1, self._num_tasks)
            parts = [f"scenario {number} of {self._num_tasks}", self._name, what, self._left()]
        clock = time.strftime("%H:%M:%S")
        self._live.update(Text(f"{clock}  " + "  |  ".join(p for p in parts if p)), refresh=True)

    def _left(self) -> str:
        if not self._num_measured:
            return ""
        left_s = self._measured_s / self._num_measured * (self._num_tasks - self._num_done)
        minutes, seconds = divmod(round(left_s), 60)
        return f"about {minutes} min {seconds} s left" if minutes else f"about {seconds} s left"
