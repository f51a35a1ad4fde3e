"""Numbers as people read them."""

import math
from collections.abc import Callable

import pytest

from app import numbers


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (numbers.number, 2.128, "2.13"),
        (numbers.number, 0.04512, "0.0451"),
        (numbers.number, 1204.4, "1,204"),
        (numbers.number, -1.5, "−1.50"),
        (numbers.number, 0, "0"),
        (numbers.number, 1.2e-9, "1.2e-09"),
        (numbers.number, math.nan, "–"),
        (numbers.number, math.inf, "–"),
        (numbers.signed, 1.94, "+1.9"),
        (numbers.signed, -0.041, "−0.04"),
        (numbers.percent, 0, "0%"),
        (numbers.percent, 0.0017, "0.17%"),
        (numbers.percent, 0.1234, "12.3%"),
        (numbers.percent, 1, "100%"),
        (numbers.percent, 0.99999, ">99.9%"),
        (numbers.percent, 1e-9, "<0.0001%"),
        (numbers.percent, 0.0000021, "0.00021%"),
        (numbers.percent, math.nan, "–"),
        (numbers.percent_signed, 0.123, "12.3%"),
        (numbers.percent_signed, -0.004, "\N{MINUS SIGN}0.40%"),
        (numbers.percent_signed, 0, "0%"),
        (numbers.one_in, 0, ""),
        (numbers.one_in, 0.00169, "1 in 590"),
        (numbers.one_in, 0.5, "1 in 2"),
        (numbers.one_in, 0.0000021, "1 in 480,000"),
        (numbers.duration, 0.018, "18 ms"),
        (numbers.duration, 4.21, "4.2 s"),
        (numbers.duration, 200, "3 min 20 s"),
        (numbers.duration, 7500, "2 h 5 min"),
        (numbers.approximate, 4096, "4,096"),
        (numbers.approximate, 4_200_000, "4.2 M"),
        (numbers.approximate, 3_000_000_000, "3 B"),
    ],
)
def test_number(form: Callable[[float], str], value: float, text: str) -> None:
    assert form(value) == text
