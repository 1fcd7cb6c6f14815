"""Workloads: the built-in ones, and the resolver that finds a user's own.

Importing this package, and `check`, import no torch; `load` does.
"""

from stepmark.workloads.registry import BUILTIN, Builtin
from stepmark.workloads.resolve import check, load

__all__ = ["BUILTIN", "Builtin", "check", "load"]
