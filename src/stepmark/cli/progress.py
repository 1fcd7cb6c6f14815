"""What a terminal shows while scenarios are measured; in a log, a line now and then.

It draws when something happens, never on a timer: a display that woke up ten times a second
would take the core from what is being measured.
"""

import time
from typing import Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from stepmark.result import Result
from stepmark.runner.messages import Stage
from stepmark.units import format_rate

# Where there is no terminal, somebody may still wait in front of a job's log.
_LOGGED_EVERY_S = 30.0


class StatusLine:
    """The last line of a terminal, and lines that go by above it. Use as a context."""

    def __init__(self, stream: TextIO) -> None:
        # The stream's own word: rich also takes FORCE_COLOR for a terminal, which CI sets.
        self.is_shown = stream.isatty()
        self._stream = stream
        self._logged_s = time.monotonic()
        self._live = Live(console=Console(file=stream), auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        if self.is_shown:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_shown:
            self._live.stop()

    def draw(self, *parts: str) -> None:
        """Show these now; what a narrow terminal may cut off comes last."""
        line = f"{time.strftime('%H:%M:%S')}  " + "  |  ".join(filter(None, parts))
        if self.is_shown:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
        elif time.monotonic() - self._logged_s >= _LOGGED_EVERY_S:
            self._logged_s = time.monotonic()
            print(line, file=self._stream, flush=True)

    def print(self, line: str) -> None:
        """Leave a line above it; nothing if there is no terminal."""
        if self.is_shown:
            # As text: it may hold what rich would read as markup.
            self._live.console.print(Text(line), soft_wrap=True)

    def warn(self, text: str) -> None:
        """Something to know before numbers come; reports say it too."""
        self.print(f"warning: {text}")


def time_left(seconds: float) -> str:
    """How long it takes yet."""
    return f"{about(seconds)} left"


def about(seconds: float) -> str:
    """``about 2 min 5 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"about {minutes} min {rest} s" if minutes else f"about {rest} s"


class Display(StatusLine):
    """A line on how far a run is. Use as a context."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._num_tasks = self._num_done = 0
        self._num_measured = 0
        self._measured_s = 0.0
        self._name = ""

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

    def on_done(self) -> None:
        """One is done."""
        self._num_done += 1

    def on_result(self, result: Result) -> None:
        """One is done, and this came of it."""
        self.on_done()
        if result.ranks:
            self._num_measured += 1
            self._measured_s += result.wall_s
        if result.outcome != "ok":
            self.print(f"{result.scenario.id}: {result.outcome}: {result.reason}")

    def _draw(self, what: str) -> None:
        if self._num_tasks:
            number = min(self._num_done + 1, self._num_tasks)
            self.draw(f"scenario {number} of {self._num_tasks}", self._left(), what, self._name)
        else:
            self.draw(what)

    def _left(self) -> str:
        if not self._num_measured:
            return ""
        each_s = self._measured_s / self._num_measured
        return time_left(each_s * (self._num_tasks - self._num_done))
