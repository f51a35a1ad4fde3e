"""Automatic labels: each rule, the order of the rules, and what the confidence is."""

from dataclasses import replace
from typing import Any

import pytest

from sae_core.labels import automatic_label
from sae_core.records import PositionShare, TokenShare, TokenWeight
from tests.factories import NOW, make_features

FEATURE = replace(
    make_features(n=1)[0],
    density=0.01,
    n_active=50,
    n_sampled=50,
    tokens_on=(),
    tokens_before=(),
    tokens_after=(),
    profile=(),
    promoted_tokens=tuple(TokenWeight(token=t, token_id=1, weight=1.0) for t in (" sea", " Sea", " ship", "\n", "x")),
    promoted_share=0.25,
)


def tokens(*shares: tuple[str, int, float]) -> tuple[TokenShare, ...]:
    return tuple(TokenShare(token=token, token_id=i, count=n, share=s) for i, (token, n, s) in enumerate(shares))


@pytest.mark.parametrize(
    ("changes", "text", "score"),
    [
        ({}, "promotes “sea”, “ship”, “↵”", 0.25),
        ({"density": 0.2}, "dense", 0.2),
        ({"tokens_on": tokens((" the", 20, 0.4), ("The", 9, 0.3), (" a", 3, 0.1))}, "“the”", 0.7),
        ({"tokens_on": tokens((" a", 20, 0.45), (" an", 9, 0.3), (" the", 3, 0.1))}, "“a”, “an”", 0.75),
        ({"tokens_on": tokens(("a", 9, 0.3), ("b", 9, 0.3), ("c", 9, 0.25), ("d", 1, 0.1))}, "“a”, “b”, “c”", 0.85),
        ({"tokens_on": tokens(("a", 9, 0.2), ("b", 9, 0.2), ("c", 9, 0.1))}, "partly “a”, “b”, “c”", 0.5),
        ({"tokens_on": tokens((" ", 50, 1.0))}, "“·”", 1.0),
        ({"tokens_after": tokens((" of", 25, 0.1), ("Of", 10, 0.1), ("x", 3, 0.1))}, "before “of”", 0.7),
        ({"tokens_before": tokens((" New", 31, 0.1))}, "after “New”", 0.62),
        ({"profile": (PositionShare(first=1, last=1, density=0.9, share=0.8),)}, "position 1", 0.8),
        ({"profile": (PositionShare(first=4, last=7, density=0.9, share=0.6),)}, "positions 4–7", 0.6),
        ({"profile": (PositionShare(first=4, last=7, density=0.02, share=1.0),)}, "promotes “sea”, “ship”, “↵”", 0.25),
        ({"tokens_after": tokens((" of", 29, 0.9))}, "promotes “sea”, “ship”, “↵”", 0.25),
        ({"promoted_tokens": (), "promoted_share": None, "tokens_on": tokens(("a", 9, 0.2))}, None, None),
    ],
)
def test_a_label_is_the_first_rule_that_holds(changes: dict[str, Any], text: str | None, score: float | None) -> None:
    label = automatic_label(replace(FEATURE, **changes), dense_threshold=0.1, created_at=NOW)
    if text is None:
        assert label is None
        return
    assert label is not None
    assert (label.text, label.kind, label.author, label.created_at) == (text, "automatic", "saescope", NOW)
    assert label.score == pytest.approx(score)


def test_a_dead_feature_has_no_label() -> None:
    assert automatic_label(replace(FEATURE, n_active=0), dense_threshold=0.1, created_at=NOW) is None
