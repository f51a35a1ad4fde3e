"""Numbers as people read them: the one place that decides digits, signs and units on pages."""

import math
from datetime import datetime

MINUS = "\N{MINUS SIGN}"


def number(value: float, *, digits: int = 3) -> str:
    """`value` with `digits` significant digits, never in exponent notation unless it is tiny: 2.13, 0.0451, 1,204."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    text = f"{abs(value):.1e}" if magnitude < -5 else f"{abs(value):,.{max(0, digits - 1 - magnitude)}f}"
    return (MINUS if value < 0 else "") + text


def signed(value: float) -> str:
    """`value` with its sign always shown and one or two decimals: +1.9, −0.04."""
    decimals = 1 if abs(value) >= 1 else 2
    return ("+" if value >= 0 else MINUS) + f"{abs(value):.{decimals}f}"


def fixed(value: float) -> str:
    """`value` with its sign and two decimals, so that a column of parts can be added up by eye: +12.40, −0.04."""
    return ("+" if value >= 0 else MINUS) + f"{abs(value):,.2f}"


def count(value: int) -> str:
    return f"{value:,}"


def approximate(value: int) -> str:
    """A count in a word's length: 812, 4,096, 1.2 M."""
    for size, unit in ((1_000_000_000, "B"), (1_000_000, "M")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,}"


def percent(share: float) -> str:
    """A share between 0 and 1 as a percentage with two or three significant digits: 0.17%, 12.3%, 100%."""
    value = share * 100
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0%"
    if value >= 99.95:
        return ">99.9%" if value < 100 else "100%"
    if value >= 10:
        return f"{value:.1f}%"
    if value < 0.0001:
        return "<0.0001%"
    return f"{value:.{1 - math.floor(math.log10(value))}f}%"


def percent_signed(share: float) -> str:
    """A share that may be negative: 12.3%, −0.40%."""
    return MINUS + percent(-share) if share < 0 else percent(share)


def one_in(share: float) -> str:
    """A share as odds: "1 in 590"; empty for 0."""
    if share <= 0:
        return ""
    every = 1 / share
    if every < 10:
        return f"1 in {every:.2g}"
    places = max(0, math.floor(math.log10(every)) - 1)
    return f"1 in {round(every / 10**places) * 10**places:,}"


def duration(seconds: float) -> str:
    """18 ms, 4.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def date(moment: datetime) -> str:
    return f"{moment.day} {moment:%B %Y, %H:%M}"
