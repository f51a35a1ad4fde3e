"""From a folder with a model of another architecture to a probe, through the commands alone."""

import json
from contextlib import closing
from pathlib import Path

import pytest

from app import cli
from sae_core.probe import Prober
from sae_core.records import TOP_BAND
from sae_core.store import Store
from tests.tiny import TEXTS, save_tiny_model

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "hook", "start"),
    [("llama3", "resid_post", "<|bos|>"), ("gemma3_vision", "mlp_out", "<bos>"), ("gpt_neox", "attn_out", None)],
)
def test_train_index_and_probe(
    kind: str, hook: str, start: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("SAESCOPE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SAESCOPE_DATABASE_URL", raising=False)
    model = save_tiny_model(tmp_path / kind, kind)
    corpus = tmp_path / "texts.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")

    training = ["train", "--model", str(model), "--layer", "1", "--hook", hook, "--corpus", str(corpus)]
    sizes = ["--d-sae", "64", "--k", "4", "--tokens", "4k", "--context-size", "32", "--batch-tokens", "128"]
    assert cli.main([*training, *sizes, "--slug", "mine"]) == 0
    assert f"{model}: " in capsys.readouterr().err  # how much memory it takes
    assert cli.main(["index", "mine", "--corpus", str(corpus)]) == 0

    with closing(Store.open(f"sqlite:///{tmp_path}/home/saescope.db")) as store:
        sae, page = store.sae("mine").sae, store.features("mine", limit=5)
        details = [store.feature("mine", row.feature.feature_index) for row in page.items]
    prober = Prober(sae)
    n_compared = 0
    for detail in details:
        feature_index = detail.feature.feature_index
        assert len(detail.feature.promoted_tokens) == 10
        for example in [e for e in detail.examples if e.band == TOP_BAND][:4]:
            assert (
                example.tokens[0] if example.token_ids[0] in prober.model.tokenizer.all_special_ids else None
            ) == start
            n_start = 0 if start is None else 1
            text = prober.model.tokenizer.decode(example.token_ids[n_start:])
            probed = prober.probe(text)
            if tuple(token.token_id for token in probed.tokens) != example.token_ids:
                continue  # cut inside a character, or a word that is written in two ways
            on = [dict(zip(token.feature_indexes, token.activations, strict=True)) for token in probed.tokens]
            found = [active.get(feature_index, 0.0) for active in on]
            assert found == pytest.approx(example.activations, rel=2e-3, abs=1e-3)
            n_compared += 1
    assert n_compared >= 3
