"""The probe page, typed into: it follows the text, its address shows others the same, and it works without a script."""

import re
from urllib.parse import parse_qs, urlparse

import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser


def test_the_page_follows_what_is_typed_and_its_address_shows_the_same(page: Page, plain: Page) -> None:
    page.goto("/saes/demo/probe")
    page.locator("#text").press_sequentially("the king of the", delay=30)
    expect(page.locator("#tokens button")).to_have_count(5)
    page.locator("#text").press_sequentially(" sea", delay=30)
    expect(page.locator("#tokens button").last).to_have_text(" sea")
    page.locator("#tokens button", has_text="king").click()
    expect(page.locator("#token-name")).to_have_text("·king")
    expect(page.locator(".expected li").first).to_contain_text("<next>")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#token-name")).to_have_text("·of")
    expect(page.locator("#tokens button", has_text="of")).to_be_focused()
    page.locator("#text-features .pick").first.click()
    expect(page.locator("#text-features li.chosen")).to_have_count(1)
    for at in (1, 2):
        page.locator("#text-features .pin:enabled").first.click()
        expect(page.locator(".traces li")).to_have_count(at)
    page.locator("select[name=sort]").select_option("rarity")
    expect(page.locator("#answer")).to_be_visible()
    page.wait_for_url("**sort=rarity**")
    asked = parse_qs(urlparse(page.url).query)
    assert set(asked) == {"text", "feature", "token", "pin", "sort"} and len(asked["pin"][0].split(",")) == 2
    page.mouse.move(5, 5)  # rows keep their place under the pointer
    plain.goto(page.url)
    expect(page.locator("#text-features")).to_have_text(plain.locator("#text-features").text_content() or "")
    for part in ("#token-name", ".traces", "#text-features", "#tokens"):
        assert plain.locator(part).inner_text() == page.locator(part).inner_text()


def test_colours_by_surprise_and_back(page: Page) -> None:
    page.goto("/saes/demo/probe?text=the+king+of+the+sea")
    page.get_by_label("the model's surprise").check()
    expect(page.locator("#tokens.by-surprise")).to_be_visible()
    page.get_by_label("strongest feature").check()
    expect(page.locator("#tokens:not(.by-surprise)")).to_be_visible()


def test_a_pin_is_let_go(page: Page) -> None:
    page.goto("/saes/demo/probe?text=the+king&pin=3,4")
    page.locator(".traces input").first.click()  # `uncheck` would look again, at the next one
    expect(page.locator(".traces li")).to_have_count(1)
    expect(page).to_have_url(re.compile(r"[?&]pin=4$"))


def test_a_full_server_is_asked_once_more_when_it_says_so(busy_page: Page) -> None:
    busy_page.goto("/saes/demo/probe")
    full = '<div id="answer"><p id="status" class="problem">3 probes are waiting for the model</p></div>'
    busy_page.route(
        "**/probe/live",
        lambda route: route.fulfill(status=503, headers={"Retry-After": "1"}, content_type="text/html", body=full),
        times=1,
    )
    busy_page.locator("#text").fill("the king")
    expect(busy_page.locator("#status.problem")).to_have_text("3 probes are waiting for the model")
    expect(busy_page.locator("#tokens button")).to_have_count(3)
    expect(busy_page.locator("#status.problem")).to_have_count(0)


def test_an_answer_to_an_older_text_is_dropped(page: Page) -> None:
    held = []
    page.goto("/saes/demo/probe")
    page.route("**/probe/live", lambda route: held.append(route))
    page.locator("#text").fill("one")
    page.wait_for_timeout(300)
    page.locator("#text").fill("one two three")
    page.wait_for_timeout(300)
    assert len(held) == 1
    held[0].continue_()
    page.wait_for_timeout(300)
    held[1].continue_()
    expect(page.locator("#tokens button")).to_have_count(4)


def test_a_shared_probe_is_reached_by_its_link(page: Page) -> None:
    page.goto("/saes/demo/probe?text=a+secret+garden&feature=7")
    page.get_by_role("button", name="Share").click()
    page.wait_for_url("**/p/*")
    expect(page.get_by_text("Shared by anonymous")).to_be_visible()
    assert re.fullmatch(r"/p/\w{14}", urlparse(page.url).path)
    page.goto("/")
    page.get_by_role("link", name="a secret garden").click()
    expect(page.locator("#tokens button").last).to_have_text(" garden")
    page.locator("#text").fill("another")
    expect(page.locator("#tokens button").last).to_have_text("another")
    assert urlparse(page.url).path == "/saes/demo/probe"


def test_without_a_script_a_text_is_probed_and_picked_in(plain: Page) -> None:
    plain.goto("/saes/demo/probe")
    plain.locator("#text").fill("the king of the sea")
    plain.get_by_role("button", name="Probe").click()
    plain.locator("#tokens button", has_text="king").click()
    expect(plain.locator("#token-name")).to_have_text("·king")
    plain.locator("#text-features .pin").first.click()
    expect(plain.locator(".traces li")).to_have_count(1)


def test_many_texts_run_with_a_script_and_fit_a_phone(phone: Page) -> None:
    phone.goto("/saes/demo/texts")
    phone.locator("#a").fill("the king\nthe queen")
    phone.locator("input[data-into=b]").set_input_files(
        {"name": "b.jsonl", "mimeType": "application/jsonl", "buffer": b'{"text": "rain"}\n'}
    )
    expect(phone.locator("#b")).to_have_value('{"text": "rain"}\n')
    phone.get_by_role("button", name="Probe them").click()
    expect(phone.locator(".texts-table")).to_be_visible()
    expect(phone.locator("#result")).to_contain_text("2 texts of A, 1 of B")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
