"""Examples in a real browser: a wider width is fetched where it is chosen, a narrower one is there already."""

import pytest
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_widths_are_chosen_without_a_reload(page: Page) -> None:
    page.goto("/saes/demo/features/0")
    page.evaluate("window.isSamePage = true")
    expect(page.locator(".run-medium")).to_have_count(0)
    page.locator("[data-width=full]").click()
    expect(page.locator(".run-full").first).to_be_visible()
    assert page.url.endswith("/saes/demo/features/0?width=full")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/saes/" in request.url else None)
    page.locator("[data-width=short]").click()
    expect(page.locator(".run-full").first).to_be_hidden()
    page.locator("[data-width=medium]").click()
    expect(page.locator(".run-medium").first).to_be_visible()
    expect(page.locator("[data-width=medium]")).to_have_attribute("aria-current", "true")
    assert asked == []
    page.locator("[data-breaks]").click()
    expect(page.locator(".tokens [data-t]").first).to_be_attached()
    page.locator(".examples .tokens").first.focus()
    expect(page.locator(".tokens .at")).to_have_count(1)
    assert page.evaluate("window.isSamePage")
