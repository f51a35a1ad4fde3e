"""Automatic labels: each rule, the order of the rules, and what the confidence is."""

from typing import Any

import pytest

from sae_core.labels import Grounds, automatic_label
from tests.factories import NOW

GROUNDS = Grounds(
    density=0.01,
    tokens_on=[],
    tokens_before=[],
    tokens_after=[],
    places=[],
    promoted_tokens=[" sea", " Sea", " ship", "\n", "x"],
    promoted_share=0.25,
)


@pytest.mark.parametrize(
    ("changes", "text", "score"),
    [
        ({}, "promotes “sea”, “ship”, “↵”", 0.25),
        ({"density": 0.2}, "dense", 0.2),
        ({"tokens_on": [(" the", 0.4), ("The", 0.3), (" a", 0.1)]}, "“the”", 0.7),
        ({"tokens_on": [(" a", 0.45), (" an", 0.3), (" the", 0.1)]}, "“a”, “an”", 0.75),
        ({"tokens_on": [("a", 0.3), ("b", 0.3), ("c", 0.25), ("d", 0.1)]}, "“a”, “b”, “c”", 0.85),
        ({"tokens_on": [("a", 0.2), ("b", 0.2), ("c", 0.1)]}, "partly “a”, “b”, “c”", 0.5),
        ({"tokens_on": [(" ", 1.0)]}, "“·”", 1.0),
        ({"tokens_after": [(" of", 0.5), ("Of", 0.2), ("x", 0.06)]}, "before “of”", 0.7),
        ({"tokens_before": [(" New", 0.62)]}, "after “New”", 0.62),
        ({"places": [(1, 1, 0.9, 0.8)]}, "position 1", 0.8),
        ({"places": [(4, 7, 0.9, 0.6)]}, "positions 4–7", 0.6),
        ({"places": [(4, 7, 0.02, 1.0)]}, "promotes “sea”, “ship”, “↵”", 0.25),
        ({"tokens_after": [(" of", 0.58)]}, "promotes “sea”, “ship”, “↵”", 0.25),
        ({"promoted_tokens": [], "promoted_share": None, "tokens_on": [("a", 0.2)]}, None, None),
    ],
)
def test_a_label_is_the_first_rule_that_holds(changes: dict[str, Any], text: str | None, score: float | None) -> None:
    label = automatic_label(GROUNDS._replace(**changes), dense_threshold=0.1, created_at=NOW)
    if text is None:
        assert label is None
        return
    assert label is not None
    assert (label.text, label.kind, label.author, label.created_at) == (text, "automatic", "saescope", NOW)
    assert label.score == pytest.approx(score)
