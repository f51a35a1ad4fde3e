"""The page of all components is whole, shows every step of the scale, and is linked from no other page."""

import re

from starlette.testclient import TestClient

from app.patterns import WORDS
from tests.app.test_pages import PAGES, Checked


def test_patterns_is_wellformed_and_has_every_step(client: TestClient) -> None:
    response = client.get("/patterns")
    assert response.status_code == 200
    checked = Checked(response.text)
    assert (checked.refused, checked.open, checked.leads_away, checked.alternate) == ([], [], [], None)
    assert len(set(checked.ids)) == len(checked.ids)
    steps = response.text.split('id="steps">')[1].split("</p>")[0]
    assert {int(step) for step in re.findall(r'class="a(\d+)', steps)} == set(range(1, 21))
    assert "&lt;b&gt;" in steps and "&amp;amp;" in steps and WORDS[5] in steps


def test_it_shows_every_component(client: TestClient) -> None:
    shown = {
        name for classes in re.findall(r'class="([^"]+)"', client.get("/patterns").text) for name in classes.split()
    }
    assert shown >= {
        "adding", "bands", "bar", "beside", "bars", "buttons", "by", "caption", "choices", "compare-form", "crumbs",
        "example", "facts", "fields", "filters", "found", "go", "heat", "lead", "legend", "line", "measures", "nearest",
        "note", "numbers", "paging", "panel", "parts", "peak", "plain", "probe-tokens", "problem", "row", "spark",
        "special", "strip", "table", "term", "tip", "token", "tokens", "weights",
    }  # fmt: skip


def test_no_page_links_to_it(client: TestClient) -> None:
    assert [path for path in PAGES if "/patterns" in client.get(path).text] == []
