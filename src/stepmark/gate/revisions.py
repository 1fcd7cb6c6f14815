"""Revisions of a git repository as folders of their own; the working tree is never touched."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from stepmark.errors import UsageError
from stepmark.gate.interpreters import Interpreter
from stepmark.gate.pairs import Side
from stepmark.machine import git
from stepmark.runner.host_process import OWN, Installation
from stepmark.runner.messages import Origins

# Checkouts are named by the process they belong to, so that those of a killed one are recognized.
_PREFIX = "stepmark-gate-"
_FOLDER = re.compile(rf"{_PREFIX}(\d+)-\w+")
_SIDES = ("base", "head")
# Of an environment that is made in a folder with more in it.
_PARTS_OF_ENVIRONMENT = ("bin", "include", "lib", "lib64", "share")


@dataclass(frozen=True, kw_only=True)
class Revision:
    """A state of the repository.

    Attributes:
        commit: full hash.
        label: what the caller called it, with the hash's beginning.
    """

    commit: str
    label: str


class Repository:
    """The git repository that a directory belongs to.

    Args:
        directory: anywhere inside.

    Raises:
        UsageError: there is no repository, or no git.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self.top = self.directory
        try:
            self.top = Path(self._git("rev-parse", "--show-toplevel"))
        except UsageError as error:
            raise UsageError(
                f"the gate compares revisions of a git repository: {error}; run it inside of one, "
                "or compare saved runs with 'stepmark compare'"
            ) from None

    def revision(self, name: str) -> Revision:
        """The commit that a branch, tag or hash means.

        Raises:
            UsageError: there is none of that name.
        """
        try:
            commit = self._git("rev-parse", "--verify", "--end-of-options", f"{name}^{{commit}}")
        except UsageError:
            raise UsageError(
                f"{name!r}: no such revision in {self.top}; give a branch, a tag or a commit (in "
                "CI, fetch it first: a shallow clone has the newest commit alone)"
            ) from None
        return Revision(commit=commit, label=f"{name} ({commit[:12]})")

    def working_tree(self) -> Revision:
        """The tracked files as they are now, uncommitted changes included."""
        head = self.revision("HEAD")
        # A commit that nothing points to; neither the files nor the index change.
        changed = self._git("stash", "create")
        if not changed:
            return head
        return Revision(commit=changed, label=f"{head.label} with uncommitted changes")

    def relative(self, path: Path) -> Path:
        """A path of the repository as seen from its directory; any other in full."""
        place = self._place(path)
        return Path(os.path.relpath(place, self.directory)) if self._has(place) else place

    def _place(self, path: Path) -> Path:
        """Where a path leads; it may be a link itself, whose target is another matter."""
        whole = Path(os.path.normpath(self.directory / path))
        return whole.parent.resolve() / whole.name

    def _has(self, place: Path) -> bool:
        return place.is_relative_to(self.top)

    @contextlib.contextmanager
    def sides(
        self,
        revisions: tuple[Revision, Revision],
        interpreters: tuple[Interpreter, Interpreter],
        links: Sequence[Path] = (),
    ) -> Iterator[tuple[Side, Side]]:
        """Both revisions checked out, each in a folder of its own, while the context is open.

        Modules of the repository are found where the side has them: entries of ``sys.path``
        inside of it are turned to the checkout. A stepmark that is the repository's own is the
        side's too.

        Args:
            revisions: base's and head's.
            interpreters: theirs.
            links: what is not in git, and appears in both as a symbolic link.

        Raises:
            UsageError: one cannot be checked out, or linked to.
        """
        self._remove_forgotten()
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-")).resolve()
        except OSError as error:
            raise UsageError(
                f"{tempfile.gettempdir()}: no revision can be checked out there "
                f"({error.strerror}); set TMPDIR to a folder that may be written to"
            ) from None
        same_python = interpreters[0].python == interpreters[1].python
        try:
            base, head = (
                self._check_out(revision, interpreter, folder / name, links, same_python)
                for name, revision, interpreter in zip(_SIDES, revisions, interpreters, strict=True)
            )
            yield base, head
        finally:
            self._remove(folder)

    def _check_out(
        self,
        revision: Revision,
        interpreter: Interpreter,
        checkout: Path,
        links: Sequence[Path],
        same_python: bool,
    ) -> Side:
        self._git("worktree", "add", "--detach", str(checkout), revision.commit)
        directory = self._moved(self.directory, checkout, interpreter)
        if not directory.is_dir():
            raise UsageError(f"{self.directory}: is not in {revision.label}")
        linked = [self._link(path, checkout, revision) for path in links]
        # The directory goes last, so that it hides none of the others.
        entries = [*interpreter.sys_path, self.directory]
        package = self._moved(OWN.package, checkout, interpreter)
        return Side(
            name=checkout.name,
            directory=directory,
            sys_path=tuple(str(self._moved(e, checkout, interpreter)) for e in entries),
            origins=Origins(
                closed=str(self.top),
                opened=tuple(str(path.resolve()) for path in (checkout, *linked)),
                own_code=same_python,
            ),
            installation=Installation(python=interpreter.python, package=package),
        )

    def _link(self, path: Path, checkout: Path, revision: Revision) -> Path:
        """Let a checkout have what the working tree has, too; where that is."""
        target = self._place(path)
        if not self._has(target) or not target.exists():
            raise UsageError(f"--link {path}: give a file or folder of {self.top}")
        link = checkout / target.relative_to(self.top)
        if link.is_dir() and not any(link.iterdir()):
            link.rmdir()  # where a submodule would be
        if link.exists():
            raise UsageError(f"--link {path}: is in {revision.label} already, and need not be")
        try:
            link.parent.mkdir(parents=True, exist_ok=True)
            if target.suffix == ".py":
                # Not a link: it shall find the side's own modules beside it.
                shutil.copy(target, link)
            else:
                link.symlink_to(target)
        except OSError as error:
            raise UsageError(f"--link {path}: cannot be linked ({error.strerror})") from None
        return target

    def _moved(self, path: Path, checkout: Path, interpreter: Interpreter) -> Path:
        """A path of the repository in a checkout of it; any other as it is.

        An environment inside of the repository is not part of it.
        """
        resolved = path.resolve()
        if not resolved.is_relative_to(self.top):
            return path
        for environment in (interpreter.prefix, Path(sys.prefix).resolve()):
            parts = [environment]
            if environment == self.top:
                parts = [self.top / part for part in _PARTS_OF_ENVIRONMENT]
            if self._has(environment) and any(resolved.is_relative_to(part) for part in parts):
                return path
        return checkout / resolved.relative_to(self.top)

    def untracked_modules(self, links: Sequence[Path] = ()) -> list[str]:
        """Python files that are not in git, and so on neither side.

        Args:
            links: what both sides get all the same.
        """
        listed = self._git("ls-files", "--others", "--exclude-standard", "--", "*.py")
        linked = [self._place(path) for path in links]
        return [
            name
            for name in listed.splitlines()
            if not any((self.top / name).is_relative_to(path) for path in linked)
        ]

    def _remove(self, folder: Path) -> None:
        with _undisturbed():
            for checkout in self._checkouts():
                if checkout.is_relative_to(folder):
                    self._remove_checkout(checkout)
            shutil.rmtree(folder, ignore_errors=True)

    def _remove_forgotten(self) -> None:
        """Remove checkouts whose processes were killed before they could."""
        for checkout in self._checkouts():
            folder = checkout.parent
            ours = _FOLDER.fullmatch(folder.name) if checkout.name in _SIDES else None
            if ours and not psutil.pid_exists(int(ours[1])):
                self._remove_checkout(checkout)
                shutil.rmtree(folder, ignore_errors=True)

    def _checkouts(self) -> list[Path]:
        """All but the main one, which git lists first."""
        lines = self._git("worktree", "list", "--porcelain").splitlines()
        paths = [Path(line.removeprefix("worktree ")) for line in lines if line[:9] == "worktree "]
        return [path for path in paths[1:] if path != self.top]

    def _remove_checkout(self, checkout: Path) -> None:
        # Not 'git worktree prune': it would forget checkouts of the user's on disks not mounted.
        with contextlib.suppress(UsageError):
            self._git("worktree", "remove", "--force", "--force", str(checkout))

    def _git(self, *words: str) -> str:
        # No hook of the user's runs on a checkout, and no monitor stays behind.
        options = ("-c", f"core.hooksPath={os.devnull}", "-c", "core.fsmonitor=false")
        command = ["git", *options, "-C", str(self.top), *words]
        try:
            done = subprocess.run(
                command,
                env=git.environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            raise UsageError("git: not found; the gate needs it to check out revisions") from None
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UsageError(f"{self.directory}: git {words[0]} failed ({reason})")
        return done.stdout.strip()


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Signals that end a program wait until this is closed."""
    ending = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
