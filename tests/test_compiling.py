"""torch.compile: what is counted of it, and a compiled scenario in a process of its own."""

import re
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import scripted_workload
import torch
from factories import make_result, make_scenario
from scripted_workload import Script
from torch import Tensor, nn

from stepmark import Plan, Scenario, compiling, preparing, session
from stepmark.choices import CompileMode
from stepmark.cli import run_command
from stepmark.compiling import Compiler
from stepmark.devices import BACKENDS
from stepmark.devices.scripted import ScriptedDevice
from stepmark.errors import ObstacleError
from stepmark.place import Place
from stepmark.record import Reading
from stepmark.result import Outcome
from stepmark.runner import Runner
from stepmark.units import format_seconds

CPU = BACKENDS["cpu"].open(0)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiler]:
    """One that was not tried out, which takes seconds; models come with a backend of their own."""
    monkeypatch.setattr(compiling, "_wake", lambda device: 0.5)
    yield Compiler(CPU)
    torch._dynamo.reset()  # its listeners, too


class Breaking(nn.Module):
    """Says something on the way, which no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.linear(inputs)
        torch._dynamo.graph_break()
        return hidden.relu()


def readings(compiler: Compiler) -> dict[str, Reading]:
    return {reading.name: reading for reading in compiler.readings()}


def test_graphs_breaks_and_recompilations_are_counted(compiler: Compiler) -> None:
    model = torch.compile(Breaking(), backend="eager", dynamic=False)
    model(torch.ones(2, 3))
    found = readings(compiler)
    assert found["compiled_graphs"].value == 2
    assert found["graph_breaks"].value == 1
    assert found["graph_breaks"].note.startswith("the first: ")
    assert found["recompilations"].value == 0
    model(torch.ones(5, 3))
    assert readings(compiler)["recompilations"].value == 2  # what is before the break, and after


def test_time_is_counted_while_something_is_compiled_and_not_else(compiler: Compiler) -> None:
    model = torch.compile(nn.Sequential(nn.Linear(3, 3)), backend="eager")
    assert readings(compiler)["compile_time"].value == 0
    model(torch.ones(2, 3))
    once = readings(compiler)["compile_time"].value
    assert once is not None
    assert once > 0
    assert compiler.take_new() == 1
    model(torch.ones(2, 3))
    assert compiler.take_new() == 0
    assert readings(compiler)["compile_time"].value == once
    assert readings(compiler)["compiler_start"].value == 0.5


def test_a_machine_that_cannot_compile_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("No working C++ compiler found\n\nmore lines")

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.raises(ObstacleError) as caught:
        Compiler(CPU)
    assert str(caught.value) == "torch.compile does not work here: No working C++ compiler found"


def test_memory_that_runs_out_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.raises(torch.OutOfMemoryError):
        Compiler(CPU)


class _Busy:
    """A compiler that compiles something whenever it is asked."""

    def __init__(self, device: Any) -> None:
        self.num_rests = 0

    def compiled(self, model: nn.Module, mode: CompileMode) -> nn.Module:
        return model

    def rest(self) -> None:
        self.num_rests += 1

    def take_new(self) -> int:
        return 1

    def readings(self) -> list[Reading]:
        return []


def test_a_window_in_which_something_was_compiled_is_unfit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "Compiler", _Busy)
    monkeypatch.setattr(scripted_workload, "SCRIPT", Script(forward_s=0.05))
    device = ScriptedDevice(scripted_workload.SCRIPT.clock)
    place = Place(rank=0, device=device, threads=1, requested_s=0.0)
    scenario = Scenario(
        workload="scripted_workload:build", device="cpu", batch_size=4, compile=CompileMode.DEFAULT
    )
    record = session.run(scenario, Plan(steps=3), place, lambda stage, rate: None)
    assert record.unfit == (session.COMPILED_INSIDE,)


def test_a_compiled_scenario_leaves_neither_processes_nor_files() -> None:
    # Trying each vector unit takes seconds, and is torch's own.
    with Runner(environment={"TORCHINDUCTOR_VEC_ISA_OK": "1"}) as runner:
        scenario = Scenario(workload="mlp-mse", device="cpu", compile=CompileMode.DEFAULT)
        result = runner.run(scenario, Plan(steps=5, max_seconds=1))
        assert result.outcome is Outcome.OK, result.detail
        host = runner._host
        assert host is not None
        left = psutil.Process(host._process.pid).children(recursive=True)  # type: ignore[union-attr]
        assert not [p for p in left if "compile_worker" in " ".join(p.cmdline())]
        assert not [path for path in host.folder.rglob("*") if path.name.endswith(".compiled")]
    (record,) = result.ranks
    found = {reading.name: reading.value for reading in record.readings}
    compile_s, start_s = found["compile_time"], found["compiler_start"]
    assert compile_s is not None
    assert start_s is not None
    assert 0 < compile_s < record.startup.total_s
    assert 0 < start_s < record.startup.build_s
    assert found["compiled_graphs"] == 1
    assert found["graph_breaks"] == 0
    assert not record.unfit
    # Counted on the model as it was before it was compiled.
    assert found["flops_per_step"]


def test_the_table_of_a_run_shows_first_steps_where_something_is_compiled(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain, compiled = make_result(), make_result(make_scenario(compile="default"))
    run_command.print_table([plain])
    assert "first step" not in capsys.readouterr().out
    run_command.print_table([plain, compiled])
    header, first, second, *_ = capsys.readouterr().out.splitlines()
    assert re.split("  +", header)[-2:] == ["first step", "outcome"]
    wanted = [format_seconds(r.row()["first_step_s"]) for r in (plain, compiled)]
    assert [re.split("  +", line)[-2:] for line in (first, second)] == [[w, "ok"] for w in wanted]
