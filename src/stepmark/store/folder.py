"""A run being written."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

from stepmark.advice import Trial
from stepmark.errors import StoreError, UsageError
from stepmark.profile import Profile
from stepmark.result import Result
from stepmark.scenario import Scenario
from stepmark.store.files import read, write, write_text
from stepmark.store.names import check_name, file_name, unused_path
from stepmark.store.reading import (
    LOST_PLAN,
    LOST_RESULT,
    LOST_TRAINING,
    known_runs,
    read_trials,
)
from stepmark.store.run import PROFILES, RUN_FILE, TRAININGS, TRIALS, RunPlan
from stepmark.training import TrainingRecord
from stepmark.training.output import as_csv


class RunFolder:
    """A run being written: `create` or `reopen` it, then `save` results as they come."""

    def __init__(self, path: Path, planned: RunPlan) -> None:
        self.path = path
        self.planned = planned

    @classmethod
    def create(cls, results: Path, name: str, planned: RunPlan) -> "RunFolder":
        """Start a run.

        Raises:
            UsageError: the name is no file name, or is taken.
            StoreError: the folder cannot be written.
        """
        path = unused_path(results, name)
        try:
            # Whole or not at all: a folder without its plan could be neither resumed nor reused.
            with tempfile.TemporaryDirectory(dir=results, prefix=".") as temporary:
                begun = Path(temporary) / name
                begun.mkdir()
                write(begun / RUN_FILE, planned)
                begun.rename(path)
        except OSError as error:
            raise StoreError(f"{path}: cannot be created ({error.strerror})") from None
        return cls(path, planned)

    @classmethod
    def reopen(cls, results: Path, name: str) -> "RunFolder":
        """Go on with an interrupted run.

        Raises:
            UsageError: there is no such run.
            StoreError: its plan cannot be read.
        """
        path = results / check_name(name)
        if not (path / RUN_FILE).is_file():
            raise UsageError(f"{path}: no run to resume; runs here: {known_runs(results)}")
        planned = read(path / RUN_FILE, RunPlan, LOST_PLAN)
        for half_written in (*path.glob(".*.tmp"), *(path / TRAININGS).glob(".*.tmp")):
            half_written.unlink(missing_ok=True)
        return cls(path, planned)

    def save(self, result: Result) -> Path:
        """Write one result at once.

        Raises:
            StoreError: the file cannot be written.
        """
        path = self._file(result.scenario.id, result.repeat)
        write(path, result)
        return path

    def find(self, scenario: Scenario, repeat: int) -> Result | None:
        """The saved result of a scenario and repeat, if there is one.

        Raises:
            StoreError: the file is there and cannot be read.
        """
        path = self._file(scenario.id, repeat)
        return read(path, Result, LOST_RESULT) if path.exists() else None

    def profile_prefix(self, scenario: Scenario) -> Path:
        """How the files of a scenario's profile begin; makes their folder.

        Raises:
            StoreError: it cannot be made.
        """
        return _made(self.path / PROFILES) / file_name(scenario.id)

    def save_profile(self, profile: Profile) -> Path:
        """Write one profile at once.

        Raises:
            StoreError: the file cannot be written.
        """
        prefix = self.profile_prefix(profile.scenario)
        path = prefix.with_name(f"{prefix.name}.json")
        write(path, profile)
        return path

    def save_trial(self, trial: Trial) -> Path:
        """Write a trial of advice at once, in the place of what was known of it before.

        Raises:
            StoreError: the file cannot be written.
        """
        path = _made(self.path / TRIALS) / f"{trial.advice}.json"
        write(path, trial)
        return path

    def remove_trials(self, names: Iterable[str]) -> None:
        """Forget trials of these names, if they are there."""
        for name in names:
            (self.path / TRIALS / f"{name}.json").unlink(missing_ok=True)

    def trials(self) -> tuple[Trial, ...]:
        """The trials of advice that were saved.

        Raises:
            StoreError: one cannot be read.
        """
        return read_trials(self.path)

    def training_prefix(self, scenario: Scenario) -> Path:
        """How the files of a scenario's training begin; makes their folder.

        Raises:
            StoreError: it cannot be made.
        """
        return _made(self.path / TRAININGS) / file_name(scenario.id)

    def save_training(self, record: TrainingRecord) -> None:
        """Write a training at once, and its epochs as a table.

        Raises:
            StoreError: a file cannot be written.
        """
        prefix = self.training_prefix(record.scenario)
        if record.epochs:
            write_text(prefix.with_name(f"{prefix.name}.csv"), as_csv(record.epochs))
        write(prefix.with_name(f"{prefix.name}.json"), record)

    def find_training(self) -> TrainingRecord | None:
        """The run's training, if it is one of a training.

        Raises:
            StoreError: the file is there and cannot be read.
        """
        files = sorted((self.path / TRAININGS).glob("[!.]*.json"))
        return read(files[0], TrainingRecord, LOST_TRAINING) if files else None

    def _file(self, scenario_id: str, repeat: int) -> Path:
        return self.path / f"{file_name(scenario_id)}.r{repeat}.json"


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be made ({error.strerror})") from None
    return folder
