import math
import random
import statistics

import pytest
import scipy.stats

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


@pytest.mark.parametrize(("num_base", "num_head"), [(5, 5), (5, 8), (10, 10), (12, 7), (20, 20)])
def test_the_rank_interval_ends_where_scipys_exact_test_begins_to_refuse(
    num_base: int, num_head: int
) -> None:
    source = random.Random(num_base * 100 + num_head)
    base = [source.lognormvariate(0, 0.2) for _ in range(num_base)]
    head = [source.lognormvariate(0.1, 0.2) for _ in range(num_head)]
    found = stats.shift(base, head, 0.99)
    assert found is not None

    def p_value(shift: float) -> float:
        moved = [value - shift for value in head]
        return float(scipy.stats.mannwhitneyu(base, moved, method="exact").pvalue)

    tiny = 1e-9
    assert p_value(found.low - tiny) <= 0.01 < p_value(found.low + tiny)
    assert p_value(found.high + tiny) <= 0.01 < p_value(found.high - tiny)
    differences = sorted(h - b for h in head for b in base)
    assert found.estimate == pytest.approx(statistics.median(differences))


@pytest.mark.parametrize(("num_base", "num_head"), [(2, 2), (3, 3), (2, 4), (4, 4)])
def test_few_values_get_the_interval_of_welchs_test(num_base: int, num_head: int) -> None:
    source = random.Random(num_base * 100 + num_head)
    base = [source.gauss(0, 1) for _ in range(num_base)]
    head = [source.gauss(1, 2) for _ in range(num_head)]
    found = stats.shift(base, head, 0.99)
    assert found is not None
    theirs = scipy.stats.ttest_ind(head, base, equal_var=False).confidence_interval(0.99)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    assert found.estimate == pytest.approx(statistics.mean(head) - statistics.mean(base))


def test_values_that_are_all_equal_shift_without_doubt() -> None:
    found = stats.shift([1.0, 1.0], [3.0, 3.0, 3.0], 0.99)
    assert found == stats.Shift(estimate=2.0, low=2.0, high=2.0)


def test_a_single_value_a_side_tells_no_shift() -> None:
    assert stats.shift([1.0], [2.0, 3.0], 0.99) is None
    assert stats.shift([1.0, 2.0], [], 0.99) is None


def test_a_confidence_is_a_part() -> None:
    with pytest.raises(ValueError, match="confidence=1: must lie between 0 and 1"):
        stats.shift([1.0, 2.0], [1.0, 2.0], 1)


@pytest.mark.parametrize("number", [3, 5, 9, 10, 20, 33])
@pytest.mark.parametrize("trimmed", [0.0, 0.1, 0.2])
def test_the_trimmed_center_is_that_of_scipys_test_of_yuen(number: int, trimmed: float) -> None:
    source = random.Random(number)
    samples = [
        [*(source.gauss(middle, 2.0) for _ in range(number - 1)), 40.0] for middle in (0.5, 3.0)
    ]
    centers = [stats.center(sample, trimmed) for sample in samples]
    assert centers[0].estimate == pytest.approx(scipy.stats.trim_mean(samples[0], trimmed))
    error = math.hypot(centers[0].standard_error, centers[1].standard_error)
    expected = scipy.stats.ttest_ind(*samples, equal_var=False, trim=trimmed)
    assert (centers[0].estimate - centers[1].estimate) / error == pytest.approx(expected.statistic)


@pytest.mark.parametrize("number", [2, 10])
def test_the_reach_of_a_mean_is_students(number: int) -> None:
    values = [float(k * k) for k in range(number)]
    center = stats.center(values, 0.0)
    expected = scipy.stats.t.interval(
        0.99, number - 1, loc=center.estimate, scale=scipy.stats.sem(values)
    )
    assert center.estimate + center.reach(0.99) == pytest.approx(expected[1])


def test_how_far_off_a_value_is_does_not_matter_to_the_trimmed_center() -> None:
    values = [0.9, 1.0, 1.0, 1.1, 1.0]
    assert stats.center([*values, 1.2], 0.2) == stats.center([*values, 1000.0], 0.2)


def test_what_has_no_center_is_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        stats.center([1.0], 0.0)
    with pytest.raises(ValueError, match=r"trimmed=0\.5"):
        stats.center([1.0, 2.0, 3.0], 0.5)


def test_spread_is_the_range_in_parts_of_the_median() -> None:
    assert stats.spread([90.0, 100.0, 130.0]) == pytest.approx(0.4)
    assert stats.spread([5.0, 5.0]) == 0
    with pytest.raises(ValueError, match="empty"):
        stats.spread([])
