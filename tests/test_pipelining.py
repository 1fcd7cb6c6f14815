"""A model in stages, each in a process of its own, as a scenario."""

from pathlib import Path

import pytest

from stepmark import Plan, Result, Scenario
from stepmark.ceilings import Ceiling, Ceilings
from stepmark.probes.timing import phase_order
from stepmark.result import Outcome
from stepmark.runner import Runner

PLAN = Plan(steps=4, max_seconds=1)
STAGES = {"device": "cpu", "batch_size": 2, "accumulation": 2, "threads": 1, "pipeline_stages": 2}


@pytest.fixture(scope="module")
def measured() -> dict[str, Result]:
    with Runner() as runner:
        return {
            name: runner.run(Scenario(workload=workload, **{**STAGES, **axes}), PLAN)
            for name, workload, axes in (
                ("stages", "mlp-toy", {}),
                ("whole", "mlp-toy", {"pipeline_stages": 1}),
                ("cannot", "torchvision:resnet18?size=32", {}),
                ("dying", f"{Path(__file__)}:dying", {}),
                ("random", f"{Path(__file__)}:twins", {}),
                ("random, workers", f"{Path(__file__)}:twins", {"num_workers": 1}),
            )
        }


def twins() -> object:
    """Samples drawn at random whose targets are their inputs, and layers that change nothing."""
    import torch
    from torch import nn

    from stepmark import Workload

    class Twins(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
        def __len__(self) -> int:
            return 64

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            inputs = torch.randn(4)
            return inputs, inputs

    layers = [nn.Linear(4, 4, bias=False) for _ in range(2)]
    for layer in layers:
        nn.init.eye_(layer.weight)
    return Workload(
        model=nn.Sequential(*layers),
        dataset=Twins(),
        loss_fn=nn.MSELoss(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )


def dying() -> object:
    """A workload whose last stage dies in the second step."""
    import os

    from torch import nn

    from stepmark.workloads.articles import mlp_toy

    class Last(nn.Linear):
        num_calls = 0

        def forward(self, inputs: object) -> object:
            self.num_calls += 1
            if self.num_calls > 5:
                os._exit(3)
            return super().forward(inputs)  # type: ignore[arg-type]

    import dataclasses

    return dataclasses.replace(
        mlp_toy(), model=nn.Sequential(nn.Linear(2, 3), Last(3, 2)), stages=None
    )


def test_every_stage_has_a_record_and_a_part_of_the_model(measured: dict[str, Result]) -> None:
    result = measured["stages"]
    assert result.outcome is Outcome.OK, result.detail
    sizes = [
        next(r.value for r in rank.readings if r.name == "stage_parameters")
        for rank in result.ranks
    ]
    assert len(sizes) == 2
    assert sum(size for size in sizes if size) == 2 * 30 + 30 + 30 * 20 + 20 + 20 * 2 + 2
    for rank in result.ranks:
        assert rank.phases.forward_s > 0
        assert rank.phases.backward_s > 0
        assert rank.window.num_steps == 4


@pytest.mark.parametrize("name", ["random", "random, workers"])
def test_inputs_of_the_first_stage_and_targets_of_the_last_belong_together(
    measured: dict[str, Result], name: str
) -> None:
    """Also where samples are drawn: they would differ by 1, and more, on the average."""
    result = measured[name]
    assert result.outcome is Outcome.OK, result.detail
    last = result.ranks[-1]
    assert (last.first_loss, last.final_loss) == (0.0, 0.0)


def test_samples_of_a_step_do_not_multiply_with_the_stages(measured: dict[str, Result]) -> None:
    result = measured["stages"]
    window_s = max(rank.window.window_s for rank in result.ranks)
    assert result.samples_per_s == pytest.approx(2 * 2 * 4 / window_s)


def test_the_loss_is_the_last_stages_and_that_of_the_whole_model(
    measured: dict[str, Result],
) -> None:
    stages, whole = measured["stages"], measured["whole"]
    first, last = stages.ranks
    assert (first.first_loss, first.final_loss) == (None, None)
    assert last.first_loss == pytest.approx(whole.ranks[0].first_loss, rel=1e-5)
    assert stages.row()["final_loss"] == last.final_loss


def test_what_ddp_alone_has_is_not_measured_of_stages(measured: dict[str, Result]) -> None:
    names = {r.name for rank in measured["stages"].ranks for r in rank.readings}
    assert not names & {"free_step", "ddp_sync", "straggler_skew", "all_reduce_bytes_per_step"}
    assert "flops_per_step" in names


def test_operations_are_those_of_the_whole_model(measured: dict[str, Result]) -> None:
    found = [measured[name].row()["flops_per_step"] for name in ("stages", "whole")]
    assert found[0] == found[1] is not None


def test_a_model_that_cannot_be_parted_is_skipped_with_the_way_out(
    measured: dict[str, Result],
) -> None:
    result = measured["cannot"]
    assert result.outcome is Outcome.SKIPPED
    assert "ResNet cannot be parted by itself" in result.reason
    assert "Workload(stages=...)" in result.reason


def test_a_stage_that_dies_is_named(measured: dict[str, Result]) -> None:
    result = measured["dying"]
    assert result.outcome is Outcome.FAILED
    assert "rank 1 ended with exit code 3" in result.reason


def test_phases_of_stages_are_over_all_micro_batches() -> None:
    scenario = Scenario(workload="mlp-toy", **{**STAGES, "accumulation": 4})
    assert phase_order(scenario) == [
        "other", "data_wait", "h2d", "forward", "backward", "optimizer",
    ]  # fmt: skip


def test_ceilings_are_those_of_all_processes() -> None:
    items = tuple(
        Ceiling(name="compute", unit="flop/s", value=v, device="cpu", precision="fp32", threads=t)
        for t, v in ((1, 1e9), (2, 2e9))
    )
    known = Ceilings(hardware={}, software={}, measured_at="2026-01-02", items=items)
    scenario = Scenario(workload="mlp-toy", **STAGES)
    assert known.compute(scenario, num_threads=1) == 2e9
