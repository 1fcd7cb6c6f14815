"""Time and memory of reading a trace, beside TraceInsight (formerly HTA) on the same file.

    scripts/figures/trace_analysis.py --other-python PYTHON [--trace FILE] [--times N]

PYTHON is an interpreter that has ``traceinsight`` installed. Each tool is started anew for every
round, in turn; the trace is read as it is and as many times over, one copy after another.
"""

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TRACE = ROOT / "tests" / "traces" / "a100_ddp_2rank_nccl_rank0.json.gz"
ROUNDS = 9
COPIES = 20

# Both say seconds from before their import, seconds without it, MiB at most, and compute in per
# cent of their span. Both find idle time and exposed communication, too, and time by kernel.
OURS = """
import json, sys, time
begin = time.perf_counter()
from pathlib import Path
from stepmark.trace import attribute, break_down, read_trace
imported = time.perf_counter()
trace = read_trace(Path(sys.argv[1]))
total, attribution = break_down(trace), attribute(trace)
end = time.perf_counter()
compute = 100 * total.compute_s / total.wall_s
"""
OTHER = """
import json, logging, sys, time
begin = time.perf_counter()
logging.disable()
from hta.trace_analysis import TraceAnalysis
imported = time.perf_counter()
analysis = TraceAnalysis(trace_files={0: sys.argv[1]}, include_last_profiler_step=True)
found = analysis.get_temporal_breakdown(visualize=False)
analysis.get_comm_comp_overlap(visualize=False)
analysis.get_gpu_kernel_breakdown(visualize=False)
end = time.perf_counter()
compute = float(found["compute_time_pctg"].iloc[0])
"""
SAY = """
# Not ru_maxrss, which a process inherits from the one that started it.
(peak,) = (int(l.split()[1]) / 1024 for l in open("/proc/self/status") if l.startswith("VmHWM"))
print(json.dumps([end - begin, end - imported, peak, compute]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--other-python", type=Path, required=True)
    parser.add_argument("--trace", type=Path, default=TRACE)
    parser.add_argument("--times", type=int, default=COPIES, help="copies in the longer trace")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        longer = Path(folder) / "longer.json.gz"
        num_events = write_longer(options.trace, longer, options.times)
        for path, events in ((options.trace, num_events // options.times), (longer, num_events)):
            print(f"{events:,} events, {path.stat().st_size / 1e6:.1f} MB")
            compare(path, options.other_python)


def compare(trace: Path, other_python: Path) -> None:
    kinds = {"stepmark": (Path(sys.executable), OURS), "TraceInsight": (other_python, OTHER)}
    figures: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    for _ in range(ROUNDS):
        for kind, (python, code) in kinds.items():
            done = subprocess.run(
                [python, "-c", code + SAY, trace], capture_output=True, text=True, check=True
            )
            figures[kind].append(json.loads(done.stdout.splitlines()[-1]))
    for kind, rounds in figures.items():
        whole, alone, peak, compute = (
            statistics.median(column) for column in zip(*rounds, strict=True)
        )
        print(
            f"  {kind:<13} {whole:6.2f} s, without its import {alone:6.2f} s, "
            f"{peak:6.0f} MiB, compute {compute:.1f} %"
        )
    pairs = list(zip(figures["TraceInsight"], figures["stepmark"], strict=True))
    for place, name in enumerate(("time", "time without import", "memory")):
        ratios = sorted(other[place] / ours[place] for other, ours in pairs)
        print(f"  {name}: {statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f}) x")


def write_longer(trace: Path, file: Path, copies: int) -> int:
    """The trace's events again and again, each time after the last; how many there are."""
    data: dict[str, Any] = json.loads(gzip.decompress(trace.read_bytes()))
    events = data["traceEvents"]
    timed = [event for event in events if "ts" in event]
    first = min(event["ts"] for event in timed)
    span = max(event["ts"] + event.get("dur", 0) for event in timed) - first
    numbers = [
        event["args"]["correlation"] for event in events if "correlation" in event.get("args", {})
    ]
    most = max(numbers, default=0) + 1
    data["traceEvents"] = [
        moved(event, copy * (span + 1), copy * most) for copy in range(copies) for event in events
    ]
    file.write_bytes(gzip.compress(json.dumps(data).encode(), compresslevel=1))
    return len(data["traceEvents"])


def moved(event: dict[str, Any], by_us: float, by_number: int) -> dict[str, Any]:
    """An event later by so much, its correlation id with it, so that no two copies share one."""
    event = dict(event)
    if "ts" in event:
        event["ts"] += by_us
    if "correlation" in event.get("args", {}):
        event["args"] = {**event["args"], "correlation": event["args"]["correlation"] + by_number}
    return event


if __name__ == "__main__":
    main()
