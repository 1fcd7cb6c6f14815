"""What advice there is. Each is two scenarios: without it, and with it."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from stepmark.choices import CompileMode, OptimizerImpl, Precision, Task
from stepmark.fingerprint import Machine
from stepmark.scenario import Scenario

# A batch this many times the usual one counts as large.
LARGER = 4
# More workers than that seldom help, and each takes memory.
_MOST_WORKERS = 4


Fields = Callable[[Scenario, Machine], Mapping[str, Any]]


class Quantity(StrEnum):
    """What a claim is about.

    ``throughput`` is samples per second of steps, ``memory`` the peak that warm steps hold,
    ``epoch`` samples per second over a whole epoch with the turn to the next one.
    """

    THROUGHPUT = "throughput"
    MEMORY = "memory"
    EPOCH = "epoch"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something that the advice says.

    Attributes:
        says: in a sentence.
        quantity: what it is about; a throughput is to rise, memory to fall.
    """

    says: str
    quantity: Quantity = Quantity.THROUGHPUT


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One piece of advice.

    Attributes:
        name: for ``--only``, and of its file.
        title: what is done, in a few words.
        claims: what it is said to bring.
        source: who says so.
        without, with_it: from a scenario and a machine to the fields that differ.
        keeps_training: it changes nothing that is trained beyond rounding, so that it may be
            combined with other advice.
    """

    name: str
    title: str
    claims: tuple[Claim, ...]
    source: str
    without: Fields
    with_it: Fields
    keeps_training: bool = True

    def sides(self, scenario: Scenario, machine: Machine) -> tuple[Scenario, Scenario]:
        """The scenario without it, and with it.

        Args:
            scenario: what it is tried on, its device resolved.
            machine: this one.
        """
        return (
            dataclasses.replace(scenario, **self.without(scenario, machine)),
            dataclasses.replace(scenario, **self.with_it(scenario, machine)),
        )


def _fields(**fields: Any) -> Fields:
    """The same fields for any scenario."""
    return lambda _scenario, _machine: fields


def _workers(**fields: Any) -> Fields:
    """These fields, with loader workers: the scenario's own, or what its machine has room for."""
    return lambda scenario, machine: {
        "num_workers": scenario.num_workers or max(1, min(_MOST_WORKERS, machine.num_cpus)),
        **fields,
    }


def _large_batch(scenario: Scenario, _machine: Machine) -> Mapping[str, Any]:
    return {"batch_size": LARGER * scenario.batch_size}


def _accumulated(scenario: Scenario, _machine: Machine) -> Mapping[str, Any]:
    return {"accumulation": LARGER * scenario.accumulation}


def _on_accelerator(scenario: Scenario, machine: Machine) -> Mapping[str, Any]:
    kinds = (device.kind for device in machine.devices if device.kind != "cpu")
    own = "cuda" if scenario.device == "cpu" else scenario.device
    return {"device": next(kinds, own), "precision": Precision.FP32}


_EVALUATION = {
    "task": Task.EVALUATE,
    "world_size": 1,
    "ddp": False,
    "pipeline_stages": 1,
    "accumulation": 1,
    "optimizer": None,
    "lr": None,
    "optimizer_impl": OptimizerImpl.DEFAULT,
    "clip_norm": None,
    "set_to_none": True,
}
FASTER = Claim(says="it is faster")
# What training systems and claims are taken from.
ARTICLES = {
    "A": "AI model training with PyTorch",
    "B": "PyTorch Review (Raschka's appendix A)",
    "C": "The training loop (part 4 of 4)",
    "D": "Best practices for efficient model training",
    "E": "Deep learning model training loop",
}
_COMMON = "PyTorch tuning guide"

ADVICE: tuple[Advice, ...] = (
    Advice(
        name="workers",
        title="load data in worker processes",
        claims=(Claim(says="num_workers=0 slows training down"),),
        source="articles B and C",
        without=_fields(num_workers=0, persistent_workers=False, prefetch_factor=2),
        with_it=_workers(),
    ),
    Advice(
        name="persistent-workers",
        title="keep workers from epoch to epoch",
        claims=(Claim(says="epochs follow each other faster", quantity=Quantity.EPOCH),),
        source=_COMMON,
        without=_workers(persistent_workers=False),
        with_it=_workers(persistent_workers=True),
    ),
    Advice(
        name="pin-memory",
        title="load into page-locked memory",
        claims=(FASTER,),
        source=f"article B; {_COMMON}",
        without=_fields(pin_memory=False),
        with_it=_fields(pin_memory=True),
    ),
    Advice(
        name="bf16",
        title="mixed precision with bfloat16",
        claims=(
            FASTER,
            Claim(says="it needs less memory", quantity=Quantity.MEMORY),
        ),
        source="article D",
        without=_fields(precision=Precision.FP32),
        with_it=_fields(precision=Precision.BF16),
    ),
    Advice(
        name="fp16",
        title="mixed precision with float16 and a gradient scaler",
        claims=(
            FASTER,
            Claim(says="it needs less memory", quantity=Quantity.MEMORY),
        ),
        source="article D",
        without=_fields(precision=Precision.FP32),
        with_it=_fields(precision=Precision.FP16),
    ),
    Advice(
        name="tf32",
        title="tf32 in matrix products and convolutions",
        claims=(FASTER,),
        source=_COMMON,
        without=_fields(precision=Precision.FP32),
        with_it=_fields(precision=Precision.TF32),
    ),
    Advice(
        name="larger-batch",
        title=f"a batch {LARGER} times as large",
        claims=(FASTER,),
        source=_COMMON,
        without=_fields(),
        with_it=_large_batch,
        keeps_training=False,
    ),
    Advice(
        name="accumulation",
        title=f"accumulate {LARGER} micro-batches instead of one large batch",
        claims=(
            Claim(
                says="it reaches a large batch without its memory",
                quantity=Quantity.MEMORY,
            ),
        ),
        source="article D",
        without=_large_batch,
        with_it=_accumulated,
        keeps_training=False,
    ),
    Advice(
        name="channels-last",
        title="channels last in memory",
        claims=(FASTER,),
        source=_COMMON,
        without=_fields(channels_last=False),
        with_it=_fields(channels_last=True),
    ),
    Advice(
        name="fused-optimizer",
        title="the optimizer's fused implementation",
        claims=(FASTER,),
        source=_COMMON,
        without=_fields(optimizer_impl=OptimizerImpl.DEFAULT),
        with_it=_fields(optimizer_impl=OptimizerImpl.FUSED),
    ),
    Advice(
        name="set-to-none",
        title="drop gradients instead of filling them with zeros",
        claims=(FASTER, Claim(says="it needs less memory", quantity=Quantity.MEMORY)),
        source=_COMMON,
        without=_fields(set_to_none=False),
        with_it=_fields(set_to_none=True),
    ),
    Advice(
        name="no-grad",
        title="evaluate under no_grad",
        claims=(
            Claim(says="no_grad saves time"),
            Claim(says="no_grad saves memory", quantity=Quantity.MEMORY),
        ),
        source="article A",
        without=_fields(**_EVALUATION, no_grad=False, inference_mode=False),
        with_it=_fields(**_EVALUATION, no_grad=True, inference_mode=False),
    ),
    Advice(
        name="inference-mode",
        title="evaluate under inference_mode instead of no_grad",
        claims=(FASTER,),
        source=_COMMON,
        without=_fields(**_EVALUATION, no_grad=True, inference_mode=False),
        with_it=_fields(**_EVALUATION, no_grad=True, inference_mode=True),
    ),
    Advice(
        name="ddp",
        title="two processes with DistributedDataParallel",
        claims=(Claim(says="DDP gives more training speed"),),
        source="article B",
        without=_fields(world_size=1, ddp=False),
        with_it=_fields(world_size=2, ddp=False),
        keeps_training=False,
    ),
    Advice(
        name="gpu",
        title="train on the GPU instead of the CPU",
        claims=(Claim(says="the GPU pays, even for a small model or a small batch"),),
        source="doubted in article B",
        without=_fields(device="cpu", pin_memory=False, precision=Precision.FP32),
        with_it=_on_accelerator,
        keeps_training=False,
    ),
    Advice(
        name="compile",
        title="torch.compile",
        claims=(FASTER,),
        source=_COMMON,
        without=_fields(compile=CompileMode.OFF),
        with_it=_fields(compile=CompileMode.DEFAULT),
    ),
)

# What the trials of all that held at once are called: of all of it, and of the best of it alone.
COMBINATIONS = {
    "combination": "all together that held and trains the same",
    "best-alone": "the best of it alone",
}
_BY_NAME = {advice.name: advice for advice in ADVICE}


def find(name: str) -> Advice | None:
    """The advice of that name; ``None`` for a combination."""
    return _BY_NAME.get(name)


def claims_of(name: str) -> tuple[Claim, ...]:
    """What a trial of that name is to decide."""
    advice = find(name)
    return (FASTER,) if advice is None else advice.claims


def title_of(name: str) -> str:
    """What a trial of that name does, in a few words."""
    advice = find(name)
    return COMBINATIONS.get(name, name) if advice is None else advice.title
