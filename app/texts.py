"""Many texts at once: what a reader pasted becomes texts of set A and B, these rows of features, these a table.

pasted lines or JSONL ──> texts ── inference.stream(TextsJob) ──> activations of each text ──> TextsReport
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from starlette.concurrency import run_in_threadpool

from app.contrast import Contrast, contrasts
from app.deps import clean_text
from app.inference import Inference, TextsJob
from app.points import PointsCache
from app.probing import chosen_index
from sae_core.dashboards import check_has_weights
from sae_core.errors import PromptError
from sae_core.records import SAESummary, TextActivations
from sae_core.store import Store

MAX_TEXTS = 1000
SHOWN_FEATURES = 60  # rows of the table
EVIDENCE = 3  # texts shown for a feature
BEFORE, AFTER = 12, 8  # tokens of such a text around its peak

Order = Literal["effect", "texts", "strength"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Where a feature is strongest in a text: the tokens around its peak."""

    set_name: str  # A or B
    number: int  # of the text in its set, from 1
    value: float
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    peak: int  # which of these


@dataclass(frozen=True, slots=True, kw_only=True)
class TextsRow:
    """A feature in all texts: its largest activation in each, A's before B's. `contrast` is None without a set B."""

    feature_index: int
    label: str | None
    density: float | None
    corpus_max: float | None
    n_active: int
    max_activation: float
    values: tuple[float, ...]
    contrast: Contrast | None
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextsReport:
    """Features by texts. `n_features` counts all that are active anywhere, `rows` the first of them."""

    slug: str
    n_a: int
    n_b: int
    n_tokens: int
    n_features: int
    n_separating: int | None  # features with q below 0.05; None where that cannot be said
    order: Order
    rows: tuple[TextsRow, ...]


def read_texts(pasted: str, *, name: str) -> tuple[list[str], list[str]]:
    """The texts of what was pasted into field `name`: a line each, or as JSON lines {"text": …, "set": "A" or "B"}.

    The second list holds those that say that they belong to the other set.
    """
    own: list[str] = []
    other: list[str] = []
    for number, line in enumerate(clean_text(pasted).split("\n"), start=1):
        if not line.strip():
            continue
        text, said = line, name
        if line.lstrip().startswith("{"):
            text, said = _json_text(line, name=name, number=number)
        (own if said == name else other).append(text)
    return own, other


def _json_text(line: str, *, name: str, number: int) -> tuple[str, str]:
    try:
        found = json.loads(line)
    except ValueError:
        return line, name  # a text that begins with a brace
    if not isinstance(found, dict) or not isinstance(found.get("text"), str) or not found["text"].strip():
        raise PromptError(f'Line {number} of {name} is JSON without a "text"; write {{"text": "…"}} on each line.')
    said = str(found.get("set", name)).upper()
    if said not in ("A", "B"):
        raise PromptError(f'Line {number} of {name} has the set "{found["set"]}"; it is "A" or "B", or left out.')
    return clean_text(found["text"]), said


def sets_of(a: str, b: str) -> tuple[list[str], list[str]]:
    """The texts of both sets; PromptError where there are none or too many."""
    (own_a, from_a), (own_b, from_b) = read_texts(a, name="A"), read_texts(b, name="B")
    texts_a, texts_b = own_a + from_b, own_b + from_a
    if not texts_a:
        raise PromptError("There are no texts in A: paste some, one on each line.")
    n = len(texts_a) + len(texts_b)
    if n > MAX_TEXTS:
        raise PromptError(f"These are {n:,} texts, and at most {MAX_TEXTS:,} are taken; leave some out.")
    return texts_a, texts_b


async def texts_report(
    store: Store,
    inference: Inference,
    *,
    points: PointsCache,
    summary: SAESummary,
    texts_a: Sequence[str],
    texts_b: Sequence[str],
    order: Order = "effect",
    corpus: str | None = None,
    max_density: float | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> TextsReport:
    """Runs all texts; `progress` hears how many are done."""
    index = chosen_index(summary, corpus=corpus)
    check_has_weights(summary.sae)
    found: list[TextActivations] = []
    async for part in inference.stream(TextsJob(sae=summary.sae, texts=(*texts_a, *texts_b), n_first=len(texts_a))):
        found += part
        progress(len(found))

    def report() -> TextsReport:
        known = points.points(store, index) if index is not None else {}
        values = [
            {
                i: value
                for i, value in zip(text.feature_indexes, text.maxima, strict=True)
                if max_density is None or i not in known or known[i].density <= max_density
            }
            for text in found
        ]
        in_a, in_b = values[: len(texts_a)], values[len(texts_a) :]
        active = {i for text in values for i in text}
        contrast = {row.feature_index: row for row in contrasts(in_a, in_b)} if in_b else {}
        counts = {i: sum(i in text for text in values) for i in active}
        strongest = {i: max(text.get(i, 0.0) for text in values) for i in active}
        ranked = sorted(active, key=_key(order if in_b or order != "effect" else "texts", counts, strongest, contrast))
        shown = ranked[:SHOWN_FEATURES]
        labels = store.labels(summary.sae.slug, shown)
        tested = [row.q for row in contrast.values() if row.q is not None]
        return TextsReport(
            slug=summary.sae.slug,
            n_a=len(texts_a),
            n_b=len(texts_b),
            n_tokens=sum(len(text.tokens) for text in found),
            n_features=len(active),
            n_separating=sum(q < 0.05 for q in tested) if tested else None,
            order=order,
            rows=tuple(
                TextsRow(
                    feature_index=i,
                    label=labels[i].text if i in labels else None,
                    density=known[i].density if i in known else None,
                    corpus_max=known[i].max_activation if i in known else None,
                    n_active=counts[i],
                    max_activation=strongest[i],
                    values=tuple(text.get(i, 0.0) for text in values),
                    contrast=contrast.get(i),
                    evidence=_evidence(i, found, n_a=len(texts_a), contrast=contrast.get(i)),
                )
                for i in shown
            ),
        )

    return await run_in_threadpool(report)


def _key(
    order: Order, counts: dict[int, int], strongest: dict[int, float], contrast: dict[int, Contrast]
) -> Callable[[int], tuple[float, ...]]:
    match order:
        case "effect":
            places = {i: place for place, i in enumerate(contrast)}
            return lambda i: (places[i],)
        case "texts":
            return lambda i: (-counts[i], -strongest[i], i)
        case "strength":
            return lambda i: (-strongest[i], i)


def _evidence(
    feature_index: int, found: Sequence[TextActivations], *, n_a: int, contrast: Contrast | None
) -> tuple[Evidence, ...]:
    """The strongest texts, of the set that the feature speaks for where there are two."""
    in_b = contrast is not None and contrast.delta < 0
    numbered: Iterable[tuple[int, TextActivations]] = enumerate(found)
    if contrast is not None:
        numbered = [(at, text) for at, text in numbered if (at >= n_a) == in_b]
    ranked = [
        (text.maxima[place], at, text, text.positions[place])
        for at, text in numbered
        if feature_index in text.feature_indexes
        for place in [text.feature_indexes.index(feature_index)]
    ]
    ranked.sort(key=lambda one: (-one[0], one[1]))
    return tuple(
        Evidence(
            set_name="A" if at < n_a else "B",
            number=at + 1 if at < n_a else at - n_a + 1,
            value=value,
            tokens=text.tokens[(first := max(0, position - BEFORE)) : position + 1 + AFTER],
            token_ids=text.token_ids[first : position + 1 + AFTER],
            peak=position - first,
        )
        for value, at, text, position in ranked[:EVIDENCE]
    )
