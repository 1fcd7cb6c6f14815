"""What a Python file defines, read from its syntax alone: nothing in it is run."""

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stepmark.errors import WorkloadError


@dataclass(frozen=True, kw_only=True)
class Definitions:
    """The top-level names of one file.

    Attributes:
        functions: functions defined at top level (also under ``if`` and ``try``), each with the
            names that can be given to it as keywords, or ``None`` where the syntax does not tell.
        names: every name that the file may bind: functions, classes, imports, assignments.
        open_ended: it may bind more than its syntax shows (star imports, ``globals()``).
    """

    functions: dict[str, list[str] | None]
    names: frozenset[str]
    open_ended: bool


def read_definitions(path: Path) -> Definitions:
    """Parse one file.

    Raises:
        WorkloadError: it cannot be read, or is not Python.
    """
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read: {error.strerror}") from error
    except SyntaxError as error:
        raise WorkloadError(f"{path}, line {error.lineno}: {error.msg}") from error
    except ValueError as error:  # Python 3.11 on null bytes
        raise WorkloadError(f"{path}: {error}") from error
    bound = list(_bindings(tree))
    num_bound = Counter(name for name, _ in bound)
    functions = {
        name: _keyword_names(node) if num_bound[name] == 1 else None
        for name, node in bound
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    names = set(num_bound)
    mentioned = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            names.update(node.names)
    return Definitions(
        functions=functions,
        names=frozenset(names),
        open_ended=bool({"*", "__getattr__"} & names or {"globals", "exec"} & mentioned),
    )


def _keyword_names(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str] | None:
    if function.decorator_list or function.args.kwarg:
        return None
    return [argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)]


def _bindings(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Names bound below a node with the node that binds them, not inside functions or classes."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield child.name, child
            continue
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            for alias in child.names:
                yield alias.asname or alias.name.partition(".")[0], child
        elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            yield child.id, child
        yield from _bindings(child)
