"""Tapes of devices to what ranks measured on them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from stepmark.nvml.tape import Tape, blind, readings, unfit
from stepmark.record import RankRecord


def join(ranks: Sequence[RankRecord], tapes: Mapping[str, Tape]) -> tuple[RankRecord, ...]:
    """Ranks with what was sampled of their devices in their windows.

    Args:
        ranks: of one measurement.
        tapes: by the devices' UUIDs.
    """
    users = Counter(rank.device_uuid for rank in ranks)
    return tuple(
        _joined(rank, tapes[rank.device_uuid], users[rank.device_uuid])
        if rank.device_uuid in tapes
        else rank
        for rank in ranks
    )


def _joined(rank: RankRecord, tape: Tape, num_own: int) -> RankRecord:
    start_s = rank.window.began_s
    assert start_s is not None, "a rank with a device to sample says when its window began"
    end_s = start_s + rank.window.window_s
    found = readings(tape, start_s, end_s)
    used = next(r.value for r in found if r.name == "nvml_memory_used")
    return replace(
        rank,
        memory=replace(rank.memory, nvml_used_bytes=None if used is None else int(used)),
        readings=(*rank.readings, *found),
        unfit=(*rank.unfit, *unfit(tape, start_s, end_s, num_own)),
        notes=(*rank.notes, *blind(tape, start_s, end_s, num_own)),
    )
