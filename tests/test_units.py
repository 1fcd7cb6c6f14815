import random
import re

import pytest

from stepmark.units import (
    format_bytes,
    format_change,
    format_flops,
    format_percent,
    format_rate,
    format_seconds,
)


@pytest.mark.parametrize(
    ("value_s", "text"),
    [
        (0, "0 s"),
        (1.5e-10, "0.15 ns"),
        (1e-9, "1.00 ns"),
        (2.5e-6, "2.50 µs"),
        (0.00123, "1.23 ms"),
        (0.0456, "45.6 ms"),
        (0.789, "789 ms"),
        (1.0, "1.00 s"),
        (59.96, "60.0 s"),
        (99.96, "100 s"),
        (12345.6, "12,346 s"),
        (-0.00123, "-1.23 ms"),
    ],
)
def test_seconds_are_written_in_the_unit_that_fits(value_s: float, text: str) -> None:
    assert format_seconds(value_s) == text


@pytest.mark.parametrize(
    ("value_s", "text"),
    [(0.9994, "999 ms"), (0.9996, "1.00 s"), (9.996e-4, "1.00 ms"), (9.996e-7, "1.00 µs")],
)
def test_seconds_never_read_1000_of_a_smaller_unit(value_s: float, text: str) -> None:
    assert format_seconds(value_s) == text


def test_seconds_read_back_are_within_half_a_unit_of_the_third_digit() -> None:
    scales = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}
    source = random.Random(0)
    for _ in range(2000):
        value_s = 10 ** source.uniform(-8.9, 3)
        number, unit = format_seconds(value_s).split()
        digits = re.sub(r"\D", "", number)
        assert len(digits) == 3 or value_s >= 999.5
        assert float(number.replace(",", "")) * scales[unit] == pytest.approx(value_s, rel=0.0051)


@pytest.mark.parametrize(
    ("value_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (25 * 2**20, "25.0 MiB"),
        (139 * 2**30, "139 GiB"),
        (5 * 2**40, "5.00 TiB"),
        (-1536, "-1.50 KiB"),
    ],
)
def test_bytes_are_written_in_binary_units(value_bytes: float, text: str) -> None:
    assert format_bytes(value_bytes) == text


@pytest.mark.parametrize(
    ("value_per_s", "text"),
    [(12345.6, "12,346"), (100, "100"), (99.97, "100"), (42.25, "42.2"), (0.23, "0.23")],
)
def test_rates_have_thousands_separators_and_no_false_digits(value_per_s: float, text: str) -> None:
    assert format_rate(value_per_s) == text


@pytest.mark.parametrize(
    ("fraction", "text"), [(0.0312, "3.1 %"), (1, "100.0 %"), (0, "0.0 %"), (-0.05, "-5.0 %")]
)
def test_fractions_are_written_as_percent(fraction: float, text: str) -> None:
    assert format_percent(fraction) == text


def test_a_change_has_its_sign() -> None:
    assert format_change(0.0312) == "+3.1 %"
    assert format_change(-0.5) == "-50.0 %"
    assert format_change(1e30) == "over +10000 %"
    assert format_percent(1e30) == "over 10000 %"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 FLOP"),
        (999, "999 FLOP"),
        (1e3, "1.00 kFLOP"),
        (1.234e9, "1.23 GFLOP"),
        (7.5e16, "75.0 PFLOP"),
    ],
)
def test_flops_carry_the_unit_that_fits(value: float, text: str) -> None:
    assert format_flops(value) == text
