"""pytest-benchmark's comparison with an earlier run, guarded against passing for no reason.

By itself it compares runs of two machines, passes where nothing was there to compare, keeps the
last of two conditions alone, and saves what regressed as the next run to compare with.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepmark.errors import StepmarkError, UsageError
from stepmark.fingerprint import Machine
from stepmark.store import unpack

if TYPE_CHECKING:
    import pytest

_COMPARE, _FAIL = "--benchmark-compare", "--benchmark-compare-fail"


class Baseline:
    """The runs that ``--benchmark-compare`` loaded.

    Args:
        config: of pytest, once pytest-benchmark has read the runs.
    """

    def __init__(self, config: "pytest.Config") -> None:
        self._benchmarks: Any = config._benchmarksession  # type: ignore[attr-defined]
        self._found: set[str] = set()
        self._lacking: set[str] = set()
        self._skipped: set[str] = set()

    @property
    def is_asked_for(self) -> bool:
        """Whether there is anything to compare with."""
        return bool(self._benchmarks.compare)

    def check_options(self, num_conditions: int) -> None:
        """Find out what would pass whatever was measured.

        Args:
            num_conditions: how often ``--benchmark-compare-fail`` was given.

        Raises:
            UsageError: it would.
        """
        benchmarks = self._benchmarks
        if benchmarks.compare_fail and not self.is_asked_for:
            raise UsageError(f"{_FAIL}: say what to compare with: {_COMPARE}=NUMBER")
        if num_conditions > 1:
            raise UsageError(
                f"{_FAIL}: was given {num_conditions} times, and the last one would count alone; "
                f"give all conditions to one, as in {_FAIL} min:5% mean:10%"
            )
        if self.is_asked_for and (benchmarks.disabled or benchmarks.skip):
            raise UsageError(
                f"{_COMPARE}: nothing would be measured (--benchmark-disable, --benchmark-skip or "
                "pytest-xdist); leave one of them out"
            )
        if self.is_asked_for and not benchmarks.compared_mapping:
            raise UsageError(f"{_COMPARE}: no saved run was found in {benchmarks.storage}")

    def check(self, test: str, machine: Machine) -> None:
        """Find out whether what a test is about to measure may be compared.

        Raises:
            UsageError: it was measured on other hardware or software, or is no measurement.
        """
        for path, earlier in self._earlier(test):
            for what, then, now in (
                ("hosts", {"host": earlier.host}, {"host": machine.host}),
                ("hardware", earlier.hardware, machine.hardware),
                ("software", earlier.software, machine.software),
            ):
                for key in sorted({*then, *now}):
                    if then.get(key) != now.get(key):
                        raise UsageError(
                            f"{_COMPARE}: {path} was measured on other {what} ({key}: "
                            f"{then.get(key)} then, {now.get(key)} now); measure both on one "
                            "machine, or use 'stepmark gate'"
                        )

    def regressions(self, test: str, figures: Any) -> list[str]:
        """Conditions that a test does not meet, in words; notes whether it was compared at all.

        Args:
            test: its full name.
            figures: pytest-benchmark's, by name.
        """
        found: list[str] = []
        self._lacking.add(test)
        for mapping in self._benchmarks.compared_mapping.values():
            if test in mapping:
                self._found.add(test)
                compared = mapping[test]["stats"]
                checks = self._benchmarks.compare_fail or ()
                found += filter(None, (check.fails(figures, compared) for check in checks))
        self._lacking -= self._found
        return found

    def skip(self, test: str) -> None:
        """A test that cannot measure here; the earlier run may have it all the same."""
        if any(test in mapping for mapping in self._benchmarks.compared_mapping.values()):
            self._skipped.add(test)

    def gaps(self) -> str:
        """Why the comparison must not pass; empty if it may."""
        if not self.is_asked_for:
            return ""
        if self._skipped:
            names = ", ".join(sorted(self._skipped))
            return f"{_COMPARE}: in the earlier run, and skipped now: {names}"
        if not (self._found or self._lacking):
            return f"{_COMPARE}: no test measured anything: nothing was compared"
        if not self._found:
            return f"{_COMPARE}: none of these tests is in the earlier run: nothing was compared"
        if self._lacking:
            names = ", ".join(sorted(self._lacking))
            return f"{_COMPARE}: not in the earlier run, and so not compared: {names}"
        return ""

    def _earlier(self, test: str) -> Iterator[tuple[Path, Machine]]:
        for path, mapping in self._benchmarks.compared_mapping.items():
            if test not in mapping:
                continue
            packed = mapping[test].get("extra_info", {}).get("stepmark")
            try:
                yield Path(path), unpack(packed, Path(path))[0].machine
            except (StepmarkError, IndexError):
                raise UsageError(
                    f"{_COMPARE}: {path} has {test} from a clock of pytest-benchmark's own, not "
                    "from measure"
                ) from None
