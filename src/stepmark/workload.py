"""`Workload`: what is trained. The one thing users bring of their own. Imports no torch."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stepmark.errors import ObstacleError, WorkloadError

if TYPE_CHECKING:
    import torch
    from torch.optim.lr_scheduler import LRScheduler
    from torch.utils.data import Dataset


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model with its data, loss and optimizer.

    Attributes:
        model: on the CPU; it is moved to the scenario's device.
        dataset: map-style (``__len__`` and ``__getitem__``). Its batches are either pairs
            ``(inputs, targets)``, or dictionaries (see ``compute_loss``).
        loss_fn: ``loss_fn(outputs, targets)``, a scalar tensor, the mean over its micro-batch.
        optimizer: makes the optimizer from the model's parameters.
        compute_loss: ``compute_loss(model, batch)``, a scalar tensor, in place of the default:
            for a pair, ``loss_fn(model(inputs), targets)``, with inputs that are a tuple or a
            dictionary unpacked into the call; for a dictionary, ``model(**batch)``'s own
            ``loss``.
        collate_fn: as in ``torch.utils.data.DataLoader``.
        valid_dataset: for evaluation; not part of a measured step.
        scheduler: makes a learning-rate scheduler, stepped once per optimizer step, for as long
            as is measured; one that ends (``OneCycleLR``) must do so later.
        clip_norm: largest gradient norm (``clip_grad_norm_``); ``None`` does not clip.
        find_unused_parameters: as in ``DistributedDataParallel``; for models of which a step may
            leave parameters out.
        stages: ``stages(model, number)``, the model in as many modules, each of which takes what
            the one before it gives; for ``pipeline_stages`` and ``split_layers``. An
            ``nn.Sequential`` needs none: it is parted between its layers, by their parameters.
        data: where the samples come from, in words; shown in every result.

    Raises:
        WorkloadError: a field is missing or of the wrong kind.
    """

    model: "torch.nn.Module"
    dataset: "Dataset[Any]"
    optimizer: "Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]"
    loss_fn: "Callable[[Any, Any], torch.Tensor] | None" = None
    compute_loss: "Callable[[torch.nn.Module, Any], torch.Tensor] | None" = None
    collate_fn: Callable[[list[Any]], Any] | None = None
    valid_dataset: "Dataset[Any] | None" = None
    scheduler: "Callable[[torch.optim.Optimizer], LRScheduler] | None" = None
    clip_norm: float | None = None
    find_unused_parameters: bool = False
    stages: "Callable[[Any, int], Sequence[torch.nn.Module]] | None" = None
    data: str = "the workload's own"

    def __post_init__(self) -> None:
        if not callable(getattr(self.model, "parameters", None)):
            raise WorkloadError(f"model={type(self.model).__name__}: must be a torch.nn.Module")
        for need in ("__len__", "__getitem__"):
            if not hasattr(self.dataset, need):
                raise WorkloadError(
                    f"dataset={type(self.dataset).__name__}: has no {need}; stepmark measures "
                    "map-style datasets, which have a length and are indexed"
                )
        for name in ("optimizer", "loss_fn", "compute_loss", "collate_fn", "scheduler", "stages"):
            value = getattr(self, name)
            if not callable(value) and (value is not None or name == "optimizer"):
                raise WorkloadError(f"{name}={type(value).__name__}: must be callable")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise WorkloadError(f"clip_norm={self.clip_norm}: must be above 0, or None")

    def loss(self, model: "torch.nn.Module", batch: Any) -> "torch.Tensor":
        """Forward and loss of one micro-batch (see ``compute_loss``).

        Raises:
            WorkloadError: the batch has a layout for which the workload says no loss.
        """
        if self.compute_loss is not None:
            return self.compute_loss(model, batch)
        return self.loss_of(self.forward(model, batch), batch)

    def loss_of(self, outputs: Any, batch: Any) -> "torch.Tensor":
        """The loss of what `forward` made of a batch.

        Raises:
            WorkloadError: the model was to return its own loss, and did not.
        """
        if isinstance(batch, Mapping):
            return _own_loss(outputs)
        assert self.loss_fn is not None, "forward() refuses a pair without it"
        return self.loss_fn(outputs, batch[1])

    def forward(self, model: "torch.nn.Module", batch: Any) -> Any:
        """What the model makes of a batch's inputs, without the loss.

        Raises:
            ObstacleError: the workload computes its loss itself, and the forward in it.
            WorkloadError: the batch has a layout for which the workload says no loss.
        """
        if self.compute_loss is not None:
            raise ObstacleError("this workload computes its loss itself, and the forward in it")
        if isinstance(batch, (list, tuple)) and len(batch) == 2 and self.loss_fn is not None:
            inputs = batch[0]
            if isinstance(inputs, (list, tuple)):
                return model(*inputs)
            return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
        if isinstance(batch, Mapping):
            return model(**batch)
        raise WorkloadError(
            f"a batch of type {type(batch).__name__}, loss_fn={self.loss_fn}: batches must be "
            "pairs (inputs, targets) with a loss_fn, or dictionaries for a model that returns "
            "its own loss; for any other layout give Workload(compute_loss=...)"
        )


def _own_loss(outputs: Any) -> "torch.Tensor":
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    if loss is None:
        raise WorkloadError(
            f"the batch is a dictionary and model(**batch) gave {type(outputs).__name__} without "
            "a 'loss'; give Workload(compute_loss=...)"
        )
    return loss  # type: ignore[no-any-return]
