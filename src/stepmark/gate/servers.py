"""Who forks the processes of a pair."""

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from stepmark.fingerprint import Machine
from stepmark.gate.pairs import STEADY_MEMORY, Side
from stepmark.runner import Runner


class Servers:
    """Runners for the two sides of pairs. Use as a context.

    Sides with one installation share a server for as long as this is open. Others cannot: how
    two servers differ then stays the same while they live, so every pair gets fresh ones, and
    the difference is one more thing that scatters between pairs.

    Args:
        sides: base and head.

    Raises:
        RunnerError: a server cannot be started.
    """

    def __init__(self, sides: tuple[Side, Side]) -> None:
        self._sides = sides
        self._shared = sides[0].installation == sides[1].installation
        self._runners = self._start()
        self._used = False

    def __enter__(self) -> "Servers":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    @property
    def are_shared(self) -> bool:
        """Whether both sides are forked from one server."""
        return self._shared

    @property
    def machines(self) -> tuple[Machine, Machine]:
        """This machine, as base's and head's processes see it."""
        base, head = self._runners
        return base.machine, head.machine

    @contextlib.contextmanager
    def for_pair(self) -> Iterator[tuple[Runner, Runner]]:
        """Runners of base and head, for one pair."""
        if self._used and not self._shared:
            self._close()
            self._runners = self._start()
        self._used = True
        yield self._runners

    def _start(self) -> tuple[Runner, Runner]:
        environment = {name: os.environ.get(name, v) for name, v in STEADY_MEMORY.items()}
        base = Runner(environment=environment, installation=self._sides[0].installation)
        head = base
        if not self._shared:
            head = Runner(environment=environment, installation=self._sides[1].installation)
        try:
            # Both at once: each takes the seconds that importing torch takes.
            with ThreadPoolExecutor() as pool:
                list(pool.map(lambda runner: runner.machine, dict.fromkeys((base, head))))
        except BaseException:
            for runner in (base, head):
                runner.close()
            raise
        return base, head

    def _close(self) -> None:
        for runner in dict.fromkeys(self._runners):
            runner.close()
