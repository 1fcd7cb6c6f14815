"""``pytest bench/ --benchmark-save``: pytest-benchmark's parser wants a name there."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

BARE_SAVE = "stepmark:unnamed"
_BENCHMARK_PLUGIN = "pytest_benchmark.plugin"


class BareSave:
    """A plugin that makes the name optional."""

    def __init__(self, parser: pytest.Parser) -> None:
        self._parser = parser

    def pytest_plugin_registered(self, plugin: object, manager: pytest.PytestPluginManager) -> None:
        """pytest tells of every plugin, of those that came before too; order is not defined."""
        if getattr(plugin, "__name__", "") == _BENCHMARK_PLUGIN:
            self._make_name_optional()

    def _make_name_optional(self) -> None:
        parser: Any = self._parser
        if hasattr(parser, "optparser"):  # pytest 9.1 and later: options are argparse's own
            for action in parser.optparser._actions:
                if "--benchmark-save" in action.option_strings:
                    action.nargs, action.const = "?", BARE_SAVE
                    action.type = _name_parser(action.type)
            return
        for group in [parser._anonymous, *parser._groups]:
            for option in group.options:
                if "--benchmark-save" in option.names():
                    attributes = option._attrs
                    attributes.update(nargs="?", const=BARE_SAVE)
                    attributes["type"] = _name_parser(attributes["type"])


def _name_parser(parse_name: Callable[[str], str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        import argparse

        if text == BARE_SAVE:
            return text
        if os.sep in text or "::" in text:
            raise argparse.ArgumentTypeError(_path_as_name(text))
        return parse_name(text)

    return parse


def _path_as_name(text: str) -> str:
    return (
        f"{text!r} is a path, and was read as the NAME to save under; put paths first, as in "
        f"'pytest {text} --benchmark-save', or write --benchmark-save=NAME"
    )


def refuse_path_as_name(args: list[str]) -> None:
    """Refuse ``--benchmark-save bench``, which would measure everything but bench, as "bench"."""
    for option, value in itertools.pairwise(args):
        if option == "--benchmark-save" and value[:1] != "-" and Path(value).exists():
            raise pytest.UsageError(f"argument --benchmark-save: {_path_as_name(value)}")
