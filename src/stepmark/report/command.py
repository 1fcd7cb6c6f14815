"""The command ``python -m bench.report``: arguments in, paths out."""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

from stepmark.console import guarded, show
from stepmark.report.page import MARKDOWN, PLOTS, render
from stepmark.store import latest_run, open_run


def main(argv: Sequence[str] | None = None) -> int:
    """Render saved runs and print the paths written.

    Args:
        argv: arguments without the program's name; those of the process if ``None``.

    Returns:
        Exit code: 0, or 2 for bad usage, with a message on the error stream.
    """
    arguments = _parser().parse_args(argv)
    return guarded(functools.partial(_report, arguments.runs, arguments.results, arguments.output))


def _report(names: Sequence[str], results: Path, out: Path) -> int:
    runs = [open_run(name, results) for name in names] or [latest_run(results)]
    index = render(runs, out)
    show(f"{index}\n{out / MARKDOWN}\n{out / PLOTS}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.report",
        description="Render saved runs as an HTML page, a Markdown report and PNG plots.",
    )
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="a name under the results folder, a run's folder, or a pytest-benchmark file "
        "(default: the run that was begun last)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("reports"), metavar="OUT",
        help="folder to write to (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--results", type=Path, default=Path("results"), metavar="DIR",
        help="folder that holds the runs (default: %(default)s)",
    )  # fmt: skip
    return parser
