"""What a measurement ran on: the machine, its devices, its software. Data only, no torch."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class DeviceInfo:
    """One kind of device on this machine, with what it can do.

    Attributes:
        kind: ``cpu``, ``cuda`` or ``mps``.
        names: one name per device, in index order.
        max_ranks: how many DDP ranks it can carry; ``None`` where there is no limit.
        precisions: precisions it can train in, with ``""``, or a reason why it cannot.
        power_limits_w: at which power clocks are held back, of each whose limit is known.
        pins_memory: it copies faster, and beside the host's work, from page-locked memory.
    """

    kind: str
    names: tuple[str, ...]
    max_ranks: int | None = None
    precisions: dict[str, str] = field(default_factory=dict)
    pins_memory: bool = False
    power_limits_w: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Fingerprint of a machine.

    ``hardware`` and ``software`` hold steady facts alone (no clock frequency, no load), so that
    two runs on an unchanged machine carry equal fingerprints.

    Attributes:
        host: host name; not part of a comparison key.
        hardware: CPU model and count, memory, GPU names and count, virtualised or not.
        software: Python, torch, CUDA, driver, OS and kernel versions.
        devices: what can be measured on, the preferred kind first.
        unfit: what made it unfit to measure on when this was taken, each with a remedy.
    """

    host: str
    hardware: dict[str, str]
    software: dict[str, str]
    devices: tuple[DeviceInfo, ...]
    unfit: tuple[str, ...] = ()

    def device(self, kind: str) -> DeviceInfo | None:
        """The devices of one kind; ``None`` if the machine has none."""
        return next((device for device in self.devices if device.kind == kind), None)

    @property
    def num_cpus(self) -> int:
        """CPUs that this process may use (affinity and cgroup quota observed)."""
        return int(self.hardware["cpus"])


@dataclass(frozen=True, kw_only=True)
class Commit:
    """The git commit of the directory that was measured.

    Attributes:
        id: full hash.
        branch: empty when detached.
        dirty: tracked files differ from the commit.
        time: committer's date, ISO 8601.
    """

    id: str
    branch: str
    dirty: bool
    time: str
