"""Photographs every page, light and dark, at desktop and phone width, into docs/screenshots.

    make screenshots        # or: python -m tests.browser.screenshots [--home DIR] [--out DIR]

Serves the SAE of `saescope demo` (run that first), and the list that changed last, if there is one. `--only map sae`
takes only those pages. Look at the pictures after every change to a page.
"""

import argparse
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import sync_playwright

from app.demo import SLUG
from app.main import create_app
from app.server import Server
from app.settings import Settings
from sae_core.store import Store
from tests.browser.conftest import FLAGS, browser_executable

ROOT = Path(__file__).parents[2]
SIZES = {"1280": (1280, 900), "390": (390, 844)}
FEATURE = 0  # replaced by --feature
OTHER = 1  # replaced by --other
TEXT = '''def read(path: str, *, encoding: str = "utf-8") -> str:
    """Return the contents of the file as a string.

    Raises OSError if it cannot be read.
    """
    with open(path, encoding=encoding) as file:
        return file.read()'''


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="where `saescope demo` put its database")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "screenshots")
    parser.add_argument("--feature", type=int, default=FEATURE, help="the feature whose page is photographed")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="which pages; default all")
    parser.add_argument("--other", type=int, default=OTHER, help="the feature that it is compared with")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    here = f"/saes/{SLUG}"
    pages = {
        "home": "/",
        "sae": here,
        "features": f"{here}/features",
        "table": f"{here}/features?view=table&sort=-max",
        "map": f"{here}/map?q=self",
        "feature": f"{here}/features/{arguments.feature}",
        "embed": f"{here}/features/{arguments.feature}?embed=1",
        "embedding": f"{here}/features/{arguments.feature}/embed",
        "probe": f"{here}/probe?text={quote(TEXT)}",
        "search": "/search?q=self",
        "runs": "/runs",
        "why": f"{here}/why?text={quote(TEXT)}",
        "steer": f"{here}/steer?feature={arguments.feature}&prompt={quote(TEXT.split('(')[0])}&length=40",
        "run": f"/runs/{SLUG}",
        "compare": f"/compare?a={SLUG}/{arguments.feature}&b={SLUG}/{arguments.other}",
        "comparing": "/compare",
        "lists": "/lists",
        "learn": "/learn",
        "patterns": "/patterns",
        "glossary": "/glossary",
        "docs": "/docs",
        "error": f"{here}/features/999999",
    }
    settings = Settings.from_env(home=arguments.home)
    with closing(Store.open(settings.database_url)) as store:
        for found in store.lists()[:1]:
            pages["list"] = f"/lists/{found.list_id}"
    unknown = set(arguments.only or ()) - set(pages)
    if unknown:
        parser.error(f"no page is called {', '.join(sorted(unknown))}; there are {', '.join(pages)}")
    pages = {title: path for title, path in pages.items() if not arguments.only or title in arguments.only}
    with served(settings) as address, sync_playwright() as playwright:
        executable = browser_executable(playwright.chromium.executable_path)
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        for scheme in ("light", "dark"):
            for name, (width, height) in SIZES.items():
                page = browser.new_page(
                    base_url=address, color_scheme=scheme, viewport={"width": width, "height": height}
                )
                page.set_default_timeout(180_000)  # the first probe loads the model
                for title, path in pages.items():
                    page.goto(path)
                    page.wait_for_load_state("networkidle")
                    if title == "map":
                        page.locator("#map[data-named]").wait_for()
                    if title == "learn":
                        page.locator("#walk-answer").scroll_into_view_if_needed()
                        page.locator("#walk").evaluate("(heading) => heading.scrollIntoView()")
                    page.screenshot(path=arguments.out / f"{title}-{scheme}-{name}.png")
                page.close()
        browser.close()


@contextmanager
def served(settings: Settings) -> Iterator[str]:
    """The address of the dashboard over the settings' own database, on a free port."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = Server(create_app(settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    main()
