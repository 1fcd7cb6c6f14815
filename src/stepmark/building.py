"""From a workload and a scenario to what the loop works on."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves, tree_map

from stepmark.choices import Precision, Task
from stepmark.devices import Device, DevicePair
from stepmark.errors import WorkloadError
from stepmark.loop import Loop, Training, evaluate, train, unchanged
from stepmark.parts import OnTwoDevices, parts
from stepmark.pipelining import Pipeline
from stepmark.scenario import Scenario
from stepmark.training import TrainPlan
from stepmark.workload import Workload

AUTOCAST_DTYPES = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


def make_training(workload: Workload, scenario: Scenario, device: Device) -> Training:
    """What the loop works on, before any compiling or DDP wrapping.

    Raises:
        ObstacleError: the workload's model cannot be parted as the scenario asks.
        WorkloadError: its optimizer is none, or cannot be stepped as the loop does.
    """
    if scenario.split_layers:
        assert isinstance(device, DevicePair), "a place has two devices for it"
        model: torch.nn.Module = OnTwoDevices(workload, device)
    else:
        model = workload.model.to(device.torch_device)
    to_device = device.to_device
    if scenario.channels_last:
        model = model.to(memory_format=torch.channels_last)
        to_device = functools.partial(_channels_last, device)
    model.train()
    optimizer = workload.optimizer(model.parameters())
    if not callable(getattr(optimizer, "step", None)):
        raise WorkloadError(
            f"optimizer(parameters) returned {type(optimizer).__name__}: must be a "
            "torch.optim.Optimizer"
        )
    _require_plain_step("optimizer", optimizer)
    scheduler = None if workload.scheduler is None else workload.scheduler(optimizer)
    if scheduler is not None:
        _require_plain_step("scheduler", scheduler)
    dtype = AUTOCAST_DTYPES.get(scenario.precision)
    trains = scenario.task is Task.TRAIN
    return Training(
        model=model,
        loss=_inferred(workload) if scenario.task is Task.INFER else workload.loss,
        optimizer=optimizer,
        to_device=to_device,
        scaler=device.scaler() if trains and scenario.precision is Precision.FP16 else None,
        accumulation=scenario.accumulation,
        clip_norm=workload.clip_norm,
        scheduler=scheduler,
        autocast=unchanged if dtype is None else functools.partial(device.autocast, dtype),
        set_to_none=scenario.set_to_none,
        recording=recording_of(scenario),
    )


def _require_plain_step(name: str, made: Any) -> None:
    """The loop calls ``step()``, after every optimizer step."""
    try:
        parameters = inspect.signature(made.step).parameters.values()
    except (TypeError, ValueError):  # it is no Python function, and tells nothing
        return
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p.name for p in parameters if p.kind in by_place and p.default is p.empty]
    if needed:
        hint = ""
        if isinstance(made, torch.optim.lr_scheduler.ReduceLROnPlateau):
            hint = "; leave it out, and train with 'stepmark train --schedule plateau'"
        raise WorkloadError(
            f"{name}={type(made).__name__}: its step() needs {', '.join(needed)}, and the loop "
            f"calls it without{hint}"
        )


def own_part(workload: Workload, scenario: Scenario, rank: int) -> Workload:
    """The workload with the layers that this process has; the others keep their shapes alone.

    Raises:
        ObstacleError: the model cannot be parted.
    """
    if scenario.pipeline_stages == 1:
        return workload
    stages = parts(workload, scenario.pipeline_stages)
    for number, stage in enumerate(stages):
        if number != rank:
            stage.to("meta")
    return dataclasses.replace(workload, model=stages[rank])


def loop_of(scenario: Scenario, workload: Workload, training: Training, device: Device) -> Loop:
    """The loop that runs the scenario's steps; of a pipeline, once its process group is joined."""
    if scenario.pipeline_stages > 1:
        assert workload.loss_fn is not None, "parts() refuses a workload without"
        model, loss_fn = training.model, workload.loss_fn
        return Pipeline(model, device.torch_device, scenario.accumulation, loss_fn).train
    return train if scenario.task is Task.TRAIN else evaluate


def recording_of(asked: Scenario | TrainPlan) -> Callable[[], AbstractContextManager[Any]]:
    """The context of evaluation."""
    if asked.inference_mode:
        return torch.inference_mode
    return torch.no_grad if asked.no_grad else unchanged


def _inferred(workload: Workload) -> Callable[[torch.nn.Module, Any], None]:
    def forward_alone(model: torch.nn.Module, batch: Any) -> None:
        workload.forward(model, batch)

    return forward_alone


def _channels_last(device: Device, batch: Any) -> Any:
    """A micro-batch on the device, its images with their channels last."""

    def laid_out(leaf: Any) -> Any:
        return leaf.contiguous(memory_format=torch.channels_last) if _is_image(leaf) else leaf

    return tree_map(laid_out, device.to_device(batch))


def has_images(batch: Any) -> bool:
    """Whether a batch has tensors with channels: four dimensions."""
    return any(map(_is_image, tree_leaves(batch)))


def _is_image(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.ndim == 4


def checked_loss(workload: Workload, model: torch.nn.Module, batch: Any) -> torch.Tensor:
    """A workload's loss, if it can be trained on; see `checked`."""
    return checked(workload.loss(model, batch))


def checked(loss: Any) -> torch.Tensor:
    """The loss, if it can be trained on; ``backward()`` says of another one what it is not.

    Raises:
        WorkloadError: it is no tensor, no single number, or depends on no trained parameter.
    """
    if not isinstance(loss, torch.Tensor):
        raise WorkloadError(f"the loss is of type {type(loss).__name__}: must be a scalar tensor")
    if loss.numel() != 1:
        raise WorkloadError(
            f"the loss is a tensor of shape {tuple(loss.shape)}: must be a scalar, the mean over "
            "its micro-batch"
        )
    if not loss.requires_grad:
        raise WorkloadError(
            "the loss needs no gradient, so nothing would be trained: it must depend on parameters "
            "that have requires_grad=True, and not be detached or made under no_grad"
        )
    return loss


def wrap_ddp(
    model: torch.nn.Module, device: Device, *, find_unused_parameters: bool
) -> DistributedDataParallel:
    """DistributedDataParallel on this rank's device."""
    on_accelerator = device.torch_device.index is not None
    return DistributedDataParallel(
        model,
        device_ids=[device.torch_device.index] if on_accelerator else None,
        find_unused_parameters=find_unused_parameters,
    )
