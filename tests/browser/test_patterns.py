"""What holds for every component: it fits a phone, can be read on every colour, is labelled, and shows its focus."""

from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

PAGES = [
    "/patterns",
    "/",
    "/learn?live=1&text=the+king+and+the+queen",
    "/saes/demo/why?text=the+king+of+the+sea&ablate=1&ablate=2",
    "/saes/demo/steer?feature=1&prompt=the+king&strength=9&strip=1",
    "/saes/demo",
    "/saes/demo/features",
    "/saes/demo/features?view=table",
    "/saes/demo/map",
    "/saes/demo/map?q=king&area=0,0,30000,65536",
    "/saes/demo/features/0",
    "/saes/demo/features/0?embed=1",
    "/saes/demo/features/0/embed",
    "/saes/demo/probe?text=the+king+and+the+queen&feature=3&token=2&pin=7&beside=unindexed",
    "/saes/demo/probe?text=the+king+and+the+queen&feature=surprise",
    "/saes/demo/texts",
    "/saes/demo/meaning?q=king",
    "/scores",
    "/search?q=king",
    "/runs",
    "/compare",
    "/compare?a=demo&b=unindexed",
    "/compare?a=demo/0&b=demo/1",
    "/compare?a=demo@stories&b=demo@poems",
    "/lists",
    "/saes/unindexed",
    "/nope",
    "/glossary",
    "/docs",
]
# In the browser: the contrast, as WCAG 2 defines it, of each token's text with what is painted behind it.
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const luminance = (colour) => {
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return [...document.querySelectorAll("#steps [data-v]")].map((token) => {
    const style = getComputedStyle(token);
    const [a, b] = [luminance(style.color), luminance(style.backgroundColor)].sort();
    return [token.className.match(/a\\d+/)[0], (b + 0.05) / (a + 0.05)];
  });
}"""
FOCUSABLE = "a[href], button:not(:disabled), input:not([type=hidden]), select, textarea, summary, [tabindex='0']"
WITHOUT_VISIBLE_FOCUS = """(focusable) => [...document.querySelectorAll(focusable)].filter((element) => {
  if (!element.checkVisibility({ visibilityProperty: true })) return false;
  element.focus();
  const style = getComputedStyle(element);
  return document.activeElement !== element || style.outlineStyle === "none" || parseFloat(style.outlineWidth) < 1;
}).map((element) => element.outerHTML.slice(0, 120))"""
UNLABELLED = """() => [...document.querySelectorAll("input:not([type=hidden]), select, textarea")]
  .filter((field) => !field.ariaLabel && ![...field.labels].some((label) => label.textContent.trim()))
  .map((field) => field.outerHTML)"""


@pytest.fixture(scope="module", params=["light", "dark"])
def themed(request: pytest.FixtureRequest, browser: Browser, server: str) -> Iterator[Page]:
    """A page as narrow as phones are."""
    opened = browser.new_page(base_url=server, color_scheme=request.param, viewport={"width": 360, "height": 740})
    opened.set_default_timeout(60_000)
    yield opened
    opened.close()


@pytest.mark.parametrize("path", PAGES)
def test_axe_finds_nothing_serious_and_the_page_fits(themed: Page, path: str) -> None:
    themed.goto(path)
    is_dark = themed.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    # What is not about colours is the same in the dark.
    found = Axe().run(themed, options={"runOnly": ["color-contrast"]} if is_dark else None).response["violations"]
    serious = {
        violation["id"]: [node["html"][:200] for node in violation["nodes"]][:5]
        for violation in found
        if violation["impact"] in ("serious", "critical")
    }
    assert serious == {}
    assert themed.evaluate("document.documentElement.scrollWidth") <= 360
    assert themed.evaluate(UNLABELLED) == []


def test_text_can_be_read_on_every_step_of_the_scale(themed: Page) -> None:
    themed.goto("/patterns")
    contrasts = dict(themed.evaluate(CONTRASTS))
    assert set(contrasts) == {f"a{step}" for step in range(1, 21)}
    assert {step: contrast for step, contrast in contrasts.items() if contrast < 4.5} == {}


def test_focus_is_seen_on_everything_that_takes_it(themed: Page) -> None:
    themed.goto("/patterns")
    themed.keyboard.press("Tab")  # so that focus counts as a keyboard's
    assert themed.evaluate("document.activeElement.className") == "skip"
    assert themed.locator(FOCUSABLE).count() > 80
    assert themed.evaluate(WITHOUT_VISIBLE_FOCUS, FOCUSABLE) == []


def test_the_strongest_token_is_marked_by_more_than_its_colour(themed: Page) -> None:
    themed.goto("/patterns")
    shadow = "(token) => getComputedStyle(token).boxShadow"
    assert themed.locator("#steps .peak").evaluate(shadow) != "none"
    assert themed.locator("#steps .a19").evaluate(shadow) == "none"
