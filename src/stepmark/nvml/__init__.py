"""What NVIDIA's management library tells of a GPU while a window is measured. Imports no torch.

A process of its own samples (`sampler`), since nothing else may run in the measured one; the side
that measures starts it (`client`) and cuts its tapes at the windows' edges (`tape`).
"""

from stepmark.nvml.client import SamplerProcess
from stepmark.nvml.joining import join
from stepmark.nvml.limits import power_limit_w
from stepmark.nvml.tape import Tape, blind, readings, unfit

__all__ = ["SamplerProcess", "Tape", "blind", "join", "power_limit_w", "readings", "unfit"]
