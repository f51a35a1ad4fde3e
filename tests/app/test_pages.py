"""Every page: is there, says what the record says, links to its twin, and asks nothing of another host."""

import csv
import io
import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

import pytest
from starlette.testclient import TestClient

from app.examples import example_groups
from app.feature_files import harmless
from app.urls import url
from sae_core.records import TOP_BAND, IndexMetrics
from sae_core.store import Store
from tests.app.fake_prober import FakeProber
from tests.factories import make_records, make_sae, make_store, make_vocabulary

PAGES = [
    "/",
    "/saes/demo",
    "/saes/demo?corpus=stories",
    "/saes/unindexed",
    "/saes/demo/features",
    "/saes/demo/features?sort=max&q=king&min_density=0.0001&alive=0&corpus=stories",
    "/saes/demo/map",
    "/saes/demo/map?area=0,0,30000,30000,60000,0&q=king&alive=0&corpus=stories&colour=max&limit=5",
    "/saes/demo/features/0",
    "/saes/demo/features/0?width=full&breaks=1",
    "/saes/demo/features/3",
    "/saes/demo/features/0?embed=1",
    "/saes/demo/features/0?tested=pattern-detection",
    "/saes/demo/meaning?q=%3Cscript%3Ealert(1)%3C/script%3E",
    "/scores",
    "/scores?kind=model&method=fuzzing",
    "/saes/demo/probe",
    "/saes/demo/probe?text=the+%3Cscript%3Ealert(1)%3C/script%3E+%E4%B8%AD&feature=3&token=2",
    "/saes/unindexed/probe?text=the+king",
    "/saes/demo/why",
    "/saes/demo/why?text=the+%3Cscript%3Ealert(1)%3C/script%3E+%E4%B8%AD&token=2",
    "/saes/demo/why?text=the+king+of&target=+sea&against=%23231&ablate=1&ablate=2&corpus=stories",
    "/saes/unindexed/why?text=the+king+of",
    "/saes/demo/steer",
    "/saes/demo/steer?feature=3",
    "/saes/demo/steer?feature=3&prompt=the+%3Cscript%3Ealert(1)%3C/script%3E+%E4%B8%AD&length=9",
    "/saes/demo/steer?feature=3&feature=&feature=4&mode=add&mode=add&mode=clamp&strength=-2.5&strength=&strength=0.5"
    "&prompt=the+king&strip=1&where=after&corpus=stories&seed=4&chat=1",
    "/saes/unindexed/steer?feature=1&prompt=the+king",
    "/runs",
    "/saes/demo/features/0/embed?parts=tokens&parts=histogram&theme=dark&height=300",
    "/lists",
    "/search",
    "/search?q=wife",
    "/search?q=zzz&within=label",
    "/compare",
    "/compare?a=demo/0",
    "/compare?a=demo/0&b=demo/1",
    "/compare?a=demo&b=unindexed",
    "/compare?a=demo@stories&b=demo@poems",
    "/glossary",
    "/learn",
    "/learn?slug=unindexed",
    "/learn?live=1&slug=demo&text=the+%3Cscript%3Ealert(1)%3C/script%3E+%E4%B8%AD&token=2",
    "/learn?live=1&slug=demo&token=0",
    "/docs",
]
BAD_PAGES = ["/nope", "/saes/nope", "/saes/demo/features/99999", "/saes/demo/features/x"]


VOID = ("meta", "link", "input", "br", "rect", "line", "path")


class Checked(HTMLParser):
    """Collects what a strict content security policy would refuse, and where a page's parts come from."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.posted_to: list[str] = []
        self.leads_away: list[str] = []
        self.refused: list[str] = []
        self.ids: list[str] = []
        self.alternate: str | None = None
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "a" and given.get("rel") == "noreferrer":  # followed by choice, and tells nothing of this server
            self.leads_away.append(given.pop("href") or "")
        if tag not in VOID:
            self.open.append(tag)
        if given.get("method") == "post":
            self.posted_to.append(given.pop("action") or "")
        self.addresses += [given[name] or "" for name in ("src", "href", "action", "srcset") if name in given]
        self.refused += [name for name in given if name.startswith("on") or name == "style"]
        if tag == "style" or (tag == "script" and "src" not in given and given.get("type") != "application/json"):
            self.refused.append(tag)
        if "id" in given:
            self.ids.append(given["id"] or "")
        if tag == "link" and given.get("rel") == "alternate":
            self.alternate = given["href"]

    def handle_endtag(self, tag: str) -> None:
        if tag in ("rect", "line", "path"):
            return
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def tokens_of(page: str, marker: str = '<p class="tokens">') -> list[str]:
    """The text of each example of a page, its "…" and tags removed."""
    blocks = [part.split("</p>")[0] for part in page.split(marker)[1:]]
    return [unescape(re.sub(r'<span class="cut[^>]*>…</span>|<[^>]+>', "", block)) for block in blocks]


@pytest.mark.parametrize("path", PAGES + BAD_PAGES)
def test_page_is_wellformed_and_asks_nothing_of_another_host(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == (200 if path in PAGES else 404 if path != BAD_PAGES[-1] else 422)
    assert response.headers["content-type"].startswith("text/html")
    checked = Checked(response.text)
    assert checked.refused == []
    assert checked.open == []
    assert len(set(checked.ids)) == len(checked.ids)
    assert [a for a in checked.addresses if re.match(r"\w+:|//", a)] == []
    assert bool(checked.leads_away) == path.startswith("/learn")
    assert "<title>" in response.text


@pytest.mark.parametrize("path", PAGES)
def test_page_links_to_a_json_twin(client: TestClient, path: str) -> None:
    alternate = Checked(client.get(path).text).alternate
    assert alternate is not None
    twin = client.get(alternate)
    assert twin.status_code == 200
    assert twin.headers["content-type"] == "application/json"


@pytest.mark.slow
def test_links_within_the_site_lead_somewhere(client: TestClient) -> None:
    addresses: dict[str, str] = {}  # one of each kind: numbers, texts and cursors aside
    for path in PAGES:
        for address in Checked(client.get(path).text).addresses:
            whole = urljoin(path, address).split("#")[0]
            addresses[re.sub(r"\d+|text=[^&]*|after=[^&]*", "", whole)] = whole
    for whole in addresses.values():
        if whole != "/probe":  # a form's address, which needs its fields
            assert client.get(whole).status_code == 200, whole


def test_forms_are_sent_to_where_they_are_read(client: TestClient) -> None:
    posted_to = {address for path in PAGES for address in Checked(client.get(path).text).posted_to}
    assert posted_to >= {"/lists", "/lists/add", "/saes/demo/features/0/label"}
    for address in posted_to:
        refused = client.post(address, content=b"{}", headers={"content-type": "application/json"})
        assert refused.status_code == 422 and "takes a form" in refused.text, address


def test_home_lists_saes_with_their_metrics(client: TestClient) -> None:
    page = client.get("/").text
    for fact in ("demo", "unindexed", "blocks.3.hook_resid_post", "15.5", "0.188", "0.969", "90.0%", "poems, stories"):
        assert fact in page
    assert "saescope index unindexed --corpus" in page


def test_home_of_an_empty_store_says_what_to_run(tmp_path: object) -> None:
    from app.main import create_app
    from app.settings import Settings

    with TestClient(create_app(Settings(home=Path(str(tmp_path))), prober=FakeProber())) as client:
        page = client.get("/").text
    assert "make demo" in page
    assert "saescope train --model" in page


def test_sae_page_explains_metrics_and_says_how_to_make_it_again(client: TestClient) -> None:
    page = client.get("/saes/demo").text
    for fact in (
        "Fraction of variance unexplained",
        "<b>15.5</b>",
        "<b>0.188</b>",
        "stories.txt",
        "poems",
        "/data/saes/demo",
    ):
        assert fact in page
    assert "saescope index demo --corpus poems.txt --name poems --context-size 32" in page
    assert client.get("/saes/demo?corpus=nope").status_code == 404


def test_sae_page_shows_every_metric_and_the_twin_says_the_same(client: TestClient) -> None:
    page = re.sub(r"<[^>]+>", "", client.get("/saes/demo").text)
    metrics = client.get("/api/saes/demo").json()["indexes"][0]["metrics"]
    for name, value, shown in (
        ("explained_variance", 0.8125, "0.812 of the variance is explained"),
        ("cosine", 0.90625, "0.906 is the mean cosine"),
        ("reconstruction_bias", 0.984375, "0.984 of the length"),
        ("ce_loss", 2.5, "2.50 nats a token by itself"),
        ("ce_loss_with_sae", 2.75, "2.75 "),
        ("ce_loss_with_zeros", 10.5, "10.5 "),
        ("ce_tokens", 1984, "on a sample of 1,984 tokens"),
        ("kl", 0.21875, "0.219 nats a token"),
        ("encoder_decoder_cosine", 0.59375, "0.594 is the mean cosine"),
    ):
        assert shown in page, name
        assert metrics[name] == value, name
    assert sum(metrics["encoder_decoder_histogram"]["counts"]) == 270  # those that are not dead
    assert "not measured" not in page
    for meaning in ("1 − FVU", "which is what an L1 penalty does", "The loss looks at the token that came"):
        assert meaning in page


def test_sae_page_of_an_older_index_says_what_was_not_measured(tmp_path: object) -> None:
    from app.main import create_app
    from app.settings import Settings

    records = make_records()
    old = IndexMetrics(
        l0=15.5, fvu=0.1875, explained_variance=0.8125, ce_recovered=0.96875, dead_share=0.1, dense_share=0.02,
        dense_threshold=0.1,
    )  # fmt: skip
    store = Store.open(f"sqlite:///{tmp_path}/old.db")
    store.add_sae(make_sae(), make_vocabulary())
    store.add_index(replace(records, info=replace(records.info, metrics=old)))
    with TestClient(create_app(Settings(), store=store, prober=FakeProber())) as client:
        page = client.get("/saes/demo").text
        metrics = client.get("/api/saes/demo").json()["indexes"][0]["metrics"]
        assert Checked(page).open == []
        overflown = replace(old, ce_loss=2.5, ce_loss_with_sae=float("nan"), ce_loss_with_zeros=10.5, ce_tokens=1)
        store.add_index(replace(records, info=replace(records.info, metrics=overflown)))
        assert client.get("/saes/demo").text.count("not measured") == 5
    store.close()
    assert page.count("not measured") == 5  # cosine, bias, CE loss, KL, encoder·decoder
    assert "<b>0.812</b>" in page and "<b>0.969</b>" in page
    assert "Number of features by encoder·decoder cosine" not in page
    assert metrics["kl"] is None and metrics["encoder_decoder_histogram"] is None


def test_sae_page_lists_dense_and_dead_features(client: TestClient, store: Store) -> None:
    points = store.feature_points("demo", corpus="stories")
    dense = sorted((p for p in points if p.density > 0.1), key=lambda p: (-p.density, p.feature_index))
    dead = [p for p in points if p.density == 0]
    section = client.get("/saes/demo?corpus=stories").text.split('<section id="ends">')[1].split("</section>")[0]
    first, second = section.split("<h3>")[1:]
    assert first.startswith(f"{len(dense)} ") and second.startswith(f"{len(dead)} ") and dense and dead
    assert re.findall(r">#(\d+)</a>", first) == [str(p.feature_index) for p in dense[:8]]
    assert re.findall(r">#(\d+)</a>", second) == [str(p.feature_index) for p in dead[:24]]
    for part, own in ((first, dense), (second, dead)):
        href = unescape(re.findall(r'href="([^"]*/features\?[^"]*)"', part)[-1])
        items = client.get(f"/api{href}&limit=200").json()["items"]
        assert {item["feature"]["feature_index"] for item in items} == {p.feature_index for p in own}


def test_home_shows_the_lists_that_changed_last(tmp_path: object) -> None:
    from app.main import create_app
    from app.settings import Settings
    from tests.factories import make_store

    store = make_store(f"sqlite:///{tmp_path}/home.db")
    with TestClient(create_app(Settings(), store=store, prober=FakeProber())) as client:
        assert "Lists that changed last" not in client.get("/").text
        made = [store.add_list(title=f"List <{i}>") for i in range(7)]
        store.add_list_item(made[0], "demo", 0)
        shown = re.findall(r'<a class="number" href="/lists/(\w+)">', client.get("/").text)
    assert shown == [made[0], *reversed(made[3:])]
    store.close()


def test_features_page_and_its_twin_say_the_same(client: TestClient) -> None:
    query = "?sort=-max&corpus=stories&limit=20"
    page, twin = client.get("/saes/demo/features" + query).text, client.get("/api/saes/demo/features" + query).json()
    listed = re.findall(r"data-row>#(\d+)<", page)
    assert listed == [str(item["feature"]["feature_index"]) for item in twin["items"]]
    assert len(listed) == 20
    assert "30 of 300 features" in page  # dead ones, folded into one line


@pytest.mark.parametrize("sort", ["-density", "density", "-max", "index", "-mean", "cosine"])
def test_walking_the_next_links_meets_every_alive_feature_once(client: TestClient, store: Store, sort: str) -> None:
    path, seen = f"/saes/demo/features?sort={sort}&limit=100", []
    while path:
        page = client.get(path).text
        seen += [int(number) for number in re.findall(r"data-row>#(\d+)<", page)]
        found = re.search(r'<a rel="next" href="([^"]+)"', page)
        path = unescape(found[1]) if found else ""
        assert ("First page" in page) == (len(seen) > 100)
    assert sorted(seen) == [p.feature_index for p in store.feature_points("demo") if p.density > 0]
    assert len(seen) == len(set(seen))


def test_the_table_has_the_same_features_with_more_numbers(client: TestClient) -> None:
    query = "?sort=-mean&corpus=stories&q=wife"
    cards, table = (client.get(f"/saes/demo/features{query}{view}").text for view in ("", "&view=table"))
    numbers = re.findall(r"data-row>#(\d+)<", cards)
    assert numbers == re.findall(r"data-row>#(\d+)<", table) and len(numbers) == 50
    assert "<table" in table and "<table" not in cards
    found = re.search(r'<a rel="next" href="([^"]+)"', table)
    assert found and "view=table" in found[1]
    assert 'value="-mean" selected' in table


def test_an_export_has_every_feature_of_the_selection(client: TestClient) -> None:
    for query in ("", "?q=wife&sort=-max&corpus=stories", "?sort=label", "?alive=0&min_density=0&max_density=0.001"):
        expected, after = [], ""
        while after is not None:
            joined = "&".join(filter(None, [query.removeprefix("?"), "limit=100", after and f"after={after}"]))
            page = client.get(f"/api/saes/demo/features?{joined}").json()
            expected += page["items"]
            after = page["next"]
        sheet = client.get(f"/saes/demo/features.csv{query}")
        assert sheet.headers["content-type"] == "text/csv; charset=utf-8"
        assert sheet.text.startswith("\ufeff") and 'filename="demo-' in sheet.headers["content-disposition"]
        rows = list(csv.DictReader(io.StringIO(sheet.text.removeprefix("\ufeff"))))
        assert [int(row["feature_index"]) for row in rows] == [item["feature"]["feature_index"] for item in expected]
        assert [float(row["density"]) for row in rows] == [item["feature"]["density"] for item in expected]
        lines = [json.loads(line) for line in client.get(f"/saes/demo/features.jsonl{query}").text.splitlines()]
        assert [line.pop("url")[:4] for line in lines] == ["http"] * len(expected)
        assert lines == expected


def test_an_export_of_what_cannot_be_is_refused_and_a_cell_is_no_formula(client: TestClient) -> None:
    assert client.get("/saes/demo/features.csv?q=" + "x" * 201).status_code == 422
    assert client.get("/saes/nope/features.csv").status_code == 404
    assert client.get("/saes/demo/features.csv?corpus=nope").status_code == 404
    assert client.get("/saes/demo/features.xls").status_code in (404, 422)
    assert [harmless(value) for value in ("=cmd|' /C calc'!A0", "-1", " =", -1.5)] == [
        "'=cmd|' /C calc'!A0",
        "'-1",
        " =",
        -1.5,
    ]


def test_home_has_what_can_be_browsed_first(client: TestClient) -> None:
    page = client.get("/").text
    assert page.index(">demo</a>") < page.index(">unindexed</a>")
    assert page.index("<option>demo") < page.index("<option>unindexed")
    assert page.count("Not indexed yet") == 1


def test_a_search_over_all_saes_has_the_first_of_each(client: TestClient, store: Store) -> None:
    page, twin = client.get("/search?q=wife").text, client.get("/api/search?q=wife").json()
    (found,) = twin["items"]  # the other SAE is not indexed
    expected = [row.feature.feature_index for row in store.features("demo", q="wife", limit=5).items]
    called_so = client.get("/api/search?q=sea").json()["items"][0]["items"]
    assert "sea" in called_so[0]["feature"]["label"]["text"] and len(called_so) == 5
    assert (found["slug"], found["corpus"], found["more"]) == ("demo", "poems", True)
    assert [item["feature"]["feature_index"] for item in found["items"]] == expected
    assert [int(number) for number in re.findall(r"data-row>#(\d+)<", page)] == expected
    assert 'href="/saes/demo/features?q=wife"' in page
    assert client.get("/api/search?q=spouse&within=label").json()["items"][0]["more"] is False
    assert client.get("/api/search?q=zzz").json() == client.get("/api/search").json() == {"items": []}
    assert "No feature of any SAE matches" in client.get("/search?q=zzz").text
    assert client.get("/search?q=" + "x" * 201).status_code == 422


def test_search_shows_what_it_looked_for(client: TestClient) -> None:
    assert "#0<" in client.get("/saes/demo/features?q=spouse").text
    page = client.get("/saes/demo/features?q=%3Cb%3Ezzz").text
    assert "No feature of this SAE matches" in page
    assert "&lt;b&gt;zzz" in page


def test_feature_page_shows_every_example_as_stored(client: TestClient, store: Store) -> None:
    detail = store.feature("demo", 0)
    page = client.get("/saes/demo/features/0?width=full").text
    order = [example for band in (TOP_BAND, 5, 4, 3, 2, 1, 6) for example in detail.examples if example.band == band]
    assert tokens_of(page) == ["".join(example.tokens) for example in order]
    groups = example_groups(detail.feature, detail.examples)
    strongest, weakest = groups[1].title, groups[5].title
    for title in ("Top examples", strongest, weakest, "Random firings", "words for a spouse"):
        assert title in page
    assert page.index(strongest) < page.index(weakest) < page.index("Random firings")


def test_feature_page_and_its_twin_say_the_same(client: TestClient) -> None:
    page, twin = client.get("/saes/demo/features/0?width=full").text, client.get("/api/saes/demo/features/0").json()
    strongest = twin["examples"][0]
    tokens = re.findall(r'data-i="(\d+)"(?: data-v="([^"]+)")?', tokens_block(page))
    assert [int(token_id) for token_id, _ in tokens] == strongest["token_ids"]
    shown = [float(value or 0) for _, value in tokens]
    assert shown == pytest.approx(strongest["activations"], rel=5e-3)
    assert f'href="/saes/demo/features/{twin["following"]}"' in page
    for weight in twin["feature"]["promoted_tokens"]:
        assert f'title="id {weight["token_id"]}"' in page


def tokens_block(page: str) -> str:
    return page.split('<p class="tokens">')[1].split("</p>")[0]


def test_text_of_any_language_and_markup_show_as_themselves(client: TestClient) -> None:
    pages = [client.get(f"/saes/demo/features/{number}").text for number in range(8)]
    text = "".join("".join(tokens_of(page)) for page in pages)
    for piece in ("中文", "😀", "🐋", "語", "Straße", "naïve", "é", "<tag>"):
        assert piece in text
    assert "<tag>" not in "".join(pages)


def test_a_page_holds_the_tokens_of_its_width(client: TestClient) -> None:
    pages = [client.get(f"/saes/demo/features/0?width={width}").text for width in ("short", "medium", "full")]
    reaches = [set(re.findall(r'class="run-(\w+)"', page)) for page in pages]
    assert reaches == [{"short"}, {"short", "medium"}, {"short", "medium", "full"}]
    for page, width in zip(pages, ("short", "medium", "full"), strict=True):
        assert f'class="reading w-{width}' in page
    narrow, wide = (tokens_of(page) for page in (pages[0], pages[2]))
    assert all(piece in whole for piece, whole in zip(narrow, wide, strict=True))


def test_signs_replace_blanks_and_keep_the_original(client: TestClient) -> None:
    page = client.get("/saes/demo/features/0?breaks=1").text
    assert 'data-t=" ' in page
    assert "·" in tokens_of(page)[0]
    assert 'aria-pressed="true"' in page


def test_dead_feature_says_so(client: TestClient) -> None:
    page = client.get("/saes/demo/features/3").text
    assert "there is nothing to read here" in page
    assert "Top examples" not in page


def test_random_leads_to_an_alive_feature(client: TestClient, store: Store) -> None:
    response = client.get("/saes/demo/features/random?corpus=stories", follow_redirects=False)
    assert response.status_code == 303
    assert response.headers["cache-control"] == "no-store"
    number = re.fullmatch(r"/saes/demo/features/(\d+)\?corpus=stories", response.headers["location"])
    assert number
    assert store.feature("demo", int(number[1]), corpus="stories").feature.density > 0


def test_embedded_feature_is_bare(client: TestClient) -> None:
    page = client.get("/saes/demo/features/0?embed=1").text
    assert "<header" not in page
    assert "<footer" not in page
    assert "words for a spouse" in page


def test_embedded_feature_has_the_parts_asked_for(client: TestClient) -> None:
    page = client.get("/saes/demo/features/0?embed=1&parts=histogram,tokens&theme=dark&examples=3").text
    assert '<html lang="en" data-theme="dark">' in page
    assert page.count('<section class="panel">') == 3 and "<dl" not in page and 'class="example"' not in page
    assert '<span class="label">' not in page
    page = client.get("/saes/demo/features/0?embed=1&parts=examples&examples=3").text
    assert page.count('class="example"') == 3 and "data-theme" not in page
    assert client.get("/saes/demo/features/0?embed=1&parts=nope").status_code == 422


def test_the_code_that_embeds_leads_to_what_it_says(client: TestClient) -> None:
    query = "?parts=examples&parts=label&theme=dark&height=300&corpus=stories&examples=8"
    twin = client.get("/api/saes/demo/features/0/embed" + query).json()
    assert twin["url"] == (
        "http://testserver/saes/demo/features/0?embed=1&corpus=stories&parts=examples,label&theme=dark"
    )
    assert unescape(re.findall(r'src="([^"]+)"', twin["html"])[0]) == twin["url"]
    assert 'height="300"' in twin["html"]
    page = client.get("/saes/demo/features/0/embed" + query).text
    assert twin["html"] in unescape(page)
    assert '<iframe class="preview" src="/saes/demo/features/0?embed=1&amp;' in page
    assert '<html lang="en">' in page  # the theme is the embedded page's alone
    assert client.get(twin["url"]).status_code == 200


def test_feature_unfurls(client: TestClient) -> None:
    page = client.get("/saes/demo/features/1").text
    assert '<meta property="og:title" content="the sea, 海 and ships · demo #1">' in page
    assert re.search(
        r'<meta property="og:description" content="Active on [\d.]+% of tokens, at most [\d.]+\. Strongest', page
    )
    escaped = client.get("/saes/demo/features/2").text
    assert "<title>numbers &amp; &lt;dates&gt;" in escaped


def test_probe_page_without_a_script(client: TestClient) -> None:
    page = client.get("/saes/demo/probe?text=the+king+of+the+sea").text
    assert "6 tokens · 18 ms" in page
    assert 'name="token" value="2"' in page
    assert re.search(r'class="t a\d+ peak"', page)


def test_probe_page_colours_by_a_feature_and_shows_a_token(client: TestClient) -> None:
    report = client.get("/api/saes/demo/probe?text=the+king+of+the+sea").json()
    feature = report["features"][0]
    page = client.get(f"/saes/demo/probe?text=the+king+of+the+sea&feature={feature['feature_index']}&token=2").text
    coloured = {int(at) for at in re.findall(r'name="token" value="(\d+)" class="t a\d', page)}
    assert coloured == {at for at, value in enumerate(feature["activations"]) if value > 0}
    panel = page.split('id="token-features"')[1].split("</ol>")[0]
    on_token = [f["feature_index"] for f in report["tokens"][2]["features"]]
    assert [int(number) for number in re.findall(r'data-feature="(\d+)"', panel)] == on_token
    assert "·king" in page


def test_probe_page_shows_surprise_and_what_the_model_expects(client: TestClient) -> None:
    page = client.get("/saes/demo/probe?text=the+king&feature=surprise&token=2").text
    assert 'value="surprise" checked' in page and "bits, the most surprising token" in page
    assert 'name="token" value="2" class="t a20 peak chosen"' in page and "&lt;next&gt;" in page
    assert re.search(r'class="value">75(\.0)?%', page)
    assert "by-surprise" not in client.get("/saes/demo/probe?text=the+king&token=2").text


def test_pinned_features_have_traces_that_can_be_let_go(client: TestClient) -> None:
    page = client.get("/saes/demo/probe?text=the+king+of+the+sea&pin=7&pin=12").text
    traces = page.split('class="traces"')[1].split("</section>")[0]
    assert re.findall(r'name="pin" value="(\d+)" checked', traces) == ["7", "12"]
    assert client.get("/saes/demo/probe?text=a&pin=100000").status_code == 404
    assert client.get("/saes/demo/probe?text=a&pin=" + ",".join(map(str, range(9)))).status_code == 422
    assert 'class="traces"' not in client.get("/saes/demo/probe?text=the+king").text


def test_another_sae_of_the_model_stands_beside(client: TestClient) -> None:
    page = client.get("/saes/demo/probe?text=the+king&beside=unindexed").text
    beside = page.split('class="beside"')[1].split("</section>")[0]
    assert "unindexed" in beside and "king</span>" in beside
    assert client.get("/saes/demo/probe?text=the+king&beside=nope").status_code == 404


def test_the_script_gets_what_the_page_shows(client: TestClient) -> None:
    asked = {"text": "the king of the sea", "pin": ["7"], "token": "2", "feature": "", "sort": "sum", "session": "a-b"}
    live = client.post("/saes/demo/probe/live", json=asked)
    page = client.get("/saes/demo/probe?text=the+king+of+the+sea&pin=7&token=2&sort=sum").text
    assert live.status_code == 200 and live.text.startswith('<div id="answer">') and live.text.strip() in page
    empty = client.post("/saes/demo/probe/live", json={"text": " "})
    assert empty.status_code == 200 and 'id="tokens"' not in empty.text
    busy = client.post("/saes/demo/probe/live", json={"text": "busy"})
    assert busy.status_code == 503 and "try again" in busy.text and int(busy.headers["Retry-After"]) > 0


def test_probe_page_of_a_silent_feature_says_so(client: TestClient) -> None:
    active = {f["feature_index"] for f in client.get("/api/saes/demo/probe?text=king").json()["features"]}
    silent = next(number for number in range(300) if number not in active)
    page = client.get(f"/saes/demo/probe?text=king&feature={silent}").text
    assert '<p class="note" id="silent">' in page


@pytest.mark.parametrize(
    ("text", "status", "sentence"),
    [
        ("word " * 300, 413, "The text has"),
        ("busy", 503, "try again"),
        ("a%00b", 422, "NUL"),
    ],
)
def test_probe_page_keeps_the_text_when_it_fails(client: TestClient, text: str, status: int, sentence: str) -> None:
    response = client.get(f"/saes/demo/probe?text={text}")
    assert response.status_code == status
    assert sentence in response.text
    assert text.split()[0].replace("%00", "\0") in response.text


def test_opening_the_probe_page_warms_the_model(client: TestClient, prober: FakeProber) -> None:
    client.get("/saes/demo/probe")
    assert prober.warmed == ["demo"]


def test_home_probe_box_leads_to_the_probe_page(client: TestClient) -> None:
    response = client.get("/probe?sae=demo&text=a%26b", follow_redirects=False)
    assert response.headers["location"] == "/saes/demo/probe?text=a%26b"
    strange = client.get("/probe?sae=//evil.example/x&text=a", follow_redirects=False)
    assert strange.headers["location"].startswith("/saes/")


def test_corpus_is_kept_by_links(client: TestClient) -> None:
    page = client.get("/saes/demo/features/0?corpus=stories").text
    links = re.findall(r'href="(/saes/demo/features/\d+[^"]*)"', page)
    assert links
    assert all("corpus=stories" in link for link in links)


def test_a_second_store_is_not_shared(tmp_path: object) -> None:
    store = make_store(f"sqlite:///{tmp_path}/other.db")
    assert [summary.sae.slug for summary in store.saes()] == ["unindexed", "demo"]
    store.close()


def test_an_example_leads_to_its_whole_text_on_the_probe_page(client: TestClient, store: Store) -> None:
    best = store.feature("demo", 0).examples[0]
    page = client.get("/saes/demo/features/0?corpus=poems").text
    address = f"/saes/demo/contexts/{best.context_id}/probe?feature=0&amp;corpus=poems"
    assert address in page
    answer = client.get(unescape(address), follow_redirects=False)
    assert answer.status_code == 303
    text = "".join(best.tokens[1 if store.index("demo").corpus.prepend_bos else 0 :])
    assert answer.headers["location"] == url("/saes/demo/probe", text=text, feature=0, corpus="poems")
    for unknown in ("/saes/demo/contexts/999999/probe", "/saes/nowhere/contexts/0/probe"):
        assert client.get(unknown).status_code == 404
