"""``torch.compile`` as a scenario asks for it: what it costs, and what it made of the model.

Callers see to it that torch's caches of compiled code are empty (``TORCHINDUCTOR_CACHE_DIR``);
what was compiled before would be found there, and cost next to nothing.
"""

import gc
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from stepmark.choices import CompileMode
from stepmark.devices import Device
from stepmark.errors import ObstacleError
from stepmark.record import Reading

_LONGEST_REASON = 200  # characters


class Compiler:
    """Compiles one model of this process, and counts from then on.

    Args:
        device: what it compiles for.

    Raises:
        ObstacleError: nothing can be compiled here.
    """

    def __init__(self, device: Device) -> None:
        self.wake_s = _wake(device)
        # Imported late: this takes seconds, and only scenarios that compile need it.
        from torch._dynamo.callback import on_compile_end, on_compile_start
        from torch._dynamo.utils import counters

        self._counters: Any = counters
        counters.clear()
        self._began_s = 0.0
        self._compile_s = 0.0
        self._taken_s = 0.0
        self._frames: list[str] = []
        on_compile_start(self._begin)
        on_compile_end(self._end)
        self._num_new = 0

    def compiled(self, model: nn.Module, mode: CompileMode) -> nn.Module:
        """The model, compiled when it is first called.

        Its parameters are the model's own. Not ``model.compile()``, which compiles nothing of a
        plain ``nn.Sequential`` in torch 2.11, and does not say so.
        """
        return torch.compile(model, mode=mode.value)  # type: ignore[return-value]

    def rest(self) -> None:
        """End the compiler's processes: a window shall have the machine to itself."""
        from torch._inductor.async_compile import shutdown_compile_workers

        shutdown_compile_workers()
        # What compiling leaves takes long to look through, which would fall into some window.
        gc.collect()

    def readings(self) -> Iterator[Reading]:
        """What it did until now. Ask before the first window: later on nothing is compiled."""
        yield Reading(
            name="compiler_start",
            unit="s",
            scope="rank",
            value=self.wake_s,
            note="to import and try out torch's compiler, which every process does once; on a "
            "machine's first use it also prepares headers",
        )
        yield Reading(
            name="compile_time",
            unit="s",
            scope="rank",
            value=self._compile_s,
            note="in which this model was compiled, forward and backward, with no cache to help; "
            "until the first window",
        )
        yield _counted("compiled_graphs", self._counters["stats"]["unique_graphs"])
        breaks = self._counters["graph_break"]
        reason = _first_line(next(iter(breaks), ""))
        yield _counted("graph_breaks", sum(breaks.values()), reason and f"the first: {reason}")
        # "3/1" is the second time that the fourth piece of Python was compiled.
        again = [frame for frame in self._frames if not frame.endswith("/0")]
        yield _counted("recompilations", len(again))

    def take_new(self) -> int:
        """How often it compiled something since this was last asked."""
        num_new, self._num_new = self._num_new, 0
        return num_new

    def take_s(self) -> float:
        """Seconds in which it compiled since this was last asked."""
        new_s, self._taken_s = self._compile_s - self._taken_s, self._compile_s
        return new_s

    def _begin(self, arguments: Any) -> None:
        self._began_s = time.perf_counter()
        self._num_new += 1
        if arguments.callback_trigger.name == "DYNAMO":
            self._frames.append(arguments.compile_id)

    def _end(self, _: Any) -> None:
        self._compile_s += time.perf_counter() - self._began_s


def _wake(device: Device) -> float:
    """Compile next to nothing; how long that took, in seconds.

    Raises:
        ObstacleError: it cannot be done: no C++ compiler for CPUs, no triton for CUDA, ...
    """
    start_s = time.perf_counter()
    numbers = torch.zeros(64, device=device.torch_device)
    try:
        torch.compile(_almost_nothing)(numbers)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ImportError, OSError) as error:
        raise ObstacleError(
            f"torch.compile does not work here: {_first_line(str(error))}"
        ) from error
    device.synchronize()
    return time.perf_counter() - start_s


def _almost_nothing(numbers: torch.Tensor) -> torch.Tensor:
    return (numbers + 1).relu()


def _counted(name: str, number: int, note: str = "") -> Reading:
    return Reading(name=name, unit="count", scope="rank", value=float(number), note=note)


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "")[:_LONGEST_REASON]
