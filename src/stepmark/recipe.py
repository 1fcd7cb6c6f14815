"""A workload as a scenario has it: another optimizer, loss or limit of gradients, by name."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everybody's name for it
from torch.optim import Optimizer

from stepmark.choices import LossName, OptimizerImpl, OptimizerName, Task
from stepmark.errors import ObstacleError
from stepmark.scenario import Scenario
from stepmark.workload import Workload

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


def apply(workload: Workload, scenario: Scenario) -> Workload:
    """The workload with what the scenario puts in the place of its own.

    Raises:
        ObstacleError: the workload has no place for it.
    """
    changes: dict[str, Any] = {}
    if scenario.optimizer is not None:
        changes["optimizer"] = optimizer(scenario.optimizer, scenario.lr)
    if scenario.optimizer_impl is not OptimizerImpl.DEFAULT:
        make = changes.get("optimizer", workload.optimizer)
        changes["optimizer"] = functools.partial(_carried_out, make, scenario.optimizer_impl)
    if scenario.loss is not None:
        if workload.loss_fn is None or workload.compute_loss is not None:
            raise ObstacleError(f"loss={scenario.loss}: this workload computes its loss itself")
        changes["loss_fn"] = _WatchingTargets(scenario.loss)
    if scenario.clip_norm is not None:
        changes["clip_norm"] = scenario.clip_norm or None
    if scenario.task is not Task.TRAIN:
        if workload.valid_dataset is not None:
            changes["dataset"] = workload.valid_dataset
        else:
            changes["data"] = f"{workload.data} (training data: there is none for validation)"
    return dataclasses.replace(workload, **changes)


def optimizer(name: OptimizerName, lr: float | None = None) -> MakeOptimizer:
    """What makes an optimizer by name; its settings are torch's defaults but for the rate."""
    return functools.partial(OPTIMIZERS[name], **({} if lr is None else {"lr": lr}))


def _carried_out(
    make: MakeOptimizer, impl: OptimizerImpl, parameters: Iterable[nn.Parameter]
) -> Optimizer:
    """The same optimizer, made again with another implementation of its step."""
    made = make(parameters)
    kind = type(made)
    accepted = inspect.signature(kind).parameters
    if _FLAG[impl] not in accepted:
        raise ObstacleError(f"optimizer_impl={impl}: {kind.__name__} has no such implementation")
    flags = {name: name == impl for name in ("foreach", "fused") if name in accepted}
    groups = [{k: v for k, v in group.items() if k not in flags} for group in made.param_groups]
    settings = {name: value for name, value in made.defaults.items() if name in accepted}
    try:
        return kind(groups, **{**settings, **flags})
    # Not on this device, or not with the others of its settings.
    except (RuntimeError, ValueError) as error:
        raise ObstacleError(f"optimizer_impl={impl}: {' '.join(str(error).split())}") from error


# What a constructor must accept to have it.
_FLAG = {
    OptimizerImpl.FOR_LOOP: "foreach",
    OptimizerImpl.FOREACH: "foreach",
    OptimizerImpl.FUSED: "fused",
}
OPTIMIZERS: dict[OptimizerName, Callable[..., Optimizer]] = {
    OptimizerName.SGD: torch.optim.SGD,
    OptimizerName.SGD_MOMENTUM: functools.partial(torch.optim.SGD, momentum=0.9),
    OptimizerName.ADAGRAD: torch.optim.Adagrad,
    OptimizerName.RMSPROP: torch.optim.RMSprop,
    OptimizerName.ADAM: torch.optim.Adam,
    OptimizerName.ADAMW: torch.optim.AdamW,
}


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of logits ``[batch, classes, ...]`` against class indices or probabilities.

    Raises:
        ObstacleError: there is a single class, so that the loss would always be 0; or targets do
            not fit.
    """
    _require_classes(LossName.CROSS_ENTROPY, outputs)
    if targets.is_floating_point():
        return F.cross_entropy(outputs, as_distributions(LossName.CROSS_ENTROPY, outputs, targets))
    _require_indices(LossName.CROSS_ENTROPY, outputs, targets)
    return F.cross_entropy(outputs, targets.long())


def kl_div(outputs: Tensor, targets: Tensor) -> Tensor:
    """Divergence of softmax(outputs) from targets, which are probabilities or class indices.

    Raises:
        ObstacleError: there is a single class, or targets are not of the outputs' shape.
    """
    _require_classes(LossName.KL_DIV, outputs)
    wanted = as_distributions(LossName.KL_DIV, outputs, targets)
    return F.kl_div(F.log_softmax(outputs, dim=1), wanted, reduction="batchmean")


def _elementwise(name: LossName, loss: Callable[[Tensor, Tensor], Tensor]) -> Any:
    def of(outputs: Tensor, targets: Tensor) -> Tensor:
        return loss(outputs, as_distributions(name, outputs, targets))

    return of


def _require_classes(name: LossName, outputs: Tensor) -> None:
    if outputs.ndim < 2 or outputs.shape[1] < 2:
        shape = tuple(outputs.shape)
        raise ObstacleError(
            f"loss={name}: outputs of shape {shape} have fewer than two classes in dimension 1"
        )


def _require_indices(name: LossName, outputs: Tensor, targets: Tensor) -> None:
    """Of classes in dimension 1, which they must be beyond doubt."""
    classes_first = targets.shape == outputs.shape[:1] + outputs.shape[2:]
    classes_last = outputs.ndim > 2 and targets.shape == outputs.shape[:-1]
    if classes_last:
        raise ObstacleError(
            f"loss={name}: outputs of shape {tuple(outputs.shape)} and targets of shape "
            f"{tuple(targets.shape)}: classes seem to be in the last dimension; they must be in "
            "dimension 1"
        )
    if not classes_first:
        _refuse_shapes(name, outputs, targets)


def _refuse_shapes(name: LossName, outputs: Tensor, targets: Tensor) -> NoReturn:
    raise ObstacleError(
        f"loss={name}: outputs of shape {tuple(outputs.shape)}, targets of shape "
        f"{tuple(targets.shape)}"
    )


def as_distributions(name: LossName, outputs: Tensor, targets: Tensor) -> Tensor:
    """Targets in the shape of outputs: class indices one-hot, everything else as it is.

    Where a sample has a single output, what looks like class indices are values.

    Raises:
        ObstacleError: they are not of one shape; torch would stretch one of them.
    """
    if not targets.is_floating_point():
        if targets.ndim == outputs.ndim - 1 and outputs.ndim > 1:
            _require_indices(name, outputs, targets)
            if outputs.shape[1] == 1:
                targets = targets.unsqueeze(1)
            else:
                targets = F.one_hot(targets.long(), outputs.shape[1]).movedim(-1, 1)
        targets = targets.to(outputs.dtype)
    if targets.shape != outputs.shape:
        _refuse_shapes(name, outputs, targets)
    return targets


class _WatchingTargets:
    """A loss whose first batch's targets are looked at, where they must be probabilities.

    Looking at those of every batch would make each step wait for its device.
    """

    def __init__(self, name: LossName) -> None:
        self._name = name
        self._has_looked = name not in _OF_PROBABILITIES

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = LOSSES[self._name](outputs, targets)
        # Operations may be counted on tensors without numbers before.
        if not self._has_looked and not targets.is_meta:
            self._has_looked = True
            _require_probabilities(self._name, outputs, targets)
        return loss


def _require_probabilities(name: LossName, outputs: Tensor, targets: Tensor) -> None:
    if name is LossName.CROSS_ENTROPY and not targets.is_floating_point():
        return
    wanted = as_distributions(name, outputs, targets)
    low, high = wanted.aminmax()
    if not (low >= 0 and high <= 1):
        raise ObstacleError(
            f"loss={name}: takes targets for probabilities, from 0 to 1; the first batch has "
            f"{low.item():g} to {high.item():g}"
        )
    if name is not LossName.BCE:  # of one distribution over all classes
        off = (wanted.float().sum(dim=1) - 1).abs().max()
        if off > _SUM_TO_ONE_WITHIN:
            raise ObstacleError(
                f"loss={name}: takes targets for probabilities, which sum to 1 over the classes; "
                f"in the first batch a sum is {off.item():g} off (labels of several classes at "
                "once: --loss bce)"
            )


# Half precision rounds a hundred classes' probabilities by less.
_SUM_TO_ONE_WITHIN = 0.01
_OF_PROBABILITIES = (LossName.CROSS_ENTROPY, LossName.BCE, LossName.KL_DIV)
LOSSES: dict[LossName, Callable[[Tensor, Tensor], Tensor]] = {
    LossName.CROSS_ENTROPY: cross_entropy,
    LossName.MSE: _elementwise(LossName.MSE, F.mse_loss),
    LossName.BCE: _elementwise(LossName.BCE, F.binary_cross_entropy_with_logits),
    LossName.L1: _elementwise(LossName.L1, F.l1_loss),
    LossName.KL_DIV: kl_div,
}
