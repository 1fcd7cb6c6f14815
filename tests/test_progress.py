"""What is shown while something is measured."""

import io
import itertools

import pytest

from stepmark.cli import progress
from stepmark.cli.progress import StatusLine


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count(0, 10)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(seconds)))
    log = io.StringIO()
    with StatusLine(log) as line:
        for number in range(12):
            line.draw(f"pair {number}", "", "a scenario")
            line.print("for a terminal alone")
    shown = [text.split("  ", 1)[1] for text in log.getvalue().splitlines()]
    assert all(text.endswith("  |  a scenario") for text in shown)
    numbers = [int(text.split()[1]) for text in shown]
    # Each line takes a look at the clock, too.
    assert numbers == [2, 5, 8, 11]
