"""Does the database still hold what was written? Checksums of examples, contexts and weights, and what points at what.

The checksums are taken when an index is stored (`store_writes`): over the packed examples of all features, by feature,
and over the number and tokens of every context that an example points at, by number. `Store.check` takes them again.
"""

import struct
from collections.abc import Iterable
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError

from sae_core.digests import Digest, file_sha256
from sae_core.schema import FEATURE_SEARCH, contexts, corpora, examples, features, indexes, saes
from sae_core.store_rows import unpacked_examples, wide_token_ids

WEIGHTS_FILE = "sae.safetensors"
_CONTEXTS_PER_QUERY = 1000


def weights_digest(weights_path: str) -> str | None:
    """SHA-256 of an SAE's weights; None if there are none."""
    path = Path(weights_path) / WEIGHTS_FILE
    return file_sha256(path) if weights_path and path.is_file() else None


def problems(connection: sa.Connection) -> list[str]:
    """What is wrong with the database, a sentence each; empty if nothing is."""
    found = []
    if connection.dialect.name == "sqlite":
        for (said,) in connection.exec_driver_sql("PRAGMA integrity_check"):
            if said != "ok":
                found.append(f"The file is damaged ({said}); restore a copy of it.")
        if list(connection.exec_driver_sql("PRAGMA foreign_key_check")):
            found.append("Rows point at rows that are not there; restore a copy of the file.")
        try:
            connection.exec_driver_sql(f"INSERT INTO {FEATURE_SEARCH}({FEATURE_SEARCH}) VALUES ('integrity-check')")
        except DatabaseError:
            found.append("Searches do not find what is stored; index the SAEs again, or restore a copy of the file.")
    for sae in connection.execute(sa.select(saes).order_by(saes.c.slug)).mappings():
        found += _weights_problems(sae)
    joined = indexes.join(corpora).join(saes)
    columns = (indexes, corpora.c.name, saes.c.slug, saes.c.d_sae)
    for index in connection.execute(sa.select(*columns).select_from(joined)).mappings().all():
        found += _index_problems(connection, index)
    return found


def _weights_problems(sae: sa.RowMapping) -> list[str]:
    if not sae["weights_path"]:
        return []
    now = weights_digest(sae["weights_path"])
    if now is None:
        return [f"The weights of the SAE {sae['slug']} are not in {sae['weights_path']}; put them back to probe it."]
    if sae["weights_sha256"] not in (None, now):
        return [
            f"The weights of the SAE {sae['slug']} have changed since they were entered; index it again, "
            "or put the old ones back."
        ]
    return []


def _index_problems(connection: sa.Connection, index: sa.RowMapping) -> list[str]:
    which = f"the index of {index['slug']} on {index['name']}"
    remedy = f"run `saescope index {index['slug']} --corpus …` again."
    found = []
    n_features = connection.scalar(
        sa.select(sa.func.count()).select_from(features).where(features.c.index_id == index["index_id"])
    )
    if n_features != index["d_sae"]:
        found.append(f"{n_features:,} of {index['d_sae']:,} features are in {which}; {remedy}")
    pointed_at: set[int] = set()
    of_examples = Digest()
    rows = connection.execution_options(yield_per=1000).execute(
        sa.select(examples.c.feature_index, examples.c.packed)
        .where(examples.c.index_id == index["index_id"])
        .order_by(examples.c.feature_index)
    )
    for feature_index, packed in rows:
        of_examples.add(feature_index, packed)
        try:
            pointed_at.update(example.context_id for example in unpacked_examples(feature_index, packed))
        except (struct.error, LookupError):
            found.append(f"The examples of feature {feature_index} in {which} cannot be read; {remedy}")
    if index["examples_sha256"] not in (None, of_examples.hex):
        found.append(f"Examples in {which} are not as they were written; {remedy}")
    there, of_contexts = _contexts_digest(connection, index["corpus_id"], sorted(pointed_at))
    if there < len(pointed_at):
        found.append(f"{len(pointed_at) - there:,} contexts that examples in {which} point at are missing; {remedy}")
    elif index["contexts_sha256"] not in (None, of_contexts):
        found.append(f"Contexts of {which} are not as they were written; {remedy}")
    return found


def _contexts_digest(connection: sa.Connection, corpus_id: int, numbers: list[int]) -> tuple[int, str]:
    """How many of these contexts there are, and their checksum."""
    digest, n_found = Digest(), 0
    for start in range(0, len(numbers), _CONTEXTS_PER_QUERY):
        some = numbers[start : start + _CONTEXTS_PER_QUERY]
        wanted = (contexts.c.corpus_id == corpus_id, contexts.c.context_id.in_(some))
        query = sa.select(contexts.c.context_id, contexts.c.token_ids).where(*wanted).order_by(contexts.c.context_id)
        for number, token_ids in connection.execute(query):
            digest.add(number, wide_token_ids(token_ids))
            n_found += 1
    return n_found, digest.hex


def contexts_sha256(token_ids: Iterable[tuple[int, bytes]]) -> str:
    """The checksum of contexts, by number."""
    digest = Digest()
    for number, content in token_ids:
        digest.add(number, content)
    return digest.hex
