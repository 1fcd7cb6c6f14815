"""How a command's output and its mistakes reach the one who called it."""

import os
import sys
import traceback
from collections.abc import Callable

from stepmark.errors import StepmarkError

BAD_USAGE = 2


def show(text: str) -> None:
    """Print; a reader that has seen enough (say, ``head``) takes nothing from the exit code."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def guarded(command: Callable[[], int]) -> int:
    """Run a command; a user's mistake is one line on standard error.

    Returns:
        Its exit code; 2 for a mistake, and for one of stepmark's own, which must not look like a
        verdict.
    """
    try:
        return command()
    except StepmarkError as error:
        print(f"error: {error}", file=sys.stderr)
    except BrokenPipeError:
        # Nobody reads; the interpreter would complain of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - see above
        traceback.print_exc()
        print(f"error: stepmark itself failed ({type(error).__name__}: {error})", file=sys.stderr)
    return BAD_USAGE
