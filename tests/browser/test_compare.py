"""Comparing as a person does: from the start page, a feature or an SAE; with and without a script, on a phone."""

from collections.abc import Iterator
from urllib.parse import parse_qs, urlparse

import pytest
from playwright.sync_api import Browser, Page, expect

from app.settings import Settings
from tests.browser.screenshots import served
from tests.compared import make_compared_store

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A dashboard over SAEs with weights, so that they can be matched."""
    folder = tmp_path_factory.mktemp("compared")
    url = f"sqlite:///{folder}/saescope.db"
    make_compared_store(url, folder).close()
    with served(Settings(database_url=url)) as found:
        yield found


@pytest.fixture
def compared(browser: Browser, address: str) -> Iterator[Page]:
    opened = browser.new_page(base_url=address, viewport={"width": 1280, "height": 900})
    problems: list[str] = []
    opened.set_default_timeout(60_000)
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda m: problems.append(m.text) if m.type == "error" and "404" not in m.text else None)
    yield opened
    opened.close()
    assert problems == []


def asked(page: Page) -> dict[str, list[str]]:
    return parse_qs(urlparse(page.url).query)


def test_two_ticked_saes_are_compared_without_a_script(browser: Browser, address: str) -> None:
    context = browser.new_context(base_url=address, java_script_enabled=False)
    page = context.new_page()
    page.goto("/")
    page.get_by_label("Compare demo").check()
    page.get_by_label("Compare other").check()
    page.get_by_role("button", name="Compare the two that are ticked").first.click()
    assert sorted(asked(page)["sae"]) == ["demo", "other"]
    expect(page.get_by_role("heading", level=1)).to_have_text("Two SAEs")
    page.get_by_role("link", name="0.9", exact=True).click()
    assert asked(page)["match"] == ["0.9"]
    expect(page.locator("[aria-current=true]").first).to_have_text("0.9")
    page.locator(".matches .go-compare").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Two features")
    context.close()


def test_from_a_feature_to_the_one_like_it_in_another_sae(compared: Page) -> None:
    compared.goto("/saes/demo/features/4")
    compared.get_by_role("link", name="Compare feature 4 with feature 5").click()
    expect(compared.get_by_role("heading", level=1)).to_have_text("Two features")
    compared.go_back()
    compared.get_by_role("link", name="compare", exact=True).click()
    expect(compared.get_by_role("heading", level=1)).to_contain_text("demo/4")
    compared.get_by_role("link", name="other/4").click()
    shown = compared.locator("main").inner_text()
    link = compared.url
    assert asked(compared) == {"a": ["demo/4"], "b": ["other/4"]}
    compared.goto("about:blank")
    compared.goto(link)
    expect(compared.locator("main")).to_have_text(shown, use_inner_text=True)


def test_a_typed_comparison_that_fails_can_be_put_right(compared: Page) -> None:
    compared.goto("/compare")
    compared.get_by_label("Compare", exact=True).fill("demo/1")
    compared.get_by_label("with").fill("nope/1")
    with compared.expect_response(lambda response: response.status == 404):
        compared.get_by_label("with").press("Enter")
    expect(compared.get_by_role("status")).to_contain_text("no SAE")
    compared.get_by_label("with").fill("demo/2")
    compared.get_by_role("button", name="Compare").click()
    expect(compared.get_by_role("heading", level=1)).to_have_text("Two features")


def test_a_mark_of_the_plot_leads_to_its_sae_by_keyboard_too(compared: Page) -> None:
    compared.goto("/saes/demo")
    mark = compared.locator("svg.pareto a[href*=other]").first
    mark.focus()
    compared.keyboard.press("Enter")
    compared.wait_for_url("**/saes/other?corpus=poems")
    compared.goto("/saes/demo")
    compared.get_by_text("The same as a table").click()
    expect(compared.locator("#pareto tr.this")).to_contain_text("demo")
    compared.get_by_role("link", name="Compare with other").click()
    expect(compared.get_by_role("heading", level=1)).to_have_text("Two SAEs")


def test_corpora_of_an_sae_are_compared(compared: Page) -> None:
    compared.goto("/saes/demo?corpus=stories")
    compared.get_by_role("link", name="Which features fire more on stories, which on poems").click()
    expect(compared.get_by_role("heading", level=1)).to_have_text("demo on two corpora")
    first = compared.locator(".differences li").first
    number = first.locator(".number").inner_text()
    first.locator(".go-compare").click()
    expect(compared.locator(".heads")).to_contain_text(f"demo {number}")


@pytest.mark.parametrize(
    "path",
    [
        "/compare", "/compare?a=demo/4", "/compare?a=demo/0&b=demo/5", "/compare?a=demo/0&b=wide/7",
        "/compare?a=demo&b=other", "/compare?a=demo&b=gone", "/compare?a=demo@stories&b=demo@poems", "/saes/demo", "/",
    ],
)  # fmt: skip
def test_a_small_phone_shows_no_sideways_scroll_and_cuts_nothing_off(browser: Browser, address: str, path: str) -> None:
    page = browser.new_page(base_url=address, viewport={"width": 360, "height": 740})
    page.goto(path)
    sizes = page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth]")
    assert max(sizes) <= 360
    outside = page.evaluate(
        """[...document.querySelectorAll('main *')].filter(e => {
            if (e.closest('.scroll, .hidden, svg, .line, .tip, [hidden]')) return false;
            const box = e.getBoundingClientRect();
            return box.width && box.right > window.innerWidth + 1;
        }).map(e => e.tagName + '.' + e.className)"""
    )
    assert outside == []
    page.close()
