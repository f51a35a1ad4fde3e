"""Addresses within the dashboard."""

from functools import lru_cache
from urllib.parse import quote, urlencode


def url(path: str, **params: object) -> str:
    """`path` with the parameters that say something: None, False and "" are left out, 0 is not."""
    given = {
        name: _text(value) for name, value in params.items() if not (value is None or value is False or value == "")
    }
    return _quoted(path) + (f"?{urlencode(given)}" if given else "")


@lru_cache(maxsize=1024)
def _quoted(path: str) -> str:
    return quote(path, safe="/")


def _text(value: object) -> str:
    return "1" if value is True else str(value)
