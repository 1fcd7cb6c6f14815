"""Two saved runs to verdicts. Nothing here imports torch."""

from stepmark.compare.floors import Rules, judge_floors
from stepmark.compare.runs import compare_runs
from stepmark.compare.verdict import Comparison, Counter, Verdict, exit_code

__all__ = ["Comparison", "Counter", "Rules", "Verdict", "compare_runs", "exit_code", "judge_floors"]
