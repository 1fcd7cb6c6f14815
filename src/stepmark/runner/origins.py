"""Whether the code of a side is the side's own: a gate that runs one code twice finds nothing."""

import functools
import sys
from collections.abc import Iterator
from pathlib import Path

from stepmark.errors import WorkloadError
from stepmark.runner.messages import Origins

_NOT_IMPORTED_BY_NAME = {*sys.stdlib_module_names, "__main__", "__mp_main__"}


def check_origins(origins: Origins, directory: Path) -> None:
    """Look at where everything came from that was imported.

    Args:
        origins: where it must come from.
        directory: where the side works, in its checkout.

    Raises:
        WorkloadError: a module came from the working tree that both sides left, or is another
            copy of what the side has in its checkout; or nothing came from there at all.
    """
    closed = Path(origins.closed)
    opened = [Path(path) for path in origins.opened]
    environments = [Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix)]
    roots = [root for folder in _up_to_top(directory) for root in (folder, folder / "src")]
    has_own_code = False
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        package = name.partition(".")[0]
        if not isinstance(file, str) or package in _NOT_IMPORTED_BY_NAME:
            continue
        path = Path(file)
        if not path.is_absolute():
            continue  # of no file at all, as torch.ops has it
        path = path.resolve()
        if any(path.is_relative_to(folder) for folder in opened):
            has_own_code = True
            continue
        # stepmark itself measures, on both sides alike.
        if package == "stepmark":
            continue
        source = _source_of(name, roots)
        if source is not None and source.resolve() != path:
            raise WorkloadError(
                f"module {name!r} came from {path}, the same for both sides, though the revision "
                f"has its own ({source}): name a workload by its path in the repository; a package "
                "that is installed, uninstall, or install it with 'pip install -e .'"
            )
        in_environment = any(path.is_relative_to(folder) for folder in environments)
        if path.is_relative_to(closed) and not in_environment:
            raise WorkloadError(
                f"module {name!r} came from {path}, the same file for both sides, and not from "
                "the side's own checkout; if it is installed in editable mode through an import "
                "hook, install it with 'pip install -e . --config-settings editable_mode=compat'; "
                "if it is not in git, name it with --link"
            )
    if origins.own_code and not has_own_code:
        raise WorkloadError(
            f"both sides would run the same code: nothing that was imported comes from {closed}; "
            "name a workload that is in this repository, as in --workload my_train.py:build"
        )


def _source_of(name: str, roots: list[Path]) -> Path | None:
    """The file of a module, if the checkout has one of that name."""
    first, *rest = name.split(".")
    for root in roots:
        if _has(root, first):
            stem = root.joinpath(first, *rest)
            for source in (stem / "__init__.py", stem.with_name(f"{stem.name}.py")):
                if source.exists():
                    return source
    return None


@functools.cache
def _has(root: Path, package: str) -> bool:
    return (root / package).is_dir() or (root / f"{package}.py").exists()


def _up_to_top(directory: Path) -> Iterator[Path]:
    """From where a side works up to its checkout's top."""
    for folder in (directory, *directory.parents):
        yield folder
        if (folder / ".git").exists():
            return
