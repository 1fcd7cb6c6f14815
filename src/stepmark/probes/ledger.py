"""Who holds the memory of a training: predicted from shapes alone, and counted."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
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
        self._peak = _Peak(phase="", allocated_bytes=-1, has_activations=True, has_gradients=True)
        self._reserved_bytes: int | None = None

    def watching(self) -> AbstractContextManager[Any]:
        """While it is open, what is saved for backward counts."""
        return saved_tensors_hooks(self._note, lambda tensor: tensor)

    def on_transfer(self) -> None:
        """See `Callback`: a forward begins."""
        self._saved.clear()
        self._device.reset_peaks()

    def on_forward(self) -> None:
        """See `Callback`."""
        self._most_saved_bytes = max(self._most_saved_bytes, sum(self._saved.values()))
        self._end_phase("forward", has_activations=True)

    def on_backward(self) -> None:
        """See `Callback`."""
        self._end_phase("backward", has_activations=True)
        self._gradients_bytes = _bytes(
            p.grad for p in self._model.parameters() if p.grad is not None
        )

    def on_step_end(self) -> None:
        """See `Callback`."""
        self._end_phase("update", has_activations=False)

    def _end_phase(self, phase: str, *, has_activations: bool) -> None:
        """Keep the highest peak of all phases; gradients count if they were there before it."""
        found = self._device.memory()
        allocated_bytes = found.peak_allocated_bytes
        if allocated_bytes is not None and allocated_bytes > self._peak.allocated_bytes:
            self._peak = _Peak(
                phase=phase,
                allocated_bytes=allocated_bytes,
                has_activations=has_activations,
                has_gradients=self._gradients_bytes > 0,
            )
        if found.peak_reserved_bytes is not None:
            self._reserved_bytes = max(self._reserved_bytes or 0, found.peak_reserved_bytes)
        self._device.reset_peaks()

    def _note(self, tensor: Tensor) -> Tensor:
        for part in _dense(tensor):
            storage = part.untyped_storage()
            if storage.data_ptr() not in self._own:
                self._saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    def holdings(self) -> tuple[Holding, ...]:
        """The ledger, after the step."""
        parameters = list(self._model.parameters())
        state_bytes, reason = predicted_state(parameters, self._make_optimizer)
        peak = self._peak
        absent = f"not held at the peak, in {peak.phase}"
        state = getattr(self._optimizer, "state", {})
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
                at_peak=peak.has_gradients,
                note="" if peak.has_gradients else absent,
            ),
            Holding(
                name="optimizer state",
                predicted_bytes=state_bytes,
                measured_bytes=_bytes(_tensors(state.values())),
                note=reason,
            ),
            Holding(
                name="activations",
                predicted_bytes=None,
                measured_bytes=self._most_saved_bytes,
                at_peak=peak.has_activations,
                note="saved for backward, the batch included where it is"
                if peak.has_activations
                else absent,
            ),
        ]
        return (*held, *self._of_device(sum(h.measured_bytes or 0 for h in held if h.at_peak)))

    def _of_device(self, known_bytes: int) -> Iterator[Holding]:
        """What an accelerator's allocator and driver hold beyond that."""
        allocated, reserved = self._peak.allocated_bytes, self._reserved_bytes
        if not self._peak.phase or reserved is None:
            return
        yield _rest(
            "workspace and the rest",
            allocated - known_bytes,
            f"of what tensors hold at the peak, in {self._peak.phase}",
        )
        yield _rest("cached", reserved - allocated, "kept by the allocator for later")
        in_use = self._device.memory().in_use_bytes
        if in_use is not None:
            note = "of what is in use on the whole device, by anyone"
            yield _rest("context and others", in_use - reserved, note)


@dataclass(frozen=True, kw_only=True)
class _Peak:
    """When tensors held most, and what was there then.

    Attributes:
        phase: of the step; empty where the device cannot tell.
        allocated_bytes: how much it was.
        has_activations: what is saved for backward was there.
        has_gradients: gradients were, all of them.
    """

    phase: str
    allocated_bytes: int
    has_activations: bool
    has_gradients: bool


def _rest(name: str, size_bytes: int, note: str) -> Holding:
    return Holding(name=name, predicted_bytes=None, measured_bytes=size_bytes, note=note)


def predicted_state(
    parameters: Iterable[nn.Parameter], make_optimizer: MakeOptimizer
) -> tuple[int | None, str]:
    """What the optimizer will hold, found by a step without numbers; or why it is not known."""
    bare = {
        parameter: nn.Parameter(
            torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad
        )
        for parameter in parameters
    }
    # It may take the model's own from elsewhere, in groups by name, and not those it is given.
    known = {**{id(p): p for p in bare.values()}, **{id(p): like for p, like in bare.items()}}
    try:
        optimizer = make_optimizer(iter(bare.values()))
        if any(id(p) not in known for group in optimizer.param_groups for p in group["params"]):
            return None, "not predicted: it takes parameters that are not the model's"
        # Other dictionaries: these may be the trained optimizer's, too.
        optimizer.param_groups = [
            {**group, "params": [known[id(p)] for p in group["params"]]}
            for group in optimizer.param_groups
        ]
        for parameter in bare.values():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        return size_of(_tensors(optimizer.state.values())), ""
    except Exception as error:  # noqa: BLE001 - anybody's optimizer, on a device it never saw
        text = " ".join(str(error).split())[:_LONGEST_REASON]
        return None, f"not predicted: {type(error).__name__}: {text}"


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


def _dense(tensor: Tensor) -> tuple[Tensor, ...]:
    """A sparse one, such as an embedding's gradient, is two."""
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce()
        return tensor.indices(), tensor.values()
    return (tensor,)


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of the storages that they lie in, each once."""
    storages = [part.untyped_storage() for tensor in tensors for part in _dense(tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
