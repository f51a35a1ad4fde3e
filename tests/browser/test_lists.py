"""Lists, labels, embedded features and exported files in a real browser."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import _watched

pytestmark = pytest.mark.browser


@pytest.fixture
def list_id(page: Page) -> str:
    """A list of features 1, 2, 4 and 5."""
    made = page.request.post("/api/lists", data={"title": "Of this test"}).json()
    for number in (1, 2, 4, 5):
        item = {"slug": "demo", "feature_index": number, "note": f"note {number}"}
        assert page.request.post(f"/api/lists/{made['list_id']}/items", data=item).ok
    return str(made["list_id"])


@pytest.fixture
def conflicting_page(browser: Browser, server: str) -> Iterator[Page]:
    """A page on which the browser may note that the server refused an older version."""
    yield from _watched(browser.new_page(base_url=server), server, allowed="status of 409")


def order(page: Page) -> list[str]:
    return [text.split("#")[1] for text in page.locator(".items .number").all_inner_texts()]


def test_a_list_is_made_and_changed_without_a_script(plain: Page) -> None:
    plain.goto("/saes/demo/features/4")
    plain.get_by_text("add to a list", exact=True).click()
    form = plain.locator("form[action='/lists/add']")
    if form.locator("select").count():
        form.locator("select").select_option("")
    form.get_by_label(re.compile("^Title")).fill("Without a script")
    form.get_by_label("Note").fill("first <b>\nsecond")
    form.get_by_label("Your name").fill("Ana")
    form.get_by_role("button", name="Add").click()
    expect(plain).to_have_url(re.compile(r"/saes/demo/features/4#lists$"))
    plain.get_by_role("link", name="Without a script").click()
    plain.get_by_label("Number").fill("7")
    plain.locator("form[action$='/items']").get_by_role("button", name="Add").click()
    assert order(plain) == ["4", "7"]
    plain.get_by_role("button", name="Move feature 7 up").click()
    assert order(plain) == ["7", "4"]
    expect(plain.locator(".note-text")).to_have_text("first <b>\nsecond")
    row = plain.locator("[data-item]").first
    row.get_by_text("add a note").click()
    expect(row.get_by_label("Your name")).to_have_value("Ana")
    row.get_by_label("Note", exact=True).fill("seven")
    row.get_by_role("button", name="Save").click()
    expect(plain.locator("[data-item]").first).to_contain_text("noted by Ana")
    plain.get_by_role("button", name="Remove feature 4 from the list").click()
    assert order(plain) == ["7"]
    link = plain.url.split("#")[0]
    plain.goto("about:blank")
    plain.goto(link)
    assert order(plain) == ["7"]
    plain.get_by_text("delete this list").click()
    plain.get_by_role("button", name="Delete it").click()
    expect(plain).to_have_url(re.compile("/lists$"))


def test_items_are_moved_by_keyboard_and_stay_there(page: Page, list_id: str) -> None:
    page.goto(f"/lists/{list_id}")
    page.evaluate("window.stays = true")
    page.keyboard.press("j")
    expect(page.locator("[data-row]").first).to_be_focused()
    page.keyboard.press("Alt+ArrowDown")
    page.keyboard.press("Alt+ArrowDown")
    assert order(page) == ["2", "4", "1", "5"]
    expect(page.locator("#moved")).to_have_text("demo #1 is now 3 of 4")
    expect(page.locator("[data-row]").nth(2)).to_be_focused()
    page.keyboard.press("Alt+ArrowDown")
    page.keyboard.press("Alt+ArrowDown")  # it is the last already
    page.get_by_role("button", name="Move feature 5 up").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#moved")).to_have_text("demo #5 is now 2 of 4")
    expect(page.get_by_role("button", name="Move feature 5 up")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Move feature 5 down")).to_be_focused()  # it cannot go further up
    expect(page.locator("#moved")).to_have_text("demo #5 is now 1 of 4")
    assert page.evaluate("window.stays") and order(page) == ["5", "2", "4", "1"]
    assert page.locator(".items .place").all_inner_texts() == ["1", "2", "3", "4"]
    page.reload()
    assert order(page) == ["5", "2", "4", "1"]


def test_an_order_that_somebody_else_changed_is_said(conflicting_page: Page, list_id: str) -> None:
    page = conflicting_page
    page.goto(f"/lists/{list_id}")
    page.request.post(f"/api/lists/{list_id}/items", data={"slug": "demo", "feature_index": 9})
    page.get_by_role("button", name="Move feature 2 up").click()
    expect(page.locator("#moved")).to_contain_text("Somebody has changed this list since you opened it")
    expect(page.locator("#moved")).to_be_in_viewport()
    page.reload()
    assert order(page) == ["1", "2", "4", "5", "9"]


def test_a_title_is_saved_after_items_were_moved(page: Page, list_id: str) -> None:
    page.goto(f"/lists/{list_id}")
    page.get_by_role("button", name="Move feature 2 up").click()
    expect(page.locator("#moved")).to_have_text("demo #2 is now 1 of 4")
    page.get_by_text("edit title and description").click()
    page.get_by_label("Title", exact=True).fill("Renamed")
    page.get_by_role("button", name="Save").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Renamed")


def test_a_label_is_edited_by_keyboard_and_removed(page: Page) -> None:
    page.goto("/saes/demo/features/1")
    page.keyboard.press("e")
    expect(page.get_by_label("Label", exact=True)).to_be_focused()
    page.keyboard.type("ships <i>at</i> sea")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Feature 1 ships <i>at</i> sea")
    expect(page.locator("main")).to_contain_text("label by anonymous")
    expect(page.locator("main")).to_contain_text("the sea, 海 and ships · automatic label by describer")
    page.keyboard.press("e")
    page.get_by_role("button", name="Remove this label").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Feature 1 the sea, 海 and ships")


def test_an_embedded_feature_follows_its_switches(page: Page) -> None:
    page.emulate_media(color_scheme="light")
    page.goto("/saes/demo/features/1")
    page.get_by_role("link", name="embed").click()
    page.get_by_label("tokens").check()
    page.get_by_label("statistics").uncheck()
    page.get_by_label("theme=").select_option("dark")
    page.get_by_label("height=").fill("333")
    page.get_by_label("examples=").fill("2")
    page.get_by_role("button", name="Show").click()
    code = page.locator("#code").input_value()
    assert 'height="333"' in code
    (address,) = re.findall(r'src="([^"]+)"', code)
    page.goto(address.replace("&amp;", "&"))
    expect(page.locator(".example")).to_have_count(2)
    expect(page.locator(".panel")).to_have_count(2)
    expect(page.locator(".facts")).to_have_count(0)
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(25, 24, 22)"


def test_an_exported_file_opens_offline_and_asks_for_nothing(
    browser: Browser, page: Page, list_id: str, tmp_path: Path
) -> None:
    item = {"slug": "demo", "feature_index": 7, "note": "<img src=http://evil.example onerror=alert(1)>"}
    page.request.post(f"/api/lists/{list_id}/items", data=item)
    file = tmp_path / "list.html"
    file.write_text(page.request.get(f"/lists/{list_id}/export?format=html").text(), encoding="utf-8")
    for scheme, paper in (("light", "rgb(251, 250, 248)"), ("dark", "rgb(25, 24, 22)")):
        context = browser.new_context(offline=True, color_scheme=scheme, viewport={"width": 360, "height": 800})  # type: ignore[arg-type]
        opened = context.new_page()
        asked: list[str] = []
        said: list[str] = []
        opened.on("request", lambda request, asked=asked: asked.append(request.url))
        opened.on("console", lambda message, said=said: said.append(message.text))
        opened.on("dialog", lambda dialog, said=said: said.append(dialog.message))
        opened.goto(file.as_uri())
        opened.wait_for_load_state("networkidle")
        background = "getComputedStyle(document.documentElement).backgroundColor"
        assert opened.evaluate(background) == paper
        assert opened.evaluate("document.documentElement.scrollWidth") <= 360
        text = opened.locator(".example .tokens").first
        short = text.inner_text()
        opened.get_by_label("more").check()
        assert len(text.inner_text()) > len(short)
        peak = opened.locator(".tokens .peak").first
        assert "rgba(0, 0, 0, 0)" not in peak.evaluate("e => getComputedStyle(e).backgroundColor")
        opened.get_by_role("link", name="demo #7").click()
        expect(opened.locator("article:target .note-text")).to_have_text(item["note"])
        opened.emulate_media(media="print")
        assert opened.evaluate(background) == "rgb(251, 250, 248)"
        assert (asked, said) == ([file.as_uri()], [])
        context.close()


def test_a_small_phone_shows_no_sideways_scroll(phone: Page, list_id: str) -> None:
    phone.set_viewport_size({"width": 360, "height": 740})
    for path in (f"/lists/{list_id}", "/lists", "/saes/demo/features/1", "/saes/demo/features/1/embed"):
        phone.goto(path)
        for details in phone.locator("details").all():
            details.evaluate("details => { details.open = true; }")
        widths = phone.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth]")
        assert max(widths) <= 360, path
