"""The page Learn: its words stand before the model answers, then a token is picked, and the link shows the same."""

import re
from urllib.parse import parse_qs, urlparse

import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser


def test_the_page_stands_before_the_model_answers(page: Page) -> None:
    held = []
    page.route("**/learn/live?*", lambda route: held.append(route))
    page.goto("/learn?slug=demo&text=the+king")
    expect(page.get_by_role("heading", name="The limits")).to_be_visible()
    expect(page.locator("#walk-live")).to_contain_text("Asking the model")
    expect(page.locator("#walk-live")).to_have_attribute("aria-busy", "true")
    held[0].continue_()
    expect(page.locator("#walk-status")).to_contain_text("6 of the SAE’s features are active")
    expect(page.locator("#walk-live")).not_to_have_attribute("aria-busy", "true")


def test_a_token_is_picked_and_the_link_shows_the_same(page: Page, plain: Page) -> None:
    page.goto("/learn?slug=demo")
    page.locator("#text").fill("the king and the queen")
    page.get_by_role("button", name="Take it apart").click()
    expect(page.locator("#walk-answer .chosen")).to_have_text(" queen")
    page.locator("#walk-answer button", has_text="king").press("Enter")
    expect(page.locator("#walk-answer .chosen")).to_have_text(" king")
    expect(page.locator("#walk-answer .chosen")).to_be_focused()
    assert parse_qs(urlparse(page.url).query) == {"slug": ["demo"], "text": ["the king and the queen"], "token": ["2"]}
    shown = page.locator("table.parts").inner_text()
    link = page.url
    page.goto("about:blank")
    page.goto(link)
    expect(page.locator("table.parts")).to_have_text(re.compile(r"#\d+"))
    assert page.locator("table.parts").inner_text() == shown
    plain.goto(link)
    expect(plain.locator("#walk-answer")).to_have_count(0)
    plain.get_by_role("link", name="Show this text’s").click()
    expect(plain.locator("table.parts")).to_have_text(shown, use_inner_text=True)


def test_without_a_script_a_token_is_picked_too(plain: Page) -> None:
    plain.goto("/learn?slug=demo")
    plain.locator("#text").fill("the king and the queen")
    plain.get_by_role("button", name="Take it apart").click()
    plain.locator("#walk-answer button", has_text="king").click()
    expect(plain.locator("#walk-answer .chosen")).to_have_text(" king")
    plain.locator("#walk-answer button", has_text="<bos>").click()
    expect(plain.locator("#walk-status")).to_contain_text("special token")
    expect(plain.locator("table.parts")).to_have_count(0)


def test_what_the_model_refuses_is_said_in_a_sentence(refused_page: Page) -> None:
    page = refused_page
    page.goto("/learn?slug=demo&text=king")
    expect(page.locator("table.parts")).to_be_visible()
    page.locator("#text").fill("word " * 300)
    page.get_by_role("button", name="Take it apart").click()
    expect(page.locator("#walk-status")).to_contain_text("shorten it")
    page.locator("#text").fill("queen")
    page.get_by_role("button", name="Take it apart").click()
    expect(page.locator("#walk-answer .chosen")).to_have_text("queen")
