"""Any text at all: as tokens, shown in a page, written into a label and a list, and never becoming markup."""

import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from app.examples import TokenView
from app.feature_files import harmless
from app.main import create_app
from app.marks import token_spans
from app.rendering import json_data, under
from app.settings import Settings
from app.urls import url
from sae_core.records import TokenWeight
from sae_core.tokens_text import whole_text
from tests.app.fake_prober import FakeProber
from tests.app.test_pages import Checked
from tests.factories import make_store

HOSTILE = [
    "<script>alert(1)</script>", "\"'><img src=x onerror=y>", "</textarea></script>", "{{ 7*7 }}", "\u202e\0", "=1+1",
]  # fmt: skip
anything = st.text(max_size=60) | st.sampled_from(HOSTILE)
quick = settings(max_examples=60, deadline=None, database=None, derandomize=True)
slow = settings(quick, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    folder = tmp_path_factory.mktemp("texts")
    store = make_store(f"sqlite:///{folder}/saescope.db")
    return TestClient(
        create_app(Settings(home=Path(folder)), store=store, prober=FakeProber()), raise_server_exceptions=False
    )


class Texts(HTMLParser):
    """The text of a piece of HTML, and its tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags = "", []  # type: str, list[str]
        self.feed(html)
        self.close()

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)


@quick
@given(st.lists(anything, max_size=8))
def test_tokens_are_printed_as_the_text_that_they_are(texts: list[str]) -> None:
    views = [
        TokenView(text=t, step=n % 21, is_peak=n == 0, token_id=n, activation=n / 3, position=n)
        for n, t in enumerate(texts)
    ]
    shown = Texts(str(token_spans(views)))
    assert shown.tags == ["span"] * len(texts)
    plain = "".join(texts).replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")
    assert shown.text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd") == plain


@quick
@given(anything)
def test_json_in_a_page_ends_nowhere_but_at_its_end(text: str) -> None:
    printed = str(json_data(TokenWeight(token=text.encode("utf-8", "replace").decode(), token_id=1, weight=0.5)))
    assert not set(printed) & set("<>&")


@quick
@given(st.binary(max_size=12))
def test_bytes_of_a_token_are_text_or_a_part_of_it(raw: bytes) -> None:
    found = whole_text(raw)
    assert found is None or isinstance(found, str)
    if found is not None:
        assert found.encode("utf-8", "strict") == raw


@quick
@given(anything, anything)
def test_an_address_says_again_what_was_put_in(path: str, value: str) -> None:
    address = url("/saes/" + path.encode("utf-8", "replace").decode(), q=value.encode("utf-8", "replace").decode())
    assert re.fullmatch(r"[\w/.~%?=&+*:@!$'(),;-]*", address, re.A)


@quick
@given(anything)
def test_a_cell_is_no_formula(text: str) -> None:
    assert not str(harmless(text)).startswith(("=", "+", "-", "@", "\t", "\r"))


@quick
@given(st.text(alphabet=st.characters(exclude_characters='"<>&'), max_size=40))
def test_text_is_not_taken_for_an_address(text: str) -> None:
    page = f'<p title="{text}" data-t="{text}">{text}</p>'
    assert under("/scope", page) == page
    assert under("/scope", '<a href="/x">') == '<a href="/scope/x">'


@slow
@given(anything)
@example("<script>alert(1)</script>")
def test_any_text_is_probed_searched_and_labelled_without_becoming_markup(client: TestClient, text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    for address in ("/saes/demo/probe", "/search", "/saes/demo/features", "/compare"):
        page = client.get(address, params={"text": text, "q": text, "a": text})
        assert page.status_code < 500, (address, text)
        checked = Checked(page.text)
        assert checked.refused == [] and checked.open == [], (address, text)
    said = client.put("/api/saes/demo/features/9/label", json={"text": text, "author": text})
    assert said.status_code in (200, 422)
    made = client.post("/api/lists", json={"title": text, "description": text})
    assert made.status_code in (200, 422)
    if made.status_code == 200:
        page = client.get(f"/lists/{made.json()['list_id']}")
        assert Checked(page.text).refused == [] and made.json()["title"] in unescape(page.text)
        client.delete(f"/api/lists/{made.json()['list_id']}")
