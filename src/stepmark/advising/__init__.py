"""Trying advice: pairs of processes in turns, as many as there is time for; then what held at once.

`docs/decisions/advice.md` gives the reasons.
"""

from stepmark.advising.combination import best, combination
from stepmark.advising.pairs import Pairs
from stepmark.advising.pursuit import needed_s, pursue
from stepmark.advising.session import AdviceSession, Watch
from stepmark.advising.trials import plan_trials

__all__ = [
    "AdviceSession",
    "Pairs",
    "Watch",
    "best",
    "combination",
    "needed_s",
    "plan_trials",
    "pursue",
]
