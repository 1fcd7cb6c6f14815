"""The training loop computes what it should, whatever way the batch is cut up."""

import copy
import gc
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stepmark import Precision, Scenario
from stepmark.building import make_training
from stepmark.devices import BACKENDS
from stepmark.devices.base import moved
from stepmark.loop import Callback, Training, overridden, train
from stepmark.probes.scaler import AppliedSteps
from stepmark.workload import Workload

STEPS = 5
Batches = list[tuple[Tensor, Tensor]]


def make_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4))


def make_batches(size: int) -> Batches:
    """The same samples in the same order, whatever the batch's size."""
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(STEPS * 64, 12, generator=generator)
    targets = torch.randint(0, 4, (STEPS * 64,), generator=generator)
    return list(zip(inputs.split(size), targets.split(size), strict=True))


def make(model: nn.Module, **options: Any) -> Training:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    return Training(
        **{
            "model": model,
            "loss": loss,
            "optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
            "to_device": lambda batch: batch,
            **options,
        }
    )


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained_by_hand() -> nn.Module:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for inputs, targets in make_batches(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return model


def test_the_loop_is_the_loop_one_writes_by_hand() -> None:
    model = make_model()
    train(make(model), iter(make_batches(64)), range(STEPS))
    assert torch.equal(weights(model), weights(trained_by_hand()))


def test_four_micro_batches_of_16_give_the_weights_of_one_batch_of_64() -> None:
    model = make_model()
    train(make(model, accumulation=4), iter(make_batches(16)), range(STEPS))
    assert torch.allclose(weights(model), weights(trained_by_hand()), rtol=1e-5, atol=1e-6)


def test_a_callback_is_called_at_the_events_that_its_class_overrides_alone() -> None:
    class Ends(Callback):
        count = 0

        def on_step_end(self) -> None:
            self.count += 1

    ends = Ends()
    train(make(make_model()), iter(make_batches(64)), range(STEPS), [Callback(), ends])
    assert ends.count == STEPS
    assert overridden([Callback(), ends], "on_batch") == []
    assert overridden([Callback(), ends], "on_step_end") == [ends.on_step_end]


def test_fp16_alone_has_a_gradient_scaler() -> None:
    workload = Workload(
        model=make_model(),
        dataset=make_batches(1),
        loss_fn=nn.CrossEntropyLoss(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    device = BACKENDS["cpu"].open(0)
    for precision in (Precision.FP32, Precision.BF16, Precision.FP16):
        scenario = Scenario(workload="mlp-toy", device="cpu", precision=precision)
        training = make_training(workload, scenario, device)
        assert (training.scaler is not None) is (precision is Precision.FP16)
        before = weights(workload.model)
        train(training, iter(make_batches(64)), range(STEPS))
        assert not torch.equal(weights(workload.model), before)


class Point(NamedTuple):
    inputs: Tensor
    label: Tensor


class OwnBatch:
    """A library's own batch type, as torch_geometric's."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs

    def to(self, device: torch.device) -> "OwnBatch":
        return OwnBatch(self.inputs.to(device))


def test_every_tensor_of_a_batch_is_moved_whatever_its_layout() -> None:
    here = torch.ones(2)
    device = torch.device("meta")
    for batch in ([here, here], (here, here), {"a": here, "b": [here]}, Point(here, here), here):
        there = moved(batch, device)
        assert type(there) is type(batch)
        tensors = torch.utils._pytree.tree_leaves(there)
        assert len(tensors) == len(torch.utils._pytree.tree_leaves(batch))
        assert {tensor.device.type for tensor in tensors} == {"meta"}
    own = moved([OwnBatch(here), "a name", 3], device)
    assert own[0].inputs.device.type == "meta"
    assert own[1:] == ["a name", 3]
    on_cpu = [here]
    assert BACKENDS["cpu"].open(0).to_device(on_cpu) is on_cpu, "it is where it belongs"


def _rank_main(rank: int, port: int, accumulation: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    _train_rank(rank, accumulation, folder)
    gc.collect()  # gloo sometimes aborts where a model outlives its group
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _train_rank(rank: int, accumulation: int, folder: str) -> None:
    torch.manual_seed(rank)  # DDP must hand out rank 0's weights all the same
    model = (
        make_model() if rank == 0 else nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4))
    )
    num_all_reduces = 0

    def count(
        state: object, bucket: torch.distributed.GradBucket
    ) -> torch.futures.Future[torch.Tensor]:
        nonlocal num_all_reduces
        num_all_reduces += 1
        work = torch.distributed.all_reduce(bucket.buffer(), async_op=True)
        return work.get_future().then(lambda future: future.value()[0] / 2)

    ddp = DistributedDataParallel(model)
    ddp.register_comm_hook(None, count)
    size = 32 // accumulation
    mine = make_batches(size)
    # A global batch of 64: this rank takes its half of it, in micro-batches.
    own = [b for i, b in enumerate(mine) if (i // accumulation) % 2 == rank]
    train(make(ddp, accumulation=accumulation), iter(own), range(STEPS))
    torch.save({"weights": weights(model), "num": num_all_reduces}, f"{folder}/{rank}.pt")


@pytest.mark.parametrize("accumulation", [1, 4])
def test_two_ranks_with_32_give_the_weights_of_one_process_with_64(
    accumulation: int, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(
        _rank_main, args=(port, accumulation, str(tmp_path)), nprocs=2, join=True
    )
    expected = weights(trained_by_hand())
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.allclose(found["weights"], expected, rtol=1e-5, atol=1e-6)
        # One bucket: gradients are exchanged once a step, not once a micro-batch.
        assert found["num"] == STEPS


def test_the_returned_losses_sum_to_the_loss_of_the_last_step() -> None:
    model = make_model()
    losses = train(make(model, accumulation=4), iter(make_batches(16)), range(1))
    whole = make(make_model())
    expected = whole.loss(whole.model, make_batches(64)[0])
    assert len(losses) == 4
    assert sum(losses).item() == pytest.approx(expected.item(), rel=1e-5)


def test_gradients_are_clipped_to_the_norm_before_the_step() -> None:
    clipped, free = make_model(), make_model()
    plain = {"optimizer": None}
    for model, clip_norm in ((clipped, 1e-3), (free, None)):
        plain["optimizer"] = torch.optim.SGD(model.parameters(), lr=1.0)  # type: ignore[assignment]
        train(make(model, clip_norm=clip_norm, **plain), iter(make_batches(64)), range(1))
    moved = (weights(clipped) - weights(make_model())).norm().item()
    assert moved == pytest.approx(1e-3, rel=1e-2)
    assert (weights(free) - weights(make_model())).norm().item() > 0.1


def test_clipping_sees_gradients_without_the_scalers_factor() -> None:
    model, reference = make_model(), make_model()
    for m, scaler in (
        (model, torch.amp.GradScaler("cpu", init_scale=1024.0)),
        (reference, None),
    ):
        train(make(m, clip_norm=0.05, scaler=scaler), iter(make_batches(64)), range(STEPS))
    assert torch.allclose(weights(model), weights(reference), rtol=1e-5, atol=1e-6)


def test_the_scheduler_is_stepped_once_per_optimizer_step() -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    training = make(model, optimizer=optimizer, scheduler=scheduler, accumulation=4)
    train(training, iter(make_batches(16)), range(3))
    assert scheduler.get_last_lr() == [0.125]


def test_steps_that_the_gradient_scaler_skips_are_counted() -> None:
    model = make_model()
    batches: Batches = make_batches(64)
    inputs, targets = batches[2]
    batches[2] = (inputs * float("inf"), targets)
    training = make(model, scaler=torch.amp.GradScaler("cpu"))
    applied = AppliedSteps(training)
    applied.begin()
    train(training, iter(batches), range(STEPS))
    assert applied.end(STEPS) == 1
    assert torch.isfinite(weights(model)).all()


def test_without_a_scaler_no_step_is_skipped() -> None:
    training = make(make_model())
    applied = AppliedSteps(training)
    applied.begin()
    train(training, iter(make_batches(64)), range(STEPS))
    assert applied.end(STEPS) == 0


class Recorder(Callback):
    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_step_start(self) -> None:
        self.calls.append("step_start")

    def on_batch(self) -> None:
        self.calls.append("batch")

    def on_transfer(self) -> None:
        self.calls.append("transfer")

    def on_forward(self) -> None:
        self.calls.append("forward")

    def on_backward(self) -> None:
        self.calls.append("backward")

    def on_step_end(self) -> None:
        self.calls.append("step_end")


def test_callbacks_are_called_in_the_order_of_the_loop() -> None:
    recorder = Recorder()
    train(make(make_model(), accumulation=2), iter(make_batches(16)), range(2), [recorder])
    micro_batch = ["batch", "transfer", "forward", "backward"]
    assert recorder.calls == ["step_start", *micro_batch, *micro_batch, "step_end"] * 2


def test_a_callbacks_exception_propagates() -> None:
    class Broken(Callback):
        def on_forward(self) -> None:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        train(make(make_model()), iter(make_batches(64)), range(1), [Broken()])


def test_forward_and_loss_run_under_autocast_and_backward_and_optimizer_do_not() -> None:
    seen: dict[str, bool] = {}

    class Watch(Callback):
        def on_forward(self) -> None:
            # Inside the context of forward and loss, or just behind it: behind it.
            seen["after_forward"] = torch.is_autocast_enabled("cpu")

        def on_step_end(self) -> None:
            seen["after_step"] = torch.is_autocast_enabled("cpu")

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        seen["loss"] = torch.is_autocast_enabled("cpu")
        seen["bf16"] = outputs.dtype is torch.bfloat16
        return nn.functional.cross_entropy(outputs, targets)

    workload = Workload(
        model=make_model(),
        dataset=make_batches(64),  # type: ignore[arg-type]
        loss_fn=loss_fn,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    scenario = Scenario(workload="mine:build", device="cpu", precision=Precision.BF16)
    training = make_training(workload, scenario, BACKENDS["cpu"].open(0))
    train(training, iter(make_batches(64)), range(1), [Watch()])
    assert seen == {"loss": True, "bf16": True, "after_forward": False, "after_step": False}


def test_no_values_are_read_in_the_loop() -> None:
    class Poisoned(Tensor):
        """A tensor that refuses to tell its value."""

        def item(self) -> float:
            raise AssertionError("the loop read a value")

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1]).as_subclass(Poisoned)

    losses = train(make(make_model(), loss=loss), iter(make_batches(64)), range(2))
    with pytest.raises(AssertionError, match="read a value"):
        losses[0].item()


def endless(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from batches


def test_training_learns() -> None:
    model = make_model()
    training = make(model)
    (first,) = train(training, endless(make_batches(64)), range(1))
    (last,) = train(training, endless(make_batches(64)), range(300))
    assert copy.copy(last).item() < 0.8 * first.item()
