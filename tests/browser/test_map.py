"""The map in a browser: it draws, names, opens, selects, and keeps all of that in its address."""

import re

import pytest
from playwright.sync_api import Page, expect

from app.map_areas import FAR
from tests.factories import make_map

pytestmark = pytest.mark.browser
ALIVE = [i for i in range(300) if i % 10 != 3]
DRAWN = "() => document.getElementById('map').data.map((trace) => trace.customdata ?? [])"
# Where a feature is drawn, in the page's pixels.
SPOT = """(number) => {
  const map = document.getElementById("map"), { xaxis, yaxis } = map._fullLayout, [trace] = map.data;
  const at = trace.customdata.indexOf(number), box = map.getBoundingClientRect();
  return [box.x + xaxis._offset + xaxis.l2p(trace.x[at]), box.y + yaxis._offset + yaxis.l2p(trace.y[at])];
}"""


def opened(page: Page, query: str = "") -> None:
    page.goto(f"/saes/demo/map{query}")
    page.locator("#map[data-named]").wait_for()


def test_every_alive_feature_is_a_point_that_says_its_name_and_opens(tall_page: Page) -> None:
    opened(tall_page)
    assert tall_page.evaluate(DRAWN)[0] == ALIVE
    x, y = tall_page.evaluate(SPOT, 1)
    tall_page.mouse.move(x, y)
    expect(tall_page.locator("#map .hoverlayer")).to_contain_text("#1 the sea, 海 and ships")
    tall_page.mouse.click(x, y)
    tall_page.wait_for_url("**/saes/demo/features/1")


def test_a_search_lights_up_and_a_box_selects_and_back_undoes(tall_page: Page) -> None:
    opened(tall_page, "?corpus=stories")
    tall_page.fill("#map-form [name=q]", "king")
    tall_page.press("#map-form [name=q]", "Enter")
    expect(tall_page.locator("#map-status")).to_contain_text("with “king”")
    lit = tall_page.evaluate(DRAWN)[1]
    twin = tall_page.request.get("/api/saes/demo/map?corpus=stories&q=king&points=0").json()
    assert sorted(lit) == sorted(twin["found"]) != []
    tall_page.check("#map-modes [value=select]")
    box = tall_page.locator("#map").bounding_box()
    assert box
    tall_page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.1)
    tall_page.mouse.down()
    tall_page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.7, steps=5)
    tall_page.mouse.up()
    tall_page.wait_for_url("**area=*")
    expect(tall_page.locator("#map-status")).to_contain_text("in the part that is marked")
    query = tall_page.url.split("?")[1]
    selected = tall_page.request.get(f"/api/saes/demo/map?{query}&points=0").json()["selected"]
    shown = tall_page.locator("#selection [data-row]").all_inner_texts()
    assert shown == [f"#{number}" for number in selected][:20] and 0 < len(selected) < len(lit)
    assert re.search(r"corpus=stories&q=king&area=\d+", query)
    tall_page.go_back()
    expect(tall_page.locator("#map-status")).not_to_contain_text("in the part")
    expect(tall_page.locator("#map-form [name=area]")).to_have_count(0)


def test_colours_change_without_a_round_trip_and_stay_in_the_address(tall_page: Page) -> None:
    opened(tall_page)
    tall_page.select_option("#map-form [name=colour]", "confidence")
    assert tall_page.url.endswith("?colour=confidence")
    expect(tall_page.locator("#map-scale")).to_have_text(re.compile(r"confidence\s+0.500\s+0.875"))
    opened(tall_page, f"?alive=0&area=0,0,{FAR},{FAR}")
    assert tall_page.evaluate(DRAWN)[0] == list(range(300))
    expect(tall_page.locator("#selection-title")).to_contain_text("300 features")


def test_squares_do_the_same_by_keyboard(tall_page: Page) -> None:
    opened(tall_page)
    tall_page.locator("summary", has_text="row and column").focus()
    tall_page.keyboard.press("Enter")
    link = tall_page.locator("table.squares a").nth(3)
    n = link.inner_text()
    link.focus()
    tall_page.keyboard.press("Enter")
    expect(tall_page.locator("#selection-title")).to_have_text(re.compile(rf"^{n} feature"))
    assert "area=" in tall_page.url
    assert tall_page.locator("#map[data-named]").count() == 1  # the page was not loaded again


def test_without_a_script_squares_are_links_and_the_selection_goes_into_a_list(plain: Page) -> None:
    plain.goto("/saes/demo/map")
    expect(plain.locator("#map-modes")).to_be_hidden()
    square = plain.locator("svg.map-grid a").first
    n = re.match(r"\d+", square.get_attribute("aria-label") or "")
    assert n
    plain.goto(str(square.get_attribute("href")))
    expect(plain.locator("#selection-title")).to_contain_text(f"{n[0]} feature")
    expect(plain.locator("svg.map-grid .outline")).to_have_count(1)
    plain.locator("summary", has_text="to a list").click()
    lists = plain.locator(".change [name=list_id]")
    if lists.count():  # lists of other tests are offered first
        lists.select_option("")
    plain.fill(".change [name=title]", "A corner")
    plain.click(".change button")
    plain.wait_for_url("**/lists/*")
    expect(plain.locator("[data-row]")).to_have_count(int(n[0]))
    plain.request.post(plain.url.split("#")[0] + "/delete", form={}, headers={"origin": plain.url.split("/lists")[0]})


def test_places_are_those_of_the_map(tall_page: Page) -> None:
    opened(tall_page)
    made = make_map()
    xs = tall_page.evaluate("document.getElementById('map').data[0].x")
    assert xs == [made.xs[number] for number in ALIVE]
