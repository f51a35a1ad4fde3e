"""Steer and Why in a real browser: texts appear as they are written, addresses hold them, no script is needed."""

import pytest
from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.browser
STEER = "/saes/demo/steer"


def test_texts_appear_and_the_address_holds_them(page: Page, server: str) -> None:
    page.goto(f"{server}{STEER}?feature=1")
    page.fill("#prompt", "the king")
    page.fill("input[name=length]", "6")
    page.locator("input[name=strength]").nth(1).fill("2")  # a line without a feature says nothing
    page.click("button:text-is('Steer')")
    expect(page.locator("#result .column")).to_have_count(3)
    assert page.url.endswith(
        "?prompt=the+king&where=everywhere&length=6&temperature=0.7&top_p=0.9&seed=0&feature=1&mode=add&strength=1"
    )
    shown = page.locator("#result .written").all_inner_texts()
    assert page.locator("#live").is_hidden() and page.locator("#status").inner_text()
    page.reload()
    assert page.locator("#result .written").all_inner_texts() == shown
    page.click("button:text-is('Five doses')")
    expect(page.locator("#result .column")).to_have_count(6)
    assert "strip=1" in page.url
    page.go_back()
    expect(page.locator("#result .column")).to_have_count(3)


def test_a_streamed_steering_can_be_kept(page: Page, server: str) -> None:
    page.goto(f"{server}{STEER}?feature=1")
    page.fill("#prompt", "the sea")
    page.press("#prompt", "Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#result .column")).to_have_count(3)
    shown = page.locator("#result .written").all_inner_texts()
    page.fill("input[name=author]", "Ana")
    page.click("text=Keep under a link")
    expect(page).to_have_url(f"{server}/s/{page.url.rsplit('/', 1)[-1]}")
    assert page.locator(".written").all_inner_texts() == shown
    page.click("text=steer again")
    assert page.locator("#result .written").all_inner_texts() == shown


def test_what_goes_wrong_stands_in_the_page(page: Page, server: str) -> None:
    page.goto(f"{server}{STEER}?feature=1")
    page.fill("#prompt", "busy")
    page.click("button:text-is('Steer')")
    expect(page.locator("#status.problem")).to_contain_text("waiting for the model")
    expect(page.locator("#prompt")).to_have_value("busy")


def test_without_a_script_the_forms_lead_to_finished_pages(browser: Browser, server: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{server}{STEER}?feature=1")
    page.fill("#prompt", "the king")
    page.click("button:text-is('Five doses')")
    expect(page.locator("#result .column")).to_have_count(6)
    page.goto(f"{server}/saes/demo/why")
    page.fill("#text", "the king of the whale")
    page.click("button:text-is('Explain')")
    page.locator(".why-tokens button").nth(2).click()
    page.wait_for_url("**token=2**")
    page.locator(".next-tokens a").nth(4).click()
    page.wait_for_url("**target=+sea**")
    assert "token=2" in page.url
    page.locator("input[name=ablate]").first.check()
    page.click("text=Run without the ticked features")
    expect(page.locator("#without .shifts tbody tr").nth(2)).to_be_visible()
    expect(page.locator("input[name=ablate]:checked")).to_have_count(1)
    context.close()


@pytest.mark.parametrize(
    "path", [f"{STEER}?feature=1&prompt=the+king&strip=1", "/saes/demo/why?text=the+king+of&ablate=1"]
)
def test_a_narrow_screen_is_not_scrolled_sideways(path: str, page: Page, server: str) -> None:
    page.set_viewport_size({"width": 360, "height": 800})
    page.goto(f"{server}{path}")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
