"""The commands as users type them, run to their end; for tests of what users see."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_SCRIPT = Path(sys.executable).with_name("stepmark")
# Where it is not installed, but on PYTHONPATH, there is no script.
STEPMARK = (str(_SCRIPT),) if _SCRIPT.exists() else (sys.executable, "-m", "stepmark")

# What an outer test run, or the terminal it is in, would tell the inner command.
_FOREIGN = ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "FORCE_COLOR", "COLUMNS", "LINES")


def environment(**changes: str) -> dict[str, str]:
    """The environment, less what would change the output of a command under test."""
    return {name: os.environ[name] for name in os.environ if name not in _FOREIGN} | changes


def stepmark(
    *arguments: Any, cwd: Path, **environment_changes: str
) -> subprocess.CompletedProcess[str]:
    """``stepmark("run", "--steps", 5, cwd=folder)`` is ``stepmark run --steps 5``."""
    return _run([*STEPMARK, *map(str, arguments)], cwd, environment_changes)


def python(
    *arguments: Any, cwd: Path, **environment_changes: str
) -> subprocess.CompletedProcess[str]:
    """``python("-m", "pytest", cwd=folder)`` is ``python -m pytest``."""
    return _run([sys.executable, *map(str, arguments)], cwd, environment_changes)


def _run(
    words: list[str], cwd: Path, environment_changes: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        cwd=cwd,
        env=environment(**environment_changes),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def git(folder: Path, *words: str) -> str:
    """What a git command prints; it has an author whatever the machine's configuration is."""
    identity = ("-c", "user.name=N", "-c", "user.email=n@example.com")
    done = subprocess.run(
        ["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()
