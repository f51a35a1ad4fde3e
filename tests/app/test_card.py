"""An evaluation as text: every number as pages show it, and JSON that every reader takes."""

import json
import math
from dataclasses import replace

import pytest

from app.card import as_json, card
from sae_core.metrics import density_histogram
from sae_core.records import Evaluation
from tests.factories import NOW, make_model, make_records


@pytest.fixture
def evaluation() -> Evaluation:
    records = make_records()
    return Evaluation(
        slug="demo",
        model=make_model(),
        hook_name="blocks.3.hook_resid_post",
        target_hook_name="blocks.3.hook_resid_post",
        corpus=records.info.corpus,
        metrics=records.info.metrics,
        density_histogram=density_histogram(feature.density for feature in records.features),
        dtype="float32",
        seconds=12.5,
        created_at=NOW,
    )


def row(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"  {name} "))


def test_numbers_stand_beside_their_names_and_units(evaluation: Evaluation) -> None:
    text = card(evaluation)
    for name, shown in (
        ("FVU", "0.188"),
        ("explained variance", "0.812"),
        ("cosine", "0.906"),
        ("relative bias", "0.984"),
        ("CE recovered", "0.969"),
        ("CE loss", "2.50 "),
        ("CE loss with SAE", "2.75 "),
        ("CE loss with zeros", "10.5 "),
        ("KL", "0.219"),
        ("L0", "15.5"),
        ("dead", "10.0%"),
        ("encoder·decoder", "0.594"),
    ):
        assert shown in row(text, name), name
    assert "on a sample of 1,984 tokens" in text
    assert text.splitlines()[0] == "demo: demo-lm at blocks.3.hook_resid_post"
    assert "on stories: 1,860 tokens of 60 documents, contexts of 32, with a start token, float32, in 12.5 s" in text


def test_what_was_not_measured_is_said(evaluation: Evaluation) -> None:
    metrics = replace(evaluation.metrics, kl=None, fvu=math.nan, encoder_decoder_histogram=None, ce_tokens=None)
    text = card(replace(evaluation, metrics=metrics))
    assert row(text, "KL").endswith("not measured")
    assert row(text, "FVU").endswith("not measured")
    assert "What the model still predicts\n" in text
    assert text.count("encoder·decoder") == 1


def test_a_transcoder_says_what_it_reconstructs(evaluation: Evaluation) -> None:
    first = card(replace(evaluation, target_hook_name="blocks.3.hook_mlp_out")).splitlines()[0]
    assert first == "demo: demo-lm at blocks.3.hook_resid_post, reconstructing blocks.3.hook_mlp_out"


def test_histograms_are_lines_of_blocks_between_their_ends(evaluation: Evaluation) -> None:
    lines = [line for line in card(evaluation).splitlines() if "|" in line]
    assert len(lines) == 2
    for line in lines:
        blocks = line.split("|")[1]
        assert set(blocks) <= set(" ▁▂▃▄▅▆▇█") and "█" in blocks and len(blocks) <= 24
    assert "0.0001% |" in lines[0] and lines[0].endswith("| 100% of tokens")
    assert "−1 |" in lines[1] and lines[1].endswith("| 1")


def test_json_is_one_line_without_nan(evaluation: Evaluation) -> None:
    text = as_json(replace(evaluation, metrics=replace(evaluation.metrics, fvu=math.nan)))
    assert "\n" not in text and "NaN" not in text
    found = json.loads(text)
    assert found["metrics"]["fvu"] is None
    assert found["metrics"]["kl"] == 0.21875
    assert found["metrics"]["encoder_decoder_histogram"]["edges"][0] == -1
    assert found["created_at"] == "2026-03-04T05:06:07.890123+00:00"
    assert found["corpus"]["sources"] == ["stories.txt"]
