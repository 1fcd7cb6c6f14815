"""Ctrl-C is heard once: a second one must not cut off what the first one led to."""

import signal
from types import FrameType


def interrupt_once() -> None:
    """From now on the first SIGINT raises `KeyboardInterrupt`, and later ones are ignored.

    For a command that ends with its process. One that was started with SIGINT ignored, as shells
    start background jobs, goes on ignoring it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt
