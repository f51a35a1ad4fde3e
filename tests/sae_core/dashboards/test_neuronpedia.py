"""Neuronpedia's files in and out, on both databases."""

import gzip
import json
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from app.dashboard_import import import_dashboard
from sae_core.dashboards import check_has_weights, neuronpedia_out, spool
from sae_core.dashboards.neuronpedia_files import is_bulk_folder
from sae_core.dashboards.neuronpedia_in import Dashboard
from sae_core.dashboards.neuronpedia_out import export_dashboard
from sae_core.errors import ConfigError, ConflictError, CorpusError, WeightsError
from sae_core.progress import StopRequest
from sae_core.records import RANDOM_BAND, TOP_BAND, Label
from sae_core.store import Store
from tests.bulk_files import (
    N_TOKENS,
    TOKENS,
    dead_row,
    example_row,
    explanation_row,
    feature_row,
    write_batch,
    write_bulk_files,
)  # fmt: skip
from tests.factories import make_label, make_labels, make_records, make_sae, make_vocabulary

Refuses = Callable[..., AbstractContextManager[None]]
SLUG = "gpt2-small-6-res-jb"


@pytest.fixture
def bulk(tmp_path: Path) -> Path:
    return write_bulk_files(tmp_path / "6-res-jb")


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Store]:
    """For what no database could do otherwise."""
    store = Store.open(f"sqlite:///{tmp_path}/own.db")
    yield store
    store.close()


def rows_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    paths = sorted((folder / kind).iterdir(), key=lambda path: int(path.name.split(".")[0].removeprefix("batch-")))
    return [json.loads(line) for path in paths for line in gzip.open(path, "rt", encoding="utf-8")]


# In


def test_a_dashboard_comes_in_without_a_model(store: Store, bulk: Path, tmp_path: Path) -> None:
    done = import_dashboard(store, bulk, home=tmp_path / "home")

    assert done is not None and (done.sae.slug, done.n_features, done.n_other_explanations) == (SLUG, 12, 1)
    (summary,) = store.saes()
    (index,) = summary.indexes
    sae = summary.sae
    assert (sae.model.model_name, sae.hook_name, sae.layer) == ("gpt2-small", "blocks.6.hook_resid_pre", 6)
    assert (sae.d_sae, sae.d_in, sae.weights_path) == (12, 3, "")
    assert index.corpus.n_tokens == N_TOKENS
    assert index.metrics.l0 == pytest.approx(10 * 0.05) and index.metrics.dead_share == pytest.approx(2 / 12)
    assert store.check() == []
    assert not (tmp_path / "home" / "imports" / f"{SLUG}.partly").exists()
    with pytest.raises(WeightsError, match="only the dashboard is here"):
        check_has_weights(sae)


def test_tokens_values_and_statistics_are_as_they_are_in_the_files(store: Store, bulk: Path, tmp_path: Path) -> None:
    import_dashboard(store, bulk, home=tmp_path)

    detail = store.feature(SLUG, 4)

    feature = detail.feature
    assert (feature.density, feature.n_active, feature.max_activation) == (0.05, 100, 5.0)
    middles, heights = feature_row(4)["freq_hist_data_bar_values"], feature_row(4)["freq_hist_data_bar_heights"]
    assert feature.mean_activation == pytest.approx(sum(m * h for m, h in zip(middles, heights, strict=True)) / 100)
    assert feature.histogram.counts == tuple(heights)
    assert feature.histogram.edges == pytest.approx([0.5 * i for i in range(11)])
    assert [(w.token, w.weight) for w in feature.promoted_tokens] == [(" wife", 1.5), ("海", 0.25)]
    assert [(w.token, w.weight) for w in feature.suppressed_tokens] == [(" sea", -0.75)]
    assert [(n.feature_index, n.cosine) for n in feature.nearest] == [(5, 0.5)]  # never itself
    assert feature.band_edges == pytest.approx([0, 1, 2, 3, 4, 5]) and feature.band_shares == pytest.approx([0.3] * 5)
    assert [e.band for e in detail.examples] == [TOP_BAND] * 3 + [1, 2, 3, 4, 5]
    assert [e.activation for e in detail.examples] == [5.0, 4.0, 3.0, 0.5, 1.5, 2.5, 3.5, 4.5]
    for example in detail.examples:
        assert list(example.tokens) == TOKENS and example.position == 2
        peak = example.activation
        assert list(example.activations) == [0, 0, peak, peak / 4, 0, 0, peak / 2]
    dead = store.feature(SLUG, 3)
    assert dead.feature.density == 0 and dead.examples == ()


def test_explanations_become_labels_the_newest_of_each_kind(store: Store, bulk: Path, tmp_path: Path) -> None:
    import_dashboard(store, bulk, home=tmp_path)

    shown = {index: (label.text, label.kind, label.author) for index, label in store.all_labels(SLUG)}
    assert shown == {0: ("royal persons", "model", "gpt-4o-mini"), 1: ("said by 人", "human", "ana")}
    found = store.features(SLUG, q="royal")
    assert [row.feature.feature_index for row in found.items] == [0]


def test_the_same_again_changes_nothing_and_more_files_keep_what_people_wrote(
    store: Store, bulk: Path, tmp_path: Path
) -> None:
    import_dashboard(store, bulk, home=tmp_path)
    store.add_labels(SLUG, {1: make_label("mine", author="ben"), 2: make_label("mine too")})
    before, detail = store.saes(), store.feature(SLUG, 4)

    import_dashboard(store, bulk, home=tmp_path)
    assert [s.sae for s in store.saes()] == [s.sae for s in before]
    assert store.feature(SLUG, 4) == detail

    write_batch(bulk, "features", 11, [feature_row(12, pos_str=["new token"], pos_values=[1.0])])
    write_batch(bulk, "activations", 11, [example_row(12, peak=2.0)])
    import_dashboard(store, bulk, home=tmp_path)
    assert store.sae(SLUG).sae.d_sae == 13 and store.sae(SLUG).sae.created_at == before[0].sae.created_at
    texts = {(index, label.kind): label.text for index, label in store.all_labels(SLUG)}
    assert texts == {(0, "model"): "royal persons", (1, "human"): "mine", (2, "human"): "mine too"}
    assert store.feature(SLUG, 12).examples[0].tokens == tuple(TOKENS)


def test_a_stopped_import_goes_on_and_reads_no_file_twice(
    sqlite_store: Store, bulk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "PART_EXAMPLES", 7)  # parts end within features
    added: list[str] = []
    original = spool.Spool.add

    def add(self: spool.Spool, file: Path, examples: Any) -> None:
        added.append(file.name)
        original(self, file, examples)
        stop.was_made = True

    monkeypatch.setattr(spool.Spool, "add", add)
    stop = StopRequest()
    assert Dashboard(bulk, home=tmp_path).gather(stop) is False
    assert added == ["batch-2.jsonl.gz"]

    import_dashboard(sqlite_store, bulk, home=tmp_path)

    assert added == ["batch-2.jsonl.gz", "batch-10.jsonl.gz"]
    for index in (0, 4, 6, 10):
        assert [e.activation for e in sqlite_store.feature(SLUG, index).examples] == [5, 4, 3, 0.5, 1.5, 2.5, 3.5, 4.5]


def test_a_file_that_was_fetched_again_is_read_again(sqlite_store: Store, bulk: Path, tmp_path: Path) -> None:
    stop = StopRequest()
    Dashboard(bulk, home=tmp_path).gather(stop)
    write_batch(bulk, "activations", 10, [example_row(6, peak=4.25)])

    import_dashboard(sqlite_store, bulk, home=tmp_path)

    assert [e.activation for e in sqlite_store.feature(SLUG, 6).examples] == [4.25]


def test_a_feature_whose_examples_stand_in_two_files_has_all_of_them(
    sqlite_store: Store, bulk: Path, tmp_path: Path
) -> None:
    write_batch(bulk, "activations", 12, [example_row(4, peak=4.5)])

    import_dashboard(sqlite_store, bulk, home=tmp_path)

    assert [e.activation for e in sqlite_store.feature(SLUG, 4).examples][:4] == [5.0, 4.5, 4.0, 3.0]


def test_memory_grows_by_some_bytes_an_example_not_by_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "PART_EXAMPLES", 20)
    tokens, values = (
        [f" word{i}" for i in range(1000)],
        [float(i) for i in range(1000)],
    )
    peaks = []
    for n in (40, 400):
        bulk = tmp_path / f"bulk{n}"
        write_batch(bulk, "features", 0, [feature_row(0)])
        write_batch(
            bulk,
            "activations",
            0,
            [example_row(0, peak=1, tokens=[f"{i}", *tokens[1:]], values=values) for i in range(n)],
        )
        dashboard = Dashboard(bulk, home=tmp_path / f"home{n}")
        tracemalloc.start()
        assert dashboard.gather(StopRequest())
        sum(1 for _ in dashboard.records().contexts)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert dashboard.n_contexts == n

    assert peaks[1] - peaks[0] < 360 * 1000  # a kilobyte an example, where its tokens and values take 8


@pytest.mark.parametrize(
    ("kind", "rows", "words"),
    [
        ("features", ["{half"], ["features/batch-2.jsonl.gz line 1", "not JSON"]),
        ("features", ["[]"], ["line 1", "no JSON object"]),
        ("features", [feature_row(0, modelId=None)], ["modelId and layer"]),
        ("features", [feature_row(0), feature_row(1, layer="7-res-jb")], ["line 2", "7-res-jb", "one at a time"]),
        ("features", [feature_row(0), feature_row(0)], ["feature 0 once more"]),
        ("features", [feature_row(7)], ["feature 7 once more"]),
        ("features", [feature_row(0, index="x")], ["its index is 'x'"]),
        ("features", [feature_row(0, index=-1)], ["its index is '-1'"]),
        ("features", [feature_row(0, frac_nonzero=1.5)], ["frac_nonzero", "between 0 and 1"]),
        ("features", [feature_row(0, maxActApprox=float("nan"))], ["maxActApprox"]),
        ("features", [feature_row(0, pos_str=["a"])], ["pos_str and pos_values"]),
        ("features", [feature_row(0, freq_hist_data_bar_heights=[1])], ["belong together"]),
        ("activations", [example_row(0, peak=1, tokens=["a"])], ["activations/batch-2", "1 tokens have 7 values"]),
        ("activations", [example_row(0, peak=1, tokens=[1] * 7)], ["no list of strings"]),
        ("activations", [example_row(0, peak=1, values=[0] * 6 + [float("inf")])], ["values holds 'inf'"]),
        ("activations", [example_row(0, peak=1, values=[0] * 6 + [True])], ["values holds 'True'"]),
        ("activations", [example_row(0, peak=1, values=[0] * 6 + [10**400])], ["values holds '1000"]),
        ("features", [feature_row(0, maxActApprox=10**400)], ["maxActApprox is '1000"]),
        ("activations", [example_row(0, peak=1, tokens=["a"] * 65_537, values=[0] * 65_537)], ["65,537 tokens"]),
        ("activations", [example_row(99, peak=1)], ["feature 99, which features/ does not have"]),
        ("explanations", [explanation_row(0, "x", description=None)], ["description is no text"]),
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_line_is_refused_in_one_sentence_and_nothing_is_stored(
    kind: str, rows: list[Any], words: list[str], sqlite_store: Store, bulk: Path, tmp_path: Path, refuses: Refuses
) -> None:
    write_batch(bulk, kind, 2, rows)

    with refuses(CorpusError, *words):
        import_dashboard(sqlite_store, bulk, home=tmp_path)

    assert sqlite_store.saes() == []


def test_a_file_that_is_cut_short_is_refused(sqlite_store: Store, bulk: Path, tmp_path: Path, refuses: Refuses) -> None:
    path = bulk / "activations" / "batch-10.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-20])

    with refuses(CorpusError, "activations/batch-10.jsonl.gz", "cut short", "fetch it again"):
        import_dashboard(sqlite_store, bulk, home=tmp_path)


def test_folders_without_their_files_are_refused(tmp_path: Path, bulk: Path, refuses: Refuses) -> None:
    assert is_bulk_folder(bulk) and not is_bulk_folder(tmp_path) and not is_bulk_folder(tmp_path / "nowhere")
    (bulk / "activations").rename(bulk / "away")
    for folder, kind in ((bulk, "activations"), (tmp_path, "features"), (tmp_path / "nowhere", "features")):
        with refuses(CorpusError, str(folder), f"no {kind}/batch-N.jsonl.gz"):
            Dashboard(folder, home=tmp_path)


def test_another_saes_name_is_not_taken(sqlite_store: Store, bulk: Path, tmp_path: Path, refuses: Refuses) -> None:
    sqlite_store.add_sae(make_sae(), make_vocabulary())

    with refuses(ConflictError, "demo already", "--slug"):
        import_dashboard(sqlite_store, bulk, home=tmp_path, slug="demo")


def test_half_precision_is_all_that_a_value_loses(sqlite_store: Store, tmp_path: Path) -> None:
    bulk = tmp_path / "bulk"
    write_batch(bulk, "features", 0, [feature_row(0, maxActApprox=123.457), dead_row(1)])
    values = [0, 123.457, 7.123, 0.001, 0, 90_000.0, -3.0]
    write_batch(bulk, "activations", 0, [example_row(0, peak=1, values=values, qualifyingTokenIndex=1)])

    import_dashboard(sqlite_store, bulk, home=tmp_path)

    (example,) = sqlite_store.feature(SLUG, 0).examples
    assert example.activation == pytest.approx(123.457, rel=1e-7)
    assert example.activations[:5] == pytest.approx(values[:5], rel=5e-4)
    assert example.activations[5:] == (65_504.0, 0.0)  # the largest there is; a negative one is none


# Out and back


def test_an_index_goes_out_and_comes_back(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neuronpedia_out, "BATCH_FEATURES", 16)
    store.add_sae(make_sae(), make_vocabulary())
    store.add_index(make_records(n_features=40))
    store.add_labels("demo", make_labels() | {4: make_label("=1+1 海\n", author="ana")})

    n = export_dashboard(store, "demo", tmp_path / "out")
    import_dashboard(store, tmp_path / "out", home=tmp_path, slug="back")

    assert n == 40 and len(list((tmp_path / "out" / "features").iterdir())) == 3
    back = store.sae("back").sae
    assert (back.d_sae, back.hook_name, back.model.model_name) == (300 - 260, "blocks.3.hook_resid_post", "demo-lm")
    for number in range(40):
        ours, theirs = store.feature("demo", number), store.feature("back", number)
        for name in ("density", "max_activation", "band_shares"):
            assert getattr(theirs.feature, name) == pytest.approx(getattr(ours.feature, name)), name
        if ours.feature.density:
            assert theirs.feature.histogram == ours.feature.histogram
            assert theirs.feature.band_edges == ours.feature.band_edges
        for name in ("promoted_tokens", "suppressed_tokens"):
            pairs = [[(w.token, w.weight) for w in getattr(d.feature, name)] for d in (ours, theirs)]
            assert pairs[0] == pairs[1]
        near = [
            [(n.feature_index, n.cosine) for n in d.feature.nearest if n.feature_index < 40] for d in (ours, theirs)
        ]
        assert near[0] == near[1]
        assert [(e.tokens, e.activations, e.activation, e.position, e.band) for e in theirs.examples] == [
            (e.tokens, e.activations, e.activation, e.position, e.band) for e in ours.examples
        ]
        assert {e.band for e in theirs.examples} in (set(), set(range(RANDOM_BAND + 1)))

    def said(label: Label) -> tuple[str, str, str]:
        return label.text, label.kind, label.author

    assert [(i, said(label)) for i, label in store.all_labels("back")] == [
        (i, said(label)) for i, label in store.all_labels("demo")
    ]

    # What came back goes out as it was.
    export_dashboard(store, "back", tmp_path / "again")
    for kind in ("activations", "explanations"):
        first, again = (
            [{k: v for k, v in row.items() if k not in ("id", "layer", "dataSource")} for row in rows_of(folder, kind)]
            for folder in (tmp_path / "out", tmp_path / "again")
        )
        assert first == again


def test_the_lines_have_neuronpedias_columns(sqlite_store: Store, tmp_path: Path) -> None:
    sqlite_store.add_sae(make_sae(), make_vocabulary())
    sqlite_store.add_index(make_records(n_features=5))
    sqlite_store.add_labels("demo", {0: make_label(), 1: make_label(kind="automatic", author="describer", score=0.5)})

    export_dashboard(sqlite_store, "demo", tmp_path / "out")

    features, examples, labels = (
        rows_of(tmp_path / "out", kind) for kind in ("features", "activations", "explanations")
    )
    assert {(row["modelId"], row["layer"]) for row in (*features, *examples, *labels)} == {("demo-lm", "3-demo")}
    assert [row["index"] for row in features] == ["0", "1", "2", "3", "4"]
    assert set(features[0]) <= {*feature_row(0), "hasVector"} and set(examples[0]) <= {
        *example_row(0, peak=1),
        "dataSource",
    }
    assert set(labels[0]) == set(explanation_row(0, "x"))
    assert [(row["authorId"], row["typeName"]) for row in labels] == [("ana", None), (None, "describer")]
    for row in examples:
        assert row["values"][row["maxValueTokenIndex"]] == row["maxValue"] == max(row["values"])
        assert len(row["tokens"]) == len(row["values"])
    assert {row["binContains"] for row in examples if row["binMin"] == -1} == {-1}
    (source,) = (json.loads((tmp_path / "out" / "source.jsonl").read_text()),)
    assert source["dataset"] == "stories.txt" and source["createdAt" if "createdAt" in source else "id"] == "3-demo"


def test_labels_come_back_as_what_they_were(sqlite_store: Store, store: Store, tmp_path: Path) -> None:
    sqlite_store.add_sae(make_sae(), make_vocabulary())
    sqlite_store.add_index(make_records(n_features=5))
    labels = {
        kind: make_label(f"by {kind}", kind=kind, author=author)
        for kind, author in (
            ("human", "ana"),
            ("model", "llama3.1:8b"),
            ("automatic", "saescope"),
            ("pattern", "saescope"),
        )
    }
    for label in labels.values():
        sqlite_store.add_labels("demo", {0: label})
    expected = {label.kind: (label.text, label.author) for label in sqlite_store.labels_of_feature("demo", 0)}
    assert expected.keys() == labels.keys()

    export_dashboard(sqlite_store, "demo", tmp_path / "out")
    done = import_dashboard(store, tmp_path / "out", home=tmp_path)

    assert done is not None
    back = {label.kind: (label.text, label.author) for label in store.labels_of_feature(done.sae.slug, 0)}
    assert back == expected


def test_an_export_is_one_folder_or_nothing(
    sqlite_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    sqlite_store.add_sae(make_sae(), make_vocabulary())
    sqlite_store.add_index(make_records(n_features=5))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    with refuses(ConfigError, "not empty", "--output"):
        export_dashboard(sqlite_store, "demo", tmp_path / "taken")

    def fail(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(neuronpedia_out, "_explanation_row", fail)
    sqlite_store.add_labels("demo", {2: make_label()})
    with pytest.raises(KeyboardInterrupt):
        export_dashboard(sqlite_store, "demo", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []
