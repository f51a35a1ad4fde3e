"""Examples as pages print them: tokens with a step on the colour scale, cut into windows, grouped into bands.

Records come from the store or the probe; templates only print what is decided here.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from app.numbers import number, percent
from sae_core.bands import N_BANDS
from sae_core.records import RANDOM_BAND, TOP_BAND, Example, Feature

STEPS = 20  # of the activation scale; the stylesheet has a class a0 … a20 for each
WIDTHS = {"short": (14, 10), "medium": (40, 24)}  # tokens shown before and after the chosen one; "full" shows all
REACHES = ("short", "medium", "full")
LINE_BEFORE, LINE_AFTER = 48, 64  # characters of a one-line example around its peak
SIGNS = {" ": "·", "\n": "↵\n", "\t": "⇥\t", "\r": "␍"}


class TokenView(NamedTuple):
    """A token as it is printed. `original` is set where signs replaced its whitespace. A page has thousands."""

    text: str
    step: int
    is_peak: bool
    token_id: int
    activation: float
    original: str | None = None
    is_special: bool = False
    is_chosen: bool = False
    position: int = -1  # in a probed text, where a token can be picked

    @property
    def is_marked(self) -> bool:
        """Most are not: only their text is printed."""
        return bool(self.step or self.is_peak or self.is_special or self.is_chosen) or self.original is not None

    @property
    def classes(self) -> str:
        return _classes(self.step, self.is_peak, self.is_special, self.is_chosen)

    @property
    def shown_activation(self) -> str:
        return _shown(self.activation) if self.activation else ""


@lru_cache(maxsize=1024)
def _classes(step: int, is_peak: bool, is_special: bool, is_chosen: bool) -> str:
    parts = (f"a{step}" if step else "", "peak" if is_peak else "", "special" if is_special else "")
    return " ".join(filter(None, (*parts, "chosen" if is_chosen else "")))


@lru_cache(maxsize=1 << 14)
def _shown(activation: float) -> str:
    """Stored activations have half precision, so there are not many."""
    return number(activation)


class PlainToken(TokenView):
    """Text without any mark, which most tokens are."""

    __slots__ = ()
    is_marked = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRun:
    """Neighbouring tokens that are shown together: `reach` is the narrowest width that shows them."""

    reach: str  # short, medium or full
    tokens: tuple[TokenView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleView:
    """One example: its runs in reading order, and where it comes from."""

    activation: str
    source: str
    short_source: str
    runs: tuple[TokenRun, ...]
    cut_before: str  # the reaches at which text is left out before and after: "", "short", "short medium"
    cut_after: str
    context_id: int  # whose whole text can be probed
    copies: str  # "×5" where five places of the corpus read the same; "" for one


@dataclass(frozen=True, slots=True, kw_only=True)
class LineView:
    """An example in one line, so that the peaks of a list stand below each other."""

    before: tuple[TokenView, ...]
    after: tuple[TokenView, ...]  # from the peak on


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleGroup:
    """A heading of the feature page and the examples under it."""

    key: str
    title: str
    note: str
    term: str
    examples: tuple[ExampleView, ...]


def step(activation: float, *, scale: float) -> int:
    """The step on the colour scale: 0 only for inactive, so that weak activations can still be seen."""
    if activation <= 0 or not scale > 0 or not math.isfinite(activation):
        return 0
    return min(STEPS, max(1, math.ceil(STEPS * activation / scale - 1e-9)))


@lru_cache(maxsize=1 << 14)
def with_signs(text: str) -> str:
    """`text` with whitespace made visible; itself where there is none."""
    return "".join(SIGNS.get(character, character) for character in text) if set(text) & set(SIGNS) else text


def token_views(
    example: Example,
    *,
    scale: float,
    signs: bool = False,
    has_bos: bool = False,
    span: tuple[int, int] | None = None,
) -> list[TokenView]:
    """The tokens of an example from `span[0]` to before `span[1]`, coloured over `scale`, the feature's maximum."""
    start, end = span or (0, len(example.tokens))
    texts = example.tokens[start:end]
    return _views(
        example, map(with_signs, texts) if signs else texts, texts, start, scale=scale, special=0 if has_bos else -1
    )


def _views(
    example: Example, shown: Iterable[str], texts: Sequence[str], start: int, *, scale: float, special: int
) -> list[TokenView]:
    """The tokens from `start` on, as many as there are `texts`, printed as `shown`."""
    end, peak = start + len(texts), example.position
    ids, activations = example.token_ids[start:end], example.activations[start:end]
    views = list(map(_plain_view, shown, ids))  # most are plain: the others are looked at one by one
    marked = {at for at, activation in enumerate(activations) if activation}
    marked.update(at - start for at in (peak, special) if start <= at < end)
    if shown is not texts:
        marked.update(at for at, (view, token) in enumerate(zip(views, texts, strict=True)) if view.text != token)
    for at in marked:
        text, token, activation = views[at].text, texts[at], activations[at]
        views[at] = TokenView(
            text,
            step(activation, scale=scale),
            start + at == peak,
            ids[at],
            activation,
            None if text == token else token,
            start + at == special,
        )
    return views


@lru_cache(maxsize=1 << 14)
def _plain_view(text: str, token_id: int) -> TokenView:
    """What most tokens are, again and again."""
    return PlainToken(text, 0, False, token_id, 0.0)


def example_view(
    example: Example, *, scale: float, signs: bool = False, has_bos: bool = False, width: str = "full"
) -> ExampleView:
    """One example with the tokens that are seen at `width`, in runs, so that narrower widths can be chosen of them."""
    short, medium = (_bounds(example, width=reach) for reach in WIDTHS)
    medium = (min(medium[0], short[0]), max(medium[1], short[1]))
    n = len(example.tokens)
    cuts = [0, medium[0], short[0], short[1], medium[1], n]
    seen = REACHES[: REACHES.index(width) + 1]
    runs = [
        TokenRun(
            reach=reach,
            tokens=tuple(token_views(example, scale=scale, signs=signs, has_bos=has_bos, span=(start, end))),
        )
        for reach, start, end in zip(("full", "medium", "short", "medium", "full"), cuts, cuts[1:], strict=False)
        if start < end and reach in seen
    ]
    return ExampleView(
        activation=number(example.activation),
        source=example.source,
        short_source=_short_source(example.source),
        runs=tuple(runs),
        cut_before=_cut(short=short[0] > 0, medium=medium[0] > 0),
        cut_after=_cut(short=short[1] < n, medium=medium[1] < n),
        context_id=example.context_id,
        copies=f"×{example.copies:,}" if example.copies > 1 else "",
    )


def one_line(
    example: Example, *, scale: float, has_bos: bool = False, before: int = LINE_BEFORE, after: int = LINE_AFTER
) -> LineView:
    """The tokens around the peak, so many characters before and after it, as a line of a list has them: line breaks
    become signs, indentation is left out."""
    start = end = example.position
    while start > has_bos and before > 0:
        start -= 1
        before -= len(example.tokens[start])
    while end < len(example.tokens) and after > 0:
        after -= len(example.tokens[end])
        end += 1
    tokens = tuple(map(_on_one_line, example.tokens[start:end]))
    views = _views(example, tokens, tokens, start, scale=scale, special=-1)
    peak = example.position - start
    return LineView(before=tuple(views[:peak]), after=tuple(views[peak:]))


def example_groups(
    feature: Feature, examples: Sequence[Example], *, signs: bool = False, has_bos: bool = False, width: str = "full"
) -> list[ExampleGroup]:
    """The feature page's examples: top, then the bands from the strongest to the weakest, then random firings."""
    scale = feature.max_activation
    groups = []
    for band in (TOP_BAND, *range(N_BANDS, 0, -1), RANDOM_BAND):
        members = [example for example in examples if example.band == band]
        if not members:
            continue
        title, note, term = _heading(feature, band)
        views = [example_view(e, scale=scale, signs=signs, has_bos=has_bos, width=width) for e in members]
        groups.append(ExampleGroup(key=f"band-{band}", title=title, note=note, term=term, examples=tuple(views)))
    return groups


def unfurled(feature: Feature, examples: Sequence[Example]) -> str:
    """A feature in a sentence or two, for where its link is pasted."""
    if feature.density == 0:
        return "A dead feature: it was active on no token of the corpus."
    peaks = [e.tokens[e.position].strip() for e in examples if e.band == TOP_BAND]
    tokens = ", ".join(f"“{token}”" for token in list(dict.fromkeys(filter(None, peaks)))[:5])
    sentence = f"Active on {percent(feature.density)} of tokens, at most {number(feature.max_activation)}."
    return sentence + (f" Strongest on {tokens}." if tokens else "")


def _heading(feature: Feature, band: int) -> tuple[str, str, str]:
    if band == TOP_BAND:
        return "Top examples", "the contexts on which it is strongest", "example"
    if band == RANDOM_BAND:
        return "Random firings", f"drawn from all {feature.n_active:,} tokens on which it is active", "random_firings"
    low, high = feature.band_edges[band - 1 : band + 1]
    share = feature.band_shares[band - 1] if len(feature.band_shares) == N_BANDS else None
    least, most = _edge(low), _edge(high) if high <= feature.max_activation else number(feature.max_activation)
    title = f"Below {most}" if band == 1 else f"{least} to {most}"
    return title, f"{percent(share)} of firings" if share is not None else "", "band"


def _edge(activation: float) -> str:
    """A band's edge, mostly a power of two, without zeros that say nothing."""
    shown = number(activation)
    return shown.rstrip("0").rstrip(".") if "." in shown else shown


def _bounds(example: Example, *, width: str) -> tuple[int, int]:
    """The window [start, end) of a width, without blank tokens at its ends."""
    before, after = WIDTHS[width]
    start, end = max(0, example.position - before), min(len(example.tokens), example.position + after + 1)
    if start > 0:
        while start < example.position and not example.tokens[start].strip():
            start += 1
    if end < len(example.tokens):
        while end > example.position + 1 and not example.tokens[end - 1].strip():
            end -= 1
    return start, end


def _cut(*, short: bool, medium: bool) -> str:
    return " ".join(name for name, is_cut in (("short", short), ("medium", medium)) if is_cut)


def _short_source(source: str) -> str:
    """The telling end of a source: the last two parts of a path."""
    parts = source.replace("\\", "/").rstrip("/").split("/")
    return "/".join(parts[-2:]) if len(parts) > 2 else source


@lru_cache(maxsize=1 << 14)
def _on_one_line(token: str) -> str:
    if not _BLANKS.search(token):
        return token
    return re.sub(r"[ \t]{2,}|\t", " ", re.sub(r"\r|(?<=\n)[ \t]+", "", token)).replace("\n", "↵")


_BLANKS = re.compile(r"[\r\n\t]|  ")
