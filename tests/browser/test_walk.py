"""What a person does: home, SAE, feature, probe, and a link that shows somebody else the same."""

import re
from urllib.parse import parse_qs, urlparse

import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser


def asked(page: Page) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlparse(page.url).query).items()}


def test_from_home_to_a_shared_link(page: Page) -> None:
    page.goto("/")
    page.get_by_role("link", name="demo", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("demo")
    page.get_by_role("link", name="Browse features").click()
    page.get_by_role("link", name="Features").first.focus()
    page.goto(page.url + "?q=spouse")
    page.get_by_role("link", name="#0", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("words for a spouse")
    page.get_by_label("Try it").fill("the king and the queen")
    page.get_by_role("button", name="Probe").click()
    expect(page.locator(".colour-by label", has=page.locator("input:checked"))).to_have_text("#0 words for a spouse")
    expect(page.locator("#silent")).to_be_visible()
    expect(page.locator("#text-count")).to_have_text("30 of 30 features")  # and the one that is silent
    page.locator("#tokens button", has_text="king").click()
    page.locator("#text-features .pick").first.click()
    expect(page.locator("#text-features .chosen")).not_to_contain_text("#0")
    expect(page.locator("#token-name")).to_have_text("·king")
    shown = page.locator("#tokens").inner_html()
    link = page.url
    assert asked(page).keys() == {"text", "feature", "token"}
    page.goto("about:blank")
    page.goto(link)
    expect(page.locator("#token-name")).to_have_text("·king")
    assert page.locator("#tokens").inner_html() == shown


def test_a_shared_link_shows_the_same_without_a_script(page: Page, plain: Page) -> None:
    link = "/saes/demo/probe?text=the+king+and+%E4%B8%AD%0A%0Aqueen&token=2&feature=7"
    page.goto(link)
    plain.goto(link)
    for place in ("#tokens", "#token-features", "#text-features", "#status", ".colour-by", "#legend", "#token-name"):
        assert page.locator(place).inner_text() == plain.locator(place).inner_text(), place
    classes = [[b.get_attribute("class") for b in p.locator("#tokens button").all()] for p in (page, plain)]
    assert classes[0] == classes[1]


def test_probing_without_a_script(plain: Page) -> None:
    plain.goto("/saes/demo/probe")
    plain.locator("#text").fill("the king\nof the sea")
    plain.get_by_role("button", name="Probe").click()
    plain.locator("#tokens button", has_text="king").click()
    expect(plain.locator("#token-name")).to_have_text("·king")
    plain.locator("#token-features .pick").first.click()
    expect(plain.locator("#token-name")).to_have_text("·king")
    expect(plain.locator("#text-features .chosen")).to_have_count(1)
    assert asked(plain)["text"] == "the king\r\nof the sea"


def test_typing_probes_when_it_pauses_and_keeps_the_address(page: Page) -> None:
    page.goto("/saes/demo/probe")
    expect(page.locator("#empty")).to_be_visible()
    page.locator("#text").press_sequentially("the king", delay=20)
    expect(page.locator("#tokens")).to_have_text("<bos>the king")  # "the ki" was asked too where typing was slow
    expect(page.locator("#status")).to_contain_text("3 tokens")
    expect(page.locator("#empty")).to_be_hidden()
    assert asked(page) == {"text": "the king"}
    page.locator("#text").press_sequentially(" 中文 <b>", delay=20)
    expect(page.locator("#tokens")).to_have_text("<bos>the king 中文 <b>")
    page.locator("#text").fill("")
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("#tokens")).to_have_count(0)
    assert page.url.endswith("/saes/demo/probe")


def test_a_refused_text_says_why_and_leaves_what_was_there(refused_page: Page) -> None:
    page = refused_page
    page.goto("/saes/demo/probe?text=king")
    page.locator("#text").fill("word " * 300)
    expect(page.locator("#status")).to_contain_text("shorten it")
    expect(page.locator("#tokens")).to_have_text("<bos>king")
    page.locator("#text").fill("queen")
    expect(page.locator("#status")).to_contain_text("2 tokens")


def test_rows_keep_their_place_under_the_pointer(page: Page) -> None:
    def listed() -> list[int]:
        return [int(row.get_attribute("data-feature") or -1) for row in page.locator("#text-features li").all()]

    page.goto("/saes/demo/probe?text=the+king")
    page.locator("#text-features li").nth(2).hover()
    before = listed()
    page.locator("#text").evaluate(
        "(field) => { field.value += ' of the seas'; field.dispatchEvent(new Event('input')); }"
    )
    expect(page.locator("#status")).to_contain_text("6 tokens")
    answer = page.request.post("/api/saes/demo/probe", data={"text": "the king of the seas"}).json()
    ranked = [feature["feature_index"] for feature in answer["features"]]
    assert ranked[: len(before)] != before
    assert listed()[: len(before)] == before
    page.mouse.move(5, 5)
    expect(page.locator("#text-features li").nth(1)).to_have_attribute("data-feature", str(ranked[1]))
    assert listed() == ranked


def test_arrow_keys_walk_the_tokens(page: Page) -> None:
    page.goto("/saes/demo/probe?text=the+king+of+whales")
    page.locator("#tokens button", has_text="king").click()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#token-name")).to_have_text("·of")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#token-name")).to_have_text("·whales")
    assert asked(page)["token"] == "4"
    page.keyboard.press("Escape")
    expect(page.locator("#token-panel")).to_be_hidden()
    assert "token" not in asked(page)


def test_feature_page_by_keyboard(page: Page) -> None:
    page.goto("/saes/demo/features/1")
    for key, number in (("j", 2), ("k", 1)):
        with page.expect_navigation():
            page.keyboard.press(key)
        assert page.url.endswith(f"/features/{number}")
    with page.expect_navigation():
        page.keyboard.press("r")
    assert re.search(r"/features/\d+$", page.url)
    page.keyboard.press("/")
    expect(page.locator("#search")).to_be_focused()
    page.keyboard.type("jk")
    expect(page.locator("#search")).to_have_value("jk")
    page.keyboard.press("Escape")
    expect(page.locator("#search")).not_to_be_focused()


def test_list_by_keyboard(page: Page) -> None:
    page.goto("/saes/demo/features?sort=index")
    page.keyboard.press("j")
    page.keyboard.press("j")
    expect(page.locator("[data-row]").nth(1)).to_be_focused()
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    page.wait_for_url("**/features/0")


def test_width_and_signs_change_at_once_and_stay_in_links(page: Page) -> None:
    page.goto("/saes/demo/features/1")
    page.evaluate("window.stays = true")
    text = page.locator(".example .tokens").first
    short = text.inner_text()
    page.get_by_role("link", name="full", exact=True).click()
    expect(text).not_to_have_text(short, use_inner_text=True)
    assert len(text.inner_text()) > len(short)
    page.locator("[data-breaks]").click()
    expect(text).to_contain_text("·", use_inner_text=True)
    assert asked(page) == {"width": "full", "breaks": "1"}
    assert page.evaluate("window.stays")
    page.reload()
    expect(text).to_contain_text("·", use_inner_text=True)
    page.locator("[data-breaks]").click()
    expect(text).not_to_contain_text("·", use_inner_text=True)
    page.locator("a[rel=next]").click()
    page.wait_for_url("**/features/2?*")
    assert asked(page) == {"width": "full"}


def test_token_says_what_it_is(page: Page) -> None:
    page.goto("/saes/demo/features/1")
    peak = page.locator(".example .peak").first
    peak.hover()
    tip = page.locator("#tooltip")
    expect(tip).to_contain_text(f"id {peak.get_attribute('data-i')}")
    expect(tip).to_contain_text(f"activation {peak.get_attribute('data-v')}")
    page.mouse.move(2, 2)
    expect(tip).to_be_hidden()
    page.locator(".example .tokens").first.focus()
    expect(tip).to_be_visible()
    before = tip.inner_text()
    page.keyboard.press("ArrowLeft")
    assert tip.inner_text() != before


def test_definitions_show_on_hover_and_focus(page: Page) -> None:
    page.goto("/saes/demo/features/1")
    term = page.locator(".facts .term").first
    expect(term.locator(".tip")).to_be_hidden()
    term.hover()
    expect(term.locator(".tip")).to_be_visible()
    page.mouse.move(2, 2)
    term.focus()
    expect(term.locator(".tip")).to_be_visible()


def test_a_point_of_the_chart_leads_to_its_feature(page: Page) -> None:
    page.goto("/saes/demo")
    plot = page.locator("[data-chart=scatter]")
    expect(plot.locator(".scatterlayer .point").first).to_be_visible()
    plot.scroll_into_view_if_needed()
    box = plot.locator(".scatterlayer .point").nth(5).bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(plot.locator(".hoverlayer")).to_contain_text("feature")
    page.mouse.down()
    page.mouse.up()
    page.wait_for_url(re.compile(r"/features/\d+$"))


def test_charts_without_a_script(plain: Page) -> None:
    plain.goto("/saes/demo")
    assert plain.locator("[data-chart] svg rect").count() > 5


def test_theme_is_switched_and_remembered(page: Page) -> None:
    page.emulate_media(color_scheme="light")
    page.goto("/saes/demo")

    def background() -> object:
        return page.evaluate("getComputedStyle(document.documentElement).backgroundColor")

    light = background()
    page.get_by_role("button", name="Dark").click()
    dark = background()
    assert dark != light
    page.goto("/saes/demo/features/1")
    assert background() == dark
    expect(page.get_by_role("button", name="Light")).to_be_visible()


PATHS = [
    "/", "/saes/demo", "/saes/unindexed", "/saes/demo/features", "/saes/demo/features/1",
    "/saes/demo/features/1?width=full&breaks=1", "/saes/demo/features/1?embed=1",
    "/saes/demo/probe", "/saes/demo/probe?text=" + "averyveryverylongwordwithoutanyspace" * 8 + "+king&token=2",
    "/saes/demo/features/1/embed", "/lists", "/glossary", "/docs",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_a_phone_shows_no_sideways_scroll(phone: Page, path: str) -> None:
    phone.goto(path)
    phone.wait_for_load_state("networkidle")
    body = phone.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth]")
    assert max(body) <= 390
