"""What a run of advice came to, for the summary and the section on it."""

from collections import Counter
from collections.abc import Iterable, Iterator

from stepmark.advice import Judgement, Standing, Trial, find
from stepmark.advice.output import judgements
from stepmark.fingerprint import Commit
from stepmark.report.wording import count, listed
from stepmark.scenario import Scenario
from stepmark.store import Run

_COUNTED = {
    Standing.HOLDS: ("{} holds here", "{} hold here"),
    Standing.DOES_NOT_HOLD: ("{} does not hold", "{} do not hold"),
    Standing.NO_DIFFERENCE: (
        "{} had no difference that could be seen",
        "{} had no difference that could be seen",
    ),
    Standing.CANNOT_BE_TRIED: ("{} cannot be tried", "{} cannot be tried"),
    Standing.NOT_DECIDED: ("{} is not decided", "{} are not decided"),
}


def commits_of(trials: Iterable[Trial]) -> Iterator[Commit]:
    """Of the code that was measured, each once."""
    yield from dict.fromkeys(commit for trial in trials for commit in trial.commits)


class Advised:
    """The trials of a run, judged.

    Args:
        run: one that has trials.

    Attributes:
        scenario: what advice was tried on.
        claims: each piece's trial with each of its claims.
        combined: the same of combinations.
    """

    def __init__(self, run: Run) -> None:
        self.scenario: Scenario = run.results[0].scenario if run.results else run.trials[0].without
        self.claims: list[tuple[Trial, Judgement]] = []
        self.combined: list[tuple[Trial, Judgement]] = []
        for trial in run.trials:
            into = self.claims if find(trial.advice) else self.combined
            into += [(trial, judged) for judged in judgements(trial)]

    @property
    def names(self) -> list[str]:
        """Of the advice that was tried."""
        return list(dict.fromkeys(trial.advice for trial, _ in self.claims))

    @property
    def best(self) -> tuple[Trial, float] | None:
        """The combination that gained most, and its change of throughput in turns."""
        gained = [
            (trial, judged.change)
            for trial, judged in self.combined
            if judged.standing is Standing.HOLDS and judged.change is not None
        ]
        return max(gained, key=lambda found: found[1], default=None)

    @property
    def is_decided(self) -> bool:
        """Whether more pairs could show no other combination to be the best."""
        return all(j.standing is not Standing.NOT_DECIDED for _, j in self.combined)

    def in_words(self) -> str:
        """How many of the claims are true here."""
        found = Counter(judged.standing for _, judged in self.claims)
        counted = [
            (one if found[standing] == 1 else several).format(found[standing])
            for standing, (one, several) in _COUNTED.items()
            if found[standing]
        ]
        return f"Of {count(len(self.claims), 'claim')}, {listed(counted)}"
