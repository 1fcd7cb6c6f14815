"""From a workload's name to the function that builds it."""

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

from stepmark.errors import UsageError, WorkloadError, suggestion
from stepmark.workload import Workload
from stepmark.workloads.options import check_option_names, keyword_arguments
from stepmark.workloads.source import Definitions, read_definitions
from stepmark.workloads.spec import Target, parse

_REGISTERED_MODEL = re.compile(r"^@register_model\(.*?^def (\w+)", re.MULTILINE | re.DOTALL)
_LONGEST_CAUSE = 400  # characters; the whole of it stays in the chained exception


def check(spec: str) -> None:
    """Find mistakes in a workload's name without importing it, or torch.

    Raises:
        WorkloadError: there is no such workload, file, module, function, model or option.
    """
    _check(parse(spec))


def load(spec: str) -> Callable[[], Workload]:
    """Import a workload's module and return a function that builds the workload.

    The directory of a file, or the current directory for a module, goes on ``sys.path`` as it
    would for a script. A file becomes a module under its own stem, so that its objects can be
    pickled to loader workers; if that name is taken, under another one that workers which do
    not fork cannot import.

    Raises:
        WorkloadError: see `check`; the import raises; an option is of the wrong type. The
            returned function raises it if building raises or gives no `Workload`.
    """
    target = parse(spec)
    _check(target)
    with _as_workload_error(f"{target.file or target.module}: its import"):
        module = _import(target)
    function = getattr(module, target.function, None)
    if not callable(function):
        found = "defines no such name" if function is None else f"is a {type(function).__name__}"
        raise WorkloadError(f"{target.address}: {found}; name a function that builds a Workload")
    arguments = () if target.model is None else (target.model,)
    keywords = keyword_arguments(target, function, arguments)

    def build() -> Workload:
        with _as_workload_error(target.address):
            workload = function(*arguments, **keywords)
        if not isinstance(workload, Workload):
            raise WorkloadError(
                f"{target.address} returned {type(workload).__name__}: "
                "it must return a stepmark.Workload"
            )
        return workload

    return build


def _check(target: Target) -> None:
    importlib.invalidate_caches()
    if target.file is not None:
        source: Path | None = target.file
        try:
            found = target.file.is_file()
        except OSError as error:  # too long for a name, most likely
            raise WorkloadError(f"{target.address}: {error.strerror}") from None
        if not found:
            raise WorkloadError(f"{target.address}: no file {target.file.absolute()}")
        if target.file.suffix != ".py":
            raise WorkloadError(f"{target.address}: {target.file} is not a .py file")
    else:
        source = _find_module_source(target)
    if target.model is not None:
        known = _torchvision_classifiers()
        # None known: this torchvision registers them otherwise, and says itself what is wrong.
        if known and target.model not in known:
            raise WorkloadError(
                f"{target.address}: torchvision has no classifier {target.model!r}"
                f"{suggestion(target.model, known)}"
            )
    if source is not None:
        _check_definitions(target, read_definitions(source))


def _check_definitions(target: Target, definitions: Definitions) -> None:
    name = target.function
    if name not in definitions.names and not definitions.open_ended:
        functions = [f for f in definitions.functions if not f.startswith("_")]
        raise WorkloadError(
            f"{target.address}: defines no {name!r}{suggestion(name, definitions.names)}; "
            f"its functions: {', '.join(functions) or 'none'}"
        )
    check_option_names(target, definitions.functions.get(name))


def _find_module_source(target: Target) -> Path | None:
    """The file of a module, found without importing its packages; ``None`` if it has none."""
    if target.module in sys.modules:
        origin = getattr(sys.modules[target.module], "__file__", None)
    else:
        name, *rest = target.module.split(".")
        with _current_directory_on_path():
            try:
                found = importlib.util.find_spec(name)
            except ValueError:  # in sys.modules without a spec: made by hand, nowhere to be found
                found = None
        for part in rest:
            if found is None:
                break
            name = f"{name}.{part}"
            # find_spec() of a dotted name would import its parents, and with them torch.
            found = PathFinder.find_spec(name, found.submodule_search_locations or [])
        if found is None:
            raise WorkloadError(
                f"{target.address}: no module {name!r} in {Path.cwd()} or among the installed ones"
            )
        origin = found.origin
    return Path(origin) if origin and origin.endswith(".py") and Path(origin).is_file() else None


@contextlib.contextmanager
def _current_directory_on_path() -> Iterator[None]:
    before = sys.path[:]
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = before


@functools.cache
def _torchvision_classifiers() -> tuple[str, ...]:
    """Names of torchvision's classifiers, from its sources: asking it would import torch."""
    found = importlib.util.find_spec("torchvision")
    if found is None or not found.submodule_search_locations:
        raise WorkloadError("torchvision is not installed: pip install torchvision")
    models = Path(found.submodule_search_locations[0]) / "models"
    return tuple(
        name
        for path in sorted(models.glob("*.py"))
        for name in _REGISTERED_MODEL.findall(path.read_text(encoding="utf-8"))
    )


def _import(target: Target) -> ModuleType:
    if target.file is not None:
        return _import_file(target.file.resolve())
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return importlib.import_module(target.module)


def _import_file(path: Path) -> ModuleType:
    name, directory = path.stem, str(path.parent)
    taken = name in sys.stdlib_module_names or name in sys.modules
    if taken and not _is_file_of(sys.modules.get(name), path):
        name = f"{name}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        # Last, so that workers started afresh still find the other module of that name.
        if directory not in sys.path:
            sys.path.append(directory)
    elif sys.path[:1] != [directory]:
        sys.path.insert(0, directory)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _is_file_of(module: ModuleType | None, path: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).resolve() == path


@contextlib.contextmanager
def _as_workload_error(subject: str) -> Iterator[None]:
    """Turn whatever a workload's own code raises into a `WorkloadError` of one line.

    The code is anybody's, so any exception may come; it stays chained, with its traceback.
    A ``SystemExit`` is what a script raises that parses its arguments when imported.
    """
    try:
        yield
    except UsageError as error:
        raise WorkloadError(f"{subject}: {error}") from error
    except (Exception, SystemExit) as error:
        cause = textwrap.shorten(str(error), _LONGEST_CAUSE, placeholder=" ...")
        text = f"{subject} raised {type(error).__name__}: {cause}".removesuffix(": ")
        raise WorkloadError(text + _remedy(error)) from error


def _remedy(error: BaseException) -> str:
    """What to do about a package that is not there; nothing for other errors."""
    if not isinstance(error, ModuleNotFoundError) or not error.name or "." in error.name:
        return ""
    return f"; install it for {sys.executable}, or set PYTHONPATH to its folder"
