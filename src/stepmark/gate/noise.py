"""What a self-test found of this machine's noise, kept with its fingerprint.

results/noise/KEY.json      KEY is of hardware and software; other ones have noise of their own
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from stepmark import store
from stepmark.codec import DecodeError, decode, encode
from stepmark.errors import StoreError
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
    path = _path(results, machine)
    if not path.exists():
        return MachineNoise(hardware=machine.hardware, software=machine.software)
    try:
        return decode(MachineNoise, json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from None
    except (DecodeError, ValueError) as error:
        raise StoreError(
            f"{path}: not noise of this suite ({error}); remove it, and run the self-test again"
        ) from None


def save(results: Path, machine: Machine, found: dict[str, Noise]) -> Path:
    """Add what a self-test found to what is known.

    Raises:
        StoreError: the file cannot be read or written.
    """
    known = load(results, machine)
    known.scenarios.update(found)
    path = _path(results, machine)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path.parent}: cannot be made ({error.strerror})") from None
    store.write_text(path, json.dumps(encode(known), indent=2, allow_nan=False) + "\n")
    return path


def _path(results: Path, machine: Machine) -> Path:
    facts = json.dumps([machine.hardware, machine.software], sort_keys=True)
    return results / FOLDER / f"{hashlib.sha256(facts.encode()).hexdigest()[:16]}.json"
