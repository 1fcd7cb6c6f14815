"""Whether the code of a side is the side's own: a gate that runs one code twice finds nothing."""

import sys
from collections.abc import Iterator
from pathlib import Path

from stepmark.errors import WorkloadError
from stepmark.runner.messages import Order


def check_origins(order: Order) -> None:
    """Look at where everything came from that was imported.

    Raises:
        WorkloadError: a module came from the working tree that both sides left, or is an
            installed copy of what the side has in its checkout.
    """
    closed = Path(order.closed)
    opened = [Path(path).resolve() for path in order.opened]
    environments = [Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix)]
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        package = name.partition(".")[0]
        # stepmark itself measures, on both sides alike.
        if not isinstance(file, str) or package == "stepmark":
            continue
        path = Path(file).resolve()
        if any(path.is_relative_to(folder) for folder in opened):
            continue
        if any(path.is_relative_to(folder) for folder in environments):
            if name == package and "site-packages" in path.parts:
                _refuse_copy(name, path, Path(order.directory))
        elif path.is_relative_to(closed):
            raise WorkloadError(
                f"module {name!r} came from {path}, the same file for both sides, and not from "
                "the side's own checkout; if it is installed in editable mode through an import "
                "hook, install it with 'pip install -e . --config-settings editable_mode=compat'; "
                "if it is not in git, name it with --link"
            )


def _refuse_copy(name: str, path: Path, directory: Path) -> None:
    """An installed package that the side has as source, too, is the same code on both sides."""
    for folder in _up_to_top(directory):
        for root in (folder, folder / "src"):
            for source in (root / name / "__init__.py", root / f"{name}.py"):
                if source.exists():
                    raise WorkloadError(
                        f"module {name!r} is an installed copy ({path}), the same for both sides, "
                        f"though the revision has its own ({source}): uninstall it, or install it "
                        "with 'pip install -e .'"
                    )


def _up_to_top(directory: Path) -> Iterator[Path]:
    """From where a side works up to its checkout's top."""
    for folder in (directory, *directory.parents):
        yield folder
        if (folder / ".git").exists():
            return
