"""Static files: kept for good under their content's hash; colours that can be read; nothing from elsewhere."""

import re

import pytest
from starlette.testclient import TestClient

from app.rendering import PLOTLY, STATIC, line_parts, static_url

CSS = (STATIC / "style.css").read_text()


@pytest.mark.parametrize("name", [*(path.name for path in sorted(STATIC.iterdir())), PLOTLY])
def test_hashed_address_is_kept_for_good(client: TestClient, name: str) -> None:
    response = client.get(static_url(name))
    assert response.status_code == 200
    assert "immutable" in response.headers["cache-control"]
    for address in (f"/static/{name}", f"/static/{name}?v=old"):
        assert client.get(address).headers["cache-control"] == "no-cache"


def test_unknown_and_outside_files_are_not_served(client: TestClient) -> None:
    for address in ("/static/nope.js", "/static/../pyproject.toml", "/static/%2e%2e/pyproject.toml", "/static/"):
        assert client.get(address).status_code == 404


def test_static_files_name_no_other_host() -> None:
    for path in STATIC.iterdir():
        addresses = re.findall(r"https?://[^\s\"')]+", path.read_text())
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}, path.name


@pytest.mark.parametrize(
    ("token", "parts"),
    [("a", ["a"]), ("", [""]), ("\n", ["↵", ""]), (":\r\n    ", [":↵", "    "]), ("\n\n\tx", ["↵", "↵", "\tx"])],
)
def test_token_is_cut_at_its_line_breaks(token: str, parts: list[str]) -> None:
    assert line_parts(token) == parts


def test_every_used_class_of_the_scale_exists() -> None:
    assert re.findall(r"\.a(\d+) \{ --p", CSS) == [str(i) for i in range(1, 21)]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read_on_every_step_of_the_scale(theme: int) -> None:
    variables = theme_colours(theme)
    shares = {int(n): int(p) / 100 for n, p in re.findall(r"\.a(\d+) \{ --p: (\d+)%", CSS)}
    weak = {int(n) for n in re.findall(r"\.a(\d+)", re.search(r"([^}]*)\{ --on: var\(--on-weak\)", CSS)[1])}  # type: ignore[index]
    for number, share in shares.items():
        behind = mixed(variables["act"], variables["paper"], share)
        text = variables["on-weak" if number in weak else "on-strong"]
        assert contrast(text, behind) >= 4.5, f"step {number}: {contrast(text, behind):.2f}"


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_and_marks_can_be_seen(theme: int) -> None:
    colours = theme_colours(theme)
    for behind in ("paper", "raised"):
        for text in ("ink", "muted", "cool", "problem"):
            assert contrast(colours[text], colours[behind]) >= 4.5, (text, behind)
        for mark in ("line-strong", "act-mark", "cool"):
            assert contrast(colours[mark], colours[behind]) >= 3, (mark, behind)
    assert contrast(colours["paper"], colours["cool"]) >= 4.5  # a button's text


def theme_colours(theme: int) -> dict[str, tuple[int, int, int]]:
    pairs = re.findall(r"--([\w-]+): light-dark\(#(\w{6}), #(\w{6})\)", CSS)
    return {name: tuple(bytes.fromhex(values[theme])) for name, *values in pairs}  # type: ignore[misc]


def mixed(colour: tuple[int, int, int], into: tuple[int, int, int], share: float) -> tuple[float, ...]:
    return tuple(share * a + (1 - share) * b for a, b in zip(colour, into, strict=True))


def contrast(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """As WCAG 2 defines it."""
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: tuple[float, ...]) -> float:
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
