"""What to measure (`Scenario`), how long (`Plan`), and the product of axes (`matrix`)."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from stepmark.choices import (
    CompileMode,
    LossName,
    OptimizerImpl,
    OptimizerName,
    Precision,
    Task,
)
from stepmark.errors import UsageError, choose_from
from stepmark.fingerprint import Machine

DEVICES = ("cpu", "cuda", "mps", "auto")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One point of the matrix: a workload and how it is run.

    Attributes:
        workload: a built-in name, ``torchvision:NAME``, ``package.module:function`` or
            ``path/to/file.py:function``; options may follow (``gpt?width=128``).
        device: ``cpu``, ``cuda``, ``mps`` or ``auto`` (the best one present).
        batch_size: samples in one micro-batch of one rank.
        num_workers: data-loader worker processes per rank.
        precision: see `Precision`.
        accumulation: micro-batches per optimizer step.
        world_size: DDP ranks on this machine; 1 runs without DDP.
        pin_memory: the loader copies batches to page-locked memory.
        prefetch_factor: batches that each worker prepares ahead.
        persistent_workers: workers live on from epoch to epoch.
        threads: compute threads per rank; ``None`` shares the CPUs out evenly among ranks.
        ddp: wrap the model in DistributedDataParallel at world size 1 too, to see what the
            wrapping alone costs.
        task: see `Task`.
        no_grad: ``evaluate`` and ``infer`` record no gradients; ``False`` shows what that saves.
        inference_mode: they run under ``torch.inference_mode`` instead of ``torch.no_grad``.
        compile: see `CompileMode`.
        channels_last: model and images lie in memory with their channels last.
        optimizer: see `OptimizerName`; ``None`` is the workload's own.
        lr: of the optimizer by name; ``None`` is torch's default for it.
        optimizer_impl: see `OptimizerImpl`.
        loss: see `LossName`; ``None`` is the workload's own.
        clip_norm: largest gradient norm; 0 does not clip, ``None`` does as the workload says.
        set_to_none: ``zero_grad`` drops gradients; ``False`` fills them with zeros.
        pipeline_stages: processes that each hold some layers; micro-batches go from one to the
            next (``torch.distributed.pipelining``).
        split_layers: the model's layers lie on two devices of one process: two accelerators, or
            the CPU and one.

    Raises:
        UsageError: a field is out of range or of the wrong type.
    """

    workload: str
    device: str = "auto"
    batch_size: int = 64
    num_workers: int = 0
    precision: Precision = Precision.FP32
    accumulation: int = 1
    world_size: int = 1
    pin_memory: bool = False
    prefetch_factor: int = 2
    persistent_workers: bool = False
    threads: int | None = None
    ddp: bool = False
    task: Task = Task.TRAIN
    no_grad: bool = True
    inference_mode: bool = False
    compile: CompileMode = CompileMode.OFF
    channels_last: bool = False
    optimizer: OptimizerName | None = None
    lr: float | None = None
    optimizer_impl: OptimizerImpl = OptimizerImpl.DEFAULT
    loss: LossName | None = None
    clip_norm: float | None = None
    set_to_none: bool = True
    pipeline_stages: int = 1
    split_layers: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.workload, str) or not self.workload.strip():
            raise UsageError(
                f"workload={self.workload!r}: give a built-in name, 'torchvision:NAME', "
                "'package.module:function' or 'path/to/file.py:function'"
            )
        if self.device not in DEVICES:
            raise UsageError(f"device={self.device!r}: {choose_from(self.device, DEVICES)}")
        for name, kind in _CHOICES.items():
            object.__setattr__(self, name, _choice(name, getattr(self, name), kind))
        for name in _COUNTS:
            require_count(name, getattr(self, name), at_least=1)
        require_count("num_workers", self.num_workers, at_least=0)
        if self.threads is not None:
            require_count("threads", self.threads, at_least=1)
        object.__setattr__(self, "lr", _number("lr", self.lr, above=True))
        object.__setattr__(self, "clip_norm", _number("clip_norm", self.clip_norm, above=False))
        for name, default in _DEFAULTS.items():
            if isinstance(default, bool) and not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name}={getattr(self, name)!r}: must be True or False")

    @property
    def id(self) -> str:
        """A stable name: workload, device and batch size, then every field off its default.

        Fields at their default are left out, so a new axis keeps the ids of old results.
        """
        parts = [self.workload, self.device, f"bs{self.batch_size}"]
        for name, write in _ID_PARTS.items():
            value = getattr(self, name)
            if value != _DEFAULTS[name]:
                parts.append(write(value))
        return "-".join(parts)

    @property
    def samples_per_step(self) -> int:
        """Samples in one optimizer step, over all micro-batches and ranks."""
        return self.batch_size * self.accumulation * self.world_size

    @property
    def distributed(self) -> bool:
        """Whether its processes form a process group."""
        return self.wraps_in_ddp or self.num_processes > 1

    @property
    def wraps_in_ddp(self) -> bool:
        """Whether the model is wrapped in DistributedDataParallel."""
        return self.ddp or self.world_size > 1

    @property
    def num_processes(self) -> int:
        """Ranks, over all copies of the model and all of a copy's stages."""
        return self.world_size * self.pipeline_stages

    @property
    def lead_in_batches(self) -> int:
        """Batches that may lie ready in the loader when it was left alone for a while.

        A window that began with them would look fast: they were loaded outside it.
        """
        return self.num_workers * (self.prefetch_factor + 1)

    def threads_per_rank(self, num_cpus: int) -> int:
        """Compute threads of each rank: as asked for, or an even share of the CPUs."""
        return self.threads or max(1, num_cpus // self.num_processes)

    def on(self, machine: Machine) -> "Scenario":
        """The same scenario with ``auto`` replaced by the machine's preferred device."""
        if self.device != "auto":
            return self
        return dataclasses.replace(self, device=machine.devices[0].kind)

    def obstacle(self, machine: Machine) -> str | None:
        """Why this combination cannot run on a machine; ``None`` if it can."""
        device = machine.device(self.on(machine).device)
        if device is None:
            return f"no {self.device} device on this machine"
        if device.max_ranks is not None and self.num_processes > device.max_ranks:
            return (
                f"{self.num_processes} ranks need {self.num_processes} {device.kind} devices, "
                f"found {device.max_ranks}"
            )
        if self.pin_memory and not device.pins_memory:
            return f"pin_memory has no effect on {device.kind}: it copies from no pinned memory"
        if self.num_workers == 0 and self.persistent_workers:
            return "persistent_workers needs num_workers above 0"
        if self.num_workers == 0 and self.prefetch_factor != _DEFAULTS["prefetch_factor"]:
            return f"prefetch_factor={self.prefetch_factor} needs num_workers above 0"
        return self._contradiction() or device.precisions.get(self.precision) or None

    def _contradiction(self) -> str | None:
        """Axes that cannot both be as they are, on any machine."""
        if self.task is Task.TRAIN:
            if self.inference_mode or not self.no_grad:
                name = "inference_mode" if self.inference_mode else "no_grad=False"
                return f"{name} needs task=evaluate or task=infer: training records gradients"
        else:
            for name in _OF_TRAINING:
                if getattr(self, name) != _DEFAULTS[name]:
                    return f"{name} needs task=train: {self.task} updates no parameters"
            if self.inference_mode and not self.no_grad:
                return "inference_mode records no gradients, which no_grad=False asks for"
        if self.task is Task.INFER and self.loss is not None:
            return f"loss={self.loss} needs a task that has one: inference is the forward alone"
        if self.lr is not None and self.optimizer is None:
            return f"lr={self.lr:g} needs an optimizer by name; the workload's own has its rate"
        if self.pipeline_stages > 1 or self.split_layers:
            how = "pipeline_stages" if self.pipeline_stages > 1 else "split_layers"
            for name in _OF_WHOLE_MODELS:
                if getattr(self, name) != _DEFAULTS[name]:
                    return f"{name} needs the model whole, in one process a copy; {how} parts it"
            if self.pipeline_stages > 1 and (self.split_layers or self.precision.autocasts):
                other = "split_layers" if self.split_layers else f"precision={self.precision}"
                return f"{other} is not to be had with pipeline_stages"
        return None


# How a field off its default is written in an id, in this order.
_ID_PARTS: dict[str, Callable[[Any], str]] = {
    "num_workers": lambda v: f"workers{v}",
    "precision": str,
    "accumulation": lambda v: f"acc{v}",
    "world_size": lambda v: f"ws{v}",
    "pin_memory": lambda v: "pinned",
    "prefetch_factor": lambda v: f"prefetch{v}",
    "persistent_workers": lambda v: "persistent",
    "threads": lambda v: f"threads{v}",
    "ddp": lambda v: "ddp",
    "task": str,
    "no_grad": lambda v: "grad",
    "inference_mode": lambda v: "inference_mode",
    "compile": lambda v: "compile" if v == CompileMode.DEFAULT else f"compile-{v}",
    "channels_last": lambda v: "channels_last",
    "optimizer": str,
    "lr": lambda v: f"lr{v!r}",
    "optimizer_impl": str,
    "loss": str,
    "clip_norm": lambda v: f"clip{v!r}" if v else "unclipped",
    "set_to_none": lambda v: "set_to_zero",
    "pipeline_stages": lambda v: f"stages{v}",
    "split_layers": lambda v: "split",
}
_DEFAULTS = {f.name: f.default for f in dataclasses.fields(Scenario)}
_CHOICES: dict[str, type[StrEnum]] = {
    "precision": Precision,
    "task": Task,
    "compile": CompileMode,
    "optimizer": OptimizerName,
    "optimizer_impl": OptimizerImpl,
    "loss": LossName,
}
_COUNTS = ("batch_size", "accumulation", "world_size", "prefetch_factor", "pipeline_stages")
# Axes of a training step alone, and those that a model in parts cannot have.
_OF_TRAINING = (
    "accumulation",
    "world_size",
    "ddp",
    "optimizer",
    "lr",
    "optimizer_impl",
    "clip_norm",
    "set_to_none",
    "pipeline_stages",
)
_OF_WHOLE_MODELS = ("world_size", "ddp", "task", "compile")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to measure.

    Attributes:
        steps: optimizer steps of one measured window.
        warmup: fewest optimizer steps before the first window; warm-up goes on until step
            times have settled.
        max_seconds: budget of one measured window. It ends at ``steps`` or here, whichever
            comes first, and the result says which.
        repeats: fresh processes per scenario.
        timeout: seconds for one scenario and repeat, start-up included; then it is killed.

    Raises:
        UsageError: a field is out of range or of the wrong type.
    """

    steps: int = 50
    warmup: int = 5
    max_seconds: float = 10.0
    repeats: int = 1
    timeout: float = 300.0

    def __post_init__(self) -> None:
        require_count("steps", self.steps, at_least=1)
        require_count("warmup", self.warmup, at_least=0)
        require_count("repeats", self.repeats, at_least=1)
        for name in ("max_seconds", "timeout"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise UsageError(f"{name}={value!r}: must be a number of seconds")
            if not 0 < value < float("inf"):
                raise UsageError(f"{name}={value}: must be above 0 seconds, and finite")
            object.__setattr__(self, name, float(value))


def matrix(**axes: Any) -> list[Scenario]:
    """The full product of axes: each field of `Scenario` as one value or an iterable of values.

    >>> [s.id for s in matrix(workload="mlp-toy", device="cpu", batch_size=[2, 4])]
    ['mlp-toy-cpu-bs2', 'mlp-toy-cpu-bs4']

    Raises:
        UsageError: an axis is unknown, empty, or holds a value out of range.
    """
    unknown = sorted(set(axes) - set(_DEFAULTS))
    if unknown:
        raise UsageError(f"axis {unknown[0]!r}: {choose_from(unknown[0], _DEFAULTS)}")
    if "workload" not in axes:
        raise UsageError("no workload: give one, or several, to measure")
    values = {name: _as_values(name, axis) for name, axis in axes.items()}
    rows = itertools.product(*values.values())
    # An axis may name a value twice; the same scenario twice would be one result overwritten.
    return list(dict.fromkeys(Scenario(**dict(zip(values, row, strict=True))) for row in rows))


def _as_values(name: str, axis: Any) -> list[Any]:
    values = list(axis) if isinstance(axis, Iterable) and not isinstance(axis, str) else [axis]
    if not values:
        raise UsageError(f"axis {name!r} has no values: give at least one")
    return values


def _choice(name: str, value: Any, kind: type[StrEnum]) -> StrEnum | None:
    if value is None and _DEFAULTS[name] is None:
        return None
    try:
        return kind(value)
    except ValueError:
        known = choose_from(value, kind)
        if _DEFAULTS[name] is None:
            known += "; or None, on the command line own, for the workload's"
        raise UsageError(f"{name}={value!r}: {known}") from None


def _number(name: str, value: Any, *, above: bool) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UsageError(f"{name}={value!r}: must be a number")
    if not (value > 0 if above else value >= 0) or value == float("inf"):
        raise UsageError(f"{name}={value}: must be {'above 0' if above else '0 or more'}, finite")
    return float(value)


def require_count(name: str, value: Any, *, at_least: int) -> None:
    """Check a whole number.

    Raises:
        UsageError: it is none, or too small.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name}={value!r}: must be a whole number")
    if value < at_least:
        raise UsageError(f"{name}={value}: must be at least {at_least}")
