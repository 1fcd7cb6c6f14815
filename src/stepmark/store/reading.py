"""Runs read back: by name, by folder, or from pytest-benchmark's file."""

import contextlib
from pathlib import Path

from stepmark.advice import ADVICE, Trial
from stepmark.advice.catalogue import COMBINATIONS
from stepmark.errors import StoreError, UsageError
from stepmark.profile import Profile
from stepmark.result import Result
from stepmark.store.files import read
from stepmark.store.foreign import read_pytest_benchmark
from stepmark.store.run import PROFILES, RUN_FILE, TRAININGS, TRIALS, Run, RunPlan
from stepmark.training import TrainingRecord

# As many names of runs as a message can hold and still be read.
SHOWN_RUNS = 5
# What to do about a file that is damaged.
LOST_PLAN = "so the run cannot be read; measure it again under another name"
LOST_RESULT = "delete it, then measure it again with --resume"
LOST_PROFILE = "delete it, then profile again"
LOST_TRIAL = "delete it, then try the advice again under another name"
LOST_TRAINING = "delete it, then train again"


def run_names(results: Path) -> list[str]:
    """Names of the runs in a results folder, oldest first; those that cannot be read left out."""
    begun: dict[str, str] = {}
    for path in results.glob(f"*/{RUN_FILE}"):
        # One damaged run shall not hide the others; opening it says what is wrong.
        with contextlib.suppress(StoreError):
            # Not by the file's time: a clone or a copy gives an old run a new one.
            begun[path.parent.name] = read(path, RunPlan, LOST_PLAN).created_at
    return sorted(begun, key=lambda name: (begun[name], name))


def open_run(run: str, results: Path) -> Run:
    """Read a run by name, folder, or pytest-benchmark file.

    Raises:
        UsageError: there is no such run, or it holds no results.
        StoreError: a file of it cannot be read.
    """
    for path in (Path(run), results / run):
        if _is_file(path):
            return read_pytest_benchmark(path)
        if _is_file(path / RUN_FILE):
            return _read_folder(path)
    raise UsageError(
        f"{run!r}: no such run; give a name under {results}/ ({known_runs(results)}), a run's "
        "folder, or a pytest-benchmark file saved by this suite"
    )


def latest_run(results: Path) -> Run:
    """The run that was begun last.

    Raises:
        UsageError: there is none.
        StoreError: a file of it cannot be read.
    """
    names = run_names(results)
    if not names:
        raise UsageError(f"{results}: holds no run yet; measure one with 'stepmark run'")
    return open_run(names[-1], results)


def known_runs(results: Path) -> str:
    newest_first = run_names(results)[::-1]
    more = ["..."] if len(newest_first) > SHOWN_RUNS else []
    return ", ".join(newest_first[:SHOWN_RUNS] + more) or "none"


def _read_folder(path: Path) -> Run:
    planned = read(path / RUN_FILE, RunPlan, LOST_PLAN)
    files = [file for file in _files(path) if file.name != RUN_FILE]
    results = [read(file, Result, LOST_RESULT) for file in files]
    results.sort(key=lambda r: (r.started_at, r.scenario.id, r.repeat))
    done = {(result.scenario.id, result.repeat) for result in results}
    wanted = ((s.id, r) for r in range(planned.plan.repeats) for s in planned.scenarios)
    missing = tuple(pair for pair in wanted if pair not in done)
    trainings = [read(file, TrainingRecord, LOST_TRAINING) for file in _files(path / TRAININGS)]
    # One that was interrupted in its first epoch says nothing; one that failed there says why.
    trainings = [t for t in trainings if t.epochs or t.outcome is not None]
    if not results and not trainings:
        raise UsageError(f"{path}: the run holds no results yet; resume it with --resume")
    profiles = [read(file, Profile, LOST_PROFILE) for file in _files(path / PROFILES)]
    return Run(
        name=path.name,
        path=path,
        results=tuple(results),
        profiles=tuple(sorted(profiles, key=lambda profile: profile.started_at)),
        trials=read_trials(path),
        trainings=tuple(sorted(trainings, key=lambda training: training.started_at)),
        by_pytest=not planned.scenarios and bool(results),
        missing=missing,
    )


def read_trials(path: Path) -> tuple[Trial, ...]:
    """What a run folder holds of advice, in the order of the catalogue.

    Raises:
        StoreError: a file cannot be read.
    """
    trials = [read(file, Trial, LOST_TRIAL) for file in _files(path / TRIALS)]
    names = [*(advice.name for advice in ADVICE), *COMBINATIONS]
    places = {name: place for place, name in enumerate(names)}
    return tuple(sorted(trials, key=lambda trial: places.get(trial.advice, len(names))))


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.glob("*.json") if not file.name.startswith(".")]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # whoever gave it meant no file: it is too long for a name
        return False
