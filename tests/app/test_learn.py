"""The page Learn: explains without a model, and shows what the model worker says of one token."""

import re
from dataclasses import replace
from html import unescape

import pytest
from starlette.testclient import TestClient

from app.glossary import TERMS
from app.literature import ARCHITECTURES, PAPERS, TOOLS
from app.main import create_app
from app.settings import Settings
from app.walk import CODE, SHOWN_PARTS, TEXT, Walk, chosen_sae, own_text, strip, walk_view
from sae_core import config
from sae_core.errors import ModelError
from sae_core.records import SAEInfo, SAESummary, TokenPart
from sae_core.store import Store
from tests.app.fake_prober import FakeProber, FakeSAE, fake_decomposition, fake_result
from tests.factories import make_sae

ASKED = "slug=demo&text=the+king+of+the+sea&token=2"


def text_of(page: str) -> str:
    """What is read on a page, without the definitions of its words."""
    return unescape(re.sub(r"\s+", " ", re.sub(r'<span class="tip".*?</span>|<[^>]+>', "", page)))


def make_walk(*, n_parts: int = 5, **changes: object) -> Walk:
    token = fake_decomposition(fake_result(make_sae(), "the king"), make_sae(), 1)
    parts = tuple(
        TokenPart(feature_index=i, activation=8.0 / (i + 1), share=0.4 / n_parts, error=0.4 / (i + 1))
        for i in range(n_parts)
    )
    token = replace(token, parts=parts, error=parts[-1].error if parts else token.bias_error, **changes)
    hook = "blocks.3.hook_resid_post"
    return Walk(slug="demo", hook_name=hook, target_hook_name=hook, corpus="poems", fvu=0.1, token=token, labels={})


def test_the_explanation_needs_no_model(client: TestClient, prober: FakeProber) -> None:
    page = text_of(client.get("/learn").text)
    for words in ("superposition", "b_dec", "CE recovered", "not a proof of what it does", "Asking the model"):
        assert words in page
    assert "TopK (this SAE)" in page
    assert prober.texts == []


def test_every_architecture_is_explained_and_every_word_is_in_the_glossary(client: TestClient) -> None:
    assert set(ARCHITECTURES) == set(config.ARCHITECTURES)
    linked = set(re.findall(r'class="term" href="/glossary#([^"]+)"', client.get(f"/learn?live=1&{ASKED}").text))
    assert linked <= set(TERMS) and len(linked) > 25


def test_papers_and_tools_are_links_and_nothing_else_leads_away(client: TestClient) -> None:
    page = unescape(client.get("/learn").text)
    for address in [p.address for p in PAPERS] + [t.address for t in TOOLS]:
        assert re.fullmatch(r"https://[a-z.-]+(/[\w./-]*)?", address)
        assert f'<a href="{address}" rel="noreferrer">' in page
    assert page.count("https://") == len(PAPERS) + len(TOOLS)
    assert [p.year for p in PAPERS] == sorted(p.year for p in PAPERS)


def test_the_page_the_fragment_and_the_twin_say_the_same(client: TestClient, store: Store) -> None:
    page, fragment = client.get(f"/learn?live=1&{ASKED}").text, client.get(f"/learn/live?{ASKED}").text
    twin = client.get(f"/api/learn?{ASKED}").json()
    assert fragment.strip() in page and "<html" not in fragment
    token = twin["token"]
    assert (token["position"], token["tokens"][2]["token"], len(token["model_acts"])) == (2, " king", 64)
    labels = store.labels("demo", [part["feature_index"] for part in token["parts"]])
    assert twin["labels"] == {str(i): label.text for i, label in labels.items()}
    shown = text_of(fragment)
    for part in token["parts"]:
        assert f"#{part['feature_index']}" in shown
        assert f'href="/saes/demo/features/{part["feature_index"]}"' in fragment
    assert f"{len(token['parts'])} of the SAE’s features are active" in shown
    assert twin["fvu"] == store.saes()[1].indexes[0].metrics.fvu


def test_without_a_slug_or_text_it_is_the_newest_indexed_sae_and_a_fitting_text(
    client: TestClient, prober: FakeProber
) -> None:
    assert client.get("/api/learn").json()["slug"] == "demo"  # "unindexed" is newer
    assert prober.texts == [TEXT]


def test_the_text_fits_what_the_sae_was_indexed_on(store: Store) -> None:
    summary = chosen_sae(store.saes(), "demo")
    assert summary is not None
    assert own_text(summary) == own_text(None) == TEXT
    index = summary.indexes[0]
    of_code = replace(index, corpus=replace(index.corpus, sources=("python-docs",)))
    assert own_text(replace(summary, indexes=(of_code,))) == CODE
    assert chosen_sae([SAESummary(sae=make_sae("new"), indexes=()), summary], None) == summary
    assert chosen_sae([SAESummary(sae=make_sae("new"), indexes=())], None) is not None


def test_an_empty_store_still_explains(tmp_path: object) -> None:
    empty = Store.open(f"sqlite:///{tmp_path}/empty.db")
    with TestClient(create_app(Settings(), store=empty, prober=FakeProber())) as client:
        page = client.get("/learn")
        assert page.status_code == 200
        assert (
            "no SAE here yet" in page.text and "superposition" in page.text and '<form id="walk-form"' not in page.text
        )
        assert client.get("/api/learn").status_code == client.get("/learn/live").status_code == 404
        assert client.get("/learn?live=1").status_code == 404
    empty.close()


@pytest.mark.parametrize("path", ["/learn?live=1", "/learn/live?", "/api/learn?"])
@pytest.mark.parametrize(
    ("asked", "status", "sentence"),
    [
        ("slug=demo&text=busy", 503, "try again in a few seconds"),
        ("slug=demo&text=%20", 422, "text is empty"),
        ("slug=demo&text=king&token=99", 422, "pick another"),
        (f"slug=demo&text={'word+' * 300}", 413, "shorten it"),
        ("slug=nope", 404, "no SAE of this name"),
        ("slug=demo&token=x", 422, "token"),
    ],
)
def test_what_cannot_be_shown_is_said_in_a_sentence(
    client: TestClient, path: str, asked: str, status: int, sentence: str
) -> None:
    answer = client.get(f"{path}&{asked}".replace("?&", "?"))
    assert answer.status_code == status
    assert sentence in answer.text
    if path == "/learn?live=1" and status not in (404,) and "token=x" not in asked:
        assert "all else on this page holds" in answer.text and "The limits" in answer.text


def test_a_model_that_is_gone_leaves_the_explanation(store: Store) -> None:
    class Gone(FakeProber):
        def prober(self, sae: SAEInfo) -> FakeSAE:
            raise ModelError("The model demo-lm is not there; download it again.")

    with TestClient(create_app(Settings(), store=store, prober=Gone())) as client:
        page = client.get("/learn?live=1&slug=demo")
        assert page.status_code == 422
        assert "The model demo-lm is not there; download it again." in page.text and "The limits" in page.text


def test_steps_double_and_rows_beyond_the_first_are_one() -> None:
    view = walk_view(make_walk(n_parts=21))
    assert [step.n for step in view.steps] == [0, 1, 2, 4, 8, 16, 21]
    assert [step.error for step in view.steps[1:]] == pytest.approx([0.4 / n for n in (1, 2, 4, 8, 16, 21)])
    assert len(view.parts) == SHOWN_PARTS + 1
    rest = view.parts[-1]
    assert (rest.feature_index, rest.n, rest.error) == (None, 21 - SHOWN_PARTS, 0.4 / 21)
    assert sum(part.share for part in view.parts) + 0.1 + view.left_share == pytest.approx(1)
    assert len(walk_view(make_walk(n_parts=SHOWN_PARTS + 1)).parts) == SHOWN_PARTS + 1
    assert [step.n for step in walk_view(make_walk(n_parts=8)).steps] == [0, 1, 2, 4, 8]


def test_a_token_without_active_features_has_b_dec_alone() -> None:
    view = walk_view(make_walk(n_parts=0))
    assert ([step.n for step in view.steps], view.parts) == ([0], ())


def test_a_transcoder_shows_what_it_stands_for(client: TestClient) -> None:
    found = make_walk(target_acts=(3.0, -4.0), sae_out=(3.0, -3.0))
    view = walk_view(found)
    assert view.is_transcoder and (view.target.length, view.target.n, view.read.n) == (5.0, 2, 64)
    assert view.left is not None and view.left.largest[0] == (1, -1.0)


@pytest.mark.parametrize(("n", "n_joined"), [(1, 1), (360, 1), (361, 2), (4096, 12)])
def test_a_strip_draws_every_number_or_the_largest_of_neighbours(n: int, n_joined: int) -> None:
    vector = [0.0] * n
    vector[n // 2] = -2.0
    drawn = strip(vector, scale=2.0)
    assert drawn.n_joined == n_joined
    assert drawn.path.count("M") == -(-n // n_joined)
    assert drawn.path.count("v22.0") == 1  # down from the middle, as far as it goes
    assert (drawn.largest[0], drawn.length) == ((n // 2, -2.0), 2.0)
    assert strip([0.0, 0.0], scale=0.0).path == ""


def test_home_and_every_footer_lead_here(client: TestClient) -> None:
    assert client.get("/").text.count('href="/learn"') == 2
    assert '<a href="/learn">Learn</a>' in client.get("/glossary").text
