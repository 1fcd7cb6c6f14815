"""What is planted in real processes comes back: waiting ranks, memory, precision, threads."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from stepmark import Outcome, Plan, Result, Scenario
from stepmark.runner import Runner

WORKLOAD = '''
import time
import torch
from stepmark import Workload


class Data(torch.utils.data.Dataset):
    def __init__(self, megabytes, own_megabytes):
        # Random: pages of zeros would never be backed by memory.
        self.blob = torch.rand(megabytes * 250_000)
        self.own_megabytes = own_megabytes
        self.own = None

    def __len__(self):
        return 512

    def __getitem__(self, index):
        if self.own is None:
            self.own = torch.rand(self.own_megabytes * 250_000)
        return torch.zeros(4), torch.zeros(1)


class Model(torch.nn.Module):
    def __init__(self, late_rank_s):
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)
        self.late_rank_s = late_rank_s

    def forward(self, inputs):
        ranks = torch.distributed.is_initialized()
        if ranks and torch.distributed.get_rank() == 1:
            time.sleep(self.late_rank_s)
        return self.linear(inputs)


class LateSGD(torch.optim.SGD):
    """Rank 1's clock runs beside rank 0's: it sleeps where no gradients are exchanged."""

    late_step_s = 0.0

    def step(self, closure=None):
        result = super().step(closure)
        if torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:
            time.sleep(self.late_step_s)
        return result


def build(
    late_rank_s=0.0, late_step_s=0.0, megabytes=1, own_megabytes=0, matmul="", threads=0
):
    if matmul:
        torch.set_float32_matmul_precision(matmul)
    if threads:
        torch.set_num_threads(threads)
    LateSGD.late_step_s = late_step_s
    return Workload(
        model=Model(late_rank_s),
        dataset=Data(megabytes, own_megabytes),
        loss_fn=torch.nn.MSELoss(),
        optimizer=lambda parameters: LateSGD(parameters, lr=0.01),
    )


def unused():
    model = Model(0.0)
    model.extra = torch.nn.Linear(4, 1)
    return Workload(
        model=model,
        dataset=Data(1, 0),
        loss_fn=torch.nn.MSELoss(),
        optimizer=lambda parameters: LateSGD(parameters, lr=0.01),
        find_unused_parameters=True,
    )
'''


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("truth") / "truth.py"
    path.write_text(WORKLOAD)
    return path


def run(runner: Runner, scenario: Scenario, plan: Plan | None = None) -> Result:
    result = runner.run(scenario, plan or Plan(steps=5, warmup=1, max_seconds=5, timeout=60))
    assert result.outcome is Outcome.OK, result.reason
    return result


def test_the_phases_shown_are_those_of_the_rank_that_the_others_wait_for(
    runner: Runner, workload: Path
) -> None:
    scenario = Scenario(
        workload=f"{workload}:build?late_rank_s=0.2", device="cpu", batch_size=4, world_size=2
    )
    result = run(runner, scenario)
    row = result.row()
    assert row["forward_s"] > 0.2
    # On the other rank it is backward that holds the waiting.
    assert row["backward_s"] < row["forward_s"] / 2
    # What all-reduce costs is not the waiting for the late rank.
    sync_s, skew = result.reading("ddp_sync"), result.reading("straggler_skew")
    assert sync_s is not None
    assert skew is not None
    assert sync_s < row["forward_s"] / 2
    assert skew > 2


def test_ranks_whose_windows_differ_in_length_still_end_together(
    runner: Runner, workload: Path
) -> None:
    # Rank 1's window is longer by its last sleep. From its own clock each rank would work out
    # another step at which to ask the other, and wait for an answer that never comes.
    scenario = Scenario(
        workload=f"{workload}:build?late_step_s=0.03", device="cpu", batch_size=4, world_size=2
    )
    run(runner, scenario, Plan(steps=22, warmup=1, max_seconds=5.6, timeout=40))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_dataset_in_memory_is_counted_once_however_many_workers_share_it(
    runner: Runner, workload: Path, num_workers: int
) -> None:
    grown = []
    for megabytes in (1, 301):
        scenario = Scenario(
            workload=f"{workload}:build?megabytes={megabytes}",
            device="cpu",
            batch_size=4,
            num_workers=num_workers,
        )
        grown.append(run(runner, scenario).row()["peak_host_bytes"])
    assert grown[1] - grown[0] == pytest.approx(300e6, rel=0.1)


def test_what_each_worker_holds_for_itself_is_counted_for_each(
    runner: Runner, workload: Path
) -> None:
    grown = []
    for own_megabytes in (0, 200):
        scenario = Scenario(
            workload=f"{workload}:build?own_megabytes={own_megabytes}",
            device="cpu",
            batch_size=4,
            num_workers=2,
        )
        grown.append(run(runner, scenario).row()["peak_host_bytes"])
    assert grown[1] - grown[0] == pytest.approx(400e6, rel=0.1)


def test_a_precision_that_the_workload_sets_is_set_back_and_told(
    runner: Runner, workload: Path
) -> None:
    scenario = Scenario(workload=f"{workload}:build?matmul=medium", device="cpu", batch_size=4)
    result = run(runner, scenario)
    assert result.ranks[0].settings["mkldnn.matmul.fp32_precision"] == "ieee"
    assert any("mkldnn.matmul.fp32_precision" in note for note in result.notes)


def test_threads_that_the_workload_sets_are_set_back_and_told(
    runner: Runner, workload: Path
) -> None:
    scenario = Scenario(
        workload=f"{workload}:build?threads=1", device="cpu", batch_size=4, threads=2
    )
    result = run(runner, scenario)
    assert result.ranks[0].num_threads == 2
    assert any("threads" in note for note in result.notes)


def test_a_model_that_leaves_parameters_out_can_be_run_with_ranks(
    runner: Runner, workload: Path
) -> None:
    run(
        runner,
        Scenario(workload=f"{workload}:unused", device="cpu", batch_size=4, world_size=2),
    )


@pytest.mark.parametrize(
    ("axes", "reason"),
    [
        ({"persistent_workers": True}, "persistent_workers needs num_workers above 0"),
        ({"prefetch_factor": 4}, "prefetch_factor=4 needs num_workers above 0"),
        ({"pin_memory": True}, "pin_memory has no effect on cpu"),
    ],
)
def test_a_setting_without_effect_is_skipped_with_its_reason(
    runner: Runner, axes: dict[str, object], reason: str
) -> None:
    scenario = Scenario(workload="mlp-toy", device="cpu", batch_size=2, **axes)  # type: ignore[arg-type]
    result = runner.run(scenario, Plan(steps=1))
    assert result.outcome is Outcome.SKIPPED
    assert reason in result.reason
