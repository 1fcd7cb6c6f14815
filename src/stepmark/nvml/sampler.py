"""The process that samples; it hears on its standard input, and answers on its standard output.

    {"watch": "UUID"}    sample this device from now on
    {"cut": true}        hand over what was sampled, and stop: a line, tapes by UUID

It ends when its input does.
"""

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import pynvml

from stepmark.codec import encode
from stepmark.nvml import replay
from stepmark.nvml.quantities import QUANTITIES, TICK_S, NVMLError, handle_of
from stepmark.nvml.tape import Series, Tape

_INPUT = 0
# In a row, after which a quantity is asked for no more.
_MOST_ERRORS = 3


class Sampler:
    """Reads what there is of some devices, again and again.

    Args:
        now_s: clock.
        backend: what answers: ``nvml`` or ``replay``.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic, backend: str = "nvml") -> None:
        self._now_s = now_s
        self._backend = backend
        self._devices: dict[str, _Device] = {}
        self._error = ""
        try:
            pynvml.nvmlInit()
        except NVMLError as error:
            self._error = str(error)

    @property
    def is_watching(self) -> bool:
        """Whether there is anything to sample."""
        return any(device.is_alive for device in self._devices.values())

    def watch(self, uuid: str) -> None:
        """Sample this device, too."""
        if uuid not in self._devices:
            self._devices[uuid] = _Device(uuid, self._error)

    def sample(self, tick: int) -> None:
        """Read what is due at this tick."""
        for device in self._devices.values():
            device.sample(tick, self._now_s)

    def cut(self) -> dict[str, Tape]:
        """What was sampled, by UUID; nothing is watched any more."""
        tapes = {uuid: device.tape(self._backend) for uuid, device in self._devices.items()}
        self._devices.clear()
        return tapes


class _Device:
    """One device, and what was read of it so far."""

    def __init__(self, uuid: str, error: str) -> None:
        self._error = error
        self._handle: Any = None
        self._at_s: dict[str, list[float]] = {q.name: [] for q in QUANTITIES}
        self._values: dict[str, list[float]] = {q.name: [] for q in QUANTITIES}
        self._errors: dict[str, str] = {}
        self._num_errors = dict.fromkeys(self._values, 0)
        if not error:
            try:
                self._handle = handle_of(uuid)
            except NVMLError as found:
                self._error = f"no device with UUID {uuid} ({found})"

    @property
    def is_alive(self) -> bool:
        return not self._error and len(self._errors) < len(QUANTITIES)

    def sample(self, tick: int, now_s: Callable[[], float]) -> None:
        if self._error:
            return
        for quantity in QUANTITIES:
            if tick % quantity.every or quantity.name in self._errors:
                continue
            at_s = now_s()
            try:
                value = float(quantity.read(self._handle))
            except NVMLError as error:
                # One may be a passing one; of a quantity that there is not, all are.
                self._num_errors[quantity.name] += 1
                if self._num_errors[quantity.name] >= _MOST_ERRORS:
                    self._errors[quantity.name] = str(error)
                continue
            self._num_errors[quantity.name] = 0
            self._at_s[quantity.name].append(at_s)
            self._values[quantity.name].append(value)

    def tape(self, backend: str) -> Tape:
        series = {
            q.name: Series(
                at_s=tuple(self._at_s[q.name]),
                values=tuple(self._values[q.name]),
                error=self._errors.get(q.name, ""),
            )
            for q in QUANTITIES
        }
        return Tape(backend=backend, series=series, error=self._error)


def main() -> None:
    """Serve until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    file = os.environ.get(replay.VARIABLE)
    if file:
        replay.install(replay.load(file))
    sampler = Sampler(backend="replay" if file else "nvml")
    tick, due_s, heard = 0, time.monotonic(), b""
    while True:
        patience_s = max(0.0, due_s - time.monotonic()) if sampler.is_watching else None
        if not select.select([_INPUT], [], [], patience_s)[0]:
            sampler.sample(tick)
            tick, due_s = tick + 1, max(due_s + TICK_S, time.monotonic())
            continue
        data = os.read(_INPUT, 1 << 16)
        if not data:
            return
        *lines, heard = (heard + data).split(b"\n")
        for order in map(json.loads, lines):
            if "watch" in order:
                sampler.watch(order["watch"])
                tick, due_s = 0, time.monotonic()
            else:
                sys.stdout.write(json.dumps(encode(sampler.cut())) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
