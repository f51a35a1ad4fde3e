"""The file that `saescope export` writes: it has what the pages have, needs nothing else, and holds no markup of
others."""

import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app import cli
from app.export import MAX_FEATURES, exported_features, exported_list, feature_numbers
from app.numbers import number, percent
from sae_core.errors import InputError, NotFoundError
from sae_core.store import Store
from tests.app.test_pages import Checked, tokens_of
from tests.factories import make_label, make_records, make_sae, make_store, make_vocabulary

HOSTILE = "</style></title><script>alert(1)</script><img src=x onerror=alert(1)> \"'& 中文"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    (tmp_path / "home").mkdir()
    opened = make_store(f"sqlite:///{tmp_path}/home/saescope.db")
    yield opened
    opened.close()


def exported(store: Store, *numbers: int, corpus: str | None = None) -> str:
    return "".join(exported_features(store, "demo", numbers, corpus=corpus, version="1"))


def asked_for(text: str) -> list[str]:
    """What a browser would fetch or lead to, outside the file."""
    links = [address for address in Checked(text).addresses if not address.startswith("#")]
    return links + re.findall(r"@import|url\(", text)


def test_a_file_has_what_the_pages_have(store: Store) -> None:
    text = exported(store, 0, 7, 3)
    for feature_index in (0, 7):
        detail = store.feature("demo", feature_index)
        feature = detail.feature
        assert f'<article id="feature-{feature_index}">' in text
        for fact in (percent(feature.density), number(feature.max_activation), f"{feature.n_active:,} firings"):
            assert fact in text
        for weight in (*feature.promoted_tokens, *feature.suppressed_tokens):
            assert f'title="id {weight.token_id}"' in text
    examples = [*store.feature("demo", 0).examples, *store.feature("demo", 7).examples]
    shown = tokens_of(text)
    assert len(shown) == len(examples) and all(any(t in "".join(e.tokens) for e in examples) for t in shown)
    assert "words for a spouse" in text and "label by ana" in text
    assert text.count('<svg class="bars"') == 2 and "it was active on no token of “poems”" in text
    assert text.count("data-v=") > 20


def test_it_asks_for_nothing_and_its_own_links_lead_somewhere(store: Store) -> None:
    text = exported(store, 0, 1, 2, 7)
    checked = Checked(text)
    assert asked_for(text) == [] and "<script" not in text and "Content-Security-Policy" in text
    assert checked.open == [] and len(set(checked.ids)) == len(checked.ids)
    assert checked.refused == ["style"]
    links = {address[1:] for address in checked.addresses}
    assert links <= set(checked.ids)
    assert {"feature-0", "feature-7", "density", "band", "copies"} <= links


def test_it_comes_in_few_pieces(store: Store) -> None:
    """Each piece of an answer costs a server about a millisecond."""
    pieces = list(exported_features(store, "demo", range(20), corpus=None, version="1"))
    assert len(pieces) < 20 and sum(map(len, pieces)) > 500_000


def test_features_on_the_corpus_asked_for(store: Store) -> None:
    text = exported(store, 7, corpus="stories")
    assert "“stories”" in text and "poems" not in text
    with pytest.raises(NotFoundError, match='not on "nope"'):
        exported(store, 7, corpus="nope")
    with pytest.raises(NotFoundError, match="has no feature 300"):
        exported(store, 7, 300)


def test_text_of_others_is_text(store: Store) -> None:
    records = make_records("hostile", n_features=5)
    weights = struct.pack("<If", make_vocabulary().tokens.index(b"<tag>"), 1.0)
    features = [replace(feature, promoted_tokens=weights) for feature in records.features]
    store.add_sae(make_sae("hostile"), make_vocabulary())
    store.add_index(replace(records, features=features))
    store.add_labels("hostile", {0: make_label(HOSTILE, author=HOSTILE)})
    list_id = store.add_list(title=HOSTILE, description=HOSTILE, author=HOSTILE[:80])
    store.add_list_item(list_id, "hostile", 0, note=HOSTILE)
    for text in (
        "".join(exported_list(store, store.feature_list(list_id), version="1")),
        "".join(exported_features(store, "hostile", [0], corpus=None, version="1")),
    ):
        for markup in ("<script", "<img", "<tag>", "</style></title>"):
            assert markup not in text
        assert text.count("</style>") == 1
        assert "&lt;img src=x onerror=alert(1)&gt;" in text and "中文" in text
        checked = Checked(text)
        assert checked.open == [] and checked.refused == ["style"]


def test_a_list_keeps_its_order_its_notes_and_what_is_gone(store: Store) -> None:
    store.add_sae(make_sae("other"), make_vocabulary())
    store.add_index(make_records("other", n_features=20))
    list_id = store.add_list(title="Both", description="a\nb", author="ana")
    store.add_list_item(list_id, "other", 7, note="of the other")
    store.add_list_item(list_id, "demo", 7, note="of demo")
    store.add_list_item(list_id, "demo", 7, corpus="stories")
    store.delete_sae("other")
    text = "".join(exported_list(store, store.feature_list(list_id), version="1"))
    assert text.index("of the other") < text.index("of demo") < text.index("“stories”")
    assert "has been deleted" in text and '<p class="written">a\nb</p>' in text
    assert Checked(text).open == []


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("1", [1]), ("1,5,9-12", [1, 5, 9, 10, 11, 12]), (" 3 , 2-3 ", [3, 2]), ("7-7", [7]), ("0-299", list(range(300)))],
)
def test_numbers_and_ranges(text: str, numbers: list[int]) -> None:
    assert feature_numbers(text) == numbers


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "numbers and ranges"), ("a", "numbers and ranges"), ("1,,2", "numbers and ranges"), ("-1", "numbers"),
     ("9-1", "before it begins"), ("0-300", "more than 300"), ("0-999999999", "more than 300"), ("٣", "numbers"),
     ("1;2", "numbers"), ("1-2-3", "numbers"), ("9999999999", "numbers")],
)  # fmt: skip
def test_what_names_no_features(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        feature_numbers(text)
    assert "\n" not in str(caught.value) and MAX_FEATURES == 300


def run(tmp_path: Path, *words: str) -> int:
    return cli.main(["export", *words, "--home", str(tmp_path / "home")])


def test_the_command_writes_one_file(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    list_id = store.add_list(title="Mine")
    store.add_list_item(list_id, "demo", 7)
    assert run(tmp_path, "demo", "--features", "0,7-8", "--corpus", "stories") == 0
    assert run(tmp_path, "--list", list_id) == 0
    assert run(tmp_path, "demo", "--features", "7", "--output", "own.html") == 0
    assert "Written: own.html (0." in capsys.readouterr().out
    written = {path.name for path in tmp_path.iterdir()} - {"home"}
    assert written == {"demo-features.html", f"list-{list_id}.html", "own.html"}
    assert (tmp_path / "demo-features.html").read_text(encoding="utf-8").count("<article") == 3
    assert "<h1>Mine</h1>" in (tmp_path / f"list-{list_id}.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "one of the two"),
        (("demo",), "one of the two"),
        (("demo", "--features", "1", "--list", "x"), "one of the two"),
        (("--features", "1"), "of which SAE"),
        (("demo", "--list", "x"), "leave out SLUG"),
        (("--list", "nope"), "no such list"),
        (("nope", "--features", "1"), 'no SAE "nope"'),
        (("unindexed", "--features", "1"), "not indexed"),
        (("demo", "--features", "1,300"), "no feature 300"),
        (("demo", "--features", "1", "--output", "/no/such/folder/x.html"), "name another --output"),
        (("demo", "--features", "1", "--output", "/"), "name another --output"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("store")
def test_the_command_refuses_in_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(tmp_path, *words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and error.endswith(".\n")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_file_that_fails_half_way_leaves_the_old_one(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.html").write_text("old")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("app.export.activation_chart", fail)
    with pytest.raises(RuntimeError):
        run(tmp_path, "demo", "--features", "7", "--output", str(tmp_path / "own.html"))
    assert (tmp_path / "own.html").read_text() == "old" and len(list(tmp_path.iterdir())) == 2
