import random
import statistics

import pytest

from stepmark import stats


def by_hand(values: list[float], percent: float) -> float:
    """Definition 7 of Hyndman and Fan (1996): linear between order statistics, ends included."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


@pytest.mark.parametrize(
    ("percent", "value"), [(0, 1.0), (25, 1.75), (50, 2.5), (90, 3.7), (99, 3.97), (100, 4.0)]
)
def test_percentiles_of_four_values_worked_by_hand(percent: float, value: float) -> None:
    assert stats.percentile([4.0, 1.0, 3.0, 2.0], percent) == pytest.approx(value, abs=1e-12)


def test_percentiles_agree_with_their_definition_on_random_values() -> None:
    source = random.Random(1)
    for _ in range(200):
        values = [source.lognormvariate(0, 1) for _ in range(source.randint(1, 60))]
        percent = source.uniform(0, 100)
        assert stats.percentile(values, percent) == pytest.approx(by_hand(values, percent))


def test_median_agrees_with_the_standard_library_for_even_and_odd_numbers_of_values() -> None:
    source = random.Random(2)
    for number in range(1, 40):
        values = [source.expovariate(1) for _ in range(number)]
        assert stats.median(values) == pytest.approx(statistics.median(values))


def test_percentiles_do_not_change_the_values_they_are_given() -> None:
    values = [3.0, 1.0, 2.0]
    stats.percentile(values, 90)
    assert values == [3.0, 1.0, 2.0]


def test_a_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="percentile of no values"):
        stats.percentile([], 50)
    with pytest.raises(ValueError, match="percentile of no values"):
        stats.median(())
