"""The pictures that unfurled links show: a PNG of the stated size that shows the activations, whatever the text is."""

import io
import re
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from app.main import create_app
from app.pictures import HEIGHT, WIDTH, _colour, _font_of, _step_colour, feature_picture
from app.settings import Settings
from sae_core.records import Feature
from sae_core.store import Store
from tests.app.fake_prober import FakeProber
from tests.factories import make_label, make_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = make_store(f"sqlite:///{tmp_path}/saescope.db")
    yield opened
    opened.close()


@pytest.fixture
def client(store: Store) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(), store=store, prober=FakeProber())) as opened:
        yield opened


def colours(png: bytes) -> dict[tuple[int, int, int], int]:
    """How many pixels have which colour."""
    image = Image.open(io.BytesIO(png))
    assert (image.format, image.size) == ("PNG", (WIDTH, HEIGHT))
    return {colour: n for n, colour in image.convert("RGB").getcolors(WIDTH * HEIGHT)}


def test_pages_name_a_picture_that_is_there(client: TestClient, store: Store) -> None:
    list_id = store.add_list(title="Of <b>")
    store.add_list_item(list_id, "demo", 7)
    drawn = []
    for path in ("/saes/demo/features/7", "/saes/demo/features/7?corpus=stories", f"/lists/{list_id}"):
        page = client.get(path).text
        (address,) = re.findall(r'<meta property="og:image" content="([^"]+)">', page)
        assert address.startswith("http://testserver/")
        assert f'content="{WIDTH}"' in page and f'content="{HEIGHT}"' in page and "og:image:alt" in page
        response = client.get(unescape(address))
        assert response.headers["content-type"] == "image/png" and "max-age" in response.headers["cache-control"]
        colours(response.content)
        drawn.append(response.content)
    shared = store.add_probe("demo", text="the king & the sea", state={"feature": 7}, author="ana")
    page = client.get(f"/p/{shared}").text
    assert f'<meta property="og:image" content="http://testserver/p/{shared}/card.png">' in page
    assert 'og:description" content="the king &amp; the sea"' in page
    assert len(set(drawn)) == 3  # each of what its page shows
    assert client.get("/saes/demo/features/300/card.png").status_code == 404
    assert client.get("/lists/nope/card.png").status_code == 404


def test_the_top_example_is_coloured_as_on_the_page(store: Store) -> None:
    detail = store.feature("demo", 7)
    shown = colours(feature_picture("demo", detail.feature, detail.examples[0], has_bos=True))
    assert shown[_step_colour(20)] > 100  # its peak is the feature's maximum
    assert shown[_step_colour(5)] > 100  # and other tokens have a quarter of it
    silent = replace(detail.examples[0], activations=(0.0,) * len(detail.examples[0].tokens))
    assert _step_colour(20) not in colours(feature_picture("demo", detail.feature, silent, has_bos=True))
    assert _colour("paper") == (0xFB, 0xFA, 0xF8) and _step_colour(20) == _colour("act")


def test_a_shared_text_is_coloured_as_on_its_page(store: Store) -> None:
    shared = store.add_probe("demo", text="the king & the sea", state={}, author="ana")
    prober = FakeProber()
    with TestClient(create_app(Settings(), store=store, prober=prober)) as client:
        steps = set(map(int, re.findall(r'class="t a(\d+)', client.get(f"/p/{shared}").text)))
        answer = client.get(f"/p/{shared}/card.png")
        drawn = colours(answer.content)
        assert steps and all(_step_colour(step) in drawn for step in steps)
        assert "max-age" in answer.headers["cache-control"]
        assert client.get("/p/nope/card.png").status_code == 404
    store.delete_sae("demo")
    with TestClient(create_app(Settings(), store=store, prober=prober)) as client:
        answer = client.get(f"/p/{shared}/card.png")
        plain = colours(answer.content)
        assert not any(_step_colour(step) in plain for step in steps)
        assert _colour("ink") in plain and answer.headers["cache-control"] == "no-store"


def test_dead_features_and_lists_with_nothing_to_show_have_pictures_too(client: TestClient, store: Store) -> None:
    list_id = store.add_list(title="Empty")
    empty = client.get(f"/lists/{list_id}/card.png").content
    for number in (3, 7, 8, 9, 12):
        store.add_list_item(list_id, "demo", number)
    full = client.get(f"/lists/{list_id}/card.png").content
    assert _step_colour(20) in colours(full) and _step_colour(20) not in colours(empty)
    assert _step_colour(20) not in colours(client.get("/saes/demo/features/3/card.png").content)
    store.delete_sae("demo")
    assert _step_colour(20) not in colours(client.get(f"/lists/{list_id}/card.png").content)


@pytest.mark.parametrize("text", ["a" * 300, "words " * 50, "中文🐋العربية\u200d\ufeff\x07", "<b>&amp;", "\t\u2028"])
def test_any_text_is_drawn(store: Store, text: str) -> None:
    detail = store.feature("demo", 7)
    feature: Feature = replace(detail.feature, label=make_label(text))
    example = replace(detail.examples[0], tokens=tuple(text for _ in detail.examples[0].tokens))
    shown = colours(feature_picture("demo" * 50, feature, example, has_bos=True))
    margin = Image.open(io.BytesIO(feature_picture("demo" * 50, feature, example, has_bos=True)))
    assert margin.crop((WIDTH - 20, 0, WIDTH, HEIGHT)).getcolors() == [(20 * HEIGHT, _colour("paper"))]
    assert len(shown) > 2


def test_a_character_is_drawn_in_a_font_that_has_it() -> None:
    assert _font_of("a") == 0 and _font_of(" ") == 0
    assert _font_of("\U0010ffff") == 0  # in none
