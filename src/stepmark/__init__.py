"""stepmark: benchmarks and profiles of PyTorch training loops.

Importing this package imports neither torch nor pandas; they come in when something is measured.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepmark.choices import Precision
    from stepmark.errors import StepmarkError
    from stepmark.result import Outcome, Result
    from stepmark.runner import measure
    from stepmark.scenario import Plan, Scenario, matrix
    from stepmark.workload import Workload

__version__ = "0.1.0"

_HOMES = {
    "Outcome": "stepmark.result",
    "Plan": "stepmark.scenario",
    "Precision": "stepmark.choices",
    "Result": "stepmark.result",
    "Scenario": "stepmark.scenario",
    "StepmarkError": "stepmark.errors",
    "Workload": "stepmark.workload",
    "matrix": "stepmark.scenario",
    "measure": "stepmark.runner",
}

__all__ = [
    "Outcome",
    "Plan",
    "Precision",
    "Result",
    "Scenario",
    "StepmarkError",
    "Workload",
    "matrix",
    "measure",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its home on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'stepmark' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
