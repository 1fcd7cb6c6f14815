"""Whether the machine is virtual, by the marks that hypervisors and containers leave."""

import sys
from pathlib import Path

from stepmark.machine.system import cpuinfo, read_text, sysctl

_MARKS_OF_HYPERVISORS = {
    "vmware": "vmware",
    "virtualbox": "virtualbox",
    "hyperv": "hyper-v",
    "microsoft corporation virtual machine": "hyper-v",
    "xen": "xen",
    "kvm": "kvm",
    "amazon ec2": "kvm",
    "google compute engine": "kvm",
    "qemu": "qemu",
    "parallels": "parallels",
    "apple virtualization": "apple",
}


def virtualised(root: Path) -> str:
    """``yes (kvm)``, ``no`` or ``unknown``, with the container if this is one."""
    marks = " ".join(
        read_text(root / path)
        for path in (
            "sys/class/dmi/id/sys_vendor",
            "sys/class/dmi/id/product_name",
            "sys/hypervisor/type",
            "sys/devices/system/clocksource/clocksource0/available_clocksource",
            "proc/device-tree/hypervisor/compatible",
        )
    ).lower()
    name = next((name for mark, name in _MARKS_OF_HYPERVISORS.items() if mark in marks), "")
    flags = cpuinfo("flags", root).split()
    is_virtual: bool | None
    if sys.platform == "darwin":
        is_virtual = sysctl("kern.hv_vmm_present") == "1"
    elif flags:
        is_virtual = "hypervisor" in flags
    else:
        # Other processors than x86 have no such flag; "metal" is a cloud's unshared machine.
        is_virtual = False if "metal" in marks else True if name else None
    answer = {True: f"yes ({name})" if name else "yes", False: "no", None: "unknown"}[is_virtual]
    container = _container(root)
    return f"{answer}, in a container ({container})" if container else answer


def _container(root: Path) -> str:
    """The container's kind; empty outside of one, or where nothing gives it away."""
    if "kubepods" in read_text(root / "proc/self/cgroup"):
        return "kubernetes"
    for path, kind in ((".dockerenv", "docker"), ("run/.containerenv", "podman")):
        if (root / path).exists():
            return kind
    return read_text(root / "run/systemd/container")
