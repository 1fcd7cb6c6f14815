"""The options behind a workload's name, as keyword arguments of the function that builds it."""

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

from stepmark.errors import WorkloadError, suggestion
from stepmark.workloads.spec import Target

# Annotations that an option is checked against; any other takes the value as it was read.
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
}


def check_option_names(target: Target, allowed: list[str] | None) -> None:
    """Refuse options that are not allowed; ``None`` allows any.

    Raises:
        WorkloadError: one is not.
    """
    for option in target.options:
        if allowed is not None and option not in allowed:
            raise WorkloadError(
                f"{target.address}: no option {option!r}{suggestion(option, allowed)}; "
                f"its options: {', '.join(allowed) or 'none'}"
            )


def keyword_arguments(
    target: Target, function: Callable[..., Any], arguments: tuple[str, ...]
) -> dict[str, Any]:
    """Read each option by the annotation of its parameter: a number, truth value or text.

    Args:
        target: whose options.
        function: what they are for.
        arguments: the positional arguments it will be called with.

    Raises:
        WorkloadError: an option is unknown, missing or of the wrong type.
    """
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # some callables written in C have none
        return {name: _read_value(text) for name, text in target.options.items()}
    parameters = signature.parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        check_option_names(target, [p.name for p in parameters if p.kind in by_keyword])
    keywords: dict[str, Any] = {}
    for name, text in target.options.items():
        parameter = signature.parameters.get(name)
        keywords[name] = _typed_value(target, name, text, parameter and parameter.annotation)
    try:
        signature.bind(*arguments, **keywords)
    except TypeError as error:
        raise WorkloadError(f"{target.address}: {error}; give it as ?key=value") from error
    return keywords


def _typed_value(target: Target, name: str, text: str, annotation: Any) -> Any:
    # Annotations may be strings, and evaluating them may need names that exist for type
    # checkers alone; the scalar kinds are told by their names.
    kind = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    kind = kind.removesuffix(" | None")
    value = text if kind == "str" else _read_value(text)
    if kind in _KINDS:
        allowed, words = _KINDS[kind]
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise WorkloadError(f"{target.address}: {name}={text!r} must be {words}")
    return value


def _read_value(text: str) -> int | float | bool | str:
    """A number or truth value where the text is one, otherwise the text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for read in (int, float):
        with contextlib.suppress(ValueError):
            return read(text)
    return text
