"""The command ``python -m bench.report``: arguments in, paths out."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from stepmark.errors import StepmarkError
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
    results, out = arguments.results, arguments.output
    try:
        runs = [open_run(run, results) for run in arguments.runs] or [latest_run(results)]
        index = render(runs, out)
    except StepmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(index)
    print(out / MARKDOWN)
    print(out / PLOTS)
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
