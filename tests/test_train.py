"""A rank's training: epochs, metrics, schedules, patience, and checkpoints to go on from."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import learned_workload
import pytest
import torch
from commands import environment
from torch import nn
from torch.optim import lr_scheduler

from stepmark import Plan, Scenario, StepmarkError, preparing, trainer, workloads
from stepmark.choices import CompileMode
from stepmark.codec import encode
from stepmark.data.idx import generate
from stepmark.devices import BACKENDS, Device, DevicePair
from stepmark.devices.cpu import CpuDevice
from stepmark.devices.pair import PairMarks
from stepmark.errors import CheckpointError, UsageError
from stepmark.loading import SEED
from stepmark.place import Place
from stepmark.trainer import checkpoint
from stepmark.training import EndOfTraining, Epoch, Facts, TrainOrder, TrainPlan, has_stalled

CPU = BACKENDS["cpu"].open(0)
TIMES = ("train_s", "valid_s", "checkpoint_s", "checkpoint_bytes", "phases", "compile_s")


@dataclasses.dataclass
class Fitted:
    """What a training came to."""

    epochs: list[Epoch]
    ended_by: EndOfTraining | None
    order: TrainOrder
    notes: tuple[str, ...]

    @property
    def last(self) -> dict[str, Any]:
        return checkpoint.read(self.order.last_path)

    @property
    def learned(self) -> list[dict[str, Any]]:
        """Everything of the epochs but what they took."""
        return [
            {k: v for k, v in dataclasses.asdict(epoch).items() if k not in TIMES}
            for epoch in self.epochs
        ]


def fit(
    folder: Path,
    workload: str = "learned_workload:build",
    *,
    epochs: int = 3,
    interrupt_after: int | None = None,
    resume: bool = False,
    plan: dict[str, Any] | None = None,
    device: Device = CPU,
    told: list[Epoch] | None = None,
    **axes: Any,
) -> Fitted:
    """Train here; ``told`` gets the epochs even if it raises."""
    scenario = Scenario(**{"workload": workload, "device": "cpu", "batch_size": 8, **axes})
    order = TrainOrder(
        plan=TrainPlan(epochs=epochs, **(plan or {})), save_to=str(folder / "m"), resume=resume
    )
    done: list[Epoch] = [] if told is None else told
    notes: list[str] = []

    def on_begin(facts: Facts, before: Sequence[Epoch]) -> None:
        notes.extend(facts.notes)
        done.extend(before)

    def on_epoch(epoch: Epoch) -> None:
        done.append(epoch)
        if epoch.epoch == interrupt_after:
            raise KeyboardInterrupt

    place = Place(rank=0, device=device, threads=1, requested_s=0.0)
    end = None
    try:
        end, late = trainer.fit(
            scenario, Plan(), order, place,
            lambda stage, rate: None, on_begin, on_epoch,
        )  # fmt: skip
        notes.extend(late)
    except KeyboardInterrupt:
        assert interrupt_after is not None
    return Fitted(epochs=done, ended_by=end, order=order, notes=tuple(notes))


def weights(content: dict[str, Any]) -> torch.Tensor:
    return torch.cat([tensor.double().flatten() for tensor in content["model"].values()])


RANDOM = "learned_workload:build?dropout=0.5&noise=0.3"


@pytest.mark.parametrize(
    ("workload", "plan", "axes"),
    [
        (RANDOM, {}, {}),
        (RANDOM, {}, {"num_workers": 2, "accumulation": 2}),
        (RANDOM + "&adam=True", {"schedule": "one-cycle"}, {}),
        (RANDOM, {"schedule": "one-cycle", "schedule_of": "momentum"}, {}),
        (RANDOM, {"schedule": "cosine"}, {}),
        (RANDOM, {"schedule": "cosine", "schedule_of": "momentum"}, {}),
        (RANDOM, {"schedule": "step", "step_size": 2}, {}),
        (RANDOM, {"schedule": "plateau", "plateau_patience": 0}, {"lr": 3.0, "optimizer": "sgd"}),
        ("learned_workload:scheduled", {}, {}),
        (RANDOM, {}, {"precision": "fp16"}),
    ],
)
def test_two_epochs_and_two_more_are_exactly_four(
    workload: str, plan: dict[str, Any], axes: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "once").mkdir()
    once = fit(tmp_path / "once", workload, epochs=4, plan=plan, **axes)
    first = fit(tmp_path, workload, epochs=4, interrupt_after=2, plan=plan, **axes)
    assert len(first.epochs) == 2
    twice = fit(tmp_path, workload, epochs=4, resume=True, plan=plan, **axes)
    assert [epoch.epoch for epoch in twice.epochs] == [1, 2, 3, 4]
    assert twice.learned == once.learned
    assert torch.equal(weights(twice.last), weights(once.last))
    preparing.seed(SEED)
    untrained = {"model": workloads.load(workload)().model.state_dict()}
    assert not torch.equal(weights(first.last), weights(untrained)), "something was learned"


def test_a_finished_training_goes_on_for_more_epochs(tmp_path: Path) -> None:
    (tmp_path / "once").mkdir()
    once = fit(tmp_path / "once", RANDOM, epochs=4)
    fit(tmp_path, RANDOM, epochs=2)
    more = fit(tmp_path, RANDOM, epochs=4, resume=True)
    assert more.learned == once.learned
    assert more.ended_by is EndOfTraining.EPOCHS


def by_hand(num_epochs: int, batch_size: int) -> tuple[nn.Module, list[float]]:
    """The loop one writes by hand, in the order of the same shuffles; mean losses of epochs."""
    torch.manual_seed(0)
    workload = learned_workload.build()
    optimizer = workload.optimizer(workload.model.parameters())
    losses = []
    for epoch in range(1, num_epochs + 1):
        order = torch.randperm(40, generator=torch.Generator().manual_seed(epoch)).tolist()
        total = 0.0
        for start in range(0, 40, batch_size):
            batch = [workload.dataset[i] for i in order[start : start + batch_size]]
            inputs, targets = torch.stack([b[0] for b in batch]), torch.stack([b[1] for b in batch])
            loss = nn.functional.cross_entropy(workload.model(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item() * len(batch)
        losses.append(total / 40)
    return workload.model, losses


def test_a_training_is_the_loop_one_writes_by_hand(tmp_path: Path) -> None:
    found = fit(tmp_path, epochs=3, batch_size=12)  # 12, 12, 12 and a last batch of 4
    model, losses = by_hand(3, 12)
    assert torch.equal(weights(found.last), weights({"model": model.state_dict()}))
    assert [epoch.train_loss for epoch in found.epochs] == pytest.approx(losses, rel=1e-6)
    valid = learned_workload.build().valid_dataset
    model.eval()
    with torch.no_grad():
        outputs = model(valid.points)  # type: ignore[union-attr]
    labels = valid.labels  # type: ignore[union-attr]
    loss = nn.functional.cross_entropy(outputs, labels).item()
    assert found.epochs[-1].valid_loss == pytest.approx(loss, rel=1e-6)
    assert found.epochs[-1].valid_accuracy == (outputs.argmax(1) == labels).sum().item() / 21


def test_four_micro_batches_of_two_train_as_one_batch_of_eight(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    small = fit(tmp_path, batch_size=2, accumulation=4)
    large = fit(tmp_path / "large", batch_size=8)
    assert torch.allclose(weights(small.last), weights(large.last), rtol=1e-5, atol=1e-6)
    for one, other in zip(small.epochs, large.epochs, strict=True):
        assert one.num_steps == other.num_steps == 5
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-5)


@pytest.mark.parametrize(
    ("axes", "drop_last", "num_samples", "num_steps", "num_phase_steps"),
    [
        ({"batch_size": 2}, False, 5, 3, 3),
        ({"batch_size": 2}, True, 4, 2, 2),
        ({"batch_size": 2, "accumulation": 2}, False, 5, 2, 1),
        ({"batch_size": 2, "accumulation": 4}, False, 5, 1, 0),
    ],
)
def test_an_epochs_rest_is_trained_on_unless_it_is_to_be_dropped(
    axes: dict[str, int],
    drop_last: bool,
    num_samples: int,
    num_steps: int,
    num_phase_steps: int,
    tmp_path: Path,
) -> None:
    workload = "learned_workload:build?length=5"
    (epoch,) = fit(tmp_path, workload, epochs=1, plan={"drop_last": drop_last}, **axes).epochs
    assert (epoch.num_samples, epoch.num_steps) == (num_samples, num_steps)
    assert epoch.num_phase_steps == num_phase_steps
    assert (epoch.phases is None) == (num_phase_steps == 0)
    assert epoch.num_valid_samples == 21


def test_phases_are_of_the_epoch_and_no_longer_than_it(tmp_path: Path) -> None:
    (epoch,) = fit(tmp_path, epochs=1).epochs
    assert epoch.phases is not None
    seconds = dataclasses.asdict(epoch.phases)
    step_s = seconds.pop("step_s")
    assert sum(seconds.values()) == pytest.approx(step_s)
    assert 0 < step_s * epoch.num_phase_steps <= epoch.train_s
    assert epoch.samples_per_s == pytest.approx(40 / epoch.train_s)


class _Waiting(CpuDevice):
    """A device whose marks would wait."""

    marks_steps = False

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), "waiting")
        self.num_synchronizations = 0

    def synchronize(self) -> None:
        self.num_synchronizations += 1

    def marks(self, capacity: int) -> PairMarks:
        return PairMarks(DevicePair(self, self))


def test_where_marks_would_wait_epochs_are_trained_without_and_say_so(tmp_path: Path) -> None:
    num_waits = []
    for length in (40, 80):
        (tmp_path / str(length)).mkdir()
        device = _Waiting()
        workload = f"learned_workload:build?length={length}"
        found = fit(tmp_path / str(length), workload, epochs=1, device=device)
        (epoch,) = found.epochs
        assert (epoch.phases, epoch.num_phase_steps) == (None, 0)
        assert "waiting: no phases, since marking them would make the steps wait" in found.notes
        num_waits.append(device.num_synchronizations)
    assert num_waits[0] == num_waits[1], "as often for ten steps as for five"


class _Compiler:
    """Takes 3 s in the first epoch, and none in any other."""

    def __init__(self, device: Device) -> None:
        self.num_rests = 0
        self._new = [3.0, 0.0, 0.0]
        COMPILERS.append(self)

    def compiled(self, model: nn.Module, mode: CompileMode) -> nn.Module:
        return model

    def take_new(self) -> int:
        return int(self._new[0] > 0)

    def take_s(self) -> float:
        return self._new.pop(0)

    def rest(self) -> None:
        self.num_rests += 1


COMPILERS: list[_Compiler] = []


def test_an_epoch_says_what_compiling_took_of_it_and_the_compiler_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "Compiler", _Compiler)
    found = fit(tmp_path, compile=CompileMode.DEFAULT)
    assert [epoch.compile_s for epoch in found.epochs] == [3.0, 0.0, 0.0]
    assert COMPILERS[-1].num_rests == 1
    assert any(note.startswith("the first epoch") and "compil" in note for note in found.notes)
    plain = fit(tmp_path, epochs=1)
    assert [epoch.compile_s for epoch in plain.epochs] == [None]
    assert not any("compil" in note for note in plain.notes)


def test_persistent_workers_that_begin_anew_are_remarked_on(tmp_path: Path) -> None:
    axes = {"num_workers": 1, "persistent_workers": True}
    first = fit(tmp_path, epochs=1, **axes)
    more = fit(tmp_path, epochs=2, resume=True, **axes)
    assert not any("began anew" in note for note in first.notes)
    assert any("began anew" in note for note in more.notes)


def test_an_epoch_is_told_even_if_it_cannot_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    fit(tmp_path, epochs=1)
    monkeypatch.setattr(torch, "save", full)
    told: list[Epoch] = []
    with pytest.raises(CheckpointError, match=r"No space left.*make room and go on with --resume"):
        fit(tmp_path, epochs=3, resume=True, told=told)
    assert [epoch.epoch for epoch in told] == [1, 2]
    assert told[-1].checkpoint_bytes is None
    assert checkpoint.read(tmp_path / "m.last.pt")["epoch"] == 1, "the one before is still there"


@pytest.mark.parametrize("state", [lambda: 0, threading.Lock()])
def test_state_that_cannot_be_written_is_to_be_trained_without_checkpoints(
    state: Any, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be saved \(.*pickle.*with --no-checkpoint"):
        checkpoint.write(tmp_path / "m.last.pt", {"optimizer": state})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ({}, (False, False, False)),
        ({"inference_mode": True}, (False, False, True)),
        ({"no_grad": False}, (False, True, False)),
    ],
)
def test_validation_evaluates_and_records_gradients_only_if_asked_to(
    plan: dict[str, bool], expected: tuple[bool, bool, bool], tmp_path: Path
) -> None:
    learned_workload.SEEN.clear()
    fit(tmp_path, "learned_workload:spied", epochs=2, plan=plan)
    trained = [(True, True, False)] * 5
    assert ([*trained, *[expected] * 3]) * 2 == learned_workload.SEEN


def hand_scheduled(
    name: str, plan: dict[str, Any], watched: list[float], steps: int
) -> list[float]:
    """Rates at the first step of each epoch, with torch's scheduler stepped by hand."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    num_epochs = len(watched)
    scheduler: Any = {
        "step": lambda: lr_scheduler.StepLR(optimizer, plan.get("step_size", 1), 0.1),
        "plateau": lambda: lr_scheduler.ReduceLROnPlateau(optimizer, "min", 0.1, 0),
        "cosine": lambda: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 2, 2),
        "one-cycle": lambda: lr_scheduler.OneCycleLR(
            optimizer, 0.5, epochs=num_epochs, steps_per_epoch=steps
        ),
    }[name]()
    rates = []
    for loss in watched:
        rates.append(optimizer.param_groups[0]["lr"])
        for _ in range(steps):
            optimizer.step()
            if name == "one-cycle":
                scheduler.step()
        if name == "plateau":
            scheduler.step(loss)
        elif name != "one-cycle":
            scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("step", {"step_size": 2}),
        ("plateau", {"plateau_patience": 0}),
        ("cosine", {"first_period": 2}),
        ("one-cycle", {"peak": 0.5}),
    ],
)
def test_rates_are_those_of_torchs_schedulers(
    name: str, plan: dict[str, Any], tmp_path: Path
) -> None:
    found = fit(tmp_path, epochs=7, plan={"schedule": name, **plan})
    watched = [epoch.watched_loss or 0.0 for epoch in found.epochs]
    expected = hand_scheduled(name, plan, watched, steps=5)
    assert [epoch.learning_rate for epoch in found.epochs] == pytest.approx(expected, rel=1e-9)
    assert len(set(expected)) > 1, "something was scheduled"


def test_a_parameter_is_scheduled_as_a_rate_would_be() -> None:
    from stepmark.trainer.schedules import ParameterScheduler

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.8)
    observer = ParameterScheduler(
        optimizer,
        "momentum",
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=2, T_mult=2),
    )
    found = []
    for _ in range(7):
        found.append(optimizer.param_groups[0]["momentum"])
        observer.on_step_end()
    # Periods of 2 and 4 steps, each half a cosine down to 0; then the third one begins.
    quarter, three_quarters = 0.4 * (1 + 2**-0.5), 0.4 * (1 - 2**-0.5)
    assert found == pytest.approx([0.8, 0.4, 0.8, quarter, 0.4, three_quarters, 0.8])
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_schedule_of_what_the_optimizer_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"schedule_of=beta: SGD has None .* momentum"):
        fit(tmp_path, plan={"schedule": "cosine", "schedule_of": "beta"})


def test_the_workloads_own_scheduler_stands_unless_another_is_given(tmp_path: Path) -> None:
    own = fit(tmp_path, "learned_workload:scheduled", epochs=2)
    assert [epoch.learning_rate for epoch in own.epochs] == pytest.approx([0.1, 0.1 / 2**5])
    given = fit(tmp_path, "learned_workload:scheduled", epochs=2, plan={"schedule": "constant"})
    assert [epoch.learning_rate for epoch in given.epochs] == [0.1, 0.1]


@pytest.mark.parametrize(
    ("losses", "patience", "stalled"),
    [
        ([3, 2, 1], 1, False),
        ([3, 2, 2], 1, True),
        ([1, 2, 3], 3, False),
        ([1, 2, 3, 4], 3, True),
        ([1, 2, 3, 0.5], 3, False),
        ([2, 3, 1, 4, 1], 2, True),
        ([1, None, None], 2, True),
        ([None, None, 1], 2, False),
        ([5, 6, 7], None, False),
        ([], 1, False),
    ],
)
def test_patience_ends_after_so_many_epochs_without_a_lower_loss(
    losses: list[float | None], patience: int | None, stalled: bool
) -> None:
    assert has_stalled(losses, patience) is stalled


def test_a_training_that_learns_nothing_stops_early_and_its_first_epoch_is_the_best(
    tmp_path: Path,
) -> None:
    found = fit(tmp_path, epochs=9, plan={"patience": 2}, optimizer="sgd", lr=1e-30)
    assert found.ended_by is EndOfTraining.PATIENCE
    assert [epoch.is_best for epoch in found.epochs] == [True, False, False]
    assert checkpoint.read(found.order.best_path)["epoch"] == 1


def test_the_best_model_is_kept_with_its_epoch_optimizer_and_loss(tmp_path: Path) -> None:
    # The rate rises until the training diverges.
    found = fit(tmp_path, epochs=6, plan={"schedule": "one-cycle", "peak": 300.0})
    best = checkpoint.read(found.order.best_path)
    assert sorted(best) == ["epoch", "loss", "model", "optimizer"]
    of_best = min(found.epochs, key=lambda epoch: epoch.valid_loss or float("inf"))
    assert 1 <= best["epoch"] == of_best.epoch < 6
    assert best["loss"] == of_best.valid_loss
    workload = learned_workload.build()
    workload.model.load_state_dict(best["model"])
    workload.model.eval()
    loss = nn.functional.cross_entropy(
        workload.model(workload.valid_dataset.points),  # type: ignore[union-attr]
        workload.valid_dataset.labels,  # type: ignore[union-attr]
    )
    assert loss.item() == pytest.approx(of_best.valid_loss, rel=1e-6)
    assert sum(epoch.checkpoint_bytes or 0 for epoch in found.epochs) > 0
    assert all(epoch.checkpoint_s is not None for epoch in found.epochs)


def test_without_checkpoints_nothing_is_written_and_no_cost_is_told(tmp_path: Path) -> None:
    found = fit(tmp_path, plan={"checkpoint": False})
    assert not list(tmp_path.iterdir())
    assert {(e.checkpoint_s, e.checkpoint_bytes) for e in found.epochs} == {(None, None)}


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, epochs=1)
    with pytest.raises(CheckpointError, match=r"is of learned_workload.*bs8, not of .*bs4"):
        fit(tmp_path, epochs=2, resume=True, batch_size=4)
    order = TrainOrder(plan=TrainPlan(epochs=1), save_to=str(tmp_path / "m"))
    order.best_path.replace(order.last_path)
    with pytest.raises(CheckpointError, match="no checkpoint to go on from"):
        fit(tmp_path, epochs=2, resume=True)
    order.last_path.write_bytes(order.last_path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        fit(tmp_path, epochs=2, resume=True)
    order.last_path.unlink()
    with pytest.raises(CheckpointError, match="is not there"):
        fit(tmp_path, epochs=2, resume=True)


KILLED_WRITER = """
import sys
import time
from pathlib import Path
import torch
from stepmark.trainer import checkpoint

number = 0
while True:
    number += 1
    checkpoint.write(Path(sys.argv[1]), {"epoch": number, "model": torch.zeros(4_000_000)})
    print(number, flush=True)
"""


def test_a_process_that_is_killed_while_it_saves_leaves_the_checkpoint_before(
    tmp_path: Path,
) -> None:
    path = tmp_path / "m.last.pt"
    half = path.with_name(f".{path.name}.tmp")
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITER, str(path)],
        stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    assert writer.stdout is not None
    saved = int(writer.stdout.readline())
    limit_s = time.monotonic() + 60
    while not half.exists() and time.monotonic() < limit_s:  # the next one is being written
        pass
    is_writing = half.exists()
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert is_writing, "a checkpoint is written beside its name"
    assert checkpoint.read(path)["epoch"] >= saved
    checkpoint.write(path, {"epoch": 0})
    assert not half.exists(), "what was left is overwritten by the next one"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "epochs=0: must be at least 1"),
        ({"epochs": 2, "patience": 0}, "patience=0: must be at least 1"),
        ({"epochs": 2, "schedule": "cosin"}, "schedule='cosin': choose from constant, step"),
        ({"epochs": 2, "schedule": "step", "gamma": 1.5}, "gamma=1.5: must be below 1"),
        ({"epochs": 2, "schedule": "one-cycle", "peak": -1}, "peak=-1: must be above 0"),
        ({"epochs": 2, "peak": 1.0}, "is a setting of schedule one-cycle; the schedule here is"),
        ({"epochs": 2, "schedule": "step", "schedule_of": "momentum"}, "schedule_of=momentum"),
        ({"epochs": 2, "inference_mode": True, "no_grad": False}, "inference_mode records no"),
        ({"epochs": 2, "timeout": float("nan")}, "timeout=nan"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainPlan(**fields)


@pytest.mark.parametrize("axes", [{"batch_size": 64}, {"channels_last": True}])
def test_a_workload_that_does_not_suit_the_scenario_is_refused(
    axes: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(StepmarkError, match=r"batch_size=64|channels_last"):
        fit(tmp_path, **axes)


def test_what_only_trains_is_trained(tmp_path: Path) -> None:
    """As torchvision's detection networks, which give losses only while they are trained."""
    plan = {"validate": False}
    found = fit(tmp_path, "learned_workload:only_trains", epochs=2, plan=plan)
    assert found.ended_by is EndOfTraining.EPOCHS
    assert all(epoch.train_loss is not None for epoch in found.epochs)
    assert all(epoch.train_accuracy is None for epoch in found.epochs)


def test_switches_that_change_while_it_is_trained_are_remarked_on(tmp_path: Path) -> None:
    found = fit(tmp_path, "learned_workload:restless", epochs=1)
    assert any("threads" in note and "3" in note for note in found.notes), found.notes


def test_a_schedule_of_the_workloads_own_comes_and_goes_with_the_checkpoint(tmp_path: Path) -> None:
    for before, after in (("build", "scheduled"), ("scheduled", "build")):
        folder = tmp_path / before
        folder.mkdir()
        found = fit(folder, f"learned_workload:{before}", epochs=1)
        content = found.last
        scenario = Scenario(workload=f"learned_workload:{after}", device="cpu", batch_size=8)
        content["scenario"] = json.dumps(encode(scenario))
        torch.save(content, found.order.last_path)
        with pytest.raises(CheckpointError, match="there is a schedule now or was one then"):
            fit(folder, f"learned_workload:{after}", epochs=2, resume=True)


def test_a_loss_that_is_no_number_is_empty_and_never_the_best(tmp_path: Path) -> None:
    found = fit(tmp_path, "mlp-regression", epochs=2, batch_size=4096, optimizer="sgd", lr=1e30)
    assert {(epoch.train_loss, epoch.is_best) for epoch in found.epochs} == {(None, False)}


# Article B: three epochs of SGD at 0.5 in batches of two.
def test_the_toy_network_gets_its_five_points_right(tmp_path: Path) -> None:
    for drop_last in (False, True):
        found = fit(tmp_path, "mlp-toy", epochs=3, batch_size=2, plan={"drop_last": drop_last})
        assert found.epochs[-1].train_accuracy == found.epochs[-1].valid_accuracy == 1.0


def test_the_article_networks_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPMARK_DATA", str(tmp_path))
    for name in ("MNIST", "FashionMNIST"):
        home = generate(name, num_train=1500, num_valid=300)
    monkeypatch.setenv("STEPMARK_DATA", str(home))
    # Article A's targets are one-hot; D's are no classes.
    a = fit(tmp_path, "mlp-mse", epochs=2, batch_size=64, lr=1.0, optimizer="sgd-momentum").epochs
    assert a[-1].valid_accuracy is not None
    assert a[-1].valid_accuracy > 0.5
    c = fit(tmp_path, "mlp-fashion-mnist", epochs=3, batch_size=64).epochs
    assert c[0].valid_loss > c[1].valid_loss > c[2].valid_loss  # type: ignore[operator]
    d = fit(tmp_path, "mlp-regression", epochs=2, batch_size=32).epochs
    assert d[1].valid_loss < d[0].valid_loss  # type: ignore[operator]
    assert (d[0].train_accuracy, d[0].valid_accuracy) == (None, None)
    e = fit(tmp_path, "cnn-mnist", epochs=2, batch_size=64).epochs
    assert e[-1].valid_accuracy is not None
    assert e[-1].valid_accuracy > 0.8


@pytest.mark.skipif(
    not os.environ.get("STEPMARK_REAL_MNIST"),
    reason="set STEPMARK_REAL_MNIST to a folder that has MNIST/raw, as torchvision leaves it",
)
def test_article_e_reaches_its_accuracy_on_the_real_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEPMARK_DATA", os.environ["STEPMARK_REAL_MNIST"])
    found = fit(tmp_path, "cnn-mnist", epochs=3, batch_size=64)
    assert found.epochs[-1].valid_accuracy is not None
    assert found.epochs[-1].valid_accuracy >= 0.98
