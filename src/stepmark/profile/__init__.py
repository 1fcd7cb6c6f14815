"""A scenario under torch.profiler: what came of it, as data. Imports no torch.

Profiling is done in a process of its own (`stepmark.profiling`), and is no source of throughput.
"""

from stepmark.profile.record import Holding, Profile, RankProfile
from stepmark.profile.summary import summarize

__all__ = ["Holding", "Profile", "RankProfile", "summarize"]
