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
        # The stream's own word: rich also takes FORCE_COLOR for a terminal, which CI sets.
        self._shown = stream.isatty()
        self._live = Live(console=Console(file=stream), auto_refresh=False, transient=True)
        self._num_tasks = self._num_done = 0
        self._num_measured = 0
        self._measured_s = 0.0
        self._name = ""

    def __enter__(self) -> "Display":
        if self._shown:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._live.stop()

    def on_start(self) -> None:
        """Nothing is measured yet."""
        self._draw("starting the measuring processes")

    def begin(self, num_tasks: int) -> None:
        """So many scenarios and repeats there are."""
        self._num_tasks = num_tasks

    def on_begin(self, scenario_id: str, repeat: int) -> None:
        """The next one begins."""
        self._name = f"{scenario_id}  repeat {repeat}" if repeat else scenario_id
        self._draw("starting")

    def on_stage(self, stage: Stage) -> None:
        """What the running one does, and how fast it seems to be."""
        rate = f"{format_rate(stage.samples_per_s)} samples/s, " if stage.samples_per_s else ""
        self._draw(rate + stage.stage)

    def on_result(self, result: Result) -> None:
        """One is done."""
        self._num_done += 1
        if result.ranks:
            self._num_measured += 1
            self._measured_s += result.wall_s
        if result.outcome != "ok":
            self._print(f"{result.scenario.id}: {result.outcome}: {result.reason}")

    def warn(self, text: str) -> None:
        """Something to know before numbers come; reports say it too."""
        self._print(f"warning: {text}")

    def _print(self, line: str) -> None:
        if self._shown:
            # As text: it may hold what rich would read as markup.
            self._live.console.print(Text(line), soft_wrap=True)

    def _draw(self, what: str) -> None:
        if not self._shown:
            return
        parts = [what]
        if self._num_tasks:
            number = min(self._num_done + 1, self._num_tasks)
            # The name last: it is what a narrow terminal may cut off.
            parts = [f"scenario {number} of {self._num_tasks}", self._left(), what, self._name]
        clock = time.strftime("%H:%M:%S")
        line = f"{clock}  " + "  |  ".join(part for part in parts if part)
        self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)

    def _left(self) -> str:
        if not self._num_measured:
            return ""
        left_s = self._measured_s / self._num_measured * (self._num_tasks - self._num_done)
        minutes, seconds = divmod(round(left_s), 60)
        return f"about {minutes} min {seconds} s left" if minutes else f"about {seconds} s left"
