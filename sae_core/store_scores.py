"""The scores of labels, and the sample of an index: what writes and reads them, a function of an open connection each.

Scores belong to the index whose texts they were measured on and go with it. A score's trials are compressed JSON, a
list for each trial: [context, first, origin, truth, answer, [marked…], [[position, activation]…], tokens], positions
from the trial's first token, and answers and truths as 1, 0 and null.
"""

import json
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from sae_core.explain.records import ORIGINS, LabelScore, PackedSample, ScoreRow, Trial
from sae_core.labels import KINDS
from sae_core.records import Vocabulary
from sae_core.schema import contexts, label_scores, samples
from sae_core.search_terms import clean_text
from sae_core.store_rows import token_texts, unpacked_token_ids

_IN_CHUNK = 1000
_PLAIN = tuple(
    name for name in LabelScore.__dataclass_fields__ if name not in ("trials", "created_at", "feature_index")
)

_some: sa.BindParameter[list[int]] = sa.bindparam("some", expanding=True)
_SCORES_OF = sa.select(label_scores).where(
    label_scores.c.index_id == sa.bindparam("index_id"), label_scores.c.feature_index.in_(_some)
)


def upsert_scores(connection: sa.Connection, new: Iterable[LabelScore], *, index_id: int) -> None:
    """Each takes the place of an older one of the same feature, kind of label and method."""
    for score in new:
        row = {name: getattr(score, name) for name in _PLAIN} | {
            "index_id": index_id,
            "feature_index": score.feature_index,
            "text": clean_text(score.text),
            "scorer": clean_text(score.scorer),
            "trials": _packed_trials(score.trials),
            "created_at": score.created_at,
        }
        same = [label_scores.c[key] == row[key] for key in ("index_id", "feature_index", "kind", "method")]
        connection.execute(sa.delete(label_scores).where(*same))
        connection.execute(sa.insert(label_scores).values(row))


def scores_of(
    connection: sa.Connection, index: sa.RowMapping, feature_indexes: Collection[int], *, vocabulary: Vocabulary
) -> list[LabelScore]:
    """The scores of these features, by feature, kind and method, with their trials as texts."""
    rows: list[sa.RowMapping] = []
    for some in _chunked(sorted(feature_indexes)):
        rows += connection.execute(_SCORES_OF, {"index_id": index["index_id"], "some": some}).mappings().all()
    rows.sort(key=lambda row: (row["feature_index"], KINDS.index(row["kind"]), row["method"]))
    unpacked = [json.loads(zlib.decompress(row["trials"])) for row in rows]
    token_ids = _token_ids(connection, index["corpus_id"], {trial[0] for trials in unpacked for trial in trials})
    return [
        LabelScore(
            **{name: row[name] for name in _PLAIN},
            feature_index=row["feature_index"],
            created_at=row["created_at"],
            trials=tuple(_trial(trial, token_ids, vocabulary=vocabulary) for trial in trials),
        )
        for row, trials in zip(rows, unpacked, strict=True)
    ]


def score_rows_of(connection: sa.Connection, index_id: int, *, kind: str, method: str) -> list[ScoreRow]:
    """The scores of an index for one kind of label and one method, by feature, without their trials."""
    c, names = label_scores.c, tuple(ScoreRow.__dataclass_fields__)
    query = sa.select(*(c[name] for name in names)).where(c.index_id == index_id, c.kind == kind, c.method == method)
    return [
        ScoreRow(**dict(zip(names, row, strict=True))) for row in connection.execute(query.order_by(c.feature_index))
    ]


def scored_texts(connection: sa.Connection, index_id: int) -> dict[tuple[int, str, str], tuple[str, str, str | None]]:
    """By feature, kind of label and method: the label as it was tested, who judged, and what they were asked."""
    c = label_scores.c
    query = sa.select(c.feature_index, c.kind, c.method, c.text, c.scorer, c.prompt_version)
    return {tuple(row[:3]): tuple(row[3:]) for row in connection.execute(query.where(c.index_id == index_id))}


def insert_sample(connection: sa.Connection, sample: PackedSample, *, index_id: int) -> None:
    row = {name: getattr(sample, name) for name in PackedSample.__dataclass_fields__}
    connection.execute(sa.insert(samples).values(row | {"index_id": index_id}))


def sample_of(
    connection: sa.Connection, index: sa.RowMapping
) -> tuple[PackedSample, Mapping[int, tuple[int, ...]]] | None:
    """The sample and the token ids of its contexts; None of an index made before revision 0008 of the database."""
    query = sa.select(samples).where(samples.c.index_id == index["index_id"])
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        return None
    sample = PackedSample(**{name: row[name] for name in PackedSample.__dataclass_fields__})
    return sample, _token_ids(connection, index["corpus_id"], set(unpacked_token_ids(sample.context_ids)))


def _token_ids(connection: sa.Connection, corpus_id: int, context_ids: Collection[int]) -> dict[int, tuple[int, ...]]:
    found: dict[int, tuple[int, ...]] = {}
    for some in _chunked(sorted(context_ids)):
        query = sa.select(contexts.c.context_id, contexts.c.token_ids).where(
            contexts.c.corpus_id == corpus_id, contexts.c.context_id.in_(some)
        )
        found.update((row.context_id, unpacked_token_ids(row.token_ids)) for row in connection.execute(query))
    return found


def _packed_trials(trials: Sequence[Trial]) -> bytes:
    rows = [
        [
            trial.context_id,
            trial.first,
            ORIGINS.index(trial.origin),
            int(trial.truth),
            None if trial.answer is None else int(trial.answer),
            list(trial.marked),
            [[at, round(value, 4)] for at, value in enumerate(trial.activations) if value],
            len(trial.tokens),
        ]
        for trial in trials
    ]
    return zlib.compress(json.dumps(rows, separators=(",", ":")).encode(), 6)


def _trial(row: list[Any], known: Mapping[int, tuple[int, ...]], *, vocabulary: Vocabulary) -> Trial:
    context_id, first, origin, truth, answer, marked, active, n_tokens = row
    token_ids = known[context_id]
    texts = token_texts(token_ids, vocabulary=vocabulary)
    activations = [0.0] * n_tokens
    for at, value in active:
        activations[at] = value
    return Trial(
        context_id=context_id,
        first=first,
        tokens=tuple(texts[first : first + n_tokens]),
        token_ids=token_ids[first : first + n_tokens],
        activations=tuple(activations),
        origin=ORIGINS[origin],
        truth=bool(truth),
        marked=tuple(marked),
        answer=None if answer is None else bool(answer),
    )


def _chunked(numbers: Sequence[int]) -> list[Sequence[int]]:
    return [numbers[start : start + _IN_CHUNK] for start in range(0, len(numbers), _IN_CHUNK)]
