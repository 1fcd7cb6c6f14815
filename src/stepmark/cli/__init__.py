"""The ``stepmark`` command."""

from stepmark.cli.app import main

__all__ = ["main"]
