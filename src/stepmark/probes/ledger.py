"""Who holds the memory of a training: predicted from shapes alone, and counted."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from stepmark.devices import Device
from stepmark.loop import Callback
from stepmark.profile import Holding

_LONGEST_REASON = 200

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class HeldMemory(Callback):
    """Counts while one step runs. Use `watching` around it, and `holdings` after it.

    Args:
        model: that is trained.
        optimizer: over its parameters.
        make_optimizer: makes another one, to predict what it will hold.
        device: that they are on.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        make_optimizer: MakeOptimizer,
        device: Device,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._make_optimizer = make_optimizer
        self._device = device
        own = [*model.parameters(), *model.buffers()]
        self._own = {tensor.untyped_storage().data_ptr() for tensor in own}
        self._saved: dict[int, int] = {}
        self._most_saved_bytes = 0
        self._gradients_bytes = 0

    def watching(self) -> AbstractContextManager[Any]:
        """While it is open, what is saved for backward counts; begins a new period of peaks."""
        self._device.reset_peaks()
        return saved_tensors_hooks(self._note, lambda tensor: tensor)

    def on_transfer(self) -> None:
        """See `Callback`: a forward begins."""
        self._saved.clear()

    def on_forward(self) -> None:
        """See `Callback`."""
        self._most_saved_bytes = max(self._most_saved_bytes, sum(self._saved.values()))

    def on_backward(self) -> None:
        """See `Callback`."""
        self._gradients_bytes = _bytes(
            p.grad for p in self._model.parameters() if p.grad is not None
        )

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    def holdings(self) -> tuple[Holding, ...]:
        """The ledger, after the step."""
        parameters = list(self._model.parameters())
        state_bytes, reason = predicted_state(parameters, self._make_optimizer)
        held = [
            Holding(
                name="parameters",
                predicted_bytes=size_of(parameters),
                measured_bytes=_bytes(parameters),
            ),
            Holding(
                name="buffers",
                predicted_bytes=size_of(self._model.buffers()),
                measured_bytes=_bytes(self._model.buffers()),
            ),
            Holding(
                name="gradients",
                predicted_bytes=size_of(p for p in parameters if p.requires_grad),
                measured_bytes=self._gradients_bytes,
                note="after the last backward of a step",
            ),
            Holding(
                name="optimizer state",
                predicted_bytes=state_bytes,
                measured_bytes=_bytes(_tensors(self._optimizer.state.values())),
                note=reason,
            ),
            Holding(
                name="activations",
                predicted_bytes=None,
                measured_bytes=self._most_saved_bytes,
                note="saved for backward, the batch included where it is",
            ),
        ]
        return (*held, *self._of_device(sum(h.measured_bytes or 0 for h in held)))

    def _of_device(self, known_bytes: int) -> Iterator[Holding]:
        """What an accelerator's allocator and driver hold beyond that."""
        peaks = self._device.memory()
        allocated, reserved = peaks.peak_allocated_bytes, peaks.peak_reserved_bytes
        if allocated is None or reserved is None:
            return
        yield _rest(
            "workspace and the rest", allocated - known_bytes, "of what tensors hold at the peak"
        )
        yield _rest("cached", reserved - allocated, "kept by the allocator for later")
        if peaks.in_use_bytes is not None:
            yield _rest(
                "context and others", peaks.in_use_bytes - reserved,
                "of what is in use on the whole device, by anyone",
            )  # fmt: skip


def _rest(name: str, size_bytes: int, note: str) -> Holding:
    return Holding(name=name, predicted_bytes=None, measured_bytes=size_bytes, note=note)


def predicted_state(
    parameters: Iterable[nn.Parameter], make_optimizer: MakeOptimizer
) -> tuple[int | None, str]:
    """What the optimizer will hold, found by a step without numbers; or why it is not known."""
    bare = [
        nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in parameters
    ]
    try:
        optimizer = make_optimizer(iter(bare))
        for parameter in bare:
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
        optimizer.step()
    except Exception as error:  # noqa: BLE001 - anybody's optimizer, on a device it never saw
        text = " ".join(str(error).split())[:_LONGEST_REASON]
        return None, f"not predicted: {type(error).__name__}: {text}"
    return size_of(_tensors(optimizer.state.values())), ""


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """All tensors in nested dictionaries and lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value.values())
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def size_of(tensors: Iterable[Tensor]) -> int:
    """By shape and type; one that occurs twice counts once."""
    return sum({id(t): t.numel() * t.element_size() for t in tensors}.values())


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of the storages that they lie in, each once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
