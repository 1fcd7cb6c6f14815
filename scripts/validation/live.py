"""The real command, end to end: ``stepmark gate`` on revisions of a repository.

The repository has a commit without and one with a planted slowdown. Each decision is a line of
docs/validation/live.jsonl as soon as it was made.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pool import CLASSES, HERE, POOL

LIVE = POOL.parent / "live.jsonl"
# What else is to be said of how these decisions were made; need not be there.
REMARKS = POOL.parent / "live_remarks.txt"
SLOWDOWN = 0.05
_CODE = {"base": 0.0, "same": 0.0, "slower": SLOWDOWN}
# Of all decisions: one where pairs scatter takes minutes.
_SHARES = {"mlp": 0.62, "cnn": 0.28, "loader": 0.03, "ddp": 0.06}


def record(minutes: float, num_same: int, num_slower: int) -> None:
    """Make the decisions that are lacking, classes in turn, until time is up."""
    deadline_s = time.monotonic() + 60 * minutes
    made = load()
    wanted = {
        (name, kind): math.ceil(_SHARES[name] * number)
        for name in CLASSES
        for kind, number in (("same", num_same), ("slower", num_slower))
    }
    num_made = {k: sum((d["class"], d["kind"]) == k for d in made) for k in wanted}
    with tempfile.TemporaryDirectory() as folder:
        repository = _repository(Path(folder) / "repository")
        while time.monotonic() < deadline_s:
            name, kind = min(wanted, key=lambda k: num_made[k] / wanted[k])
            if num_made[name, kind] >= wanted[name, kind]:
                break
            decision = _decide(repository, name, kind)
            with LIVE.open("a") as file:
                file.write(json.dumps(decision, separators=(",", ":")) + "\n")
            num_made[name, kind] += 1
            print(
                f"{sum(num_made.values())} of {sum(wanted.values())} decisions: {name} {kind}: "
                f"{decision['verdict']} in {decision['wall_s']:.0f} s",
                flush=True,
            )


def load() -> list[dict[str, object]]:
    """All decisions made so far."""
    return [json.loads(line) for line in LIVE.read_text().splitlines()] if LIVE.exists() else []


def _repository(folder: Path) -> Path:
    """Tags ``base``, ``same`` and ``slower``."""
    folder.mkdir()
    _git(folder, "init", "--quiet", "-b", "main")
    shutil.copy(HERE / "planted.py", folder)
    for tag, part in _CODE.items():
        builds = [
            f"{c} = functools.partial(planted.{f}, part={part})" for c, (f, _) in CLASSES.items()
        ]
        (folder / "side.py").write_text("\n".join(["import functools, planted", *builds]) + "\n")
        _git(folder, "add", ".")
        _git(folder, "commit", "--quiet", "--allow-empty", "-m", tag)
        _git(folder, "tag", tag)
    return folder


def _decide(repository: Path, name: str, kind: str) -> dict[str, object]:
    axes = {"device": "cpu", "threads": 1, **CLASSES[name][1]}
    words = [f"--{axis.replace('_', '-')}={value}" for axis, value in axes.items()]
    results = repository / "results"
    shutil.rmtree(results, ignore_errors=True)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "stepmark", "gate", "--base", "base", "--head", kind),
            *("--workload", f"side.py:{name}", *words, "--format", "json"),
        ],
        cwd=repository,
        env={**os.environ, "GITHUB_STEP_SUMMARY": ""},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    data = json.loads(done.stdout)
    (comparison,) = data["comparisons"]
    return {
        "at": round(time.time()),
        "commit": _commit(),
        "class": name,
        "kind": kind,
        "exit_code": done.returncode,
        **{key: comparison[key] for key in ("verdict", "reason", "change", "detectable")},
        "num_pairs": len(comparison["pairs"]),
        "wall_s": round(comparison["wall_s"], 1),
    }


def _commit() -> str:
    """Of this code."""
    command = ["git", "rev-parse", "HEAD"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True)
    return done.stdout.strip()[:12]


def _git(folder: Path, *words: str) -> None:
    identity = ("-c", "user.name=stepmark", "-c", "user.email=stepmark@example.com")
    subprocess.run(["git", *identity, *words], cwd=folder, check=True)
