"""Watching a run: the page follows it without moving, goes on to what it made, and works without a script."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from app import run_feed
from sae_core import run_log
from sae_core.progress import progress_bar
from tests.run_logs import indexing, measure, training

pytestmark = pytest.mark.browser


@pytest.fixture(autouse=True)
def own_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(run_log, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(run_feed, "LOOK_SECONDS", 0.1)
    yield
    for folder in ("runs", "indexes"):
        shutil.rmtree(home / folder, ignore_errors=True)


def points_drawn(page: Page) -> int:
    return int(page.evaluate("document.querySelector('[data-chart=fvu]').data?.[0].x.length ?? 0"))


def wait_for_points(page: Page, n: int) -> None:
    """Playwright's own waiting evaluates a string in the page, which the page's policy refuses."""
    until = time.monotonic() + 15
    while points_drawn(page) != n:
        assert time.monotonic() < until, f"{points_drawn(page)} points are drawn, not {n}"
        page.wait_for_timeout(50)


def test_a_run_is_followed_to_the_sae_that_it_makes(page: Page, home: Path) -> None:
    with training(home) as log:
        measure(home, [1000, 2000])
        page.goto("/runs/demo?follow=1")
        expect(page.locator("[data-live=what]")).to_have_text("starting")
        wait_for_points(page, 2)
        above = page.locator("[data-chart=l0]").bounding_box()
        with progress_bar(total=100_000, what="training") as bar:
            bar.update(20_000)
            expect(page.locator("[data-live=percent]")).to_have_text("20%")
            expect(page.locator("[data-live=done]")).to_have_text("20,000 of 100,000 tokens")
            measure(home, [20_000])
            expect(page.locator("[data-live=fvu]")).to_have_text("0.0476")
            wait_for_points(page, 3)
            log.note("checkpoint at 20,000 tokens")
            expect(page.locator(".log li").first).to_contain_text("checkpoint at 20,000 tokens")
            assert page.locator("#announce").inner_text() == ""
            bar.update(10_000)
            expect(page.locator("#announce")).to_have_text("training: 30%")  # a quarter has been passed
            expect(page.locator("progress")).to_have_attribute("value", "30")
        assert page.locator("[data-chart=l0]").bounding_box() == above  # nothing has moved
        with indexing(home):
            log.end("finished")
            (home / "runs" / "demo" / "sae.json").write_text("{}")
            page.wait_for_url("**/runs/demo~poems?follow=1", wait_until="commit")
            expect(page.get_by_role("heading", level=1)).to_have_text("Indexing demo on poems")
        page.wait_for_url("**/saes/demo", wait_until="commit")


def test_a_page_that_does_not_follow_stays_and_says_where_to_go(page: Page, home: Path) -> None:
    with training(home):
        measure(home, [1000])
        page.goto("/runs/demo")
        wait_for_points(page, 1)
    expect(page.locator("#run")).to_contain_text("Finished on")
    expect(page.locator("#announce")).to_have_text("finished.")
    expect(page.locator(".log li").first).to_contain_text("finished")
    assert points_drawn(page) == 1  # the curve stays
    page.get_by_role("link", name="Open the SAE demo").click()
    page.wait_for_url("**/saes/demo", wait_until="commit")


def test_points_that_are_taken_back_leave_the_curve(page: Page, home: Path) -> None:
    with training(home):
        measure(home, [1000, 2000, 3000])
        page.goto("/runs/demo")
        wait_for_points(page, 3)
        path = home / "runs" / "demo" / "metrics.jsonl"
        new = path.with_suffix(".new")
        new.write_text(path.read_text().splitlines(keepends=True)[0])
        new.replace(path)
        wait_for_points(page, 1)


def test_home_follows_what_is_in_progress_and_keeps_what_is_typed(page: Page, home: Path) -> None:
    with training(home, "other") as log, progress_bar(total=100, what="training") as bar:
        page.goto("/")
        bar.update(40)
        expect(page.locator(".run-row [data-live=percent]")).to_have_text("40%")
        page.get_by_label("Text to probe").fill("the king")
        log.end("stopped")
        expect(page.locator(".run-row .state")).to_have_text("stopped")
        assert page.get_by_label("Text to probe").input_value() == "the king"


def test_a_run_on_a_phone_without_a_script(plain: Page, home: Path) -> None:
    plain.set_viewport_size({"width": 360, "height": 800})
    with training(home), progress_bar(total=100_000, what="training") as bar:
        bar.update(20_000)
        measure(home, [1000, 2000])
        plain.wait_for_timeout(300)
        plain.goto("/runs/demo")
        assert plain.locator("[data-live=done]").inner_text() == "20,000 of 100,000 tokens"
        assert plain.locator("svg.curve path").count() == 4
        assert plain.evaluate("document.documentElement.scrollWidth") == 360
        plain.goto("/")
        assert plain.get_by_role("heading", name="In progress").is_visible()
