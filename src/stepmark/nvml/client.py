"""The sampling process as the measuring side sees it."""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from stepmark.codec import DecodeError, decode
from stepmark.nvml.tape import Tape

_ANSWER_S = 10.0
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
_CODE = "import sys; sys.path.append(sys.argv[1]); from stepmark.nvml.sampler import main; main()"


class SamplerProcess:
    """Samples devices from when it is told to until its tapes are cut. Use as a context.

    It is started when there is something to watch, and ends with the process that started it.

    Args:
        environment: of the process.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._watched: set[str] = set()

    def __enter__(self) -> "SamplerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def watch(self, uuid: str) -> None:
        """Sample the device of this UUID, as CUDA tells it, from now on."""
        self._watched.add(uuid)
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE, _PACKAGE_ROOT],
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._tell({"watch": uuid})

    def cut(self) -> dict[str, Tape]:
        """Tapes of all devices since they were first watched, by UUID; nothing is watched now."""
        if not self._watched:
            return {}
        self._tell({"cut": True})
        answer = self._answer()
        watched, self._watched = self._watched, set()
        try:
            return {uuid: decode(Tape, data) for uuid, data in json.loads(answer).items()}
        except (ValueError, DecodeError):
            self.close()
            return {uuid: Tape(error="the sampling process died") for uuid in watched}

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            for stream in (self._process.stdin, self._process.stdout):
                assert stream is not None
                with contextlib.suppress(OSError):
                    stream.close()
            self._process.wait()
            self._process = None
        self._watched.clear()

    def _tell(self, order: Mapping[str, object]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it is dead, and its answer will not come
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()

    def _answer(self) -> bytes:
        """Its next line; cut off if it dies, or takes too long."""
        assert self._process is not None
        assert self._process.stdout is not None
        output, answer = self._process.stdout.fileno(), b""
        deadline_s = time.monotonic() + _ANSWER_S
        while not answer.endswith(b"\n"):
            left_s = max(0.0, deadline_s - time.monotonic())
            data = os.read(output, 1 << 20) if select.select([output], [], [], left_s)[0] else b""
            if not data:
                break
            answer += data
        return answer
