"""Every axis on the command line: its option, and how a comma list becomes scenarios."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from stepmark.errors import UsageError
from stepmark.scenario import Scenario, matrix
from stepmark.workloads import BUILTIN


def words(_name: str, text: str) -> list[str]:
    """``"fp32,bf16"`` to its words."""
    return [word.strip() for word in text.split(",")]


def counts(name: str, text: str) -> list[int]:
    """``"16,64"`` to whole numbers; their range is the scenario's to check.

    Raises:
        UsageError: one is no whole number.
    """
    return [_count(name, word) for word in words(name, text)]


def counts_or_auto(name: str, text: str) -> list[int | None]:
    """As `counts`, with ``auto`` for ``None``."""
    return [None if word == "auto" else _count(name, word) for word in words(name, text)]


def words_or_own(name: str, text: str) -> list[str | None]:
    """As `words`, with ``own`` for ``None``: what the workload itself has."""
    return [None if word == "own" else word for word in words(name, text)]


def numbers_or_own(name: str, text: str) -> list[float | None]:
    """``"0.1,own"`` to numbers, and ``None`` for what the workload itself has.

    Raises:
        UsageError: one is no number.
    """
    return [None if word == "own" else _number(name, word) for word in words(name, text)]


def switches(name: str, text: str) -> list[bool]:
    """``"true,false"`` to booleans.

    Raises:
        UsageError: one is neither.
    """
    known = {"true": True, "false": False}
    for word in words(name, text):
        if word not in known:
            raise UsageError(f"{_option(name)} {word!r}: must be true or false")
    return [known[word] for word in words(name, text)]


def scenarios(options: Mapping[str, Any]) -> list[Scenario]:
    """The product of the axes that options name; without a batch size, each workload's own.

    Raises:
        UsageError: there is no workload, or a value is out of range.
    """
    if not options["workload"]:
        raise UsageError(
            "no workload: give --workload W, such as --workload mlp-fashion-mnist or "
            "--workload my_train.py:build"
        )
    axes = {name: a.parse(name, options[name]) for name, a in AXES.items() if name != _BATCH_SIZE}
    batch_size = options[_BATCH_SIZE]
    product: list[Scenario] = []
    for spec in options["workload"]:
        builtin = BUILTIN.get(spec.partition("?")[0])
        own = builtin.batch_size if builtin else 64
        sizes = [own] if batch_size is None else counts(_BATCH_SIZE, batch_size)
        product += matrix(workload=spec, batch_size=sizes, **axes)
    return list(dict.fromkeys(product))


def _count(name: str, word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise UsageError(
            f"{_option(name)} {word!r}: must be a whole number, or several separated by commas"
        ) from None


def _number(name: str, word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise UsageError(
            f"{_option(name)} {word!r}: must be a number, or several separated by commas, or own"
        ) from None


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis on the command line.

    Attributes:
        parse: from the option's name and text to values.
        default: the text if it is not given; ``None`` leaves it to each workload.
        help: one line.
    """

    parse: Callable[[str, str], list[Any]]
    default: str | None
    help: str


_BATCH_SIZE = "batch_size"

AXES = {
    "device": Axis(parse=words, default="auto", help="cpu, cuda, mps, auto."),
    _BATCH_SIZE: Axis(
        parse=counts,
        default=None,
        help="Samples per micro-batch and rank. Default: the workload's own, or 64.",
    ),
    "num_workers": Axis(parse=counts, default="0", help="Loader processes per rank."),
    "precision": Axis(parse=words, default="fp32", help="fp32, tf32, bf16, fp16."),
    "accumulation": Axis(parse=counts, default="1", help="Micro-batches per optimizer step."),
    "world_size": Axis(parse=counts, default="1", help="DDP ranks on this machine."),
    "pin_memory": Axis(
        parse=switches, default="false", help="true, false: batches in page-locked memory."
    ),
    "prefetch_factor": Axis(parse=counts, default="2", help="Batches each worker prepares ahead."),
    "persistent_workers": Axis(
        parse=switches, default="false", help="true, false: workers live on from epoch to epoch."
    ),
    "threads": Axis(
        parse=counts_or_auto,
        default="auto",
        help="Compute threads per rank, or auto: an even share.",
    ),
    "ddp": Axis(
        parse=switches, default="false", help="true, false: wrap in DDP at world size 1 too."
    ),
    "task": Axis(
        parse=words,
        default="train",
        help="train, evaluate (forward and loss of validation data), infer (forward alone).",
    ),
    "no_grad": Axis(
        parse=switches,
        default="true",
        help="true, false: evaluating and inferring without recording gradients.",
    ),
    "inference_mode": Axis(
        parse=switches,
        default="false",
        help="true, false: torch.inference_mode for them, instead of torch.no_grad.",
    ),
    "compile": Axis(
        parse=words,
        default="off",
        help="off, default, reduce-overhead, max-autotune: torch.compile.",
    ),
    "channels_last": Axis(
        parse=switches,
        default="false",
        help="true, false: model and images with channels last in memory.",
    ),
    "optimizer": Axis(
        parse=words_or_own,
        default="own",
        help="own, sgd, sgd-momentum, adagrad, rmsprop, adam, adamw.",
    ),
    "lr": Axis(
        parse=numbers_or_own,
        default="own",
        help="Learning rate of --optimizer. Default: torch's for it.",
    ),
    "optimizer_impl": Axis(
        parse=words, default="default", help="default, for-loop, foreach, fused."
    ),
    "loss": Axis(
        parse=words_or_own, default="own", help="own, cross-entropy, mse, bce, l1, kl-div."
    ),
    "clip_norm": Axis(
        parse=numbers_or_own, default="own", help="Largest gradient norm; 0: no limit."
    ),
    "set_to_none": Axis(
        parse=switches,
        default="true",
        help="true, false: zero_grad drops gradients, or fills them with zeros.",
    ),
    "pipeline_stages": Axis(
        parse=counts, default="1", help="Processes that the model's layers are spread over."
    ),
    "split_layers": Axis(
        parse=switches, default="false", help="true, false: layers on two devices of one process."
    ),
}


def with_axes(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with an option for every axis, behind its ``workload``.

    It finds them in its context's ``params``.
    """
    own = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def wrapped(**options: Any) -> Any:
        return command(**{name: options[name] for name in own.parameters})

    parameters = []
    for parameter in own.parameters.values():
        parameters.append(parameter)
        if parameter.name == "workload":
            parameters += [_parameter(name, axis) for name, axis in AXES.items()]
    wrapped.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapped


def _parameter(name: str, axis: Axis) -> inspect.Parameter:
    option = typer.Option(
        help=axis.help,
        metavar="LIST",
        show_default=axis.default is not None,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=axis.default,
        annotation=Annotated[str | None, option],
    )
