"""Optimizers, losses and limits of gradients by name, against torch by hand."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everybody's name for it
from torch.utils.data import TensorDataset

from stepmark import Scenario, Workload, recipe
from stepmark.building import make_training
from stepmark.choices import LossName, OptimizerImpl, OptimizerName, Task
from stepmark.devices import BACKENDS
from stepmark.errors import ObstacleError, WorkloadError
from stepmark.loop import train
from stepmark.preparing import check_suits

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -3.0], [1.0, 1.0, 1.0], [-2.0, 4.0, 0.0]])
LABELS = torch.tensor([0, 2, 1, 1])
ONE_HOT = F.one_hot(LABELS, 3).float()


def make_workload(**changes: Any) -> Workload:
    torch.manual_seed(0)
    fields: dict[str, Any] = {
        "model": nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)),
        "dataset": TensorDataset(LOGITS, LABELS),
        "loss_fn": nn.CrossEntropyLoss(),
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.5),
    }
    return Workload(**{**fields, **changes})


def scenario(**axes: Any) -> Scenario:
    return Scenario(workload="made.up:build", device="cpu", **axes)


def trained(num_steps: int = 5, workload: Workload | None = None, **axes: Any) -> Tensor:
    """Weights after some steps on one batch."""
    chosen = scenario(**axes)
    applied = recipe.apply(workload or make_workload(), chosen)
    training = make_training(applied, chosen, BACKENDS["cpu"].open(0))
    train(training, iter([(LOGITS, LABELS)] * num_steps), range(num_steps))
    return torch.cat([p.detach().flatten() for p in training.model.parameters()])


def by_hand(make_optimizer: Any, num_steps: int = 5) -> Tensor:
    model = make_workload().model
    optimizer = make_optimizer(model.parameters())
    for _ in range(num_steps):
        F.cross_entropy(model(LOGITS), LABELS).backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        (OptimizerName.SGD, torch.optim.SGD, {}),
        (OptimizerName.SGD_MOMENTUM, torch.optim.SGD, {"momentum": 0.9}),
        (OptimizerName.ADAGRAD, torch.optim.Adagrad, {}),
        (OptimizerName.RMSPROP, torch.optim.RMSprop, {}),
        (OptimizerName.ADAM, torch.optim.Adam, {}),
        (OptimizerName.ADAMW, torch.optim.AdamW, {}),
    ],
)
@pytest.mark.parametrize("lr", [None, 0.02])
def test_an_optimizer_by_name_is_torchs_own(
    name: OptimizerName, kind: Any, settings: dict[str, Any], lr: float | None
) -> None:
    given = settings if lr is None else {**settings, "lr": lr}
    expected = by_hand(lambda parameters: kind(parameters, **given))
    assert torch.equal(trained(optimizer=name, lr=lr), expected)
    assert set(OptimizerName) == set(recipe.OPTIMIZERS)


@pytest.mark.parametrize("name", [None, *OptimizerName])
@pytest.mark.parametrize("impl", [i for i in OptimizerImpl if i is not OptimizerImpl.DEFAULT])
def test_an_optimizers_implementation_changes_how_it_steps_and_not_where_to(
    name: OptimizerName | None, impl: OptimizerImpl
) -> None:
    axes = {} if name is None else {"optimizer": name}
    plain = trained(**axes)
    if (name, impl) == (OptimizerName.RMSPROP, OptimizerImpl.FUSED):
        with pytest.raises(ObstacleError, match="=fused: RMSprop has no such implementation"):
            trained(**axes, optimizer_impl=impl)
        return
    found = trained(**axes, optimizer_impl=impl)
    assert torch.allclose(found, plain, rtol=1e-5, atol=1e-7)
    if impl is OptimizerImpl.FOR_LOOP:
        assert torch.equal(found, plain), "on a CPU it is torch's own choice"


def test_another_implementation_keeps_groups_and_settings() -> None:
    def make(parameters: Any) -> torch.optim.Optimizer:
        first, *rest = parameters
        groups = [{"params": [first], "lr": 0.5}, {"params": rest}]
        return torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01)

    workload = make_workload(optimizer=make)
    applied = recipe.apply(workload, scenario(optimizer_impl="foreach"))
    groups = applied.optimizer(list(workload.model.parameters())).param_groups
    assert [g["lr"] for g in groups] == [0.5, 0.1]
    assert {(g["momentum"], g["weight_decay"], g["foreach"]) for g in groups} == {(0.9, 0.01, True)}
    assert torch.equal(
        trained(workload=make_workload(optimizer=make), optimizer_impl="for-loop"),
        trained(workload=make_workload(optimizer=make)),
    )


def log_softmax(logits: Tensor) -> Tensor:
    return logits - logits.exp().sum(1, keepdim=True).log()


PROBABILITIES = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3], [0.2, 0.6, 0.2]])
BY_HAND = {
    LossName.CROSS_ENTROPY: lambda out, to: -(to * log_softmax(out)).sum(1).mean(),
    LossName.MSE: lambda out, to: ((out - to) ** 2).mean(),
    LossName.BCE: lambda out, to: (
        -(to * out.sigmoid().log() + (1 - to) * (1 - out.sigmoid()).log()).mean()
    ),
    LossName.L1: lambda out, to: (out - to).abs().mean(),
    # 0 log 0 is 0.
    LossName.KL_DIV: lambda out, to: (
        (torch.where(to > 0, to * to.clamp_min(1e-30).log(), 0) - to * log_softmax(out))
        .sum(1)
        .mean()
    ),
}


@pytest.mark.parametrize("name", list(LossName))
@pytest.mark.parametrize("targets", [LABELS, ONE_HOT, PROBABILITIES], ids=["index", "hot", "soft"])
def test_a_loss_by_name_is_its_formula(name: LossName, targets: Tensor) -> None:
    workload = recipe.apply(make_workload(), scenario(loss=name))
    assert workload.loss_fn is not None
    spread = targets if targets.is_floating_point() else ONE_HOT
    found = workload.loss_fn(LOGITS, targets)
    assert found.item() == pytest.approx(BY_HAND[name](LOGITS, spread).item(), rel=1e-5)


@pytest.mark.parametrize("name", list(LossName))
def test_targets_that_do_not_fit_the_outputs_are_an_obstacle(name: LossName) -> None:
    loss = recipe.LOSSES[name]
    if name is LossName.CROSS_ENTROPY:
        with pytest.raises(ObstacleError, match=r"shape \(4, 1\) have fewer than two classes"):
            loss(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64))
    else:
        with pytest.raises(ObstacleError, match=r"outputs of shape \(4, 3\), targets of shape"):
            loss(LOGITS, torch.zeros(4, 1))


@pytest.mark.parametrize("name", list(LossName))
@pytest.mark.parametrize("size", [7, 5], ids=["tokens", "as many tokens as classes"])
def test_classes_in_the_last_dimension_are_an_obstacle_and_no_other_loss(
    name: LossName, size: int
) -> None:
    """As of a transformer, ``[batch, tokens, classes]``: by chance it may look like the other."""
    indices = torch.zeros(2, size, dtype=torch.int64)
    with pytest.raises(ObstacleError, match="they must be in dimension 1"):
        recipe.LOSSES[name](torch.randn(2, size, 5), indices)


@pytest.mark.parametrize("name", [LossName.MSE, LossName.BCE, LossName.L1])
def test_of_a_single_output_whole_numbers_are_values(name: LossName) -> None:
    outputs, labels = LOGITS[:, :1], torch.tensor([0, 1, 1, 0])
    expected = BY_HAND[name](outputs, labels.float().unsqueeze(1))
    for targets in (labels, labels.unsqueeze(1), labels.to(torch.uint8), labels.bool()):
        found = recipe.LOSSES[name](outputs, targets)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", list(LossName))
@pytest.mark.parametrize("kind", [torch.int32, torch.uint8])
def test_class_indices_may_be_of_any_whole_type(name: LossName, kind: torch.dtype) -> None:
    loss = recipe.LOSSES[name]
    assert torch.equal(loss(LOGITS, LABELS.to(kind)), loss(LOGITS, LABELS))


def test_labels_of_several_classes_at_once_may_be_whole_numbers() -> None:
    labels = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    found = recipe.LOSSES[LossName.BCE](LOGITS, labels)
    assert found.item() == pytest.approx(BY_HAND[LossName.BCE](LOGITS, labels.float()).item())


@pytest.mark.parametrize("name", [LossName.CROSS_ENTROPY, LossName.BCE, LossName.KL_DIV])
@pytest.mark.parametrize(
    "targets",
    [PROBABILITIES + 0.5, -PROBABILITIES, PROBABILITIES * float("nan")],
    ids=["above", "below", "nan"],
)
def test_targets_that_are_no_probabilities_are_an_obstacle_where_they_must_be(
    name: LossName, targets: Tensor
) -> None:
    loss = recipe.apply(make_workload(), scenario(loss=name)).loss_fn
    assert loss is not None
    loss(LOGITS.to("meta"), targets.to("meta"))  # as operations are counted
    with pytest.raises(ObstacleError, match=f"loss={name}: takes targets for probabilities"):
        loss(LOGITS, targets)


@pytest.mark.parametrize("name", [LossName.CROSS_ENTROPY, LossName.KL_DIV])
def test_labels_of_several_classes_are_no_distribution(name: LossName) -> None:
    loss = recipe.apply(make_workload(), scenario(loss=name)).loss_fn
    assert loss is not None
    with pytest.raises(ObstacleError, match=r"sum to 1 over the classes; .* a sum is 1 off"):
        loss(LOGITS, torch.tensor([[1.0, 1.0, 0.0]] + [[1.0, 0.0, 0.0]] * 3))


@pytest.mark.parametrize("name", [LossName.MSE, LossName.L1])
def test_other_losses_take_targets_of_any_size(name: LossName) -> None:
    loss = recipe.apply(make_workload(), scenario(loss=name)).loss_fn
    assert loss is not None
    targets = 100 * PROBABILITIES
    assert loss(LOGITS, targets).item() == pytest.approx(BY_HAND[name](LOGITS, targets).item())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optimizer": lambda parameters: torch.optim.LBFGS(parameters)},
            r"optimizer=LBFGS: its step\(\) needs closure, and the loop calls it without$",
        ),
        (
            {"scheduler": lambda made: torch.optim.lr_scheduler.ReduceLROnPlateau(made)},
            r"scheduler=ReduceLROnPlateau: its step\(\) needs metrics, .* --schedule plateau'$",
        ),
    ],
)
def test_what_the_loop_cannot_step_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        trained(workload=make_workload(**changes))


def test_a_model_that_returns_its_own_loss_has_no_place_for_another() -> None:
    with pytest.raises(ObstacleError, match="loss=mse: of batches that are dictionaries"):
        check_suits(scenario(loss="mse"), {"inputs": LOGITS})


def test_evaluating_on_training_data_is_told() -> None:
    own = make_workload(data="mine")
    assert recipe.apply(own, scenario(task="evaluate")).data.startswith("mine (training data: ")
    validated = make_workload(data="mine", valid_dataset=TensorDataset(LOGITS[:2], LABELS[:2]))
    applied = recipe.apply(validated, scenario(task="evaluate"))
    assert (applied.data, len(applied.dataset)) == ("mine", 2)


def test_a_workload_that_computes_its_loss_itself_has_no_place_for_another() -> None:
    own = make_workload(compute_loss=lambda model, batch: model(batch[0]).sum())
    with pytest.raises(ObstacleError, match="loss=mse: this workload computes its loss itself"):
        recipe.apply(own, scenario(loss="mse"))


def test_gradients_are_clipped_to_the_scenarios_norm_and_not_at_0() -> None:
    clipped = make_workload(clip_norm=1e-9)
    assert recipe.apply(clipped, scenario()).clip_norm == 1e-9
    assert recipe.apply(clipped, scenario(clip_norm=2.0)).clip_norm == 2.0
    assert recipe.apply(clipped, scenario(clip_norm=0)).clip_norm is None
    before = torch.cat([p.detach().flatten() for p in make_workload().model.parameters()])
    moved = (trained(1, optimizer="sgd", lr=0.1, clip_norm=0.01) - before).norm()
    assert moved.item() == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_filling_gradients_with_zeros_trains_the_same() -> None:
    assert torch.equal(trained(set_to_none=False), trained())
    chosen = scenario(set_to_none=False)
    workload = recipe.apply(make_workload(), chosen)
    training = make_training(workload, chosen, BACKENDS["cpu"].open(0))
    train(training, iter([(LOGITS, LABELS)]), range(1))
    assert all(p.grad is not None and not p.grad.any() for p in training.model.parameters())


def test_channels_last_changes_the_layout_and_not_the_loss() -> None:
    images = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    losses, layouts = [], []
    for channels_last in (False, True):
        torch.manual_seed(0)
        workload = make_workload(
            model=nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
        )
        chosen = scenario(channels_last=channels_last)
        training = make_training(workload, chosen, BACKENDS["cpu"].open(0))
        batch = training.to_device((images, LABELS))
        layouts.append(batch[0].is_contiguous(memory_format=torch.channels_last))
        losses += train(training, iter([(images, LABELS)] * 3), range(3))
    assert layouts == [False, True]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)


def test_evaluation_is_of_the_validation_data_where_there_is_any() -> None:
    valid = TensorDataset(LOGITS[:2], LABELS[:2])
    workload = make_workload(valid_dataset=valid)
    for task in (Task.EVALUATE, Task.INFER):
        assert recipe.apply(workload, scenario(task=task)).dataset is valid
        assert recipe.apply(make_workload(), scenario(task=task)).dataset is not valid
    assert recipe.apply(workload, scenario()).dataset is workload.dataset


def test_what_a_scenario_does_not_name_stays_the_workloads() -> None:
    workload = make_workload()
    assert dataclasses.asdict(scenario())["optimizer"] is None
    applied = recipe.apply(workload, scenario())
    assert applied.optimizer is workload.optimizer
    assert applied.loss_fn is workload.loss_fn
