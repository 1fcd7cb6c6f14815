"""Work of a step, counted on the meta device: nothing is computed.

Where a model asks for a value, which no tensor has there, it is counted again on fake tensors:
libraries that can be traced ask nothing of those.

Operations are multiplications and additions of matrix products, convolutions and attention (two
for each pair of factors), forward and backward, as PyTorch's ``FlopCounterMode`` does;
elementwise work and the optimizer are not. Where that mode is wrong it is corrected, and where a
count cannot be right it is refused.
"""

import contextlib
import copy
import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from stepmark.choices import Task
from stepmark.devices.base import moved
from stepmark.probes.ledger import predicted_state, size_of
from stepmark.record import Reading
from stepmark.scenario import Scenario
from stepmark.workload import Workload

# Backward costs a product for the input's gradient and one for the weights', each as large as
# forward's; a first layer has no input gradient. More than that is a mistake of counting.
_MOST_OVER_FORWARD = 3.05
_LONGEST_REASON = 200  # characters
aten = torch.ops.aten


class _UncountableError(Exception):
    """A count that cannot be right."""


@dataclass(frozen=True, kw_only=True)
class _MicroBatch:
    """What forward and backward of one take.

    Attributes:
        flops: operations.
        forward_flops: those of forward alone.
        saved_bytes: activations that forward keeps for backward.
    """

    flops: int
    forward_flops: int
    saved_bytes: int


def count_work(workload: Workload, scenario: Scenario, batch: Any) -> tuple[Reading, Reading]:
    """Work of one step, over all micro-batches and ranks; without training, of one forward.

    Args:
        workload: its model may be on any device; it is copied without its numbers.
        scenario: multiplies what a micro-batch takes.
        batch: one micro-batch, or its like on the meta device.

    Returns:
        The readings ``flops_per_step`` and ``least_bytes_per_step``; without a value, and with the
        reason, where a count is refused.
    """
    flops = Reading(
        name="flops_per_step",
        unit="flop",
        scope="node",
        value=None,
        note="multiply-adds of matrix products, convolutions and attention, times two",
    )
    moved = Reading(
        name="least_bytes_per_step",
        unit="bytes",
        scope="node",
        value=None,
        note="parameters, gradients, optimizer state and saved activations, each moved once for "
        "each use, if no cache holds any of them",
    )
    try:
        one = _count(workload, batch)
    except Exception as error:  # noqa: BLE001 - a model may do anything on the meta device
        text = str(error) if isinstance(error, _UncountableError) else _reason(error)
        note = f"not counted: {text}"
        return replace(flops, note=note), replace(moved, note=note)
    if scenario.task is not Task.TRAIN:
        held = size_of(workload.model.parameters())
        note = "parameters, each read once, if no cache holds any of them"
        moved = replace(moved, value=float(held), note=note)
        return replace(flops, value=float(one.forward_flops)), moved
    num_batches = scenario.accumulation * scenario.world_size
    flops = replace(flops, value=float(one.flops * num_batches))
    if scenario.precision.autocasts:
        note = "not counted: autocast keeps activations in a type of its own"
        return flops, replace(moved, note=note)
    return flops, _least_bytes(moved, workload, scenario, one)


def _least_bytes(
    moved: Reading, workload: Workload, scenario: Scenario, one: _MicroBatch
) -> Reading:
    """Forward and backward read parameters, write and read what is saved, write gradients; the
    optimizer reads gradients, and reads and writes parameters and its state.
    """
    parameters = list(workload.model.parameters())
    held = size_of(parameters)
    gradients = size_of(p for p in parameters if p.requires_grad)
    state, reason = predicted_state(parameters, workload.optimizer)
    if state is None:
        return replace(moved, note=f"not counted: the optimizer's state is {reason}")
    micro_batch = 2 * held + 2 * one.saved_bytes + gradients
    update = 2 * gradients + gradients + 2 * state
    value = scenario.world_size * (scenario.accumulation * micro_batch + update)
    return replace(moved, value=float(value))


def on_meta(batch: Any) -> Any:
    """A batch of the same shapes and types without its numbers."""
    # A copy, since a library's own batch type may move what it holds in place.
    return moved(copy.copy(batch), torch.device("meta"))


def _count(workload: Workload, batch: Any) -> _MicroBatch:
    for name, module in workload.model.named_modules():
        if isinstance(module, torch.nn.RNNBase):
            raise _UncountableError(
                f"{name or 'the model'} is a {type(module).__name__}, of which PyTorch counts none"
            )
    try:
        return _count_one(workload, batch)
    except RuntimeError:
        # Not at once, for it takes two to four times as long.
        with contextlib.suppress(RuntimeError):
            return _count_one(workload, batch, FakeTensorMode(allow_non_fake_inputs=True))
        raise


def _count_one(workload: Workload, batch: Any, mode: FakeTensorMode | None = None) -> _MicroBatch:
    model = _without_numbers(workload.model, mode)
    loss_fn = workload.loss_fn
    if isinstance(loss_fn, torch.nn.Module):
        loss_fn = _without_numbers(loss_fn, mode)
    bare = copy.copy(workload)
    object.__setattr__(bare, "loss_fn", loss_fn)
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with (
        mode or contextlib.nullcontext(),
        FlopCounterMode(display=False, custom_mapping=_CORRECTIONS) as counter,
        saved_tensors_hooks(note, lambda tensor: tensor),
    ):
        loss = bare.loss(model, on_meta(batch))
        saved_bytes = sum(saved.values())
        forward = counter.get_total_flops()
        loss.backward()  # type: ignore[no-untyped-call]
        total: int = counter.get_total_flops()
    if not forward:
        raise _UncountableError("no operator whose operations are known")
    if not 1 <= total / forward <= _MOST_OVER_FORWARD:
        raise _UncountableError(
            f"forward and backward came to {total / forward:.2f} times forward, and at most "
            f"{_MOST_OVER_FORWARD} can be (activation checkpointing computes forward twice)"
        )
    return _MicroBatch(flops=total, forward_flops=forward, saved_bytes=saved_bytes)


def _without_numbers(module: torch.nn.Module, mode: FakeTensorMode | None) -> torch.nn.Module:
    """A copy with all parameters and buffers on the meta device; theirs are never copied."""

    def bare(tensor: torch.Tensor) -> torch.Tensor:
        empty = torch.empty_like(tensor, device="meta")
        return empty if mode is None else mode.from_tensor(empty)

    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = torch.nn.Parameter(
            bare(parameter), requires_grad=parameter.requires_grad
        )
    for buffer in module.buffers():
        memo[id(buffer)] = bare(buffer)
    return copy.deepcopy(module, memo)


def _convolution_backward(
    grad_shape: Any,
    x_shape: Any,
    w_shape: Any,
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: Any,
    output_mask: Any,
    out_shape: Any = None,
) -> int:
    """Each gradient takes as many operations as forward did, grouped or not.

    PyTorch's own formula takes a grouped convolution's for one without groups: 16.5 times too many
    for a depthwise one of 32 channels.
    """
    once = conv_flop_count(x_shape, w_shape, grad_shape, transposed=transposed)
    return int(once * (bool(output_mask[0]) + bool(output_mask[1])))


def _refused(name: str, *_: Any, **__: Any) -> int:
    raise _UncountableError(f"{name} has operations that PyTorch does not count")


_UNKNOWN = ("_fft_r2c", "_fft_c2r", "_fft_c2c", "_sparse_mm", "_cdist_forward", "lstm", "gru")
_CORRECTIONS = {
    aten.convolution_backward: _convolution_backward,
    **{getattr(aten, name): functools.partial(_refused, name) for name in _UNKNOWN},
}


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:_LONGEST_REASON]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
