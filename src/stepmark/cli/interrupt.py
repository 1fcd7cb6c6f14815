"""Ctrl-C is heard once: a second one must not cut off what the first one led to."""

import signal
from types import FrameType

INTERRUPTED = 130  # what shells report for a process ended by Ctrl-C


def interrupt_once(*numbers: signal.Signals) -> None:
    """From now on the first of these signals raises `KeyboardInterrupt`; later ones are ignored.

    For a command that ends with its process. One that was started with SIGINT ignored, as shells
    start background jobs, goes on ignoring it.

    Args:
        numbers: SIGINT, and what else shall do as it does.
    """

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in numbers:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, interrupt)
