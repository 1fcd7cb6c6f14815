"""The same training by other means: losses and parameters must come out the same.

In fp32, sums taken in another order differ by their rounding. Each of the networks here adds at
most some hundred numbers into one, so a gradient is good to about 1e-6 of itself; a few steps of
SGD add no more than that. `CLOSE` leaves a factor of ten. Anything that was scaled, counted or
left out wrongly (a micro-batch, a rank, a division) shows as a factor of two or so.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from stepmark import Scenario, Workload, compiling
from stepmark.building import loop_of, make_training, own_part, wrap_ddp
from stepmark.choices import CompileMode
from stepmark.compiling import Compiler
from stepmark.devices import BACKENDS, DevicePair
from stepmark.loop import Training

CLOSE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-6}
STEPS = 3
BATCH = 64
CPU = BACKENDS["cpu"].open(0)


def workload(**changes: Any) -> Workload:
    """A small convolution network, always with the same weights; SGD with momentum."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(),
        nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip
    fields: dict[str, Any] = {
        "model": model,
        "dataset": torch.utils.data.TensorDataset(torch.zeros(1, 3, 8, 8)),
        "loss_fn": nn.CrossEntropyLoss(),
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    }
    return Workload(**{**fields, **changes})


def micro_batches(size: int, first: int = 0, every: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """The same samples however they are cut: every ``every``-th batch of that size."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(STEPS * BATCH, 3, 8, 8, generator=generator)
    labels = torch.randint(0, 4, (STEPS * BATCH,), generator=generator)
    batches = list(zip(images.split(size), labels.split(size), strict=True))
    return iter(batches[first::every])


@dataclasses.dataclass
class Trained:
    """What came of some steps: the last one's loss, and all parameters by name."""

    loss: float | None
    parameters: dict[str, Tensor]


def scenario(**axes: Any) -> Scenario:
    return Scenario(**{"workload": "mlp-toy", "device": "cpu", "batch_size": BATCH, **axes})


def trained(
    found: Workload,
    asked: Scenario,
    batches: Iterator[Any],
    change: Callable[[Training], Training] = lambda training: training,
    rank: int = 0,
    device: Any = CPU,
) -> Trained:
    """Train for `STEPS` as a scenario says, by what a measurement is made of."""
    training = change(make_training(own_part(found, asked, rank), asked, device))
    losses = loop_of(asked, found, training, device)(training, batches, range(STEPS), ())
    return Trained(
        loss=float(sum(losses)) if losses else None,
        parameters={
            name: tensor.detach().clone()
            for name, tensor in found.model.named_parameters()
            if tensor.device.type != "meta"
        },
    )


def assert_same(found: Trained, expected: Trained) -> None:
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.parameters.keys() == expected.parameters.keys()
    for name, tensor in expected.parameters.items():
        torch.testing.assert_close(found.parameters[name], tensor, **CLOSE)


@pytest.fixture(scope="module")
def plain() -> Trained:
    return trained(workload(), scenario(), micro_batches(BATCH))


def test_training_moves_the_parameters_by_far_more_than_the_tolerance(plain: Trained) -> None:
    before = dict(workload().model.named_parameters())
    for name, tensor in plain.parameters.items():
        assert (tensor - before[name]).abs().max() > 100 * CLOSE["atol"], name


def test_four_micro_batches_of_sixteen_train_as_one_batch_of_sixty_four(plain: Trained) -> None:
    asked = scenario(batch_size=16, accumulation=4)
    assert_same(trained(workload(), asked, micro_batches(16)), plain)


def test_a_step_that_sums_its_micro_batches_would_be_noticed(plain: Trained) -> None:
    asked = scenario(batch_size=16, accumulation=4)

    def summed(training: Training) -> Training:
        return dataclasses.replace(training, loss=lambda m, batch: 4 * training.loss(m, batch))

    found = trained(workload(), asked, micro_batches(16), summed)
    with pytest.raises(AssertionError):
        assert_same(found, plain)


def test_channels_last_trains_the_same(plain: Trained) -> None:
    asked = scenario(channels_last=True)
    assert_same(trained(workload(), asked, micro_batches(BATCH)), plain)


def test_layers_on_two_devices_train_the_same(plain: Trained) -> None:
    pair = DevicePair(CPU, CPU)
    found = trained(workload(), scenario(split_layers=True), micro_batches(BATCH), device=pair)
    assert_same(found, plain)


def test_a_compiled_model_trains_the_same(
    plain: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_VEC_ISA_OK", "1")
    monkeypatch.setattr(compiling, "_wake", lambda device: 0.0)  # it is tried out in what follows
    compiler = Compiler(CPU)

    def compiled(training: Training) -> Training:
        model = compiler.compiled(training.model, CompileMode.DEFAULT)
        return dataclasses.replace(training, model=model)

    assert_same(trained(workload(), scenario(), micro_batches(BATCH), compiled), plain)
    readings = {reading.name: reading.value for reading in compiler.readings()}
    compiler.rest()
    assert readings["compiled_graphs"] == 1
    assert compiler.take_new() > 0


CLIPPED = 0.05  # less than the norm of every step's gradient
STAGES = {"batch_size": 16, "accumulation": 4, "pipeline_stages": 2}


def in_a_process(rank: int, folder: str) -> None:
    """What each of two processes does; its results are files."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)

    def wrapped(training: Training) -> Training:
        model = wrap_ddp(training.model, CPU, find_unused_parameters=False)
        return dataclasses.replace(training, model=model)

    asked = scenario(batch_size=32, world_size=2)
    halves = micro_batches(32, first=rank, every=2)
    found = {"ddp": trained(workload(), asked, halves, wrapped)}
    asked = scenario(batch_size=16, accumulation=2, world_size=2)
    quarters = (b for i, b in enumerate(micro_batches(16)) if i % 4 // 2 == rank)
    found["ddp accumulating"] = trained(workload(), asked, quarters, wrapped)
    for name, changes in (("stages", {}), ("stages clipped", {"clip_norm": CLIPPED})):
        asked = scenario(**STAGES)
        found[name] = trained(workload(**changes), asked, micro_batches(16), rank=rank)
    torch.save({name: vars(t) for name, t in found.items()}, f"{folder}/rank{rank}")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Trained]]:
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(in_a_process, args=(str(folder),), nprocs=2)
    found = [torch.load(folder / f"rank{rank}") for rank in range(2)]
    return [{name: Trained(**fields) for name, fields in of_rank.items()} for of_rank in found]


@pytest.mark.parametrize("name", ["ddp", "ddp accumulating"])
def test_two_ranks_train_as_one_process_with_the_double_batch(
    plain: Trained, of_two_processes: list[dict[str, Trained]], name: str
) -> None:
    losses = []
    for of_rank in of_two_processes:
        found = of_rank[name]
        assert found.loss is not None
        losses.append(found.loss)
        assert_same(dataclasses.replace(found, loss=plain.loss), plain)
    # Each rank's loss is of its own half of the samples.
    assert losses[0] != losses[1]
    assert sum(losses) / 2 == pytest.approx(plain.loss, rel=1e-5)


@pytest.mark.parametrize(("name", "clip_norm"), [("stages", None), ("stages clipped", CLIPPED)])
def test_two_stages_train_as_the_unsplit_model(
    of_two_processes: list[dict[str, Trained]], name: str, clip_norm: float | None
) -> None:
    asked = scenario(batch_size=16, accumulation=4)
    unsplit = trained(workload(clip_norm=clip_norm), asked, micro_batches(16))
    first, last = (of_rank[name] for of_rank in of_two_processes)
    assert first.loss is None, "the first stage knows no loss"
    assert not first.parameters.keys() & last.parameters.keys()
    assert_same(Trained(last.loss, {**first.parameters, **last.parameters}), unsplit)


def test_clipping_changes_the_training_that_it_is_compared_in(plain: Trained) -> None:
    clipped = trained(workload(clip_norm=CLIPPED), scenario(), micro_batches(BATCH))
    with pytest.raises(AssertionError):
        assert_same(clipped, plain)
