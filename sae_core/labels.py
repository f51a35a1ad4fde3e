"""What a feature is called when nobody has named it: a short label from its evidence, with a measured confidence.

The first of these that holds, each confidence a share that was counted on the indexed corpus:

    dense                fires on more than the threshold of all tokens         confidence: its density
    token                up to three words carry most of its activation         their share of the sample's activation
    before, after        the same word follows, or precedes, most firings       share of the sample's firings
    position             most firings fall on one stretch of the context that
                         holds few of the tokens                                share of its firings
    partly               up to three words carry two fifths of its activation   their share of the sample's activation
    promotes             nothing of the kind: the tokens that it promotes       share of the sample's firings that one
                                                                                of the promoted tokens follows

Words are compared without blanks around them and without case. No language model is asked.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime

from sae_core.records import Feature, Label, TokenShare

AUTHOR = "saescope"
KIND = "automatic"
TOKEN_SHARES = (0.6, 0.7, 0.8)  # of the activation, that one, two or three words must carry
NEIGHBOUR_SHARE = 0.6
PARTLY_SHARE = 0.4
POSITION_SHARE = 0.6
POSITION_LIFT = 5.0  # times as dense there as over all positions
SHOWN_PROMOTED = 3


def automatic_label(feature: Feature, *, dense_threshold: float, created_at: datetime) -> Label | None:
    """The label, or None for a dead feature and for one that nothing can be said about."""
    if not feature.n_active:
        return None
    words_on = _words((shown.token, shown.share) for shown in feature.tokens_on)
    found = (
        _dense(feature, dense_threshold)
        or _token(words_on)
        or _neighbour("before", feature.tokens_after, feature.n_sampled)
        or _neighbour("after", feature.tokens_before, feature.n_sampled)
        or _position(feature)
        or _partly(words_on)
        or _promotes(feature)
    )
    if found is None:
        return None
    text, score = found
    return Label(text=text, kind=KIND, author=AUTHOR, score=round(score, 4), created_at=created_at)


def _dense(feature: Feature, threshold: float) -> tuple[str, float] | None:
    if feature.density <= threshold:
        return None
    return "dense", feature.density


def _token(words: list[tuple[str, float]]) -> tuple[str, float] | None:
    for n, least in enumerate(TOKEN_SHARES, start=1):
        share = sum(share for _, share in words[:n])
        if len(words) >= n and share >= least:
            return ", ".join(_quoted(word) for word, _ in words[:n]), min(share, 1.0)
    return None


def _neighbour(where: str, tokens: Sequence[TokenShare], n_sampled: int) -> tuple[str, float] | None:
    words = _words((shown.token, shown.count / max(n_sampled, 1)) for shown in tokens)
    if not words or words[0][1] < NEIGHBOUR_SHARE:
        return None
    return f"{where} {_quoted(words[0][0])}", min(words[0][1], 1.0)


def _position(feature: Feature) -> tuple[str, float] | None:
    for place in feature.profile:
        if place.share >= POSITION_SHARE and place.density >= POSITION_LIFT * feature.density:
            where = f"position {place.first}" if place.first == place.last else f"positions {place.first}–{place.last}"
            return where, place.share
    return None


def _partly(words: list[tuple[str, float]]) -> tuple[str, float] | None:
    words = words[: len(TOKEN_SHARES)]
    share = sum(share for _, share in words)
    if share < PARTLY_SHARE:
        return None
    return "partly " + ", ".join(_quoted(word) for word, _ in words), min(share, 1.0)


def _promotes(feature: Feature) -> tuple[str, float] | None:
    words = _words((token.token, 0.0) for token in feature.promoted_tokens)
    if not words or feature.promoted_share is None:
        return None
    return "promotes " + ", ".join(_quoted(word) for word, _ in words[:SHOWN_PROMOTED]), feature.promoted_share


def _words(tokens: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """The tokens as words, in order of their summed shares (equal ones as they came), the first spelling of each."""
    spellings: dict[str, str] = {}
    shares: dict[str, float] = {}
    for token, share in tokens:
        key = token.strip().casefold() or token
        spellings.setdefault(key, token.strip() or token)
        shares[key] = shares.get(key, 0.0) + share
    return sorted(((spellings[key], share) for key, share in shares.items()), key=lambda pair: -pair[1])


def _quoted(word: str) -> str:
    return f"“{word.translate(_VISIBLE)}”"


_VISIBLE = str.maketrans({"\n": "↵", "\t": "⇥", "\r": "␍", " ": "·"})
