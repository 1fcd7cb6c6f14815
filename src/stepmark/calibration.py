"""Ceilings, measured on one rank: each probe grows its sizes until a repetition takes 0.3 s."""

import functools
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image

from stepmark.building import AUTOCAST_DTYPES
from stepmark.ceilings import (
    ALL_REDUCE,
    COMPUTE,
    H2D_PAGEABLE,
    H2D_PINNED,
    JPEG_DECODE,
    MEMORY,
    Ceiling,
)
from stepmark.choices import Precision
from stepmark.data.jpeg import HEIGHT, QUALITY, WIDTH, photograph, smooth_colours
from stepmark.devices import BACKENDS, Device
from stepmark.place import Place, join_process_group
from stepmark.scenario import Plan, Scenario

# No size after one whose repetition took so long.
_LONGEST_S = 0.3
# Repetitions of one size.
_TRIED_S = 0.15
_FEWEST_REPETITIONS = 3
_FIRST_MATRIX, _LARGEST_MATRIX = 256, 16384
_CONVOLVED = (64, 56, 56)
_MOST_BATCHES = 256
# Beyond every cache.
_LARGEST_BYTES = 1 << 30
_FIRST_BYTES = 1 << 20

Tell = Callable[[str], None]


def calibrate(scenario: Scenario, plan: Plan, place: Place, tell: Tell) -> tuple[Ceiling, ...]:
    """Measure the ceilings of one device, or of exchanging gradients between ranks.

    Args:
        scenario: its device, precision, threads and ranks; several ranks are asked for
            ``all_reduce`` alone.
        plan: its timeout.
        place: this rank's.
        tell: told what is measured next.
    """
    if scenario.distributed:
        tell("all-reduce")
        return (_all_reduce(scenario, plan, place),)
    device = place.device
    found = []
    info = BACKENDS[scenario.device].info()
    assert info is not None, "it was opened"
    for precision in (p for p in Precision if not info.precisions.get(p.value, "")):
        tell(f"compute in {precision}")
        found.append(_compute(scenario, place, precision))
    tell("memory")
    found.append(_memory(scenario, place))
    if device.torch_device.type == "cpu":
        if place.threads == 1:
            tell("decoding JPEG")
            found.append(_jpeg(place))
    else:
        tell("copies to the device")
        found += _copies(scenario, device)
    return tuple(found)


def _compute(scenario: Scenario, place: Place, precision: Precision) -> Ceiling:
    """The larger of what matrix products and convolutions attain.

    Convolutions too, since some of their algorithms take fewer operations than are counted.
    """
    device = place.device
    bare = Ceiling(
        name=COMPUTE, unit="flop/s", value=None, device=scenario.device,
        precision=precision.value, threads=_threads(scenario, place),
    )  # fmt: skip
    try:
        device.configure(tf32=precision is Precision.TF32)
        dtype = AUTOCAST_DTYPES.get(precision, torch.float32)
    except Exception as error:  # noqa: BLE001 - a device may lack any of it
        return _unmeasured(bare, error)
    rates, failure = _until_it_fails(_products(device, dtype))
    more, _ = _until_it_fails(_convolutions(device, dtype))
    if not rates and not more:
        assert failure is not None
        return _unmeasured(bare, failure)
    return _with(
        bare, max(rates + more), "the larger of a square matrix product and a 3x3 convolution"
    )


def _until_it_fails(rates: Iterator[float]) -> tuple[list[float], Exception | None]:
    """What came before a size that the device has no room for, or a type it does not know."""
    found: list[float] = []
    try:
        for rate in rates:
            found.append(rate)
    except Exception as error:  # noqa: BLE001 - see above
        return found, error
    return found, None


def _products(device: Device, dtype: torch.dtype) -> Iterator[float]:
    size = _FIRST_MATRIX
    longest_s = 0.0
    while longest_s < _LONGEST_S and size <= _LARGEST_MATRIX:
        left = torch.randn(size, size, device=device.torch_device).to(dtype)
        right = torch.randn(size, size, device=device.torch_device).to(dtype)
        longest_s = _fastest_s(functools.partial(torch.mm, left, right), device)
        yield 2 * size**3 / longest_s
        size *= 2


def _convolutions(device: Device, dtype: torch.dtype) -> Iterator[float]:
    channels, height, width = _CONVOLVED
    weight = torch.randn(channels, channels, 3, 3, device=device.torch_device).to(dtype)
    each = 2 * channels * channels * 9 * height * width
    num_batches, longest_s = 1, 0.0
    while longest_s < _LONGEST_S and num_batches <= _MOST_BATCHES:
        images = torch.randn(num_batches, *_CONVOLVED, device=device.torch_device).to(dtype)
        convolve = functools.partial(torch.nn.functional.conv2d, images, weight, padding=1)
        longest_s = _fastest_s(convolve, device)
        yield each * num_batches / longest_s
        num_batches *= 4


def _memory(scenario: Scenario, place: Place) -> Ceiling:
    """Two arrays read and one written, of the largest size, which no cache holds."""
    device = place.device
    bare = Ceiling(
        name=MEMORY, unit="bytes/s", value=None, device=scenario.device,
        threads=_threads(scenario, place),
    )  # fmt: skip
    rate = longest_s = 0.0
    size_bytes = _FIRST_BYTES
    try:
        while longest_s < _LONGEST_S and size_bytes <= _LARGEST_BYTES // 2:
            first, second, out = (
                torch.ones(size_bytes // 4, device=device.torch_device) for _ in range(3)
            )
            longest_s = _fastest_s(functools.partial(torch.add, first, second, out=out), device)
            rate = 3 * size_bytes / longest_s
            size_bytes *= 4
    except Exception as error:  # noqa: BLE001 - it may be too small
        if not rate:
            return _unmeasured(bare, error)
    return _with(bare, rate, f"two arrays of {size_bytes >> 22} MiB added into a third one")


def _copies(scenario: Scenario, device: Device) -> Iterator[Ceiling]:
    for name, pinned in ((H2D_PINNED, True), (H2D_PAGEABLE, False)):
        bare = Ceiling(name=name, unit="bytes/s", value=None, device=scenario.device)
        best = longest_s = 0.0
        size_bytes = _FIRST_BYTES
        try:
            while longest_s < _LONGEST_S and size_bytes <= _LARGEST_BYTES:
                host = torch.ones(size_bytes // 4, pin_memory=pinned)
                there = torch.empty_like(host, device=device.torch_device)
                copy = functools.partial(there.copy_, host, non_blocking=True)
                longest_s = _fastest_s(copy, device)
                best = max(best, size_bytes / longest_s)
                size_bytes *= 4
        except Exception as error:  # noqa: BLE001 - not every device takes pinned memory
            if not best:
                yield _unmeasured(bare, error)
                continue
        yield _with(bare, best, "from host to device")


def _all_reduce(scenario: Scenario, plan: Plan, place: Place) -> Ceiling:
    place = join_process_group(place, scenario, plan)
    best = longest_s = 0.0
    size_bytes = _FIRST_BYTES
    while longest_s < _LONGEST_S and size_bytes <= _LARGEST_BYTES // 4:
        box = torch.ones(size_bytes // 4, device=place.device.torch_device)
        fastest_s = math.inf
        for _ in range(_FEWEST_REPETITIONS):
            place.barrier()
            start_s = place.device.now_s()
            dist.all_reduce(box)
            place.device.synchronize()
            fastest_s = min(fastest_s, place.device.now_s() - start_s)
        longest_s = place.agree(fastest_s)
        best = max(best, size_bytes / longest_s)
        size_bytes *= 4
    return Ceiling(
        name=ALL_REDUCE, unit="bytes/s", value=best, device=scenario.device,
        note=f"bytes of gradients, between {scenario.world_size} ranks",
    )  # fmt: skip


def _jpeg(place: Place) -> Ceiling:
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    photograph(rng, smooth_colours(rng)).save(file, "JPEG", quality=QUALITY)

    def decode() -> None:
        file.seek(0)
        Image.open(file).convert("RGB")

    rate = WIDTH * HEIGHT / _fastest_s(decode, place.device)
    note = f"Pillow, {WIDTH} x {HEIGHT} pixels, one process"
    return Ceiling(
        name=JPEG_DECODE, unit="pixels/s", value=rate, device="cpu", threads=1, note=note
    )


def _fastest_s(work: Callable[[], object], device: Device) -> float:
    """Seconds of the fastest of some repetitions, after one that is not counted."""
    work()
    device.synchronize()
    fastest_s, spent_s, number = math.inf, 0.0, 0
    while number < _FEWEST_REPETITIONS or spent_s < _TRIED_S:
        start_s = device.now_s()
        work()
        device.synchronize()
        taken_s = device.now_s() - start_s
        fastest_s, spent_s, number = min(fastest_s, taken_s), spent_s + taken_s, number + 1
        if spent_s > _LONGEST_S:
            break
    return fastest_s


def _threads(scenario: Scenario, place: Place) -> int:
    return place.threads if scenario.device == "cpu" else 0


def _with(bare: Ceiling, value: float, note: str) -> Ceiling:
    return replace(bare, value=value, note=note)


def _unmeasured(bare: Ceiling, error: Exception) -> Ceiling:
    text = " ".join(str(error).split())[:200]
    return replace(bare, note=f"not measured: {type(error).__name__}: {text}")
