"""The command ``stepmark compare``, also ``python -m bench.compare``: two runs in, verdicts out."""

import argparse
import functools
import re
from collections.abc import Sequence
from pathlib import Path

from stepmark.compare.floors import Rules
from stepmark.compare.output import FORMATS, add_to_job_summary, write
from stepmark.compare.runs import compare_runs, skips
from stepmark.compare.verdict import exit_code
from stepmark.console import guarded, show
from stepmark.errors import UsageError, choose_from
from stepmark.store import open_run


def compare(
    base: str, head: str, *, threshold: str, format: str, across: str, results: Path
) -> int:
    """Compare two saved runs and print the verdicts.

    Args:
        base, head: names, folders, or pytest-benchmark files of runs.
        threshold: ``3%`` or ``0.03``.
        format: a key of `FORMATS`.
        across: keys of software that differ on purpose, by commas.
        results: folder of saved runs.

    Returns:
        Exit code: 0 clean, 1 a regression, 3 not comparable, 4 inconclusive, 5 nothing measured.

    Raises:
        UsageError: an argument is wrong.
        StoreError: a run cannot be read.
    """
    if format not in FORMATS:
        raise UsageError(f"--format {format!r}: {choose_from(format, FORMATS)}")
    rules = Rules(
        threshold=parse_fraction("--threshold", threshold),
        compared_software=frozenset(filter(None, map(str.strip, across.split(",")))),
    )
    base_run, head_run = open_run(base, results), open_run(head, results)
    if base_run.path.resolve() == head_run.path.resolve():
        raise UsageError(f"{base_run.path}: is both base and head; name two runs")
    comparisons, skipped = compare_runs(base_run, head_run, rules), skips(base_run, head_run)
    title = f"{base_run.name} -> {head_run.name}"
    show(write(comparisons, format, title=title, skipped=skipped))
    add_to_job_summary(comparisons, title=title, skipped=skipped)
    return exit_code(comparisons)


def main(argv: Sequence[str] | None = None) -> int:
    """As `compare`, from arguments without the program's name; 2 for bad usage."""
    arguments = _parser().parse_args(argv)
    return guarded(functools.partial(compare, **vars(arguments)))


def parse_fraction(option: str, text: str) -> float:
    """``3%`` or ``0.03``.

    Raises:
        UsageError: it is neither, or not above 0 and below 1.
    """
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(%?)", text.strip())
    value = float(found[1]) / (100 if found[2] else 1) if found else 0.0
    if not 0 < value < 1:
        raise UsageError(f"{option} {text!r}: give a part such as 3% or 0.03, above 0 and below 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare",
        description="Compare two saved runs, scenario by scenario; processes are the samples.",
    )
    for side in ("base", "head"):
        parser.add_argument(
            side, metavar=side.upper(), help="a run's name, folder, or pytest-benchmark file"
        )
    parser.add_argument(
        "--threshold", default="3%", help="changes up to this do not matter (default: 3%%)"
    )
    parser.add_argument(
        "--format", default="table", help=f"{', '.join(FORMATS)} (default: %(default)s)"
    )
    parser.add_argument(
        "--across", default="", metavar="KEYS",
        help="software that differs on purpose, such as torch,cuda",
    )  # fmt: skip
    parser.add_argument(
        "--results", type=Path, default=Path("results"), metavar="DIR",
        help="folder of saved runs (default: %(default)s)",
    )  # fmt: skip
    return parser
