"""Every training system and technique of the articles, run once: ``docs/systems.md``.

A row has the command that runs it and what came of it here. Takes some minutes.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepmark.advice.catalogue import ARTICLES
from stepmark.units import format_bytes, format_rate, format_seconds

PAGE = Path(__file__).resolve().parents[2] / "docs" / "systems.md"
STEPMARK = str(Path(sys.executable).with_name("stepmark"))
RUN, TRAIN = "run --steps 200 --workload ", "train --workload "


@dataclass(frozen=True, kw_only=True)
class System:
    """One row.

    Attributes:
        article: its letter.
        what: the system or technique.
        command: without ``stepmark``.
        figures: what to say of what came out.
    """

    article: str
    what: str
    command: str
    figures: Callable[[Any], str]


def rates(rows: list[dict[str, Any]]) -> str:
    """Throughput of each scenario; or why it was skipped."""
    return "; ".join(_rate(row, rows) for row in rows)


def _rate(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    name = _distinct(row["scenario_id"], [other["scenario_id"] for other in rows])
    said = f"{name}: " if name else ""
    if row["outcome"] != "ok":
        return f"{said}{row['outcome']}: {row['reason']}"
    text = f"{said}{format_rate(row['samples_per_s'])} samples/s"
    if row["peak_host_bytes"] is not None:
        text += f", {format_bytes(row['peak_host_bytes'])}"
    return text


def _distinct(scenario_id: str, others: list[str]) -> str:
    """What tells a scenario from the others of its command."""
    if len(others) == 1:
        return ""
    words = scenario_id.split("-")
    shared = set.intersection(*(set(other.split("-")) for other in others))
    return "-".join(word for word in words if word not in shared) or "default"


def epochs(data: dict[str, Any]) -> str:
    """Losses and accuracies of the first and the last epoch, throughput, and what saving took."""
    first, last = data["epochs"][0], data["epochs"][-1]
    parts = [f"{len(data['epochs'])} epochs"]
    for name, said in (("train_loss", "training loss"), ("valid_loss", "validation loss")):
        if last[name] is not None:
            parts.append(f"{said} {first[name]:.4f} to {last[name]:.4f}")
    if last["train_accuracy"] is not None:
        parts.append(f"training accuracy {last['train_accuracy']:.4f}")
    if last["valid_accuracy"] is not None:
        parts.append(f"validation accuracy {last['valid_accuracy']:.4f}")
    parts.append(f"{format_rate(last['samples_per_s'])} samples/s in the last")
    if last["checkpoint_s"] is not None:
        parts.append(f"saving {format_seconds(last['checkpoint_s'])} an epoch")
    if data.get("ended_by") == "patience":
        parts.append("stopped early")
    return ", ".join(parts)


OPTIMIZERS = "sgd,sgd-momentum,adagrad,rmsprop,adam"
LOSSES = "cross-entropy,mse,bce,l1,kl-div"
SYSTEMS = (
    System(
        article="A",
        what="100-200-ReLU-10-Softmax, MSE, SGD with momentum; saved as training goes",
        command=f"{TRAIN}mlp-mse --epochs 5",
        figures=epochs,
    ),
    System(
        article="A",
        what="evaluation under `no_grad`, with gradients, and inference",
        command=f"{RUN}mlp-mse --task evaluate,infer --no-grad true,false",
        figures=rates,
    ),
    System(
        article="B",
        what="ToyDataset and its network, SGD 0.5, cross entropy, `drop_last`",
        command=f"{TRAIN}mlp-toy --epochs 3 --drop-last",
        figures=epochs,
    ),
    System(
        article="B",
        what="loader workers",
        command=f"{RUN}mlp-fashion-mnist --threads 1 --num-workers 0,2",
        figures=rates,
    ),
    System(
        article="B",
        what="DDP: process group, DistributedSampler, a device per rank",
        command=f"{RUN}mlp-fashion-mnist --threads 1 --world-size 1,2",
        figures=rates,
    ),
    System(
        article="B",
        what="pinned memory; the device by name",
        command=f"{RUN}mlp-fashion-mnist --device cpu,cuda,mps --pin-memory true",
        figures=rates,
    ),
    System(
        article="C",
        what="FashionMNIST, 784-512-512-10, SGD 1e-3, batch 64, 5 epochs",
        command=f"{TRAIN}mlp-fashion-mnist --epochs 5",
        figures=epochs,
    ),
    System(
        article="C",
        what="best-model checkpoint, ReduceLROnPlateau, early stopping, clipping at 1.0",
        command=f"{TRAIN}mlp-fashion-mnist --epochs 5 --schedule plateau --patience 5 "
        "--clip-norm 1.0",
        figures=epochs,
    ),
    System(
        article="C",
        what="optimizers",
        command=f"{RUN}mlp-fashion-mnist --threads 1 --optimizer {OPTIMIZERS}",
        figures=rates,
    ),
    System(
        article="C",
        what="losses",
        command=f"{RUN}mlp-fashion-mnist --threads 1 --loss {LOSSES}",
        figures=rates,
    ),
    System(
        article="D",
        what="custom Dataset, 10-20-1, MSE, StepLR(1, 0.1), early stopping with patience 3",
        command=f"{TRAIN}mlp-regression --epochs 10 --schedule step --step-size 1 --gamma 0.1 "
        "--patience 3",
        figures=epochs,
    ),
    System(
        article="D",
        what="model parallelism: layers over two processes",
        command=f"{RUN}mlp-fashion-mnist --threads 1 --accumulation 4 --pipeline-stages 1,2",
        figures=rates,
    ),
    System(
        article="D",
        what="model parallelism: layers on two devices of one process",
        command=f"{RUN}mlp-fashion-mnist --split-layers true",
        figures=rates,
    ),
    System(
        article="D",
        what="gradient accumulation over 4, beside the large batch",
        command=f"{RUN}mlp-regression --batch-size 32,128 --accumulation 1,4",
        figures=rates,
    ),
    System(
        article="D",
        what="mixed precision with autocast, float16 with a GradScaler",
        command=f"{RUN}mlp-fashion-mnist --threads 1 --precision fp32,bf16,fp16",
        figures=rates,
    ),
    System(
        article="E",
        what="MNIST CNN with two augmentations, observers, 3 epochs",
        command=f"{TRAIN}cnn-mnist --epochs 3 --num-workers 2",
        figures=epochs,
    ),
    System(
        article="E",
        what="cosine annealing with restarts, the period doubling",
        command=f"{TRAIN}mlp-mse --epochs 7 --schedule cosine --first-period 1",
        figures=epochs,
    ),
    System(
        article="E",
        what="one-cycle",
        command=f"{TRAIN}mlp-mse --epochs 5 --schedule one-cycle --peak 0.1",
        figures=epochs,
    ),
)


def main() -> None:
    rows = list(_rows())
    lines = [
        "# The articles' training systems",
        "",
        f"Each was run once by `scripts/figures/seed_systems.py` on {_machine()}. Single runs:",
        "they show that it works and about how fast; differences of some percent mean nothing,",
        "[advice](decisions/advice.md) is for these.",
        "Data labelled as generated has the real one's format and size, not its pictures.",
        "",
        f"The articles: {'; '.join(f'{key}, {title}' for key, title in ARTICLES.items())}.",
        "",
        "| article | system | command | what came of it |",
        "|---|---|---|---|",
        *rows,
    ]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _rows() -> Iterator[str]:
    for system in SYSTEMS:
        print(system.command, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            command = [STEPMARK, *system.command.split(), "--results", folder, "--save", "a"]
            if system.command.startswith("train"):
                found = json.loads(_output([*command, "--json"]))
            else:
                _output(command)
                export = [STEPMARK, "export", "a", "--format", "json", "--results", folder]
                found = json.loads(_output(export))
            text = system.figures(found).replace("|", "\\|")
        print(f"  {text}", flush=True)
        yield f"| {system.article} | {system.what} | `stepmark {system.command}` | {text} |"


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _machine() -> str:
    facts = json.loads(_output([STEPMARK, "machine", "--json"]))
    hardware, software = facts["hardware"], facts["software"]
    devices = ", ".join(name for device in facts["devices"] for name in device["names"])
    return (
        f"a machine with {hardware['cpus']} cores ({hardware['cpu']}, virtualised: "
        f"{hardware['virtualised']}), {format_bytes(int(hardware['memory_bytes']))}; devices: "
        f"{devices}; torch {software['torch']}"
    )


if __name__ == "__main__":
    main()
