"""Python interpreters that measure a side: this one, or another with, say, another torch."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from stepmark.errors import UsageError
from stepmark.gate.pairs import Side
from stepmark.runner.host_process import Installation

# What stepmark's measuring processes import, by the names of the modules.
_NEEDED = ("torch", "torchvision", "numpy", "scipy", "psutil", "PIL")
_ASK = (
    "import importlib.util as u, json, sys; print(json.dumps([sys.prefix, sys.path, "
    "[name for name in sys.argv[1:] if u.find_spec(name) is None]]))"
)
_ANSWER_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """An interpreter.

    Attributes:
        python: its path.
        prefix: the folder of its environment.
        sys_path: where it finds modules.
    """

    python: str
    prefix: Path
    sys_path: tuple[Path, ...]


def this_one() -> Interpreter:
    """The interpreter that runs this."""
    return Interpreter(
        python=sys.executable,
        prefix=Path(sys.prefix).resolve(),
        sys_path=tuple(Path(entry).absolute() for entry in filter(None, sys.path)),
    )


def ask(option: str, python: str) -> Interpreter:
    """Another interpreter, asked for what it has.

    Args:
        option: that named it, for messages.
        python: its path, or its name on ``PATH``.

    Raises:
        UsageError: it does not run, is too old, or lacks what stepmark needs.
    """
    command = [python, "-P", "-c", _ASK, *_NEEDED]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_ANSWER_S, check=False
        )
        prefix, sys_path, lacking = json.loads(done.stdout)
    except OSError as error:
        raise UsageError(f"{option} {python}: cannot be run ({error.strerror})") from None
    except (ValueError, subprocess.TimeoutExpired):
        raise UsageError(
            f"{option} {python}: is no Python from 3.11 on, or does not answer; give the path of "
            "an environment's interpreter, such as .venv/bin/python"
        ) from None
    if lacking:
        raise UsageError(
            f"{option} {python}: lacks {', '.join(lacking)}; install there what stepmark needs "
            f"('{python} -m pip install stepmark')"
        )
    return Interpreter(
        python=python,
        prefix=Path(prefix).resolve(),
        sys_path=tuple(Path(entry) for entry in filter(None, sys_path)),
    )


def side(name: str, interpreter: Interpreter, directory: Path) -> Side:
    """A side whose code is where it is, in no checkout.

    Args:
        name: ``base`` or ``head``.
        interpreter: what runs it.
        directory: where its processes work; modules are found there last.
    """
    entries = [*interpreter.sys_path, directory]
    return Side(
        name=name,
        directory=directory,
        sys_path=tuple(map(str, entries)),
        installation=Installation(python=interpreter.python),
    )
