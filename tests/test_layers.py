"""Who may import whom, read from the source; and what an import pulls in, in a fresh Python."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "stepmark"

# A module imports from its own row and from those below it, never from above.
ROWS = (
    ("units", "columns", "stats", "errors", "console", "codec", "fingerprint", "choices"),
    (
        "scenario",
        "record",
        "result",
        "trace",
        "profile",
        "advice",
        "training",
        "store",
        "known",
        "ceilings",
        "workload",
    ),
    (
        "workloads",
        "data",
        "loading",
        "machine",
        "devices",
        "nvml",
        "loop",
        "recipe",
        "parts",
        "pipelining",
        "windows",
        "probes",
        "compare",
    ),
    (
        "runner",
        "session",
        "preparing",
        "measurement",
        "building",
        "trainer",
        "compiling",
        "place",
        "switches",
        "profiling",
        "calibration",
        "advising",
        "suite",
        "gate",
        "report",
    ),
    ("cli", "pytest_plugin"),
    ("__main__",),
)
ROW_OF = {module: number for number, row in enumerate(ROWS) for module in row}
WITHOUT_TORCH = ("compare", "report", "trace", "profile", "training", "advice", "nvml")


def modules() -> list[Path]:
    # The package's own __init__ names all of it, lazily; it stands outside the rows.
    return sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def room(path: Path) -> str:
    """The module, or the package, right below ``stepmark`` that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(node: ast.AST) -> Iterator[str]:
    """Full names that an import statement may load: ``from a import b`` may mean ``a.b``."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute in this package"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_rooms(path: Path) -> set[str]:
    names = [n for node in ast.walk(ast.parse(path.read_text())) for n in imported(node)]
    return {name.split(".")[1] for name in names if name.startswith("stepmark.")}


def imports_at_run_time(tree: ast.AST) -> Iterator[str]:
    """As `imported` for a whole file, lazy imports too, but not those for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield from imported(node)
        yield from imports_at_run_time(node)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_imports_only_from_its_own_row_and_below(path: Path) -> None:
    assert room(path) in ROW_OF, f"give {room(path)!r} its place in ROWS"
    for other in imported_rooms(path) & set(ROW_OF):
        assert ROW_OF[other] <= ROW_OF[room(path)], f"{path}: imports {other!r}, which is above it"


def test_rooms_do_not_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in modules():
        graph.setdefault(room(path), set()).update(imported_rooms(path) & set(ROW_OF))
    for name, others in graph.items():
        others.discard(name)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which shows the circle


def test_comparing_and_reporting_import_torch_nowhere_not_even_lazily() -> None:
    reached = {name for name in WITHOUT_TORCH if any(room(path) == name for path in modules())}
    assert reached, "neither compare nor report is there"
    while True:
        files = [path for path in modules() if room(path) in reached]
        further = reached.union(*map(imported_rooms, files)) & set(ROW_OF)
        if further == reached:
            break
        reached = further
    for path in files:
        loads = {name.split(".")[0] for name in imports_at_run_time(ast.parse(path.read_text()))}
        assert not loads & {"torch", "torchvision"}, path


def loaded_by(statement: str, *packages: str) -> str:
    """Which of the packages a fresh Python has loaded after the statement."""
    code = f"{statement}; import sys; print(*[p for p in {packages} if p in sys.modules])"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return process.stdout.strip()


@pytest.mark.parametrize(
    "module",
    [
        "stepmark",
        "stepmark.scenario",
        "stepmark.store",
        "stepmark.workload",
        "stepmark.machine",
        *(f"stepmark.{name}" for name in WITHOUT_TORCH),
    ],
)
def test_importing_it_leaves_torch_out(module: str) -> None:
    name = module.partition(".")[2]
    if name and not (SOURCE / f"{name}.py").is_file() and not (SOURCE / name).is_dir():
        pytest.skip(f"{module} is not written yet")
    assert loaded_by(f"import {module}", "torch", "torchvision") == ""


def test_importing_the_package_alone_leaves_the_heavy_packages_out() -> None:
    heavy = ("numpy", "pandas", "matplotlib", "torch", "torchvision")
    assert loaded_by("import stepmark", *heavy) == ""


def test_public_names_that_need_no_torch_do_not_load_it() -> None:
    statement = (
        "from stepmark import Outcome, Plan, Precision, Result, Scenario, Workload, matrix; "
        "from stepmark import StepmarkError"
    )
    assert loaded_by(statement, "torch", "pandas") == ""


def test_every_public_name_is_where_the_package_says() -> None:
    import stepmark

    assert sorted(stepmark._HOMES) == sorted(stepmark.__all__)
    for name in stepmark.__all__:
        assert getattr(stepmark, name).__module__.startswith(stepmark._HOMES[name])
    with pytest.raises(AttributeError, match="no attribute 'mesure'"):
        _ = stepmark.mesure
