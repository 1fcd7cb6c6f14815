"""What a workload's name says: which function, where it lies, and with what options."""

from dataclasses import dataclass
from pathlib import Path

from stepmark.errors import WorkloadError, suggestion
from stepmark.workloads.registry import BUILTIN

_FORMS = (
    "give a built-in name, 'torchvision:NAME', 'package.module:function' "
    "or 'path/to/file.py:function'"
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A parsed workload name.

    Attributes:
        address: the name without its options; how messages call the workload.
        file: the source file; ``None`` where ``module`` is given.
        module: dotted module name; empty where ``file`` is given.
        function: name of the building function.
        model: ``NAME`` of ``torchvision:NAME``, the function's one positional argument.
        options: the function's keyword arguments, as text.
    """

    address: str
    file: Path | None = None
    module: str = ""
    function: str
    model: str | None = None
    options: dict[str, str]


def parse(spec: str) -> Target:
    """Take a workload name apart; whether anything is there is not looked at.

    Raises:
        WorkloadError: it has none of the known forms, or is no built-in name.
    """
    address, question, query = spec.strip().partition("?")
    options = _parse_options(spec, query) if question else {}
    place, colon, function = address.rpartition(":")
    if not colon:
        return _parse_builtin(address, options)
    if place == "torchvision":
        module, build = "stepmark.workloads.vision", "build"
        return Target(
            address=address, module=module, function=build, model=function, options=options
        )
    if not function.isidentifier():
        raise WorkloadError(f"{spec}: {function!r} is no function name; {_FORMS}")
    if place.endswith(".py") or "/" in place or "\\" in place:
        try:
            file = Path(place).expanduser()
        except RuntimeError:
            raise WorkloadError(f"{spec}: nobody here is called {Path(place).parts[0]!r}") from None
        return Target(address=address, file=file, function=function, options=options)
    if not all(part.isidentifier() for part in place.split(".")):
        raise WorkloadError(f"{spec}: {place!r} is neither a module nor a .py file; {_FORMS}")
    if place == "__main__":
        raise WorkloadError(
            f"{spec}: a fresh process measures, and its __main__ is another; "
            f"write path/to/file.py:{function}"
        )
    return Target(address=address, module=place, function=function, options=options)


def _parse_builtin(name: str, options: dict[str, str]) -> Target:
    if name.endswith(".py"):
        raise WorkloadError(f"{name}: which function of it? Write {name}:FUNCTION")
    if name not in BUILTIN:
        raise WorkloadError(
            f"{name!r}: no such built-in workload{suggestion(name, BUILTIN)}; "
            f"built in are {', '.join(BUILTIN)}; {_FORMS}"
        )
    module, _, function = BUILTIN[name].target.partition(":")
    return Target(address=name, module=module, function=function, options=options)


def _parse_options(spec: str, query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for item in query.split("&"):
        name, equals, value = item.partition("=")
        if not (name.isidentifier() and equals and value):
            raise WorkloadError(
                f"{spec}: option {item!r} must be written key=value, several as key=value&key=value"
            )
        if name in options:
            raise WorkloadError(f"{spec}: option {name!r} is given twice")
        options[name] = value
    return options
