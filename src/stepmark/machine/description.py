"""The machine's fingerprint in words."""

from stepmark.fingerprint import DeviceInfo, Machine
from stepmark.machine.facts import counted
from stepmark.units import format_bytes


def describe(machine: Machine) -> str:
    """The machine in words, for a terminal."""
    hardware = {
        key: format_bytes(int(value)) if key == "memory_bytes" else value
        for key, value in machine.hardware.items()
    }
    sections = [
        ("machine", {"host": machine.host, **hardware}),
        ("software", machine.software),
        *((f"device {device.kind}", _about(device)) for device in machine.devices),
    ]
    width = max(len(key) for _, facts in sections for key in facts)
    lines: list[str] = []
    for title, facts in sections:
        lines += [title, *(f"  {key:<{width}}  {value}" for key, value in facts.items()), ""]
    if machine.unfit:
        lines += ["unfit to measure on", *(f"  - {remark}" for remark in machine.unfit)]
    else:
        lines.append("fit to measure on: nothing was found that disturbs a measurement")
    return "\n".join(lines)


def _about(device: DeviceInfo) -> dict[str, str]:
    ranks = "any number" if device.max_ranks is None else f"at most {device.max_ranks}"
    precisions = {p: f"no: {why}" if why else "yes" for p, why in device.precisions.items()}
    return {"found": counted(device.names), "ranks": ranks, **precisions}
