"""Scenarios under the profiler: traces, breakdowns and ledgers of real processes."""

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import stepmark
from factories import make_profile
from torch import Tensor, nn

from stepmark.devices import BACKENDS
from stepmark.devices.base import DeviceMemory
from stepmark.loop import Training, train
from stepmark.probes.ledger import HeldMemory, MakeOptimizer, predicted_state
from stepmark.profile import Holding, summarize
from stepmark.result import Outcome
from stepmark.store import open_run
from stepmark.trace import attribute, break_down, read_trace
from stepmark.trace.attribution import OUTSIDE

MLP = ("--workload", "mlp-fashion-mnist", "--device", "cpu", "--threads", "1")
BRIEF = ("--steps", "5", "--max-seconds", "0.5")


def ledger(
    model: nn.Module,
    make_optimizer: MakeOptimizer,
    inputs: Tensor,
    *,
    accumulation: int = 1,
    device: Any = None,
) -> dict[str, Holding]:
    """Of one step of that model."""
    device = device or BACKENDS["cpu"].open(0)
    optimizer = make_optimizer(model.parameters())
    training = Training(
        model=model,
        loss=lambda model, batch: model(batch).square().mean(),
        optimizer=optimizer,
        to_device=lambda batch: batch,
        accumulation=accumulation,
    )
    train(training, iter([inputs] * accumulation), range(1))  # optimizers make their state now
    held = HeldMemory(model, optimizer, make_optimizer, device)
    with held.watching():
        train(training, iter([inputs] * accumulation), range(1), [held])
    return {holding.name: holding for holding in held.holdings()}


def sgd(momentum: float) -> MakeOptimizer:
    return lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=momentum)


PARAMETERS = 4 * (300 * 200 + 200)


@pytest.mark.parametrize(
    ("make_optimizer", "state_bytes"),
    [
        (sgd(0.0), 0),
        (sgd(0.9), PARAMETERS),
        (torch.optim.Adagrad, PARAMETERS + 2 * 4),  # and a step count for each parameter
        (torch.optim.RMSprop, PARAMETERS + 2 * 4),
        (torch.optim.Adam, 2 * PARAMETERS + 2 * 4),
        (lambda p: torch.optim.AdamW(p, amsgrad=True), 3 * PARAMETERS + 2 * 4),
    ],
    ids=["sgd", "momentum", "adagrad", "rmsprop", "adam", "amsgrad"],
)
def test_what_parameters_gradients_and_optimizer_hold_is_known_beforehand(
    make_optimizer: MakeOptimizer, state_bytes: int
) -> None:
    found = ledger(nn.Linear(300, 200), make_optimizer, torch.ones(50, 300))
    for name, expected in (
        ("parameters", PARAMETERS),
        ("gradients", PARAMETERS),
        ("optimizer state", state_bytes),
        ("buffers", 0),
    ):
        assert found[name].predicted_bytes == expected, name
        assert found[name].measured_bytes == expected, name


def test_frozen_and_shared_parameters_count_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    model[1].weight = model[0].weight
    frozen = nn.Sequential(nn.Linear(64, 64, bias=False), model, nn.BatchNorm1d(64))
    frozen[0].weight.requires_grad = False
    found = ledger(frozen, torch.optim.Adam, torch.ones(8, 64))
    weight, norm = 4 * 64 * 64, 4 * 64
    assert found["parameters"].measured_bytes == 2 * weight + 2 * norm
    assert found["gradients"].measured_bytes == weight + 2 * norm
    assert found["optimizer state"].measured_bytes == 2 * (weight + 2 * norm) + 3 * 4
    assert found["buffers"].measured_bytes == 2 * norm + 8, "and the count of batches"
    for name in ("parameters", "gradients", "optimizer state", "buffers"):
        assert found[name].predicted_bytes == found[name].measured_bytes


def test_activations_are_what_forward_saves_for_backward() -> None:
    """Inputs of both layers and the rectifier's outcome, which is one of them; squares' input."""
    model = nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 20))
    found = ledger(model, sgd(0.0), torch.ones(32, 100))
    assert found["activations"].measured_bytes == 4 * 32 * (100 + 50 + 20)
    twice = ledger(model, sgd(0.0), torch.ones(32, 100), accumulation=2)
    assert twice["activations"] == found["activations"], "one micro-batch at a time"


def test_an_optimizer_that_cannot_be_predicted_says_why() -> None:
    class Own(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.sum().item() != math.inf:
                        parameter.data.sub_(parameter.grad)

    found = ledger(nn.Linear(4, 4), lambda p: Own(p, lr=0.1), torch.ones(2, 4))
    assert found["optimizer state"].predicted_bytes is None
    assert found["optimizer state"].note.startswith("not predicted: ")
    assert found["optimizer state"].measured_bytes == 0


def test_an_optimizer_with_groups_made_from_the_model_itself_is_predicted() -> None:
    model = nn.Linear(8, 8)
    before = model.weight.detach().clone()
    groups = [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.1}]
    found = ledger(model, lambda _: torch.optim.Adam(groups), torch.ones(2, 8))
    assert found["optimizer state"].predicted_bytes == 2 * 4 * (64 + 8) + 2 * 4
    assert found["optimizer state"].measured_bytes == 2 * 4 * (64 + 8) + 2 * 4
    assert not torch.equal(model.weight, before), "it is trained all the same"


def test_predicting_an_optimizer_leaves_the_model_as_it_is() -> None:
    model = nn.Linear(8, 8)
    before = copy.deepcopy(model.state_dict())
    groups: list[Any] = [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.1}]
    trained = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    state_bytes, _ = predicted_state(
        model.parameters(), lambda _: torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    )
    assert state_bytes == 4 * (64 + 8)
    assert trained.param_groups[0]["params"] == [model.weight], "even where they share their groups"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_optimizer_over_parameters_that_are_not_the_models_is_not_predicted() -> None:
    model, other = nn.Linear(8, 8), nn.Linear(8, 8)
    found = ledger(
        model,
        lambda params: torch.optim.Adam([*params, *other.parameters()]),
        torch.ones(2, 8),
    )
    assert found["optimizer state"].predicted_bytes is None
    assert "not the model's" in found["optimizer state"].note


def test_sparse_gradients_count_as_what_they_hold() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.Embedding(1000, 16, sparse=True)

        def forward(self, batch: Tensor) -> Tensor:
            return self.bag(batch.long())

    found = ledger(Bag(), lambda p: torch.optim.SparseAdam(list(p)), torch.tensor([1, 2, 3]))
    assert found["gradients"].measured_bytes == 3 * 16 * 4 + 3 * 8


def test_the_peak_has_what_is_there_at_its_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward peaks at 5 MB, backward at 7, the update at 6: gradients are not there yet."""
    device = BACKENDS["cpu"].open(0)
    peaks = iter([5_000_000, 7_000_000, 6_000_000])
    memory = [
        DeviceMemory(peak_allocated_bytes=peak, peak_reserved_bytes=8_000_000) for peak in peaks
    ]
    found_memory = iter([*memory, DeviceMemory()])
    monkeypatch.setattr(device, "memory", lambda: next(found_memory))
    found = ledger(nn.Linear(300, 200), torch.optim.Adam, torch.ones(50, 300), device=device)
    assert not found["gradients"].at_peak
    assert found["gradients"].note == "not held at the peak, in backward"
    assert found["activations"].at_peak
    held = [h.measured_bytes or 0 for h in found.values() if h.at_peak]
    assert sum(held[:-1]) == 7_000_000
    assert sum(held) == 8_000_000


def test_what_an_accelerator_holds_beyond_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    device = BACKENDS["cpu"].open(0)
    memory = DeviceMemory(
        peak_allocated_bytes=10_000_000, peak_reserved_bytes=12_000_000, in_use_bytes=500_000_000
    )
    monkeypatch.setattr(device, "memory", lambda: memory)
    found = ledger(nn.Linear(300, 200), torch.optim.Adam, torch.ones(50, 300), device=device)
    assert list(found)[-3:] == ["workspace and the rest", "cached", "context and others"]
    sizes = [holding.measured_bytes or 0 for holding in found.values() if holding.at_peak]
    assert sum(sizes[:-2]) == 10_000_000, "allocated"
    assert sum(sizes[:-1]) == 12_000_000, "reserved"
    assert sum(sizes) == 500_000_000, "in use"


def profiled(folder: Path, *words: str) -> dict[str, Any]:
    done = stepmark("profile", *words, *BRIEF, "--save", "p", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    data: dict[str, Any] = json.loads(done.stdout)
    return data


def test_a_profile_sums_to_wall_time_and_is_kept(tmp_path: Path) -> None:
    found = profiled(tmp_path, *MLP, "--batch-size", "16", "--accumulation", "2")
    parts = ("compute_s", "exposed_comm_s", "memcpy_s", "idle_s")
    for span in (found, *found["steps"]):
        assert sum(span[part] for part in parts) == pytest.approx(span["wall_s"], abs=1e-12)
    assert sum(step["wall_s"] for step in found["steps"]) == pytest.approx(found["wall_s"])
    assert [phase["name"] for phase in found["phases"]] == [
        "data_wait", "h2d", "forward", "backward", "optimizer", "other",
    ]  # fmt: skip
    phases_s = sum(phase["host_s"] for phase in found["phases"])
    assert phases_s == pytest.approx(found["wall_s"], abs=1e-9)
    # The trace is one of torch.profiler's, and says the same.
    trace = read_trace(tmp_path / found["trace"])
    assert dataclasses.asdict(break_down(trace))["wall_s"] == found["wall_s"]
    operators = attribute(trace).operators
    assert OUTSIDE in {operator.name for operator in operators}
    assert sum(o.host_s for o in operators) == pytest.approx(found["wall_s"], rel=0.02)
    run = open_run("p", tmp_path / "results")
    (result,), (profile,) = run.results, run.profiles
    assert result.samples_per_s
    assert profile.scenario == result.scenario
    (rank,) = profile.ranks
    assert rank.num_steps == len(found["steps"])
    assert rank.profiled_step_s == pytest.approx(found["wall_s"] / rank.num_steps, rel=0.25)
    assert rank.overhead > 0.5
    assert {holding.name for holding in rank.ledger} >= {"parameters", "activations"}
    listed = stepmark("profile", "--trace", found["trace"], cwd=tmp_path)
    assert listed.returncode == 0
    assert "forward" in listed.stdout


def test_two_ranks_show_what_exchanging_gradients_exposes(tmp_path: Path) -> None:
    found = profiled(tmp_path, *MLP, "--world-size", "2", "--batch-size", "8")
    assert found["comm_s"] > 0
    assert found["exposed_comm_s"] > 0
    assert len(found["ranks"]) == 2
    for rank, total in zip(found["ranks"], found["totals"], strict=True):
        trace = read_trace(tmp_path / "results" / "p" / "profiles" / rank["trace"])
        assert break_down(trace).wall_s == total["wall_s"]
        assert total["exposed_comm_s"] > 0
    shown = stepmark("profile", *MLP, *BRIEF, "--world-size", "2", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    ranks = shown.stdout.split("rank  profiled step")[1].splitlines()[1:3]
    assert [line.split()[0] for line in ranks] == ["0", "1"]


BIG = """
import torch
from stepmark import Workload
class Big(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
    def forward(self, batch):
        return self.scale * torch.ones(16 << 20)
def build():
    return Workload(
        model=Big(),
        dataset=torch.utils.data.TensorDataset(torch.zeros(64, 1), torch.zeros(64)),
        compute_loss=lambda model, batch: model(batch).mean(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
"""


def test_memory_over_a_step_has_what_forward_and_backward_hold(tmp_path: Path) -> None:
    """Forward has 64 MiB of ones and as much of products; backward holds ones and gradients."""
    (tmp_path / "big.py").write_text(BIG)
    words = ("--workload", "big.py:build", "--device", "cpu", "--threads", "1")
    timeline = profiled(tmp_path, *words)["timeline"]
    levels = dict(zip(timeline["at_s"], timeline["allocated_bytes"], strict=True))
    forward, backward = (
        next(p for p in timeline["phases"] if p["name"] == name) for name in ("forward", "backward")
    )

    def highest(phase: Any) -> int:
        return max(v for at, v in levels.items() if phase["start_s"] <= at < phase["end_s"])

    mib = 1 << 20
    assert 128 * mib <= highest(forward) < 130 * mib
    assert 128 * mib <= highest(backward) < 260 * mib
    assert list(levels.values())[-1] < mib
    assert timeline["reserved_bytes"] == []


def test_the_text_names_what_to_open(tmp_path: Path) -> None:
    done = stepmark("profile", *MLP, *BRIEF, "--num-workers", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "samples/s without the profiler" in done.stdout
    assert "optimizer state" in done.stdout
    assert "times the one without" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("trace: ")]
    assert (tmp_path / line.removeprefix("trace: ")).is_file()


def test_what_cannot_be_measured_is_not_profiled(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def build(): raise ValueError('no')")
    done = stepmark("profile", "--workload", "bad.py:build", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 1
    assert "failed: " in done.stderr
    assert "ValueError: no" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no workload: give --workload"),
        ((*MLP, "--batch-size", "8,16"), "profile: these axes make 2 scenarios"),
        (("--trace", "x.json", *MLP), "--trace has its steps already"),
        (("--trace", "x.json"), "x.json: cannot be read"),
        ((*MLP, "--save", "../x"), "name '../x'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_usage_is_one_line_and_exit_code_2(
    tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    done = stepmark("profile", *words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_trace_that_is_gone_is_a_failed_profile(tmp_path: Path) -> None:
    found = dataclasses.replace(make_profile(), totals=(), attribution=None)
    lost = summarize(found, tmp_path)
    assert lost.outcome is Outcome.FAILED
    assert "mlp.rank0.trace.json.gz: cannot be read" in lost.reason
    assert lost.ranks == ()
