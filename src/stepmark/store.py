"""Results on disk: a run is a folder of JSON files, one per scenario and repeat.

    results/NAME/run.json                   what was planned: scenarios, plan
    results/NAME/SCENARIO_ID.r0.json        one result, written at once when it was measured
    results/NAME/profiles/SCENARIO_ID.json  one profile; its traces lie beside it

Every file is written beside its final name and renamed, so a reader, or a run that was killed,
finds whole files only. A pytest-benchmark file saved by this suite is read as a run too.

Format history (`SCHEMA`): 1, first version; 2, when a window began, the device's UUID and power
limit, why a window is unfit.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from stepmark.codec import DecodeError, decode, encode
from stepmark.errors import StoreError, UsageError
from stepmark.profile import Profile
from stepmark.result import COLUMNS, Result
from stepmark.scenario import Plan, Scenario

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 2
INTEGER_COLUMNS = tuple(c for c in COLUMNS if c.endswith("_bytes") or c == "steps")
RUN_FILE = "run.json"
PROFILES = "profiles"
# File systems allow 255 bytes; a repeat, a suffix and a temporary name must fit too.
LONGEST_NAME = 200
# As many names of runs as a message can hold and still be read.
SHOWN_RUNS = 5
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What a run set out to measure.

    Attributes:
        created_at: ISO 8601 with time zone.
        plan: how long each scenario is measured.
        scenarios: in measuring order; the plan's repeats multiply them. Empty for a run whose
            scenarios are only known one by one (pytest).
    """

    created_at: str
    plan: Plan
    scenarios: tuple[Scenario, ...]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A saved run, read back.

    Attributes:
        name: the folder's name, or the file's stem.
        path: where it was read from.
        results: in the order in which they were measured.
        profiles: of scenarios that were profiled.
        by_pytest: its scenarios came from tests, which alone can measure it again whole.
        missing: planned scenario ids and repeats without a result: the run was interrupted.
    """

    name: str
    path: Path
    results: tuple[Result, ...]
    profiles: tuple[Profile, ...] = ()
    by_pytest: bool = False
    missing: tuple[tuple[str, int], ...] = ()

    def table(self) -> "pd.DataFrame":
        """The flat table: one row per scenario and repeat, columns as in `COLUMNS`."""
        return table(self.results)


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
                _write(begun / RUN_FILE, planned)
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
            raise UsageError(f"{path}: no run to resume; runs here: {_known_runs(results)}")
        planned = _read(path / RUN_FILE, RunPlan)
        for half_written in path.glob(".*.tmp"):
            half_written.unlink(missing_ok=True)
        return cls(path, planned)

    def save(self, result: Result) -> Path:
        """Write one result at once.

        Raises:
            StoreError: the file cannot be written.
        """
        path = self._file(result.scenario.id, result.repeat)
        _write(path, result)
        return path

    def find(self, scenario: Scenario, repeat: int) -> Result | None:
        """The saved result of a scenario and repeat, if there is one.

        Raises:
            StoreError: the file is there and cannot be read.
        """
        path = self._file(scenario.id, repeat)
        return _read(path, Result) if path.exists() else None

    def profile_prefix(self, scenario: Scenario) -> Path:
        """How the files of a scenario's profile begin; makes their folder.

        Raises:
            StoreError: it cannot be made.
        """
        folder = self.path / PROFILES
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise StoreError(f"{folder}: cannot be made ({error.strerror})") from None
        return folder / _file_name(scenario.id)

    def save_profile(self, profile: Profile) -> Path:
        """Write one profile at once.

        Raises:
            StoreError: the file cannot be written.
        """
        prefix = self.profile_prefix(profile.scenario)
        path = prefix.with_name(f"{prefix.name}.json")
        _write(path, profile)
        return path

    def _file(self, scenario_id: str, repeat: int) -> Path:
        return self.path / f"{_file_name(scenario_id)}.r{repeat}.json"


def _file_name(scenario_id: str) -> str:
    # quote() keeps two different ids apart whatever characters a workload's path holds; a dot at
    # the front would hide the file.
    name = re.sub(r"^\.", "%2E", quote(scenario_id, safe=""))
    if len(name) > LONGEST_NAME:
        name = name[:LONGEST_NAME] + "~" + hashlib.sha256(name.encode()).hexdigest()[:16]
    return name


def check_name(name: str) -> str:
    """A run's name, checked.

    Raises:
        UsageError: it would not be a plain folder name.
    """
    if not re.fullmatch(rf"[A-Za-z0-9_][A-Za-z0-9._+-]{{,{LONGEST_NAME - 1}}}", name):
        raise UsageError(
            f"name {name!r}: use up to {LONGEST_NAME} letters, digits, '.', '_', '+' and '-', "
            "beginning with a letter, a digit or '_'"
        )
    return name


def unused_path(results: Path, name: str) -> Path:
    """The folder that a new run of this name will get; makes the folder around it.

    Raises:
        UsageError: the name is no file name, or is taken.
        StoreError: the folder of runs cannot be made.
    """
    path = results / check_name(name)
    if path.exists():
        raise UsageError(
            f"{path}: exists already; choose another name, or give --resume to complete it"
        )
    try:
        results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"{results}: no folder of runs can be made here ({error.strerror})"
        ) from None
    return path


def new_name() -> str:
    """A name for a run that was given none: the time in UTC."""
    return datetime.now(UTC).strftime("%Y%m%d_%H%M%S_%f")[:-3]


def free_name(results: Path, name: str) -> str:
    """The name, or where it is taken the name with the next free number: ``base-2``.

    Raises:
        UsageError: it would not be a plain folder name.
    """
    check_name(name)
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return next(n for n in itertools.chain([name], numbered) if not (results / n).exists())


def run_names(results: Path) -> list[str]:
    """Names of the runs in a results folder, oldest first; those that cannot be read left out."""
    begun: dict[str, str] = {}
    for path in results.glob(f"*/{RUN_FILE}"):
        # One damaged run shall not hide the others; opening it says what is wrong.
        with contextlib.suppress(StoreError):
            # Not by the file's time: a clone or a copy gives an old run a new one.
            begun[path.parent.name] = _read(path, RunPlan).created_at
    return sorted(begun, key=lambda name: (begun[name], name))


def open_run(run: str, results: Path) -> Run:
    """Read a run by name, folder, or pytest-benchmark file.

    Raises:
        UsageError: there is no such run, or it holds no results.
        StoreError: a file of it cannot be read.
    """
    for path in (Path(run), results / run):
        if _is_file(path):
            return _read_pytest_benchmark(path)
        if _is_file(path / RUN_FILE):
            return _read_folder(path)
    raise UsageError(
        f"{run!r}: no such run; give a name under {results}/ ({_known_runs(results)}), a run's "
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


def table(results: Iterable[Result]) -> "pd.DataFrame":
    """The flat table of results; columns as in `COLUMNS`, unknown cells empty."""
    import pandas as pd

    frame = pd.DataFrame([result.row() for result in results], columns=list(COLUMNS))
    # Whole numbers stay whole where a cell is empty; NumPy would make them floats.
    return frame.astype(dict.fromkeys(INTEGER_COLUMNS, "Int64"))


def pack(results: Sequence[Result]) -> dict[str, Any]:
    """Results as JSON data for another program's file; `unpack` reads it."""
    return {"schema": SCHEMA, "results": [encode(result) for result in results]}


def unpack(data: Any, path: Path) -> list[Result]:
    """Results that `pack` wrote.

    Raises:
        StoreError: the data is of another shape or a newer format.
    """
    _check_schema(data, path)
    if not isinstance(data.get("results"), list):
        raise StoreError(f"{path}: not a list of results of this suite (it has no 'results')")
    try:
        return [decode(Result, item) for item in data["results"]]
    except DecodeError as error:
        raise StoreError(f"{path}: not a result of this suite ({error})") from None


def write_text(path: Path, text: str) -> None:
    """Write a whole file, or nothing: beside its final name first, then renamed.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes files for the owner alone; results are for everybody.
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror})") from None


def _read_folder(path: Path) -> Run:
    planned = _read(path / RUN_FILE, RunPlan)
    files = [p for p in path.glob("*.json") if p.name != RUN_FILE and not p.name.startswith(".")]
    results = [_read(file, Result) for file in files]
    results.sort(key=lambda r: (r.started_at, r.scenario.id, r.repeat))
    done = {(result.scenario.id, result.repeat) for result in results}
    wanted = ((s.id, r) for r in range(planned.plan.repeats) for s in planned.scenarios)
    missing = tuple(pair for pair in wanted if pair not in done)
    if not results:
        raise UsageError(f"{path}: the run holds no results yet; resume it with --resume")
    profiles = [
        _read(file, Profile)
        for file in (path / PROFILES).glob("*.json")
        if not file.name.startswith(".")
    ]
    return Run(
        name=path.name,
        path=path,
        results=tuple(results),
        profiles=tuple(sorted(profiles, key=lambda profile: profile.started_at)),
        by_pytest=not planned.scenarios,
        missing=missing,
    )


def _read_pytest_benchmark(path: Path) -> Run:
    data = _parse(path, "and so no pytest-benchmark file")
    foreign = StoreError(f"{path}: not a pytest-benchmark file")
    if not isinstance(data, dict) or not isinstance(data.get("benchmarks"), list):
        raise foreign
    try:
        packed = [bench["extra_info"].get("stepmark") for bench in data["benchmarks"]]
    except (AttributeError, KeyError, TypeError):
        raise foreign from None
    packed.append(data.get("stepmark"))
    results = [result for item in packed if item is not None for result in unpack(item, path)]
    if not results:
        raise UsageError(f"{path}: none of its benchmarks was measured by stepmark's fixture")
    results.sort(key=lambda r: (r.started_at, r.scenario.id, r.repeat))
    return Run(name=path.stem, path=path, results=tuple(results), by_pytest=True)


def _write(path: Path, value: Any) -> None:
    data = {"schema": SCHEMA, **encode(value)}
    write_text(path, json.dumps(data, allow_nan=False) + "\n")


def _read(path: Path, kind: type[T]) -> T:
    if path.name == RUN_FILE:
        remedy = "so the run cannot be read; measure it again under another name"
    else:
        remedy = "delete it, then measure it again with --resume"
    data = _parse(path, remedy)
    _check_schema(data, path)
    data.pop("schema")
    try:
        return decode(kind, data)
    except DecodeError as error:
        raise StoreError(f"{path}: not a result of this suite ({error})") from None


def _known_runs(results: Path) -> str:
    newest_first = run_names(results)[::-1]
    more = ["..."] if len(newest_first) > SHOWN_RUNS else []
    return ", ".join(newest_first[:SHOWN_RUNS] + more) or "none"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # whoever gave it meant no file: it is too long for a name
        return False


def _parse(path: Path, remedy: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise StoreError(f"{path}: damaged, not JSON; {remedy}") from None


def _check_schema(data: Any, path: Path) -> None:
    schema = data.get("schema") if isinstance(data, dict) else None
    if type(schema) is not int or schema < 1:
        raise StoreError(f"{path}: not a file of this suite (it has no 'schema')")
    if schema > SCHEMA:
        raise StoreError(
            f"{path}: format {schema} is newer than {SCHEMA}, the newest known here; "
            "update stepmark to read it"
        )
