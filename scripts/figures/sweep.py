"""A sweep of 24 scenarios of the FashionMNIST network: its wall time against its measuring time."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from stepmark import store


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [Path(sys.executable).parent / "stepmark", "run"]
        command += ["--workload", "mlp-fashion-mnist", "--device", "cpu"]
        command += ["--batch-size", "32,64,128,256", "--num-workers", "0,1,2"]
        command += ["--precision", "fp32,bf16", "--steps", "200"]
        command += ["--results", folder, "--save", "sweep"]
        start_s = time.monotonic()
        subprocess.run(command, check=True)
        wall_s = time.monotonic() - start_s
        results = store.open_run("sweep", Path(folder)).results
    measuring_s = sum(
        r.slowest.warmup.seconds + r.slowest.window.window_s + r.slowest.phase_window.window_s
        for r in results
        if r.slowest is not None
    )
    print(
        f"{len(results)} scenarios in {wall_s:.1f} s, start of the command included; warm-ups and "
        f"windows {measuring_s:.1f} s; ratio {wall_s / measuring_s:.2f} (target 1.3)"
    )


if __name__ == "__main__":
    main()
