"""What a self-test found of this machine's noise, kept in ``results/noise``."""

from dataclasses import dataclass, field
from pathlib import Path

from stepmark import known
from stepmark.fingerprint import Machine

FOLDER = "noise"


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How much pairs of one scenario scatter, the same code on both sides.

    Attributes:
        spread: standard deviation of a pair's log ratio, robustly.
        percentile: of its steps, or turns, that a process counts by (see `trial.step_s`).
        num_pairs: pairs it is from.
        measured_at: ISO 8601 with time zone.
    """

    spread: float
    percentile: float
    num_pairs: int
    measured_at: str


@dataclass(frozen=True, kw_only=True)
class MachineNoise:
    """The noise of a machine.

    Attributes:
        hardware, software: of its fingerprint.
        scenarios: by scenario id.
    """

    hardware: dict[str, str]
    software: dict[str, str]
    scenarios: dict[str, Noise] = field(default_factory=dict)


def load(results: Path, machine: Machine) -> MachineNoise:
    """What is known of a machine; nothing, if no self-test was made.

    Raises:
        StoreError: the file cannot be read.
    """
    found = known.load(MachineNoise, results, FOLDER, machine, "run the self-test again")
    return found or MachineNoise(hardware=machine.hardware, software=machine.software)


def save(results: Path, machine: Machine, found: dict[str, Noise]) -> Path:
    """Add what a self-test found to what is known.

    Raises:
        StoreError: the file cannot be read or written.
    """
    all_noise = load(results, machine)
    all_noise.scenarios.update(found)
    return known.save(all_noise, results, FOLDER, machine)
