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

from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

from sae_core.records import Label

AUTHOR = "saescope"
KIND = "automatic"
KINDS = ("human", "model", "automatic", "pattern")  # the label of the first kind that a feature has is the one shown
TOKEN_SHARES = (0.6, 0.7, 0.8)  # of the activation, that one, two or three words must carry
NEIGHBOUR_SHARE = 0.6
PARTLY_SHARE = 0.4
POSITION_SHARE = 0.6
POSITION_LIFT = 5.0  # times as dense there as over all positions
SHOWN_PROMOTED = 3


class Grounds(NamedTuple):
    """What is known of a feature that is not dead."""

    density: float
    tokens_on: list[tuple[str, float]]  # that it fires on, and their share of the sample's activation
    tokens_before: list[tuple[str, float]]  # and their share of the sample's firings
    tokens_after: list[tuple[str, float]]
    places: list[tuple[int, int, float, float]]  # first and last position, its density there, share of its firings
    promoted_tokens: list[str]  # strongest first
    promoted_share: float | None  # of the sample's firings that one of the promoted tokens follows; None: none drawn


def automatic_label(grounds: Grounds, *, dense_threshold: float, created_at: datetime) -> Label | None:
    """The label, or None if nothing can be said."""
    words_on = _words(grounds.tokens_on, least=PARTLY_SHARE)
    found = (
        _dense(grounds, dense_threshold)
        or _token(words_on)
        or _neighbour("before", grounds.tokens_after)
        or _neighbour("after", grounds.tokens_before)
        or _position(grounds)
        or _partly(words_on)
        or _promotes(grounds)
    )
    if found is None:
        return None
    text, score = found
    return Label(text=text, kind=KIND, author=AUTHOR, score=round(score, 4), created_at=created_at)


def _dense(grounds: Grounds, threshold: float) -> tuple[str, float] | None:
    if grounds.density <= threshold:
        return None
    return "dense", grounds.density


def _token(words: list[tuple[str, float]]) -> tuple[str, float] | None:
    for n, least in enumerate(TOKEN_SHARES, start=1):
        share = sum(share for _, share in words[:n])
        if len(words) >= n and share >= least:
            return ", ".join(_quoted(word) for word, _ in words[:n]), min(share, 1.0)
    return None


def _neighbour(where: str, tokens: list[tuple[str, float]]) -> tuple[str, float] | None:
    words = _words(tokens, least=NEIGHBOUR_SHARE)
    if not words or words[0][1] < NEIGHBOUR_SHARE:
        return None
    return f"{where} {_quoted(words[0][0])}", min(words[0][1], 1.0)


def _position(grounds: Grounds) -> tuple[str, float] | None:
    for first, last, density, share in grounds.places:
        if share >= POSITION_SHARE and density >= POSITION_LIFT * grounds.density:
            return f"position {first}" if first == last else f"positions {first}–{last}", min(share, 1.0)
    return None


def _partly(words: list[tuple[str, float]]) -> tuple[str, float] | None:
    words = words[: len(TOKEN_SHARES)]
    share = sum(share for _, share in words)
    if share < PARTLY_SHARE:
        return None
    return "partly " + ", ".join(_quoted(word) for word, _ in words), min(share, 1.0)


def _promotes(grounds: Grounds) -> tuple[str, float] | None:
    if not grounds.promoted_tokens or grounds.promoted_share is None:
        return None
    spellings: dict[str, str] = {}
    for token in grounds.promoted_tokens:
        key, spelling = _word(token)
        spellings.setdefault(key, spelling)
        if len(spellings) == SHOWN_PROMOTED:
            break
    return "promotes " + ", ".join(map(_quoted, spellings.values())), grounds.promoted_share


def _words(tokens: list[tuple[str, float]], *, least: float) -> list[tuple[str, float]]:
    """The tokens as words, in order of their summed shares (equal ones as they came), the first spelling of each.

    None where not even all of them together reach `least`, as is so of most features.
    """
    if sum(share for _, share in tokens) < least:
        return []
    spellings: dict[str, str] = {}
    shares: dict[str, float] = {}
    for token, share in tokens:
        key, spelling = _word(token)
        spellings.setdefault(key, spelling)
        shares[key] = shares.get(key, 0.0) + share
    return sorted(((spellings[key], share) for key, share in shares.items()), key=lambda pair: -pair[1])


@lru_cache(maxsize=1 << 16)
def _word(token: str) -> tuple[str, str]:
    """What a word is known by, and how it is written."""
    written = token.strip() or token
    return token.strip().casefold() or token, written


def _quoted(word: str) -> str:
    return f"“{word.translate(_VISIBLE)}”"


_VISIBLE = str.maketrans({"\n": "↵", "\t": "⇥", "\r": "␍", " ": "·"})
