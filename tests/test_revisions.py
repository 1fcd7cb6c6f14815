"""Revisions of real repositories, checked out beside the working tree."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import git

from stepmark.errors import UsageError
from stepmark.gate import interpreters
from stepmark.gate.pairs import Side
from stepmark.gate.revisions import Repository, Revision


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two commits of ``src/lib.py`` and ``train.py``; a changed, a new and an ignored file."""
    folder = tmp_path / "repository"
    (folder / "src").mkdir(parents=True)
    git(folder, "init", "-b", "main")
    for text in ("one", "two"):
        (folder / "src" / "lib.py").write_text(text)
        (folder / "train.py").write_text(text)
        git(folder, "add", ".")
        git(folder, "commit", "-m", text)
    (folder / "train.py").write_text("three")
    (folder / "new.py").write_text("untracked")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return folder


@contextlib.contextmanager
def sides(
    repo: Repository, base: Revision, head: Revision, *links: str
) -> Iterator[tuple[Side, Side]]:
    """Both sides with this interpreter."""
    both = (interpreters.this_one(), interpreters.this_one())
    with repo.sides((base, head), both, [Path(link) for link in links]) as found:
        yield found


def state(folder: Path) -> tuple[str, ...]:
    """All that must not change: files, index, branches, stashes, worktrees."""
    return (
        git(folder, "status", "--porcelain"),
        git(folder, "for-each-ref"),
        git(folder, "stash", "list"),
        git(folder, "worktree", "list"),
        (folder / "train.py").read_text(),
    )


def test_both_revisions_are_there_and_gone_afterwards(repository: Path) -> None:
    before = state(repository)
    repo = Repository(repository / "src")
    with sides(repo, repo.revision("HEAD~1"), repo.revision("main")) as (base, head):
        assert (base.name, head.name) == ("base", "head")
        assert (base.directory / "lib.py").read_text() == "one"
        assert (head.directory / "lib.py").read_text() == "two"
        assert base.directory.name == "src", "the same place inside of the repository"
        checkouts = [base.directory, head.directory]
    assert not any(path.exists() for path in checkouts)
    assert state(repository) == before
    assert not list(Path(tempfile.gettempdir()).iterdir())


def test_the_working_tree_counts_with_its_uncommitted_changes(repository: Path) -> None:
    before = state(repository)
    repo = Repository(repository)
    revision = repo.working_tree()
    assert revision.label.endswith("with uncommitted changes")
    with sides(repo, repo.revision("HEAD"), revision) as (base, head):
        assert (base.directory / "train.py").read_text() == "two"
        assert (head.directory / "train.py").read_text() == "three"
    assert state(repository) == before
    git(repository, "checkout", "train.py")
    assert repo.working_tree() == repo.revision("HEAD")


def test_the_search_path_is_turned_to_the_checkout(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = str(repository.parent)
    monkeypatch.setattr(sys, "path", [str(repository / "src"), outside])
    monkeypatch.chdir(repository)
    repo = Repository(repository)
    with sides(repo, repo.revision("HEAD~1"), repo.revision("HEAD")) as (base, _):
        assert base.sys_path == (str(base.directory / "src"), outside, str(base.directory))
        assert base.origins is not None
        assert base.origins.closed == str(repository)
        assert base.origins.own_code, "one interpreter: the sides must differ by their code"


def test_an_environment_in_the_repository_stays_and_one_around_it_does_not_matter(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = repository / ".venv" / "lib"
    monkeypatch.setattr(sys, "path", [str(packages), str(repository / "src")])
    monkeypatch.chdir(repository)
    repo = Repository(repository)
    for prefix, moved in (
        (repository / ".venv", [False, True]),
        (repository.parent, [True, True]),
        (repository, [True, True]),
    ):
        monkeypatch.setattr(sys, "prefix", str(prefix))
        with sides(repo, repo.revision("HEAD~1"), repo.revision("HEAD")) as (base, _):
            found = [entry.startswith(str(base.directory)) for entry in base.sys_path]
        assert found[:2] == moved


def test_an_exception_and_a_killed_predecessor_leave_nothing(repository: Path) -> None:
    before = state(repository)
    repo = Repository(repository)
    code = f"""
import os, signal, sys, tempfile
from pathlib import Path
from stepmark.gate import interpreters
from stepmark.gate.revisions import Repository
tempfile.tempdir = {tempfile.gettempdir()!r}
repo = Repository(Path({str(repository)!r}))
one, head = interpreters.this_one(), repo.revision("HEAD")
with repo.sides((head, head), (one, one)):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert state(repository) != before, "it left its checkouts"
    with (
        pytest.raises(ZeroDivisionError),
        sides(repo, repo.revision("HEAD"), repo.revision("HEAD")),
    ):
        raise ZeroDivisionError
    assert state(repository) == before
    assert not list(Path(tempfile.gettempdir()).iterdir())


def test_hooks_of_the_user_do_not_run(repository: Path) -> None:
    hook = repository / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {repository / 'hooked'}\n")
    hook.chmod(0o755)
    repo = Repository(repository)
    with sides(repo, repo.revision("HEAD"), repo.revision("HEAD")):
        pass
    assert not (repository / "hooked").exists()


@pytest.mark.parametrize("name", ["nope", "", "--help", "HEAD~9", "HEAD:train.py"])
def test_what_is_no_revision_is_refused(repository: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"no such revision in .*; give a branch"):
        Repository(repository).revision(name)


def test_a_folder_outside_of_every_repository_is_refused(tmp_path: Path) -> None:
    os.environ.pop("GIT_DIR", None)
    with pytest.raises(UsageError, match="not a git repository"):
        Repository(tmp_path)


def test_links_lead_to_what_is_not_in_git(repository: Path) -> None:
    elsewhere = repository.parent / "disk"
    elsewhere.mkdir()
    (elsewhere / "x.bin").write_text("data")
    (repository / "data").symlink_to(elsewhere)
    before = state(repository)
    repo = Repository(repository / "src")
    head = repo.revision("HEAD")
    with sides(repo, head, head, "../data") as both:
        for side in both:
            assert (side.directory / "../data/x.bin").read_text() == "data"
    assert (elsewhere / "x.bin").exists(), "the link went, not what it leads to"
    assert state(repository) == before


@pytest.mark.parametrize(
    ("link", "message"),
    [
        ("nope", "give a file or folder of"),
        ("..", "give a file or folder of"),
        ("/etc", "give a file or folder of"),
        ("train.py", "is in HEAD .* already"),
    ],
)
def test_what_cannot_be_linked_is_refused(repository: Path, link: str, message: str) -> None:
    repo = Repository(repository)
    head = repo.revision("HEAD")
    with pytest.raises(UsageError, match=message), sides(repo, head, head, link):
        pass
    assert not list(Path(tempfile.gettempdir()).iterdir())


def test_a_directory_that_one_side_lacks_is_named(repository: Path) -> None:
    (repository / "new").mkdir()
    repo = Repository(repository / "new")
    head = repo.revision("HEAD")
    with pytest.raises(UsageError, match=r"new: is not in HEAD"), sides(repo, head, head):
        pass


def test_files_are_named_as_every_checkout_has_them(repository: Path) -> None:
    repo = Repository(repository / "src")
    assert repo.relative(repository / "train.py") == Path("../train.py")
    assert repo.relative(Path("lib.py")) == Path("lib.py")
    assert repo.relative(Path("/elsewhere/train.py")) == Path("/elsewhere/train.py")


def test_checkouts_of_the_users_own_are_not_forgotten(repository: Path) -> None:
    """Such as one on a disk that is not mounted just now."""
    own = repository.parent / "own"
    git(repository, "worktree", "add", "-b", "own", str(own))
    own.rename(repository.parent / "unmounted")
    before = state(repository)
    repo = Repository(repository)
    with sides(repo, repo.revision("HEAD"), repo.revision("HEAD")):
        pass
    assert state(repository) == before
    assert "own" in git(repository, "worktree", "list")


@pytest.mark.parametrize("name", ["stepmark-gate-4194999", "stepmark-gate-abc", "stepmark-gate-"])
def test_folders_that_are_only_named_like_the_gates_are_left_alone(
    repository: Path, tmp_path: Path, name: str
) -> None:
    """As if left by a process that is no more; both the repository and a worktree of it."""
    folder = tmp_path / name
    folder.mkdir()
    repository = repository.rename(folder / "base")
    git(repository, "worktree", "add", "--detach", str(folder / "mine"))
    (folder / "notes.txt").write_text("mine")
    for directory in (repository, folder / "mine"):
        repo = Repository(directory)
        with sides(repo, repo.revision("HEAD"), repo.revision("HEAD")):
            pass
    assert sorted(path.name for path in folder.iterdir()) == ["base", "mine", "notes.txt"]
    assert (repository / "train.py").read_text() == "three"


def test_a_submodules_place_may_be_linked_to(repository: Path) -> None:
    other = repository.parent / "other"
    other.mkdir()
    git(other, "init", "-b", "main")
    git(other, "commit", "--allow-empty", "-m", "one")
    url = ("-c", "protocol.file.allow=always")
    git(repository, *url, "submodule", "add", str(other), "sub")
    git(repository, "commit", "-m", "with a submodule")
    (repository / "sub" / "module.py").write_text("here")
    repo = Repository(repository)
    head = repo.revision("HEAD")
    with sides(repo, head, head, "sub") as (_, side):
        assert (side.directory / "sub" / "module.py").read_text() == "here"
        assert side.origins is not None
        assert str(repository / "sub") in side.origins.opened


def test_modules_that_are_not_in_git_are_named(repository: Path) -> None:
    (repository / ".gitignore").write_text("ignored.py")
    (repository / "ignored.py").write_text("")
    repo = Repository(repository)
    assert repo.untracked_modules() == ["new.py"]
    assert repo.untracked_modules([Path("new.py")]) == []


def test_the_gates_own_environment_stays_whatever_measures_a_side(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(repository / ".venv"))
    other = interpreters.Interpreter(
        python="other", prefix=repository / ".other", sys_path=(repository / ".venv" / "lib",)
    )
    repo = Repository(repository)
    head = repo.revision("HEAD")
    with repo.sides((head, head), (other, other)) as (base, _):
        assert base.sys_path[0] == str(repository / ".venv" / "lib")
