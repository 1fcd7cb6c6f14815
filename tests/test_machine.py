import dataclasses
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from commands import git

from stepmark.fingerprint import Commit, DeviceInfo, Machine
from stepmark.machine import activity, commit, describe, fingerprint, fitness, installed, unfit
from stepmark.machine.system import affinity

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc and /sys")

CPU = DeviceInfo(kind="cpu", names=("cpu",), precisions={"fp32": "", "tf32": "a CPU has no tf32"})
CUDA = DeviceInfo(kind="cuda", names=("NVIDIA H200",) * 2, max_ranks=2, precisions={"fp32": ""})

# Files as they read on real machines, cut to the lines that matter.
CPUINFO_VIRTUAL = """\
processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 167
model name\t: Intel(R) Xeon(R) Processor
stepping\t: 1
flags\t\t: fpu vme de pse tsc msr pae mce f16c rdrand hypervisor lahf_lm abm
bugs\t\t: spectre_v1

processor\t: 1
model name\t: Another
flags\t\t: fpu
"""
CPUINFO_METAL = CPUINFO_VIRTUAL.replace(" hypervisor", "")
CPUINFO_ARM = """\
processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd evtstrm aes
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
"""
CLOCKS = "sys/devices/system/clocksource/clocksource0/available_clocksource"
VENDOR, PRODUCT = "sys/class/dmi/id/sys_vendor", "sys/class/dmi/id/product_name"
CGROUP = "proc/self/cgroup"
CPU_STAT = "usage_usec 99\nuser_usec 90\nsystem_usec 9\nnr_periods 1000\nnr_throttled 250\n"


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of these tests are about what stands still, and need no watching."""
    monkeypatch.setattr(fitness, "_INTERVAL_S", 0.0)


def plant(root: Path, files: dict[str, str]) -> Path:
    """Write a tree of files as the kernel shows them."""
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def hardware(root: Path) -> dict[str, str]:
    return fingerprint((CPU,), root=root).hardware


def remarks(root: Path, about: str) -> list[str]:
    """What is said about one matter; other matters of the machine that tests run on aside."""
    return [remark for remark in unfit(root=root) if about in remark]


# --- the fingerprint


def test_two_fingerprints_of_an_unchanged_machine_are_equal() -> None:
    first, second = (fingerprint((CUDA, CPU), {"cuda": "13.2"}) for _ in range(2))
    assert dataclasses.replace(first, unfit=()) == dataclasses.replace(second, unfit=())


def test_a_fingerprint_names_what_a_comparison_needs() -> None:
    found = fingerprint((CPU,), installed())
    assert found.host == platform.node()
    assert set(found.hardware) == {
        "cpu",
        "cpus",
        "cpus_installed",
        "memory_bytes",
        "architecture",
        "virtualised",
    }
    assert all(found.hardware.values())
    assert all(found.software.values())
    assert found.software["python"] == platform.python_version()
    assert found.software["torch"] == importlib.metadata.version("torch")
    assert {"stepmark", "torchvision", "numpy", "os", "kernel"} <= set(found.software)
    assert 1 <= found.num_cpus <= int(found.hardware["cpus_installed"])
    assert found.devices == (CPU,)


def test_memory_is_what_is_installed_within_the_kernels_own_part() -> None:
    found = int(fingerprint((CPU,), root=Path("/nowhere")).hardware["memory_bytes"])
    assert found == pytest.approx(psutil.virtual_memory().total, abs=0.5 * 2**30)
    assert found % 2**30 == 0


def test_accelerators_are_hardware_by_number_and_name_and_the_cpu_stays_its_model(
    tmp_path: Path,
) -> None:
    mixed = DeviceInfo(kind="other", names=("A", "B", "A"))
    found = fingerprint((CUDA, mixed, CPU), root=plant(tmp_path, {"proc/cpuinfo": CPUINFO_METAL}))
    assert found.hardware["cuda"] == "2 x NVIDIA H200"
    assert found.hardware["other"] == "2 x A, 1 x B"
    assert "cuda_power_limit" not in found.hardware, "it is not known"
    capped = dataclasses.replace(CUDA, power_limits_w=(700, 350))
    found = fingerprint((capped, CPU), root=tmp_path)
    assert found.hardware["cuda_power_limit"] == "1 x 700 W, 1 x 350 W"
    if sys.platform == "linux":
        assert found.hardware["cpu"] == "Intel(R) Xeon(R) Processor"


def test_versions_that_only_a_backend_knows_are_software() -> None:
    software = fingerprint((CPU,), {"cuda": "13.2", "driver": "580.1"}).software
    assert (software["cuda"], software["driver"]) == ("13.2", "580.1")


def test_a_fingerprint_carries_what_makes_the_machine_unfit(tmp_path: Path) -> None:
    root = plant(tmp_path, {"sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n"})
    assert any("'powersave'" in remark for remark in fingerprint((CPU,), root=root).unfit)


def test_a_fingerprint_is_taken_without_importing_torch() -> None:
    code = (
        "import sys; from stepmark.machine import describe, fingerprint; "
        "describe(fingerprint(())); print('torch' in sys.modules)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == "False"


@linux
def test_usable_cpus_are_those_the_process_is_bound_to() -> None:
    one = min(os.sched_getaffinity(0))
    code = (
        f"import json, os; os.sched_setaffinity(0, {{{one}}}); "
        "from stepmark.machine import fingerprint; print(json.dumps(fingerprint(()).hardware))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    bound = json.loads(process.stdout)
    assert bound["cpus"] == "1"
    assert bound["cpus_installed"] == str(os.cpu_count())


@linux
@pytest.mark.parametrize(
    ("files", "quota"),
    [
        pytest.param({}, None, id="no cgroup"),
        pytest.param({CGROUP: "0::/\n"}, None, id="version 2 without a bound file"),
        pytest.param(
            {CGROUP: "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None, id="unbounded"
        ),
        pytest.param(
            {CGROUP: "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5, id="container"
        ),
        pytest.param(
            {
                CGROUP: "0::/user.slice/job.scope\n",
                "sys/fs/cgroup/user.slice/cpu.max": "100000 100000\n",
                "sys/fs/cgroup/user.slice/job.scope/cpu.max": "max 100000\n",
            },
            1.0,
            id="bounded from above",
        ),
        pytest.param(
            {
                CGROUP: "0::/user.slice/job.scope\n",
                "sys/fs/cgroup/user.slice/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/user.slice/job.scope/cpu.max": "50000 100000\n",
            },
            0.5,
            id="the tightest of nested bounds",
        ),
        pytest.param(
            {
                CGROUP: "12:pids:/a\n4:cpu,cpuacct:/docker/1f2e\n1:name=systemd:/docker/1f2e\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            1.0,
            id="version 1 in a container that sees the host's path",
        ),
        pytest.param(
            {
                CGROUP: "4:cpu,cpuacct:/\n0::/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
            id="version 1 unbounded",
        ),
        pytest.param({CGROUP: "0::/../..\n"}, None, id="a path outside of what can be seen"),
    ],
)
def test_a_cgroups_quota_bounds_the_usable_cpus(
    tmp_path: Path, files: dict[str, str], quota: float | None
) -> None:
    bound = len(os.sched_getaffinity(0))
    expected = bound if quota is None else max(1, min(bound, int(quota)))
    root = plant(tmp_path, files)
    assert hardware(root)["cpus"] == str(expected)
    said = remarks(root, "visible CPUs")
    if quota is not None and quota < bound:
        (remark,) = said
        assert remark.startswith(f"the cgroup grants {quota:g} CPUs' worth of time on {bound} ")
        assert "--cpuset-cpus" in remark
    else:
        assert said == []


@linux
@pytest.mark.parametrize(
    ("cgroup", "path"),
    [
        ("0::/\n", "sys/fs/cgroup/memory.max"),
        ("4:memory:/a/b\n0::/\n", "sys/fs/cgroup/memory/a/memory.limit_in_bytes"),
    ],
)
def test_a_cgroups_memory_bound_counts_and_a_missing_one_does_not(
    tmp_path: Path, cgroup: str, path: str
) -> None:
    unbounded = hardware(tmp_path)["memory_bytes"]
    for text, expected in (
        ("536870912\n", "536870912"),
        ("max\n", unbounded),
        ("9223372036854771712\n", unbounded),
    ):
        root = plant(tmp_path, {CGROUP: cgroup, path: text})
        assert hardware(root)["memory_bytes"] == expected


@linux
@pytest.mark.parametrize(
    ("files", "model"),
    [
        ({"proc/cpuinfo": CPUINFO_VIRTUAL}, "Intel(R) Xeon(R) Processor"),
        ({"proc/cpuinfo": CPUINFO_ARM}, "ARM 0x41 0xd0c"),
        (
            {"proc/cpuinfo": CPUINFO_ARM, "proc/device-tree/model": "Raspberry Pi 5\0"},
            "Raspberry Pi 5",
        ),
        ({}, platform.processor() or platform.machine()),
    ],
)
def test_the_cpu_has_the_name_that_its_system_gives_it(
    tmp_path: Path, files: dict[str, str], model: str
) -> None:
    assert hardware(plant(tmp_path, files))["cpu"] == model


@linux
@pytest.mark.parametrize(
    ("files", "answer"),
    [
        ({"proc/cpuinfo": CPUINFO_METAL, VENDOR: "Dell Inc.\n"}, "no"),
        ({"proc/cpuinfo": CPUINFO_METAL, VENDOR: "Amazon EC2\n", PRODUCT: "m5.metal\n"}, "no"),
        ({"proc/cpuinfo": CPUINFO_VIRTUAL}, "yes"),
        ({"proc/cpuinfo": CPUINFO_VIRTUAL, CLOCKS: "tsc kvm-clock \n"}, "yes (kvm)"),
        ({"proc/cpuinfo": CPUINFO_VIRTUAL, VENDOR: "VMware, Inc.\n"}, "yes (vmware)"),
        ({"proc/cpuinfo": CPUINFO_VIRTUAL, VENDOR: "QEMU\n"}, "yes (qemu)"),
        ({"proc/cpuinfo": CPUINFO_VIRTUAL, "sys/hypervisor/type": "xen\n"}, "yes (xen)"),
        (
            {
                "proc/cpuinfo": CPUINFO_VIRTUAL,
                VENDOR: "Microsoft Corporation\n",
                PRODUCT: "Virtual Machine\n",
            },
            "yes (hyper-v)",
        ),
        (
            {"proc/cpuinfo": CPUINFO_ARM, VENDOR: "Amazon EC2\n", PRODUCT: "m7g.large\n"},
            "yes (kvm)",
        ),
        ({"proc/cpuinfo": CPUINFO_ARM, VENDOR: "Amazon EC2\n", PRODUCT: "m7g.metal\n"}, "no"),
        (
            {"proc/cpuinfo": CPUINFO_ARM, "proc/device-tree/hypervisor/compatible": "linux,kvm\0"},
            "yes (kvm)",
        ),
        ({"proc/cpuinfo": CPUINFO_ARM}, "unknown"),
        ({}, "unknown"),
        ({".dockerenv": ""}, "unknown, in a container (docker)"),
        (
            {"proc/cpuinfo": CPUINFO_METAL, "run/.containerenv": ""},
            "no, in a container (podman)",
        ),
        (
            {"proc/cpuinfo": CPUINFO_VIRTUAL, CGROUP: "0::/kubepods.slice/x\n", ".dockerenv": ""},
            "yes, in a container (kubernetes)",
        ),
        (
            {"proc/cpuinfo": CPUINFO_METAL, "run/systemd/container": "systemd-nspawn\n"},
            "no, in a container (systemd-nspawn)",
        ),
    ],
)
def test_a_virtual_machine_is_told_and_reminds_of_its_neighbours(
    tmp_path: Path, files: dict[str, str], answer: str
) -> None:
    root = plant(tmp_path, files)
    assert hardware(root)["virtualised"] == answer
    said = remarks(root, "neighbours share the hardware")
    assert [remark.startswith(f"virtualised: {answer};") for remark in said] == (
        [True] if answer.startswith("yes") else []
    )


# --- what makes it unfit


def test_a_machine_without_any_of_the_files_is_not_held_unfit_for_that(tmp_path: Path) -> None:
    for about in ("governor", "cgroup", "thermal", "heat", "virtualised"):
        assert remarks(tmp_path, about) == []


@pytest.mark.parametrize(
    ("governors", "named"),
    [
        (["performance", "performance"], []),
        (["schedutil"], []),
        (["performance", "powersave"], ["powersave"]),
        (["powersave"] * 3, ["powersave"]),
        (["ondemand", "conservative"], ["conservative", "ondemand"]),
    ],
)
def test_a_governor_that_saves_power_is_named_once_with_the_command_to_change_it(
    tmp_path: Path, governors: list[str], named: list[str]
) -> None:
    folder = "sys/devices/system/cpu"
    files = {f"{folder}/cpu{i}/cpufreq/scaling_governor": f"{g}\n" for i, g in enumerate(governors)}
    said = remarks(plant(tmp_path, files), "governor")
    assert [remark.split("'")[1] for remark in said] == named
    assert all("cpupower frequency-set -g performance" in remark for remark in said)


@linux
def test_a_container_that_its_quota_stopped_often_is_unfit(tmp_path: Path) -> None:
    files = {CGROUP: "0::/\n", "sys/fs/cgroup/cpu.stat": CPU_STAT}
    (remark,) = remarks(plant(tmp_path, files), "stopped this container")
    assert "in 25.0 % of its periods" in remark
    assert "raise the quota" in remark
    rarely = CPU_STAT.replace("nr_throttled 250", "nr_throttled 10")
    never = "usage_usec 99\nuser_usec 90\nsystem_usec 9\n"
    for text in (rarely, never):
        root = plant(tmp_path, {"sys/fs/cgroup/cpu.stat": text})
        assert remarks(root, "stopped this container") == []


@pytest.mark.parametrize(
    ("temperature", "trips", "limit"),
    [
        ("94000", {"passive": "95000", "critical": "105000"}, "95"),
        ("89000", {"passive": "95000", "critical": "105000"}, None),
        ("103000", {"active": "60000", "critical": "105000"}, "105"),
        ("60000", {"passive": "0", "critical": "-274000"}, None),
        ("60000", {}, None),
        ("", {"critical": "105000"}, None),
    ],
)
def test_a_thermal_zone_near_its_limit_is_unfit(
    tmp_path: Path, temperature: str, trips: dict[str, str], limit: str | None
) -> None:
    zone = "sys/class/thermal/thermal_zone0"
    files = {f"{zone}/type": "x86_pkg_temp\n", f"{zone}/temp": f"{temperature}\n"}
    for number, (kind, celsius) in enumerate(trips.items()):
        files[f"{zone}/trip_point_{number}_type"] = f"{kind}\n"
        files[f"{zone}/trip_point_{number}_temp"] = f"{celsius}\n"
    said = remarks(plant(tmp_path, files), "thermal zone x86_pkg_temp")
    assert [f"is slowed down at {limit} °C" in remark for remark in said] == [True] * (
        limit is not None
    )


@linux
@pytest.mark.parametrize(
    ("available_kb", "swap_free_kb", "about"),
    [
        (900_000, 8_000_000, "879 MiB of 9.54 GiB memory are available"),
        (5_000_000, 6_500_000, "1.43 GiB are swapped out"),
        (5_000_000, 7_500_000, None),
    ],
)
def test_little_memory_or_much_swap_is_unfit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    available_kb: int,
    swap_free_kb: int,
    about: str | None,
) -> None:
    meminfo = (
        f"MemTotal: 10000000 kB\nMemFree: 100000 kB\nMemAvailable: {available_kb} kB\n"
        "Buffers: 0 kB\nCached: 0 kB\nSwapCached: 0 kB\nActive: 0 kB\nInactive: 0 kB\n"
        f"Shmem: 0 kB\nSlab: 0 kB\nSwapTotal: 8000000 kB\nSwapFree: {swap_free_kb} kB\n"
    )
    plant(tmp_path, {"proc/meminfo": meminfo, "proc/vmstat": "pswpin 0\npswpout 0\n"})
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "proc"))
    said = list(fitness._standing(tmp_path))
    assert [remark.partition(":")[0] for remark in said] == ([about] if about else [])


@pytest.mark.parametrize(("plugged", "is_unfit"), [(False, True), (True, False), (None, False)])
def test_a_machine_on_battery_is_unfit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, plugged: bool | None, is_unfit: bool
) -> None:
    battery = type("Battery", (), {"power_plugged": plugged})()
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    assert any("plug it in" in remark for remark in fitness._standing(tmp_path)) is is_unfit


@pytest.fixture
def busy_strangers() -> Iterator[None]:
    """A process for every usable CPU that computes, and is no child of this one."""
    spawn = "ulimit -t 20; (while :; do :; done) >/dev/null 2>&1 & echo $!"
    pids = []
    for _ in range(len(affinity())):
        process = subprocess.run(["sh", "-c", spawn], capture_output=True, text=True, check=True)
        pids.append(int(process.stdout))
    yield
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.usefixtures("busy_strangers")
def test_processes_that_take_the_cpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitness, "_INTERVAL_S", 0.3)
    (remark,) = remarks(Path("/"), "other processes use")
    assert "busiest: " in remark
    assert "sh " in remark
    assert remark.endswith("stop them, or wait for their end")


QUIET = activity.Counters(
    at_s=100.0,
    num_cpus=2,
    busy_s=50.0,
    stolen_s=3.0,
    processes_s={1: 7.0, 2: 8.0, 3: 9.0, 4: 1.0, 9: 5.0},
    names={1: "init", 2: "cc1plus", 3: "chrome", 4: "backup", 9: "stepmark"},
    own_pids=frozenset({9}),
    num_throttled=4,
    swapped_bytes=4096,
)


def went_on(**changes: object) -> list[str]:
    """Remarks about 0.5 s of two CPUs in which these counters came to other values."""
    return list(activity.going_on(QUIET, dataclasses.replace(QUIET, at_s=100.5, **changes)))


def test_a_quiet_stretch_gives_no_remark() -> None:
    assert went_on() == []


def test_the_busiest_of_others_are_named_in_order_with_their_share_of_a_cpu() -> None:
    # 0.75 s of the 1.0 s that two CPUs had, beside 0.2 s of this process; a new process counts
    # with all of its time.
    busy = {1: 7.05, 2: 8.3, 3: 9.1, 4: 1.0, 5: 0.3, 9: 5.2}
    (remark,) = went_on(busy_s=50.95, processes_s=busy, names={**QUIET.names, 5: "tar"})
    assert remark.startswith("other processes use 75.0 % of the 2 CPUs (load average ")
    assert "busiest: cc1plus 60%, tar 60%, chrome 20%): stop them" in remark


def test_work_of_this_process_and_its_children_is_not_held_against_the_machine() -> None:
    own = frozenset({9, 5})
    assert (
        went_on(busy_s=50.9, processes_s={**QUIET.processes_s, 9: 5.5, 5: 0.4}, own_pids=own) == []
    )


def test_a_child_that_ended_meanwhile_does_not_make_others_look_busy() -> None:
    before = dataclasses.replace(QUIET, own_pids=frozenset({9, 4}))
    left = {pid: s for pid, s in QUIET.processes_s.items() if pid != 4}
    after = dataclasses.replace(QUIET, at_s=100.5, processes_s=left)
    assert list(activity.going_on(before, after)) == []


def test_busy_cpus_without_a_process_that_can_be_seen_are_told_too() -> None:
    (remark,) = went_on(busy_s=50.5)
    assert "other processes use 50.0 %" in remark
    assert "busiest: none that can be seen" in remark


def test_others_at_three_tenths_of_the_cpus_are_still_quiet() -> None:
    assert went_on(busy_s=50.29) == []
    assert len(went_on(busy_s=50.31)) == 1


def test_time_that_the_hypervisor_took_is_told_unless_it_is_a_single_tick() -> None:
    # A tick is 2.5 % of 0.2 s of two CPUs.
    tick = dataclasses.replace(QUIET, at_s=100.2, stolen_s=3.01)
    assert list(activity.going_on(QUIET, tick)) == []
    (remark,) = went_on(stolen_s=3.02)
    assert remark.startswith("the hypervisor gave 2.0 % of this machine's CPU time to others")


def test_throttling_and_swapping_count_only_while_they_go_on() -> None:
    (throttling,) = went_on(num_throttled=5)
    assert "because of heat: let the machine cool down" in throttling
    (swapping,) = went_on(swapped_bytes=8192)
    assert "from swap: close programs" in swapping


def test_thermal_throttle_counters_of_all_cpus_are_added_up(tmp_path: Path) -> None:
    folder = "sys/devices/system/cpu"
    files = {
        f"{folder}/cpu0/thermal_throttle/core_throttle_count": "3\n",
        f"{folder}/cpu0/thermal_throttle/package_throttle_count": "10\n",
        f"{folder}/cpu11/thermal_throttle/core_throttle_count": "4\n",
        f"{folder}/cpu11/thermal_throttle/core_throttle_total_time_ms": "1000\n",
    }
    assert activity.counters(plant(tmp_path, files)).num_throttled == 17


# --- the commit


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository on branch ``trunk``, apart from any configuration of the user's."""
    for variable in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(variable)
    for variable, value in {
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "A",
        "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "A",
        "GIT_COMMITTER_EMAIL": "a@example.org",
        "GIT_COMMITTER_DATE": "2026-01-02T03:04:05+01:00",
    }.items():
        monkeypatch.setenv(variable, value)
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet")
    git(folder, "symbolic-ref", "HEAD", "refs/heads/trunk")
    return folder


def commit_file(folder: Path, text: str) -> str:
    (folder / "file").write_text(text)
    git(folder, "add", "file")
    git(folder, "commit", "--quiet", "-m", "message")
    return git(folder, "rev-parse", "HEAD")


def test_a_clean_commit_is_read_from_any_folder_of_its_repository(repository: Path) -> None:
    commit_id = commit_file(repository, "1")
    (repository / "sub").mkdir()
    expected = Commit(id=commit_id, branch="trunk", dirty=False, time="2026-01-02T03:04:05+01:00")
    assert commit(repository) == expected
    assert commit(repository / "sub") == expected


def test_a_changed_tracked_file_is_dirty_staged_or_not_and_a_new_file_is_not(
    repository: Path,
) -> None:
    commit_file(repository, "1")
    (repository / "new").write_text("")
    found = commit(repository)
    assert found is not None
    assert not found.dirty
    (repository / "file").write_text("2")
    for _ in ("unstaged", "staged"):
        found = commit(repository)
        assert found is not None
        assert found.dirty
        git(repository, "add", "file")


def test_a_detached_head_has_no_branch(repository: Path) -> None:
    first = commit_file(repository, "1")
    commit_file(repository, "2")
    git(repository, "checkout", "--quiet", first)
    found = commit(repository)
    assert found is not None
    assert (found.id, found.branch) == (first, "")


def test_reading_the_commit_leaves_the_index_as_it_is(repository: Path) -> None:
    commit_file(repository, "1")
    os.utime(repository / "file", (1e9, 1e9))  # 'git status' would refresh the index for this
    before = (repository / ".git" / "index").read_bytes()
    assert commit(repository) is not None
    assert (repository / ".git" / "index").read_bytes() == before


def test_within_a_hook_of_another_repository_the_folder_decides(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_id = commit_file(repository, "1")
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "--quiet")
    commit_file(other, "2")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    found = commit(repository)
    assert found is not None
    assert (found.id, found.dirty) == (commit_id, False)


def test_there_is_no_commit_in_a_repository_without_one(repository: Path) -> None:
    assert commit(repository) is None


def test_there_is_no_commit_outside_of_a_repository(repository: Path) -> None:
    assert commit(repository.parent) is None
    assert commit(repository.parent / "not-there") is None


def test_there_is_no_commit_in_a_repository_that_git_does_not_trust(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_file(repository, "1")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert commit(repository) is None


def test_there_is_no_commit_without_git(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit_file(repository, "1")
    monkeypatch.setenv("PATH", str(repository))
    assert commit(repository) is None


# --- in words


def test_a_machine_is_described_in_aligned_lines_with_devices_and_obstacles() -> None:
    found = Machine(
        host="bench-1",
        hardware={"cpu": "Example CPU", "memory_bytes": str(24 * 2**30), "cuda": "2 x NVIDIA H200"},
        software={"python": "3.12.1"},
        devices=(CUDA, CPU),
        unfit=("the machine runs on battery, which slows it down: plug it in",),
    )
    assert describe(found) == (
        "machine\n"
        "  host          bench-1\n"
        "  cpu           Example CPU\n"
        "  memory_bytes  24.0 GiB\n"
        "  cuda          2 x NVIDIA H200\n"
        "\n"
        "software\n"
        "  python        3.12.1\n"
        "\n"
        "device cuda\n"
        "  found         2 x NVIDIA H200\n"
        "  ranks         at most 2\n"
        "  fp32          yes\n"
        "\n"
        "device cpu\n"
        "  found         1 x cpu\n"
        "  ranks         any number\n"
        "  fp32          yes\n"
        "  tf32          no: a CPU has no tf32\n"
        "\n"
        "unfit to measure on\n"
        "  - the machine runs on battery, which slows it down: plug it in"
    )


def test_a_fit_machine_is_said_to_be_so() -> None:
    found = Machine(host="h", hardware={}, software={}, devices=())
    assert describe(found).splitlines()[-1].startswith("fit to measure on: ")
