"""The git commit that a measurement belongs to."""

import os
from pathlib import Path

from stepmark.fingerprint import Commit
from stepmark.machine.system import output_of


def commit(directory: Path) -> Commit | None:
    """The git commit of a directory; ``None`` without git, a repository, or a commit in it."""
    status = _git(directory, "status", "--porcelain=v2", "--branch", "--untracked-files=no")
    if status is None:
        return None
    lines = status.splitlines()
    header = dict(line[2:].split(" ", 1) for line in lines if line.startswith("# "))
    commit_id, branch = header["branch.oid"], header["branch.head"]
    if commit_id == "(initial)":
        return None
    log = _git(directory, "log", "-1", "--no-show-signature", "--format=%cI", commit_id)
    if log is None:
        return None
    return Commit(
        id=commit_id,
        branch="" if branch == "(detached)" else branch,
        dirty=any(not line.startswith("# ") for line in lines),
        time=log.strip(),
    )


def environment() -> dict[str, str]:
    """Variables for git commands: they keep to their directory, ask nothing and speak English."""
    # A hook of git's own points these at its repository, whatever the directory.
    pointers = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
    kept = {name: value for name, value in os.environ.items() if name not in pointers}
    return {**kept, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}


def _git(directory: Path, *arguments: str) -> str | None:
    """Output of a git command that changes and asks nothing; ``None`` if it fails."""
    # A file-system monitor would stay behind as a process, beside the measurement.
    return output_of(
        "git",
        "-c",
        "core.fsmonitor=false",
        "-C",
        str(directory),
        *arguments,
        # Without locks 'status' leaves the index as it is.
        environment={**environment(), "GIT_OPTIONAL_LOCKS": "0"},
    )
