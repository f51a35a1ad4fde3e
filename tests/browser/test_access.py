"""A browser logs in, reads, writes and logs out: cookies, forms and the security policy as a browser has them."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from app.main import create_app
from app.server import Server
from app.settings import Settings
from sae_core.store import Store
from tests.app.fake_prober import FakeProber
from tests.factories import make_store

pytestmark = pytest.mark.browser


@pytest.fixture
def team(tmp_path: Path) -> Iterator[tuple[str, Store]]:
    """A dashboard that asks for a token, and its store."""
    store = make_store(f"sqlite:///{tmp_path}/saescope.db")
    listening = socket.create_server(("127.0.0.1", 0))
    running = Server(create_app(Settings(home=tmp_path, login=True), store=store, prober=FakeProber()))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    while not running.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}", store
    running.should_exit = True
    thread.join()
    store.close()


@pytest.mark.parametrize("with_scripts", [True, False], ids=["scripts", "no scripts"])
def test_a_person_logs_in_changes_something_and_logs_out(
    browser: Browser, team: tuple[str, Store], with_scripts: bool
) -> None:
    address, store = team
    secret = store.accounts.create_token("Ana Ó", "admin")
    phone = {"width": 360, "height": 740}
    context = browser.new_context(base_url=address, java_script_enabled=with_scripts, viewport=phone)
    page = context.new_page()
    page.set_default_timeout(60_000)
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text) if "Security Policy" in message.text else None)
    page.goto("/saes/demo/features/7?width=full")
    page.get_by_label("Token").fill("saescope_wrong")
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("alert").wait_for()
    page.get_by_label("Token").fill(secret)
    page.keyboard.press("Enter")
    page.wait_for_url("**/saes/demo/features/7?width=full")
    page.goto("/lists")
    page.get_by_label("Title").fill("Spouses")
    page.get_by_role("button", name="Make the list").click()
    page.get_by_role("heading", name="Spouses").wait_for()
    page.goto("/saes/demo")
    page.get_by_label("Visibility").select_option("private")
    page.locator("#visibility").get_by_role("button", name="Save").click()
    page.wait_for_url("**/saes/demo#visibility")
    assert store.sae("demo").visibility == "private"
    page.goto("/audit")
    assert [text.strip() for text in page.locator("tbody tr td:nth-child(3)").all_inner_texts()] == [
        "POST /saes/demo/visibility", "POST /lists", "POST /login",
    ]  # fmt: skip
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/login")
    page.goto("/audit")
    assert "/login?next=" in page.url and refused == []
    context.close()
